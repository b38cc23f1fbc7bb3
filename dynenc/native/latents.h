/* The hot loops of encoders; paths.h tells what is defined here. POSITIONS patches of a row, or fewer
 * at its end, are a tile; buffers have room for whole tiles.
 *
 * Floats: no operation is fused or moved, so that every instruction set gives the same. */

/* Write sums [2 * ROWS / vectors][padded] of one register block: the products of `runs` runs of inputs
 * with weights[..][padded][2]. `step` is the operand's. */
TARGET static ALWAYS_INLINE void PATH(dot_block)(const int vectors, const int step,
                                                 const Operand *operand, int position,
                                                 const int16_t *weights, int padded, int32_t *out) {
    const int positions = 2 * ROWS / vectors;
    VEC sums[2 * ROWS];
    UNROLL for (int i = 0; i < 2 * ROWS; i++)
        sums[i] = splat(0);
    for (int run = 0; run < operand->runs; run++) {
        const int16_t *x = operand->starts[run] + position * step;
        for (int pair = 0; pair < operand->pairs; pair++, x += 2, weights += 2 * padded) {
            PAIRS weight[2];
            weight[0] = load_pairs(weights);
            weight[1] = vectors == 2 ? load_pairs(weights + 2 * LANES) : weight[0];
            UNROLL for (int i = 0; i < positions; i++) {
                const int32_t inputs = pair_of(x + i * step);
                const WEIGHTS input = load_weights(&inputs);
                UNROLL for (int j = 0; j < vectors; j++)
                    sums[i * vectors + j] = multiply_add(sums[i * vectors + j], weight[j], input);
            }
        }
    }
    UNROLL for (int i = 0; i < positions; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store(out + i * padded + j * LANES, sums[i * vectors + j]);
}

/* The sums of a layer at `count` positions, rounded up to ROWS or 2 * ROWS: int32 [count, padded]. */
TARGET static ALWAYS_INLINE void PATH(dot_all)(const Encoder *encoder, const Layer *layer,
                                               const int step, const Operand *operand, int count,
                                               int32_t *sums) {
    const int16_t *weights = at(encoder, layer->weights_at);
    const int vectors = (layer->outputs + LANES - 1) / LANES, padded = layer->padded;
    int first = 0;
    for (; first + 2 <= vectors; first += 2)
        for (int position = 0; position < count; position += ROWS)
            PATH(dot_block)(2, step, operand, position, weights + 2 * LANES * first, padded,
                            sums + position * padded + LANES * first);
    if (first < vectors)
        for (int position = 0; position < count; position += 2 * ROWS)
            PATH(dot_block)(1, step, operand, position, weights + 2 * LANES * first, padded,
                            sums + position * padded + LANES * first);
}

/* The same, compiled for the narrowest features by itself, so that no register holds their places. */
TARGET static void PATH(dot)(const Encoder *encoder, const Layer *layer, const Operand *operand,
                             int count, int32_t *sums) {
    if (operand->step == GROUP)
        PATH(dot_all)(encoder, layer, GROUP, operand, count, sums);
    else
        PATH(dot_all)(encoder, layer, operand->step, operand, count, sums);
}

#if defined(multiply_add_bytes)
/* As dot_block, of pixels: `rows` are 8 rows of bytes from the tile's first patch on. */
TARGET static ALWAYS_INLINE void PATH(byte_block)(const int vectors, const uint8_t *const *rows,
                                                  int position, const int8_t *weights, int padded,
                                                  int32_t *out) {
    const int positions = 2 * ROWS / vectors;
    VEC sums[2 * ROWS];
    UNROLL for (int i = 0; i < 2 * ROWS; i++)
        sums[i] = splat(0);
    for (int row = 0; row < PATCH; row++) {
        const uint8_t *x = rows[row] + position * PATCH_ROW;
        for (int four = 0; four < PATCH_ROW / 4; four++, x += 4, weights += 4 * padded) {
            VEC weight[2];
            weight[0] = load(weights);
            weight[1] = vectors == 2 ? load(weights + 4 * LANES) : weight[0];
            UNROLL for (int i = 0; i < positions; i++) {
                int32_t inputs;
                memcpy(&inputs, x + i * PATCH_ROW, 4);
                const VEC input = splat(inputs);
                UNROLL for (int j = 0; j < vectors; j++)
                    sums[i * vectors + j] =
                        multiply_add_bytes(sums[i * vectors + j], input, weight[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < positions; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store(out + i * padded + j * LANES, sums[i * vectors + j]);
}
#endif

/* The sums of the stem at a tile: int32 [count, padded], as `dot`. */
TARGET static void PATH(dot_stem)(const Encoder *encoder, const uint8_t *const *rows, int count,
                                  int32_t *sums) {
#if defined(multiply_add_bytes)
    const int8_t *weights = at(encoder, encoder->bytes_at);
    const int vectors = (encoder->stem.outputs + LANES - 1) / LANES, padded = encoder->stem.padded;
    int first = 0;
    for (; first + 2 <= vectors; first += 2)
        for (int position = 0; position < count; position += ROWS)
            PATH(byte_block)(2, rows, position, weights + 4 * LANES * first, padded,
                             sums + position * padded + LANES * first);
    if (first < vectors)
        for (int position = 0; position < count; position += 2 * ROWS)
            PATH(byte_block)(1, rows, position, weights + 4 * LANES * first, padded,
                             sums + position * padded + LANES * first);
#else
    int16_t wide[PATCH][POSITIONS * PATCH_ROW];
    Operand operand = {.step = PATCH_ROW, .runs = PATCH, .pairs = PATCH_ROW / 2};
    for (int row = 0; row < PATCH; row++) {
        operand.starts[row] = wide[row];
        for (int i = 0; i < POSITIONS * PATCH_ROW; i++)
            wide[row][i] = rows[row][i];
    }
    PATH(dot)(encoder, &encoder->stem, &operand, count, sums);
#endif
}

/* LANES numbers. Sums over channels are made in the same order whatever LANES is. */
typedef float PATH(Floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t PATH(Integers) __attribute__((vector_size(4 * LANES)));
typedef int16_t PATH(Shorts) __attribute__((vector_size(2 * LANES)));
#define FLOATS PATH(Floats)
#define INTEGERS PATH(Integers)

TARGET static ALWAYS_INLINE FLOATS PATH(load_floats)(const float *x) {
    FLOATS loaded;
    memcpy(&loaded, x, sizeof loaded);
    return loaded;
}

/* Sums -> outputs of a layer from `first` on; `unit`: what 1 of the inputs was. */
TARGET static ALWAYS_INLINE FLOATS PATH(finished)(const Encoder *encoder, const Layer *layer,
                                                  int first, const int32_t *sums, float unit) {
    const float *scales = at(encoder, layer->scales_at), *biases = at(encoder, layer->biases_at);
    INTEGERS sum;
    memcpy(&sum, sums + first, sizeof sum);
    return __builtin_convertvector(sum, FLOATS) * (PATH(load_floats)(scales + first) * unit) +
           PATH(load_floats)(biases + first);
}

/* Of a gated layer, outputs from `first` on where they are positive, times those `width` further on. */
TARGET static ALWAYS_INLINE FLOATS PATH(finished_gated)(const Encoder *encoder, const Layer *layer,
                                                        int first, int width, const int32_t *sums,
                                                        float unit) {
    const FLOATS gate = PATH(finished)(encoder, layer, first, sums, unit);
    return (FLOATS)((INTEGERS)gate & (gate > 0.0f)) *
           PATH(finished)(encoder, layer, width + first, sums, unit);
}

/* Sum of the GROUP numbers of x[GROUP / LANES]: halves are added to halves. */
TARGET static ALWAYS_INLINE float PATH(sum)(const FLOATS *x) {
    FourFloats parts[GROUP / 4];
    memcpy(parts, x, sizeof parts);
    const FourFloats four = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* The bits of the largest magnitude of x[width]. */
TARGET static ALWAYS_INLINE int32_t PATH(largest)(const float *x, int width) {
    INTEGERS most = {0}; /* bits of floats >= 0, which are ordered as their bits are */
    for (int i = 0; i < width; i += LANES) {
        const INTEGERS bits = (INTEGERS)PATH(load_floats)(x + i) & 0x7fffffff, more = bits > most;
        most = (bits & more) | (most & ~more);
    }
#if defined(largest_lane)
    return largest_lane((VEC)most);
#else
    int32_t lanes[LANES];
    memcpy(lanes, &most, sizeof lanes);
    FourIntegers four, other;
    memcpy(&four, lanes, sizeof four);
    for (int i = 4; i < LANES; i += 4) {
        memcpy(&other, lanes + i, sizeof other);
        const FourIntegers more = other > four;
        four = (other & more) | (four & ~more);
    }
    const int32_t first = four[0] > four[1] ? four[0] : four[1];
    const int32_t second = four[2] > four[3] ? four[2] : four[3];
    return first > second ? first : second;
#endif
}

/* Round to integers within int16. */
TARGET static ALWAYS_INLINE void PATH(put_integers)(int16_t *integers, FLOATS x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds, ties to even */
    const INTEGERS whole = __builtin_convertvector((x + magic) - magic, INTEGERS);
    const PATH(Shorts) result = __builtin_convertvector(whole, PATH(Shorts));
    memcpy(integers, &result, sizeof result);
}

/* Features float [count, width] to integers of which the largest of a position is MAX_UNIT; units[0..16)
 * is what 1 of them was. */
TARGET static ALWAYS_INLINE void PATH(to_integers)(const float *features, int count, const int width,
                                                   int16_t *integers, float *units) {
    float factors[POSITIONS];
    int32_t bits[POSITIONS] = {0};
    for (int position = 0; position < count; position++)
        bits[position] = PATH(largest)(features + position * width, width);
    memcpy(units, bits, sizeof bits);
    for (int position = 0; position < POSITIONS; position++) {
        const float largest = units[position] > LEAST ? units[position] : LEAST;
        factors[position] = (float)MAX_UNIT / largest;
        units[position] = largest / (float)MAX_UNIT;
    }
    for (int position = 0; position < count; position++)
        for (int i = position * width; i < (position + 1) * width; i += LANES)
            PATH(put_integers)(integers + i, PATH(load_floats)(features + i) * factors[position]);
}

/* Normalise features float [count, width] to mean 0 and variance 1: int16, in 1 / encoder->one. */
TARGET static ALWAYS_INLINE void PATH(normalise_tile)(const Encoder *encoder, const float *features,
                                                      int count, const int width,
                                                      int16_t *normalised) {
    float means[POSITIONS] = {0}, factors[POSITIONS] = {0};
    for (int position = 0; position < count; position++) {
        FLOATS sums[GROUP / LANES] = {{0}};
        for (int i = 0; i < width; i += LANES)
            sums[i / LANES % (GROUP / LANES)] += PATH(load_floats)(features + position * width + i);
        means[position] = PATH(sum)(sums);
    }
    for (int position = 0; position < POSITIONS; position++)
        means[position] /= (float)width;
    for (int position = 0; position < count; position++) {
        FLOATS sums[GROUP / LANES] = {{0}};
        for (int i = 0; i < width; i += LANES) {
            const FLOATS x = PATH(load_floats)(features + position * width + i) - means[position];
            sums[i / LANES % (GROUP / LANES)] += x * x;
        }
        factors[position] = PATH(sum)(sums);
    }
    for (int position = 0; position < POSITIONS; position++)
        factors[position] =
            encoder->one / sqrtf(factors[position] / (float)width + NORM_EPSILON);
    for (int position = 0; position < count; position++)
        for (int i = position * width; i < (position + 1) * width; i += LANES)
            PATH(put_integers)(normalised + i, (PATH(load_floats)(features + i) - means[position]) *
                                                   factors[position]);
}

/* A tile of the stem: features float [count, width] and the linear map float [count, MAX_CHANNELS]. */
TARGET static ALWAYS_INLINE void PATH(stem_tile)(const Encoder *encoder, const uint8_t *const *rows,
                                                 int count, const int width, Scratch *scratch,
                                                 float *features, float *linear) {
    const Layer *stem = &encoder->stem;
    PATH(dot_stem)(encoder, rows, count, scratch->sums);
    for (int position = 0; position < count; position++) {
        const int32_t *sums = scratch->sums + position * stem->padded;
        for (int i = 0; i < width; i += LANES) {
            const FLOATS outputs = PATH(finished_gated)(encoder, stem, i, width, sums, 1.0f);
            memcpy(features + position * width + i, &outputs, sizeof outputs);
        }
        for (int i = 0; i < encoder->channels; i += LANES) {
            const FLOATS outputs = PATH(finished)(encoder, stem, 2 * width + i, sums, 1.0f);
            memcpy(linear + position * MAX_CHANNELS + i, &outputs, sizeof outputs);
        }
    }
}

/* A tile of a block. `rows`: three rows of normalised features, from one position before the tile on;
 * what the block makes is added to the features float [count, width]. */
TARGET static ALWAYS_INLINE void PATH(block_tile)(const Encoder *encoder, const Block *block,
                                                  const int16_t *const *rows, int count,
                                                  const int width, Scratch *scratch,
                                                  float *features) {
    float units[POSITIONS], *floats = scratch->floats;
    int32_t *sums = scratch->sums;
    Operand operand = {.step = width, .runs = 3, .pairs = 3 * width / 2};
    memcpy(operand.starts, rows, 3 * sizeof *rows);
    PATH(dot)(encoder, &block->spatial, &operand, count, sums);
    for (int position = 0; position < count; position++)
        for (int i = 0; i < width; i += LANES) {
            const FLOATS outputs =
                PATH(finished)(encoder, &block->spatial, i, sums + position * width, 1.0f);
            memcpy(floats + position * width + i, &outputs, sizeof outputs);
        }
    PATH(to_integers)(floats, count, width, scratch->integers, units);
    operand = (Operand){{scratch->integers}, width, 1, width / 2};
    PATH(dot)(encoder, &block->gate, &operand, count, sums);
    for (int position = 0; position < count; position++)
        for (int i = 0; i < width; i += LANES) {
            const FLOATS outputs =
                PATH(finished_gated)(encoder, &block->gate, i, width, sums + position * 2 * width,
                                     units[position]);
            memcpy(floats + position * width + i, &outputs, sizeof outputs);
        }
    PATH(to_integers)(floats, count, width, scratch->integers, units);
    PATH(dot)(encoder, &block->mix, &operand, count, sums);
    for (int position = 0; position < count; position++)
        for (int i = 0; i < width; i += LANES) {
            float *feature = features + position * width + i;
            const FLOATS outputs =
                PATH(load_floats)(feature) + PATH(finished)(encoder, &block->mix, i,
                                                            sums + position * width,
                                                            units[position]);
            memcpy(feature, &outputs, sizeof outputs);
        }
}

/* A tile of the head: the latents of features float [count, width] and of the linear map, to a row of
 * each channel, which are `apart` from each other. */
TARGET static ALWAYS_INLINE void PATH(head_tile)(const Encoder *encoder, const float *features,
                                                 const float *linear, int count, const int width,
                                                 Scratch *scratch, float *latents, int64_t apart) {
    float units[POSITIONS];
    PATH(to_integers)(features, count, width, scratch->integers, units);
    const Operand operand = {{scratch->integers}, width, 1, width / 2};
    PATH(dot)(encoder, &encoder->head, &operand, count, scratch->sums);
    for (int position = 0; position < count; position++) {
        const int32_t *sums = scratch->sums + position * encoder->head.padded;
        for (int i = 0; i < encoder->channels; i += LANES) {
            const FLOATS outputs =
                PATH(load_floats)(linear + position * MAX_CHANNELS + i) +
                PATH(finished)(encoder, &encoder->head, i, sums, units[position]);
            for (int lane = 0; lane < LANES && i + lane < encoder->channels; lane++)
                latents[(i + lane) * apart + position] = outputs[lane];
        }
    }
}

/* The tiles, compiled for the narrowest features by themselves. */
TARGET static void PATH(run_stem)(const Encoder *encoder, const uint8_t *const *rows, int count,
                                  Scratch *scratch, float *features, float *linear) {
    if (encoder->width == GROUP)
        PATH(stem_tile)(encoder, rows, count, GROUP, scratch, features, linear);
    else
        PATH(stem_tile)(encoder, rows, count, encoder->width, scratch, features, linear);
}

TARGET static void PATH(normalise)(const Encoder *encoder, const float *features, int count,
                                   int16_t *normalised) {
    if (encoder->width == GROUP)
        PATH(normalise_tile)(encoder, features, count, GROUP, normalised);
    else
        PATH(normalise_tile)(encoder, features, count, encoder->width, normalised);
}

TARGET static void PATH(run_block)(const Encoder *encoder, const Block *block,
                                   const int16_t *const *rows, int count, Scratch *scratch,
                                   float *features) {
    if (encoder->width == GROUP)
        PATH(block_tile)(encoder, block, rows, count, GROUP, scratch, features);
    else
        PATH(block_tile)(encoder, block, rows, count, encoder->width, scratch, features);
}

TARGET static void PATH(run_head)(const Encoder *encoder, const float *features,
                                  const float *linear, int count, Scratch *scratch, float *latents,
                                  int64_t apart) {
    if (encoder->width == GROUP)
        PATH(head_tile)(encoder, features, linear, count, GROUP, scratch, latents, apart);
    else
        PATH(head_tile)(encoder, features, linear, count, encoder->width, scratch, latents, apart);
}
#undef FLOATS
#undef INTEGERS
