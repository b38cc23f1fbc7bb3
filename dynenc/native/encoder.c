/* The weights of an encoder, rounded to integers, in the order in which the kernels read them. */
#include <float.h>
#include <math.h>

#include "encoder.h"

enum {
    MAX_WEIGHT_SUM = 65000, /* of the magnitudes in a row: times MAX_UNIT it is below 2^31 */
    MAX_TENSOR = 256,       /* magnitude of the tensors' numbers, so that nothing overflows */
};

static const double TINY = 1e-20; /* in the place of a largest weight or sum of 0 */

/* A linear layer's weight [outputs, inputs] and bias [outputs]. */
typedef struct {
    const float *weight, *bias;
} Linear;

static inline double larger(double a, double b) { return a > b ? a : b; }

/* The nearest integer, ties to even, of a magnitude below 2^51. */
static inline double nearest(double value) {
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    return (value + magic) - magic;
}

static int64_t reserve(int64_t *size, int64_t bytes) {
    const int64_t start = *size;
    *size += aligned(bytes);
    return start;
}

static Layer plan_layer(int64_t *size, int32_t inputs, int32_t outputs) {
    Layer layer = {.inputs = inputs, .outputs = outputs, .padded = (outputs + 15) / 16 * 16};
    layer.weights_at = reserve(size, 2LL * inputs * layer.padded);
    layer.scales_at = reserve(size, 4LL * layer.padded);
    layer.biases_at = reserve(size, 4LL * layer.padded);
    return layer;
}

/* Fill an encoder with sizes and offsets; returns its size in bytes, or an error. */
static int64_t plan(Encoder *encoder, int32_t width, int32_t blocks, int32_t channels) {
    if (width < 16 || width > MAX_WIDTH || width % 16 || blocks < 0 || blocks > MAX_BLOCKS ||
        channels < 1 || channels > MAX_CHANNELS)
        return DYNENC_BAD_ARGUMENT;
    int64_t size = 0;
    memset(encoder, 0, sizeof *encoder);
    reserve(&size, sizeof *encoder);
    encoder->width = width, encoder->blocks = blocks, encoder->channels = channels;
    encoder->one = (float)(int32_t)((MAX_UNIT - 1) / sqrt(width));
    encoder->stem = plan_layer(&size, PATCH_SIZE, 2 * width + channels);
    encoder->bytes_at = reserve(&size, (int64_t)PATCH_SIZE * encoder->stem.padded);
    for (int32_t i = 0; i < blocks; i++) {
        encoder->block[i].spatial = plan_layer(&size, 9 * width, width);
        encoder->block[i].gate = plan_layer(&size, width, 2 * width);
        encoder->block[i].mix = plan_layer(&size, width, width);
    }
    encoder->head = plan_layer(&size, width, channels);
    encoder->size = (uint64_t)size;
    return size;
}

int64_t dynenc_encoder_size(int32_t width, int32_t blocks, int32_t channels) {
    Encoder encoder;
    return plan(&encoder, width, blocks, channels);
}

/* The numbers of all tensors of an encoder. */
static int64_t count_tensors(int32_t width, int32_t blocks, int32_t channels) {
    const int64_t n = width, block = 2 * n + 9 * n * n + n + 2 * (n * n + n) + n * n + n;
    return (2 * n + channels) * (PATCH_SIZE + 1) + blocks * block + channels * (n + 1);
}

/* The next layer of the tensors. */
static Linear take(const float **tensors, int32_t inputs, int32_t outputs) {
    const Linear taken = {*tensors, *tensors + (int64_t)inputs * outputs};
    *tensors = taken.bias + outputs;
    return taken;
}

/* Pack one output of a layer: weights[inputs] rounded to multiples of 1 / factor, the factor by which
 * sums are multiplied, and the bias. */
static void put_output(Encoder *encoder, const Layer *layer, int32_t output, const double *weights,
                       double factor, double scale, double bias) {
    char *memory = (char *)encoder;
    int16_t *packed = (int16_t *)(memory + layer->weights_at) + 2 * output;
    for (int32_t i = 0; i < layer->inputs; i++)
        packed[(int64_t)(i / 2) * 2 * layer->padded + i % 2] = (int16_t)nearest(weights[i] * factor);
    ((float *)(memory + layer->scales_at))[output] = (float)scale;
    ((float *)(memory + layer->biases_at))[output] = (float)bias;
}

/* The largest factor with which the weights fit int16 and a row's sum of magnitudes, in the sense of
 * the caller, is at most MAX_WEIGHT_SUM. */
static double factor_of(const double *weights, int32_t inputs, double sum) {
    double largest = TINY;
    for (int32_t i = 0; i < inputs; i++)
        largest = larger(largest, fabs(weights[i]));
    const double by_sum = MAX_WEIGHT_SUM / larger(sum, TINY), by_weight = MAX_UNIT / largest;
    return by_sum < by_weight ? by_sum : by_weight;
}

