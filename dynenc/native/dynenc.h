/* dynenc's native kernel: pixels to latents; quantisation and entropy coding of latents; latents to
 * pixels by integers; statistics of tiles of pixels, and the text and graphics that they tell of.
 *
 * No function allocates memory or has global state, except for the cached result of CPU detection, and
 * all are thread-safe. Memory comes from the caller: coders, decoders and encoders, which their `_init`
 * fills and which are only read from then on (they hold no pointers, so they may be copied and shared),
 * and a workspace for each call. All are aligned to 64 bytes. Lengths and indices that arrive from
 * outside are checked before they are used; a negative return value is one of `enum dynenc_error`.
 *
 * Latents and symbols are arrays [channels, height, width] in C order. Latents are scaled as
 * diffusion models take them. Payloads and step_q go into files as docs/format.md says.
 *
 * To build, compile every .c file of this folder with -std=c11 -O3 -ffp-contract=off -fno-math-errno,
 * and link with -lm. Where multiplications and additions are fused, encoders give other latents.
 */
#ifndef DYNENC_H
#define DYNENC_H

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#if defined(_WIN32)
#define DYNENC_API __declspec(dllexport)
#else
#define DYNENC_API __attribute__((visibility("default")))
#endif

enum dynenc_error {
    DYNENC_BAD_ARGUMENT = -1, /* a null pointer, or a number out of its range */
    DYNENC_TOO_SMALL = -2,    /* a buffer is too small */
    DYNENC_CORRUPT = -3,      /* not a payload that an encoder writes */
    DYNENC_BAD_ESCAPE = -4,   /* the payload escapes a residual that has a place in the tables */
    DYNENC_BAD_SHAPE = -5,    /* coder: the sizes do not fit the tensors, or are out of range */
    DYNENC_INEXACT = -6,      /* coder: a sum may reach 2^24 */
    DYNENC_TOO_FAR = -7,      /* coder: a neighbour is no channel, or over 4 rows or columns away */
    DYNENC_NOT_CAUSAL = -8,   /* coder: a network reads symbols that are coded later */
    DYNENC_BAD_COUNTS = -9,   /* coder: the counts of a table do not sum to 2^16 */
    DYNENC_BAD_WEIGHTS = -10, /* encoder: a weight is not finite, or beyond 256 */
};

/* Instruction sets. Each gives the same bytes. */
enum dynenc_path {
    DYNENC_PORTABLE = 0,
    DYNENC_SSE2 = 1,
    DYNENC_AVX2 = 2,
    DYNENC_AVX512 = 3, /* F, BW, VL and VNNI */
    DYNENC_NEON = 4,
    DYNENC_NEON_DOT = 5, /* with dot products of bytes */
    DYNENC_SIMD128 = 6,  /* WebAssembly */
    DYNENC_PATHS = 7,
};

/* Lattices: uniform quantisation, and the two of the trellis, half a step apart. */
enum dynenc_lattice { DYNENC_PLAIN = 0, DYNENC_TRELLIS = 1 };

/* Whether this build and this CPU have an instruction set: 1 or 0. */
DYNENC_API int32_t dynenc_has_path(int32_t path);

/* Length of the header of a coder's tensors, by its number of channels. */
#define DYNENC_HEADER(channels) (4 + 3 * 6 * (channels))

/* Bytes of the coder that tensors[0..length) describe; reads the header alone. */
DYNENC_API int64_t dynenc_coder_size(const int32_t *tensors, int64_t length);

/* Check the tensors of an entropy coder on one lattice and build the coder in coder[0..size).
 *
 * tensors[0..length): the header, which is the numbers of channels C (1..16), of tables T, of columns
 * R and of thresholds, and for each network (stage by stage, in a stage channel by channel) those of
 * inputs F, hidden units H and middle units M (1..128); then, network by network, neighbours [F, 3],
 * hidden [H, F], middle [M, H], output [3, M + H + F], bias [H + M + 3, 2]; then counts [T, R], then
 * thresholds. Returns 0. */
DYNENC_API int64_t dynenc_coder_init(void *coder, int64_t size, const int32_t *tensors,
                                     int64_t length);

/* Arguments shared by the calls below. */
typedef struct {
    const void *coder;
    int32_t path, lattice;
    int32_t channels;      /* as the coder's, 1..16 */
    int32_t height, width; /* 1..8192 */
    int32_t step_q;        /* quantiser step in 1/1024, 1..65535 */
    void *workspace;
    int64_t workspace_size;
} dynenc_call;

