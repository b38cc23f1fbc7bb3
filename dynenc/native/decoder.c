/* The tables of the integer decoder: checked, and in the order in which the products read them. */
#include "pixels.h"

enum { MAX_SHIFT = 24, STAGES_OF_SIZE = 3 };

/* Where the tensors are read, and where the decoder goes. */
typedef struct {
    const int32_t *numbers, *numbers_end;
    const int8_t *weights, *weights_end;
    PixelDecoder *decoder;
    int32_t fill; /* 0: the sizes alone are wanted */
    int64_t error;
} Reading;

static void *take_memory(Reading *r, int64_t bytes, int64_t *at) {
    *at = (int64_t)r->decoder->size;
    r->decoder->size += (uint64_t)aligned(bytes);
    return r->fill ? (char *)r->decoder + *at : NULL;
}

/* The next numbers, or zeros if there are too few. */
static const int32_t *take(Reading *r, int64_t count) {
    static const int32_t none[3 * MAX_WIDTH * 4];
    if (r->numbers_end - r->numbers < count) {
        r->error = DYNENC_BAD_SHAPE;
        return none;
    }
    r->numbers += count;
    return r->numbers - count;
}

static int32_t take_shift(Reading *r) {
    const int32_t shift = *take(r, 1);
    if (shift < 0 || shift > MAX_SHIFT)
        r->error = DYNENC_INEXACT;
    return shift;
}

/* The next numbers, each in least..32767, as int16. */
static int64_t take_shorts(Reading *r, int32_t count, int32_t least) {
    int64_t at;
    int16_t *to = take_memory(r, 2LL * count, &at);
    const int32_t *from = take(r, count);
    for (int32_t i = 0; i < count; i++) {
        if (from[i] < least || from[i] > INT16_MAX)
            r->error = DYNENC_INEXACT;
        if (to)
            to[i] = (int16_t)from[i];
    }
    return at;
}

static Input take_input(Reading *r, int32_t channels) {
    Input input = {0};
    input.scale_at = take_shorts(r, channels, -INT16_MAX);
    input.offset_at = take_shorts(r, channels, -INT16_MAX);
    input.shift = take_shift(r);
    if (input.shift > 15)
        r->error = DYNENC_INEXACT;
    return input;
}

/* Whether the sums of four products, of inputs k, k + 1, k + 4 and k + 5, keep 16 bits. */
static int32_t fits(const int8_t *row, int32_t length) {
    for (int32_t k = 0; k < length; k += 8)
        for (int32_t i = k; i < k + 4; i += 2) {
            int32_t sum = 0;
            for (int32_t j = 0; j < 4; j++) {
                const int32_t weight = row[i + j % 2 + j / 2 * 4];
                sum += weight < 0 ? -weight : weight;
            }
            if (sum > QUAD)
                return 0;
        }
    return 1;
}

/* A product of latents, which are fewer inputs than any other, is plain: its biases have slopes. The
 * outputs of others are rounded up to whole groups. */
static Product take_product(Reading *r, int32_t outputs, int32_t taps, int32_t channels) {
    const int32_t length = taps * channels, plain = channels <= MAX_CHANNELS;
    const int32_t groups = (outputs + GROUP - 1) / GROUP;
    const int64_t size = (plain ? 2LL : 1LL) * groups * GROUP * length;
    Product product = {.outputs = outputs, .taps = taps, .channels = channels};
    int8_t *weights = take_memory(r, size, &product.weights_at);
    int32_t *bias = take_memory(r, 8LL * groups * GROUP, &product.bias_at);
    if (weights)
        memset(weights, 0, (size_t)size);
    if (bias)
        memset(bias, 0, 8 * (size_t)groups * GROUP);
    const int32_t *constants = take(r, outputs), *slopes = plain ? take(r, outputs) : NULL;
    if (r->weights_end - r->weights < (int64_t)outputs * length)
        r->error = DYNENC_BAD_SHAPE;
    for (int32_t output = 0; output < outputs && !r->error; output++) {
        const int8_t *row = r->weights + (int64_t)output * length;
        const int32_t group = output / GROUP, i = output % GROUP;
        const int32_t place = i / 4 % 2 * 16 + i / 8 * 4 + i % 4;
        int32_t sum = 0;
        for (int32_t k = 0; k < length; k++) {
            sum += row[k];
            if (weights && plain)
                ((int16_t *)weights)[group * GROUP * length + k / 2 * 2 * GROUP + place * 2 + k % 2] =
                    row[k];
            else if (weights)
                weights[(int64_t)group * GROUP * length + k / 4 * 128 + place * 4 + k % 4] = row[k];
        }
        if (constants[output] < -MAX_BIAS || constants[output] > MAX_BIAS ||
            (plain ? slopes[output] < -MAX_SLOPE || slopes[output] > MAX_SLOPE : !fits(row, length)))
            r->error = DYNENC_INEXACT;
        if (bias && plain) {
            bias[GROUP * group + place] = constants[output];
            bias[GROUP * (groups + group) + place] = slopes[output];
        } else if (bias) {
            bias[2 * GROUP * group + place] = constants[output] - 128 * sum;
            bias[2 * GROUP * group + GROUP + place] = constants[output];
        }
    }
    if (!r->error)
        r->weights += (int64_t)outputs * length;
    product.multiplier_at = take_shorts(r, outputs, 0);
    product.shift = take_shift(r);
    if (groups * GROUP > outputs) { /* zeros follow, which the aligned end leaves room for */
        int64_t at;
        void *rest = take_memory(r, 2LL * GROUP, &at);
        if (rest)
            memset((char *)r->decoder + product.multiplier_at + 2LL * outputs, 0,
                   (size_t)(at - product.multiplier_at - 2LL * outputs));
    }
    return product;
}