/* Outputs of the stem from `first` on. Their weights are rounded to 8 bits, as in training; a pixel
 * 0..255 stands for pixel / 127.5 - 1. */
static void pack_stem(Encoder *encoder, int32_t first, int32_t outputs, Linear linear) {
    int8_t *bytes = (int8_t *)encoder + encoder->bytes_at;
    for (int32_t row = 0; row < outputs; row++) {
        const float *weight = linear.weight + (int64_t)row * PATCH_SIZE; /* [3, 8, 8] */
        const int32_t output = first + row;
        float largest = FLT_MIN;
        for (int32_t i = 0; i < PATCH_SIZE; i++)
            largest = fabsf(weight[i]) > largest ? fabsf(weight[i]) : largest;
        const float step = largest / 127;
        double weights[PATCH_SIZE], sum = 0;
        for (int32_t i = 0; i < PATCH_SIZE; i++) {
            const int32_t colour = i / (PATCH * PATCH), input = i % (PATCH * PATCH) * 3 + colour;
            weights[input] = nearest(weight[i] / step);
            sum += weights[input];
            bytes[((int64_t)(input / 4) * encoder->stem.padded + output) * 4 + input % 4] =
                (int8_t)weights[input];
        }
        put_output(encoder, &encoder->stem, output, weights, 1, step / 127.5,
                   linear.bias[row] - sum * step);
    }
}

/* A layer of inputs of magnitude up to MAX_UNIT, which are scaled as the kernel knows. */
static void pack_layer(Encoder *encoder, const Layer *layer, Linear linear) {
    for (int32_t output = 0; output < layer->outputs; output++) {
        double weights[MAX_WIDTH], sum = 0;
        for (int32_t i = 0; i < layer->inputs; i++) {
            weights[i] = linear.weight[(int64_t)output * layer->inputs + i];
            sum += fabs(weights[i]);
        }
        const double factor = factor_of(weights, layer->inputs, sum);
        put_output(encoder, layer, output, weights, factor, 1 / factor, linear.bias[output]);
    }
}

/* A 3x3 convolution of normalised features, each multiplied by norm.weight and added to norm.bias.
 * Those of one place have a root mean square of 1 at most, so that by Cauchy's inequality the sum is
 * at most that of the lengths of the weights of each place, times MAX_UNIT. */
static void pack_spatial(Encoder *encoder, const Layer *layer, Linear norm, Linear linear) {
    const int32_t width = encoder->width;
    for (int32_t output = 0; output < width; output++) {
        const float *weight = linear.weight + (int64_t)output * 9 * width; /* [width, 3, 3] */
        double weights[9 * MAX_WIDTH], bias = linear.bias[output], sum = 0;
        for (int32_t place = 0; place < 9; place++) {
            double squares = 0;
            for (int32_t i = 0; i < width; i++) {
                const double each = (double)weight[9 * i + place] * norm.weight[i];
                weights[place * width + i] = each;
                bias += (double)weight[9 * i + place] * norm.bias[i];
                squares += each * each;
            }
            sum += sqrt(squares);
        }
        const double factor = factor_of(weights, 9 * width, sum);
        put_output(encoder, layer, output, weights, factor, 1 / (factor * encoder->one), bias);
    }
}

int64_t dynenc_encoder_init(void *memory, int64_t size, int32_t width, int32_t blocks,
                            int32_t channels, const float *tensors, int64_t length) {
    Encoder *encoder = memory, sizes;
    const int64_t needed = plan(&sizes, width, blocks, channels);
    if (needed < 0)
        return needed;
    if (!memory || (uintptr_t)memory % ALIGNMENT || !tensors ||
        length != count_tensors(width, blocks, channels))
        return DYNENC_BAD_ARGUMENT;
    if (size < needed)
        return DYNENC_TOO_SMALL;
    for (int64_t i = 0; i < length; i++)
        if (!(fabsf(tensors[i]) <= MAX_TENSOR))
            return DYNENC_BAD_WEIGHTS;
    memset(memory, 0, (size_t)needed);
    *encoder = sizes;
    const Linear stem = take(&tensors, PATCH_SIZE, 2 * width);
    pack_stem(encoder, 0, 2 * width, stem);
    for (Block *block = encoder->block; block < encoder->block + blocks; block++) {
        const Linear norm = take(&tensors, 1, width), spatial = take(&tensors, 9 * width, width);
        pack_spatial(encoder, &block->spatial, norm, spatial);
        const Linear gate = take(&tensors, width, 2 * width);
        pack_layer(encoder, &block->gate, gate);
        const Linear mix = take(&tensors, width, width);
        pack_layer(encoder, &block->mix, mix);
    }
    const Linear linear = take(&tensors, PATCH_SIZE, channels);
    pack_stem(encoder, 2 * width, channels, linear);
    const Linear head = take(&tensors, width, channels);
    pack_layer(encoder, &encoder->head, head);
    return 0;
}