/* Bytes of the workspace that a call needs. */
DYNENC_API int64_t dynenc_workspace_size(int32_t channels, int32_t height, int32_t width);

/* Write the payload of symbols, each in -32767..32767, to payload[0..capacity). Returns the payload's
 * length, a multiple of 4. A capacity of 6 bytes for each symbol and 8 more always suffices. */
DYNENC_API int64_t dynenc_encode(const dynenc_call *call, const int16_t *symbols, uint8_t *payload,
                                 int64_t capacity);

/* Read payload[0..length) into symbols; only what `dynenc_encode` writes is accepted. Returns 0. */
DYNENC_API int64_t dynenc_decode(const dynenc_call *call, const uint8_t *payload, int64_t length,
                                 int16_t *symbols);

/* Quantise latents (float32; NaN counts as 0) to symbols.
 *
 * On the plain lattice each goes to the nearest. On the trellis', symbols minimise the squared error
 * plus `bit` (0..1e6 squared steps) times the expected bits, by Viterbi's algorithm. With bit = 0 or
 * on the plain lattice the coder is not needed and may be null. Returns 0. */
DYNENC_API int64_t dynenc_quantize(const dynenc_call *call, const float *latents, double bit,
                                   int16_t *symbols);

/* Mean square of the differences of latents [channels, height, width], each side 1..8192, to those on
 * the right and below; 0 if there are none, and below 0 for arguments out of range. */
DYNENC_API double dynenc_roughness(const float *latents, int32_t channels, int32_t height,
                                   int32_t width);

/* Reconstruction points of symbols, in half steps. The coder is not needed. Returns 0. */
DYNENC_API int64_t dynenc_points(const dynenc_call *call, const int16_t *symbols, int32_t *points);

/* Latents of symbols in 1/2048, saturated at 32767, for the decoder of images. The coder is not
 * needed. Returns 0. */
DYNENC_API int64_t dynenc_integer_latents(const dynenc_call *call, const int16_t *symbols,
                                          int16_t *latents);

/* What the coder knows about symbols before it decodes them: the table of each, the expected symbol, the sign
 * (1 or -1) by which the residual is multiplied, and the networks' outputs [3, channels, height,
 * width]: expected latent, octaves of the scale, activity, in 2^-17. Returns 0. */
DYNENC_API int64_t dynenc_contexts(const dynenc_call *call, const int16_t *symbols,
                                   uint8_t *tables, int32_t *expected, int32_t *signs,
                                   int32_t *outputs);

/* Backpropagation: the gradient of some function of the networks' outputs, [3, channels, height,
 * width], becomes that by the context values (latents in 1/128) of symbols. Rounding counts as the
 * identity; units and values that saturate pass nothing. Returns 0. */
DYNENC_API int64_t dynenc_gradient(const dynenc_call *call, const int16_t *symbols,
                                   const float *by_output, float *by_value);

/* The decoder of images: latents to pixels by integers; docs/decoder.md says what is computed. */

/* Length of a decoder's header: channels of the latents (4, 8, 12 or 16), then widths, and then numbers
 * of blocks, at 1/8, 1/4 and 1/2 of the size. The last one or two may be left out as zeros, for smaller
 * images. */
#define DYNENC_DECODER_HEADER 7

/* Bytes of the decoder that these tensors make.
 *
 * numbers[0..length): the header, then the values that are not weights, layer by layer, in the
 * order of docs/decoder.md; weights[0..n_weights): of each product [outputs, taps, channels], the outputs
 * before a shuffle in the order [down, right, channel]. */
DYNENC_API int64_t dynenc_decoder_size(const int32_t *numbers, int64_t length,
                                       const int8_t *weights, int64_t n_weights);

/* Check the tensors and build the decoder in memory[0..size), aligned to 64 bytes. Returns 0. */
DYNENC_API int64_t dynenc_decoder_init(void *memory, int64_t size, const int32_t *numbers,
                                       int64_t length, const int8_t *weights, int64_t n_weights);

/* A part of an image: rows and columns of pixels from top and left. The image has 8 pixels for a
 * latent in each dimension, or 4 or 2 where the decoder leaves out sizes. */
typedef struct {
    const void *decoder;
    int32_t path;
    int32_t height, width;             /* of the latents, 1..8192 */
    int32_t step_q;                    /* of the latents, as in dynenc_call; 0: not quantised */
    int32_t top, left, rows, columns;  /* in pixels, inside the image */
    int32_t step, done;                /* 0 at first: progress, and rows that have been decoded */
    int32_t room;                      /* rows that `pixels` has: 8 or more, or all that are left */
    const int16_t *latents;            /* [channels, height, width] in 1/2048 */
    uint8_t *pixels;                   /* [room, columns, 3], from row `done` of the part on */
    int64_t stride;                    /* bytes from a row of pixels to the next */
    void *workspace;
    int64_t workspace_size;
} dynenc_pixels_call;