static int32_t is_width(int32_t width) {
    return width == 32 || width == 64 || width == 128 || width == MAX_WIDTH;
}

/* Read all tensors: sizes and offsets, and what they point to if `fill`. */
static int64_t read_all(Reading *r) {
    PixelDecoder *decoder = r->decoder;
    const int32_t *header = take(r, DYNENC_DECODER_HEADER), channels = *header++;
    if (channels < 4 || channels > MAX_CHANNELS || channels % 4)
        return DYNENC_BAD_SHAPE;
    decoder->count = 0;
    decoder->side = 1;
    int32_t stages = 0;
    int64_t layers = 0;
    for (int32_t i = 0; i < STAGES_OF_SIZE; i++) {
        const int32_t blocks = header[STAGES_OF_SIZE + i];
        if (blocks < 0 || blocks > MAX_LAYERS)
            return DYNENC_BAD_SHAPE;
        if (!header[i] && !blocks)
            continue;
        if (!is_width(header[i]) || stages++ < i) /* no size follows one that is left out */
            return DYNENC_BAD_SHAPE;
        layers += blocks + 1;
    }
    if (!stages || layers > MAX_LAYERS)
        return DYNENC_BAD_SHAPE;
    decoder->first = take_product(r, header[0], MAX_TAPS, channels);
    for (int32_t i = 0; i < stages; i++) {
        const int32_t width = header[i], last = i + 1 == stages;
        for (int32_t block = 0; block < header[STAGES_OF_SIZE + i]; block++) {
            Layer *layer = &decoder->layers[decoder->count++];
            *layer = (Layer){.kind = BLOCK, .channels = width};
            layer->input = take_input(r, width);
            layer->spatial = take_product(r, width, MAX_TAPS, width);
            layer->gate = take_product(r, 2 * width, 1, width);
            layer->limit_at = take_shorts(r, width, 0);
            layer->mix = take_product(r, width, 1, width);
        }
        Layer *layer = &decoder->layers[decoder->count++];
        *layer = (Layer){.kind = last ? PIXELS : ENLARGE, .channels = width};
        layer->input = take_input(r, width);
        layer->spatial = last ? take_product(r, 12, MAX_TAPS, width)
                              : take_product(r, 4 * header[i + 1], 1, width);
        decoder->side *= 2;
    }
    const int32_t whole = r->numbers == r->numbers_end && r->weights == r->weights_end;
    return r->error ? r->error : whole ? (int64_t)decoder->size : DYNENC_BAD_SHAPE;
}

static int64_t read_into(PixelDecoder *decoder, int32_t fill, const int32_t *numbers,
                         int64_t length, const int8_t *weights, int64_t n_weights) {
    if (!numbers || !weights || length < 0 || n_weights < 0)
        return DYNENC_BAD_ARGUMENT;
    Reading reading = {numbers, numbers + length, weights, weights + n_weights, decoder, fill, 0};
    memset(decoder, 0, sizeof *decoder);
    decoder->size = (uint64_t)aligned(sizeof *decoder);
    return read_all(&reading);
}

int64_t dynenc_decoder_size(const int32_t *numbers, int64_t length, const int8_t *weights,
                            int64_t n_weights) {
    PixelDecoder decoder;
    return read_into(&decoder, 0, numbers, length, weights, n_weights);
}

int64_t dynenc_decoder_init(void *memory, int64_t size, const int32_t *numbers, int64_t length,
                            const int8_t *weights, int64_t n_weights) {
    const int64_t needed = dynenc_decoder_size(numbers, length, weights, n_weights);
    if (needed < 0)
        return needed;
    if (!memory || (uintptr_t)memory % ALIGNMENT)
        return DYNENC_BAD_ARGUMENT;
    if (size < needed)
        return DYNENC_TOO_SMALL;
    const int64_t done = read_into(memory, 1, numbers, length, weights, n_weights);
    return done < 0 ? done : 0;
}
