/* Shared by the sources of the integer decoder of images; not part of the interface. */
#ifndef DYNENC_PIXELS_H
#define DYNENC_PIXELS_H

#include "internal.h"

enum {
    GROUP = 32,           /* outputs of a product that are computed together */
    MAX_TAPS = 9,
    MAX_WIDTH = 256,      /* channels of the residuals */
    MAX_LAYERS = 64,
    QUAD = 128,           /* most that the magnitudes of weights with a sum of 16 bits add up to */
    MAX_BIAS = 1 << 30,
    MAX_SLOPE = INT16_MAX,
    MAX_STEP = 1280,      /* larger steps count as this one */
    SPARE = 32,           /* pixels after those of a row that may be read and written */
    MAX_TILE = 16,        /* most pixels that a tile has */
};

/* Multiplication by integers: t = sat16((bias + sum of weights * inputs) >> shift), and then
 * y = (t * multiplier + 2^14) >> 15. Offsets are bytes from the beginning of the decoder.
 *
 * Weights are int8 [outputs / 32, taps, channels / 4, 32, 4]. Of 32 outputs and biases, those with
 * bit 2 of their number clear come first: two vectors of sums then are packed to one in order. */
typedef struct {
    int32_t outputs, taps, channels, shift;
    int64_t weights_at;    /* int8 */
    int64_t bias_at;       /* int32 [outputs / 32, 2, 32]: for inputs + 128, and for the inputs */
    int64_t multiplier_at; /* int16 [outputs] */
} Product;

/* Activations that a product reads: sat8(sat16(((residual * scale + 2^14) >> 15) + offset) >> shift). */
typedef struct {
    int32_t shift;
    int64_t scale_at, offset_at; /* int16 [channels] */
} Input;

enum layer_kind { BLOCK, ENLARGE, PIXELS }; /* a residual block; convolutions before a shuffle */

typedef struct {
    int32_t kind, channels;
    Input input;
    Product spatial;   /* of a block the 3x3 convolution, else the only one */
    Product gate, mix; /* of a block */
    int64_t limit_at;  /* int16 [channels]: largest gate, and magnitude of the value */
} Layer;

typedef struct {
    uint64_t size;
    int32_t count;        /* layers after the first convolution */
    int32_t side;         /* pixels for a latent, in one dimension */
    Product first;        /* its weights: int16 [outputs / 32, taps * channels / 2, 32, 2]; biases [outputs],
                           * and their slopes by step_q; all in the order of other products */
    Layer layers[MAX_LAYERS];
} PixelDecoder;

/* What becomes of the y of a product. */
enum product_use {
    TO_ACTIVATIONS, /* sat8(y) + 128, uint8 */
    TO_GATED,       /* of gates and values within their limits: sat8((g * v + 2^14) >> 15) + 128 */
    TO_SUM,         /* sat16(residual + y) */
    TO_RESIDUAL,    /* y */
    TO_PIXELS,      /* y within 0..255, of 12 outputs, uint8 [pixels, 12] */
};

typedef struct {
    const PixelDecoder *decoder;
    const Product *product;
    int32_t use, first_output, outputs; /* those that are computed, in groups; of gates their number */
    int32_t large, small;               /* tiles of a row */
    const uint8_t *taps[MAX_TAPS];      /* activations + 128 of the first pixel, by tap */
    const int16_t *limit, *residual;
    void *to;                           /* [pixels, outputs] */
} ProductCall;

typedef struct {
    int32_t large, small; /* pixels of a tile */
    void (*multiply)(const ProductCall *call);
    void (*activate)(const PixelDecoder *decoder, const Input *input, int32_t channels,
                     int32_t pixels, const int16_t *residual, uint8_t *to);
    void (*first)(const PixelDecoder *decoder, const int32_t *bias, int32_t pixels,
                  const int16_t *const taps[MAX_TAPS], int16_t *to);
} PixelKernels;

/* The kernels of an instruction set; null pointers if it is not there. */
PixelKernels dynenc_pixel_kernels(int32_t path);

/* Part of a decoder's memory. */
#define PART(decoder, type, at) ((const type *)((const char *)(decoder) + (at)))

#endif