/* Bytes of the workspace that a call needs; it grows with the columns. */
DYNENC_API int64_t dynenc_pixels_workspace(const dynenc_pixels_call *call);

/* Decode the next rows of a part, as many as there is room for, and count them in `done`. Repeat with
 * nothing else changed but pixels and room until done == rows; between calls the workspace holds what
 * the next one needs. The pixels of a part are those of the whole. Returns 0. */
DYNENC_API int64_t dynenc_pixels(dynenc_pixels_call *call);

/* Bytes of the encoder of `width` features, a multiple of 16 up to 256, 0..16 blocks, and latents of C
 * channels, 1..16. */
DYNENC_API int64_t dynenc_encoder_size(int32_t width, int32_t blocks, int32_t channels);

/* Build an encoder in encoder[0..size), aligned to 64 bytes.
 *
 * tensors[0..length), of magnitude 256 at most: stem weight [2 width, 3, 8, 8] and bias [2 width]; of
 * each block norm weight and bias [width], spatial weight [width, width, 3, 3] and bias [width], gate
 * weight [2 width, width] and bias [2 width], mix weight [width, width] and bias [width]; linear
 * weight [C, 3, 8, 8] and bias [C]; head weight [C, width] and bias [C]. Returns 0. */
DYNENC_API int64_t dynenc_encoder_init(void *encoder, int64_t size, int32_t width, int32_t blocks,
                                       int32_t channels, const float *tensors, int64_t length);

/* An RGB image to encode. */
typedef struct {
    const void *encoder;
    int32_t path;
    int32_t height, width;  /* pixels, 1..65536 */
    const uint8_t *pixels;  /* [height, width, 3] */
    int64_t row_bytes;      /* from one row to the next, at least 3 * width */
    void *workspace;
    int64_t workspace_size;
} dynenc_image;

/* Bytes of the workspace that an encoder needs for images of a width. */
DYNENC_API int64_t dynenc_latents_workspace(const void *encoder, int32_t width);

/* Encode an image to latents [C, ceil(height / 8), ceil(width / 8)]; its edge is repeated up to whole
 * patches. Returns 0.
 *
 * Weights and features are integers of 16 bits where layers multiply them, so sums are exact, and
 * floats in between, in operations of a fixed order: every path gives the same latents. */
DYNENC_API int64_t dynenc_latents(const dynenc_image *image, float *latents);

/* Statistics of tiles of DYNENC_TILE x DYNENC_TILE pixels, by the brightness of pixels; those of the
 * image's `rows` first rows of tiles. Its encoder and workspace are not used.
 *
 * divisor: 1, or 2 for the tiles of the image of half the sides, rounded up, whose pixels are the
 * means of 2x2. statistics [7][rows][columns]: of each tile the number of pixels that equal those
 * right and below, that differ by at most 8, and by at least 48; of those within a sixth of the tile's
 * range of its brightest, and of its darkest pixel; these two pixels. The last four are 0 if fewer than
 * DYNENC_LEAST_SHARP pixels differ by 48. The image's edge is repeated up to whole tiles. Returns 0. */
enum { DYNENC_TILE = 16, DYNENC_LEAST_SHARP = 20 };
DYNENC_API int64_t dynenc_tiles(const dynenc_image *image, int32_t rows, int32_t divisor,
                                uint16_t *statistics);

/* What dynenc_graphics looks for. */
enum dynenc_search {
    DYNENC_TEXT = 0,
    DYNENC_EAGER = 1,  /* single tiles that resemble text by themselves, too */
    DYNENC_HALVED = 2, /* text in the image of half the sides, which has half the noise */
};

/* Find the tiles that hold text or graphics, and flats that adjoin them.
 *
 * statistics [7][rows][columns] of dynenc_tiles, rows and columns 1..4096; workspace: 8 bytes for each
 * tile, aligned to 64; found [rows][columns]: 1 for those tiles, else 0. Returns how many others could
 * be text in noise. */
DYNENC_API int64_t dynenc_graphics(const uint16_t *statistics, int32_t rows, int32_t columns,
                                   int32_t search, void *workspace, uint8_t *found);

#if defined(__cplusplus)
}
#endif

#endif
