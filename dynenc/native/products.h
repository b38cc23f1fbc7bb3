/* The hot loops of the integer decoder, for one instruction set. Included once for each, with these
 * defined:
 *
 * PATH(name)          the name of a function for this instruction set
 * TARGET              the attribute that allows its instructions
 * LANES               32-bit lanes of a vector: 4, 8 or 16
 * LARGE, SMALL        pixels of a tile
 * VEC, SHORTS         LANES int32; 2 * LANES int16
 * STEP                inputs of a pixel that are multiplied together: 4, 8 or 16
 * WEIGHTS             those of 2 * LANES outputs
 * load_sums(p)        VEC
 * load_weights(p)     WEIGHTS from p and 64 bytes after p, and those 128 bytes after both
 * dot(a, b, x, w)     add the products of the inputs x[STEP] to two VEC
 * BIAS                which of the two biases `dot` needs
 * add_pairs(a, x, p)  VEC a, to which the products of the two int16 in x and those of each lane,
 *                     int16 [LANES, 2] from p, are added
 * pack(a, b, shift)   two VEC, shifted to the right and saturated, as SHORTS
 * load(p), store(p, v)      SHORTS
 * splat(x)            SHORTS of one int16
 * scaled(a, b)        (a * b + 2^14) >> 15 in each lane, b != -32768
 * add(a, b)           saturated
 * low(a, b), high(a, b)     the smaller and the larger in each lane
 * right(a, shift)     arithmetic shift
 * store_bytes(p, v)   saturated to 8 bits, plus 128
 * store_pixels(p, v)  saturated to 0..255
 */

/* t of a tile and 32 outputs: int16 [PIXELS, 32]. The sums have names, so that they stay in
 * registers. */
#define BEGIN(i) VEC a##i = load_sums(bias + part), b##i = load_sums(bias + 16 + part);
#define STEP_AT(i) dot(a##i, b##i, x + (i) * channels, w)
#define END(i) store(t + GROUP * (i) + 2 * part, pack(a##i, b##i, call->product->shift));
#define SUMS(PIXELS, CHANNELS)                                                                      \
    TARGET static void PATH(sums_##PIXELS##_##CHANNELS)(                                            \
        const ProductCall *call, int32_t start, const int8_t *weights, const int32_t *bias,         \
        int16_t *t) {                                                                               \
        enum { channels = CHANNELS };                                                               \
        for (int32_t part = 0; part < 16; part += LANES) {                                          \
            const int8_t *at = weights + 4 * part;                                                  \
            EACH_OF_##PIXELS(BEGIN);                                                                \
            const uint8_t *const *tap = call->taps, *const *last = tap + call->product->taps;       \
            do {                                                                                    \
                const uint8_t *x = *tap++ + (int64_t)start * channels;                              \
                const uint8_t *end = x + channels;                                                  \
                do {                                                                                \
                    const WEIGHTS w = load_weights(at);                                             \
                    EACH_OF_##PIXELS(STEP_AT);                                                      \
                    x += STEP;                                                                      \
                    at += 32 * STEP;                                                                \
                } while (x < end);                                                                  \
            } while (tap < last);                                                                   \
            EACH_OF_##PIXELS(END);                                                                  \
        }                                                                                           \
    }
#define SUMS_OF(PIXELS, CHANNELS) SUMS(PIXELS, CHANNELS)
SUMS_OF(LARGE, 32)
SUMS_OF(LARGE, 64)
SUMS_OF(LARGE, 128)
SUMS_OF(LARGE, 256)
#if SMALL != LARGE
SUMS_OF(SMALL, 32)
SUMS_OF(SMALL, 64)
SUMS_OF(SMALL, 128)
SUMS_OF(SMALL, 256)
#endif
#undef SUMS_OF
#undef SUMS
#undef BEGIN
#undef STEP_AT
#undef END

#define SUMS_NAME(PIXELS, CHANNELS) PATH(sums_##PIXELS##_##CHANNELS)
#define SUMS_CALL(PIXELS, CHANNELS) SUMS_NAME(PIXELS, CHANNELS)

/* t of a tile for one group of outputs. */
TARGET static void PATH(tile)(const ProductCall *call, int32_t start, int32_t pixels, int32_t group,
                              int16_t *t) {
    const Product *product = call->product;
    const int8_t *weights = PART(call->decoder, int8_t, product->weights_at);
    const int32_t *bias = PART(call->decoder, int32_t, product->bias_at);
    weights += (int64_t)group * GROUP * product->taps * product->channels;
    bias += 2 * GROUP * group + GROUP * BIAS;
    if (product->channels == 32)
        (pixels == LARGE ? SUMS_CALL(LARGE, 32) : SUMS_CALL(SMALL, 32))(call, start, weights, bias, t);
    else if (product->channels == 64)
        (pixels == LARGE ? SUMS_CALL(LARGE, 64) : SUMS_CALL(SMALL, 64))(call, start, weights, bias, t);
    else if (product->channels == 128)
        (pixels == LARGE ? SUMS_CALL(LARGE, 128) : SUMS_CALL(SMALL, 128))(call, start, weights, bias,
                                                                          t);
    else
        (pixels == LARGE ? SUMS_CALL(LARGE, 256) : SUMS_CALL(SMALL, 256))(call, start, weights, bias,
                                                                          t);
}

