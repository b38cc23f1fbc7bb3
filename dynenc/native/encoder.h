/* An encoder's weights as the kernels read them; encoder.c makes them, latents.c runs them. */
#ifndef DYNENC_ENCODER_H
#define DYNENC_ENCODER_H

#include "internal.h"

enum {
    PATCH = 8,                    /* pixels, across and down */
    PATCH_ROW = 3 * PATCH,        /* bytes of a row of a patch */
    PATCH_SIZE = PATCH * PATCH_ROW,
    MAX_WIDTH = 256,              /* channels of the features, a multiple of 16 */
    MAX_BLOCKS = 16,
    POSITIONS = 16,               /* patches of a row that are computed at once */
    MAX_UNIT = 32767,             /* largest magnitude of an input of a layer */
};

/* A linear layer: output = sum of weight * input * scale + bias. Offsets are bytes from the beginning of
 * the encoder. No sum of int32 overflows. */
typedef struct {
    int32_t inputs, outputs;
    int32_t padded;               /* outputs, rounded up to a multiple of 16 */
    int64_t weights_at;           /* int16 [inputs / 2, padded, 2] */
    int64_t scales_at, biases_at; /* float [padded] */
} Layer;

/* A residual block: normalisation, a 3x3 convolution, a gated layer, and a layer that mixes. The
 * weights and bias of the normalisation are in the convolution's, whose inputs are in the order row,
 * column, channel. */
typedef struct {
    Layer spatial, gate, mix;
} Block;

typedef struct {
    uint64_t size;
    int32_t width, blocks;
    int32_t channels;             /* of the latents */
    float one;                    /* 1 of a normalised feature is this integer */
    Layer stem;                   /* of pixels 0..255, in the order row, column, colour */
    int64_t bytes_at;             /* its weights once more, as int8 [inputs / 4, padded, 4] */
    Block block[MAX_BLOCKS];
    Layer head;
} Encoder;

static inline const void *at(const Encoder *encoder, int64_t offset) {
    return (const char *)encoder + offset;
}

#endif