/* What becomes of t of a tile; `output` is the first of the group. */
TARGET static void PATH(use)(const ProductCall *call, int32_t start, int32_t pixels, int32_t output,
                             const int16_t *t, const int16_t *gates) {
    const int16_t *multiplier =
        PART(call->decoder, int16_t, call->product->multiplier_at) + call->first_output + output;
    for (int32_t lane = 0; lane < GROUP; lane += 2 * LANES) {
        const SHORTS factor = load(multiplier + lane);
        SHORTS most = factor, gate_factor = factor;
        if (call->use == TO_GATED) {
            most = load(call->limit + output + lane);
            gate_factor = load(multiplier + lane - call->outputs);
        }
        const int64_t at = (int64_t)start * call->outputs + output + lane;
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            const SHORTS y = scaled(load(t + GROUP * pixel + lane), factor);
            const int64_t place = at + (int64_t)pixel * call->outputs;
            if (call->use == TO_ACTIVATIONS) {
                store_bytes((uint8_t *)call->to + place, y);
            } else if (call->use == TO_GATED) {
                const SHORTS gate = scaled(load(gates + GROUP * pixel + lane), gate_factor);
                const SHORTS value = high(low(y, most), negative(most));
                store_bytes((uint8_t *)call->to + place,
                            scaled(value, high(low(gate, most), splat(0))));
            } else if (call->use == TO_SUM) {
                store((int16_t *)call->to + place, add(load(call->residual + place), y));
            } else if (call->use == TO_RESIDUAL) {
                store((int16_t *)call->to + place, y);
            } else {
                uint8_t bytes[2 * LANES];
                store_pixels(bytes, y);
                for (int32_t i = 0; lane + i < 12 && i < 2 * LANES; i++)
                    ((uint8_t *)call->to)[12 * (int64_t)(start + pixel) + lane + i] = bytes[i];
            }
        }
    }
}

/* A product at all pixels of a row. */
TARGET static void PATH(multiply)(const ProductCall *call) {
    int16_t t[MAX_TILE * GROUP], gates[MAX_TILE * GROUP];
    const int32_t shift = call->use == TO_GATED ? call->outputs / GROUP : 0;
    for (int32_t output = 0; output < call->outputs; output += GROUP) {
        const int32_t group = (call->first_output + output) / GROUP;
        int32_t start = 0;
        for (int32_t tile = 0; tile < call->large + call->small; tile++) {
            const int32_t pixels = tile < call->large ? LARGE : SMALL;
            if (shift)
                PATH(tile)(call, start, pixels, group - shift, gates);
            PATH(tile)(call, start, pixels, group, t);
            PATH(use)(call, start, pixels, output, t, gates);
            start += pixels;
        }
    }
}

/* Activations + 128 of some pixels. */
TARGET static void PATH(activate)(const PixelDecoder *decoder, const Input *input, int32_t channels,
                                  int32_t pixels, const int16_t *residual, uint8_t *to) {
    const int16_t *scale = PART(decoder, int16_t, input->scale_at);
    const int16_t *offset = PART(decoder, int16_t, input->offset_at);
    for (int32_t channel = 0; channel < channels; channel += 2 * LANES) {
        const SHORTS factor = load(scale + channel), term = load(offset + channel);
        for (int32_t pixel = 0; pixel < pixels; pixel++) {
            const int64_t place = (int64_t)pixel * channels + channel;
            const SHORTS sum = add(scaled(load(residual + place), factor), term);
            store_bytes(to + place, right(sum, input->shift));
        }
    }
}

/* The first convolution, with the biases of a step: of latents [pixels, channels] by tap to residuals. */
TARGET static void PATH(first)(const PixelDecoder *decoder, const int32_t *bias, int32_t pixels,
                               const int16_t *const taps[MAX_TAPS], int16_t *to) {
    const Product *product = &decoder->first;
    const int16_t *weights = PART(decoder, int16_t, product->weights_at);
    const int16_t *multiplier = PART(decoder, int16_t, product->multiplier_at);
    const int32_t channels = product->channels;
    for (int32_t pixel = 0; pixel < pixels; pixel++) {
        for (int32_t first = 0; first < product->outputs; first += GROUP) {
            for (int32_t part = 0; part < 16; part += LANES) {
                const int16_t *at = weights + first * MAX_TAPS * channels + 2 * part;
                VEC a = load_sums(bias + first + part), b = load_sums(bias + first + part + 16);
                for (int32_t tap = 0; tap < MAX_TAPS; tap++) {
                    const int16_t *x = taps[tap] + channels * pixel;
                    for (const int16_t *end = x + channels; x < end; x += 2, at += 2 * GROUP) {
                        const int32_t pair = four(x);
                        a = add_pairs(a, pair, at);
                        b = add_pairs(b, pair, at + 2 * 16);
                    }
                }
                const SHORTS t = pack(a, b, product->shift);
                store(to + (int64_t)pixel * product->outputs + first + 2 * part,
                      scaled(t, load(multiplier + first + 2 * part)));
            }
        }
    }
}

#undef SUMS_NAME
#undef SUMS_CALL
#undef PATH
#undef TARGET
#undef LANES
#undef LARGE
#undef SMALL
#undef VEC
#undef SHORTS
#undef BIAS
#undef STEP
#undef WEIGHTS
#undef load_weights
#undef dot
#undef load_sums
#undef add_pairs
#undef pack
#undef load
#undef store
#undef splat
#undef scaled
#undef add
#undef low
#undef high
#undef negative
#undef right
#undef store_bytes
#undef store_pixels
