/* dynenc's native kernel: entropy coding of latents.
 *
 * Every function is free of global state, allocates nothing, and may run in several threads at once.
 * Memory comes from the caller: a coder, which `dynenc_coder_init` fills and which is only read from
 * then on (it holds no pointers, so it may be copied or shared), and a workspace, one per call.
 * Lengths and indices that arrive from outside are checked before they are used; a negative return
 * value is one of `enum dynenc_error`. Both blocks of memory must be aligned to 64 bytes.
 *
 * Latents and symbols are arrays [4, height, width] in C order, height and width 1..8192.
 */
#ifndef DYNENC_H
#define DYNENC_H

#include <stdint.h>

#if defined(_WIN32)
#define DYNENC_API __declspec(dllexport)
#else
#define DYNENC_API __attribute__((visibility("default")))
#endif

enum dynenc_error {
    DYNENC_BAD_ARGUMENT = -1, /* a null pointer, or a number out of its range */
    DYNENC_TOO_SMALL = -2,    /* a buffer is too small */
    DYNENC_CORRUPT = -3,      /* no encoder writes this payload */
    DYNENC_BAD_ESCAPE = -4,   /* the payload escapes a residual that has a place in the tables */
    DYNENC_BAD_SHAPE = -5,    /* coder: the sizes do not fit the tensors, or are out of range */
    DYNENC_INEXACT = -6,      /* coder: a sum may reach 2^24 */
    DYNENC_NOT_CAUSAL = -7,   /* coder: a network reads symbols that are coded later */
    DYNENC_BAD_COUNTS = -8,   /* coder: the counts of a table do not sum to 2^16 */
};

/* Instruction sets. Each gives the same bytes. */
enum dynenc_path {
    DYNENC_PORTABLE = 0,
    DYNENC_SSE2 = 1,
    DYNENC_AVX2 = 2,
    DYNENC_AVX512 = 3, /* F, BW, VL and VNNI */
    DYNENC_NEON = 4,
};

/* Whether this build and this CPU have an instruction set: 1 or 0. */
DYNENC_API int32_t dynenc_has_path(int32_t path);

/* Lattices: uniform rounding, and the two of the trellis, half a step apart. */
enum dynenc_lattice { DYNENC_PLAIN = 0, DYNENC_TRELLIS = 1 };

/* Numbers in the header of the tensors of a coder; see `dynenc_coder_init`. */
#define DYNENC_CODER_HEADER (3 * 24 + 4)

/* Bytes of the coder that tensors describe; reads header[0..DYNENC_CODER_HEADER), of `length`. */
DYNENC_API int64_t dynenc_coder_size(const int32_t *tensors, int64_t length);

/* Check the tensors of an entropy coder and build the coder in coder[0..size).
 *
 * tensors[0..length): a header, for each of the 24 networks (stage by stage, in a stage channel by
 * channel) its numbers of inputs F, hidden units H and middle units M, then the numbers of tables T,
 * of columns C, of thresholds and of lattices L (1 or 2); then, network by network, neighbours [F, 3],
 * hidden [H, F], middle [M, H], output [3, M + H + F], bias [H + M + 3, 2]; then counts
 * [L, T, C] for the plain lattice and for the trellis', thresholds. Returns 0. */
DYNENC_API int64_t dynenc_coder_init(void *coder, int64_t size, const int32_t *tensors,
                                     int64_t length);

/* Bytes of the workspace that the calls below need for latents of this size. */
DYNENC_API int64_t dynenc_workspace_size(int32_t height, int32_t width);

/* Write the payload of symbols, each in -32767..32767, to payload[0..capacity).
 * step_q: 1..65535. Returns the payload's length, a multiple of 4. */
DYNENC_API int64_t dynenc_encode(const void *coder, int32_t path, int32_t lattice,
                                 const int32_t *symbols, int32_t height, int32_t width, int32_t step_q, void *workspace,
                                 int64_t workspace_size, uint8_t *payload, int64_t capacity);

/* Read payload[0..length) into symbols; only what `dynenc_encode` writes is accepted. Returns 0. */
DYNENC_API int64_t dynenc_decode(const void *coder, int32_t path, int32_t lattice,
                                 const uint8_t *payload, int64_t length, int32_t height, int32_t width, int32_t step_q,
                                 void *workspace, int64_t workspace_size, int32_t *symbols);

/* Round latents (float32, SD scale; NaN counts as 0) to symbols.
 *
 * On the plain lattice each goes to the nearest. On the trellis', symbols minimise squared error plus
 * `bit` times the expected bits, in squared steps, by Viterbi's algorithm; 0 <= bit. Returns 0. */
DYNENC_API int64_t dynenc_quantize(const void *coder, int32_t path, int32_t lattice,
                                   const float *latents, int32_t height, int32_t width, int32_t step_q, double bit,
                                   void *workspace, int64_t workspace_size, int32_t *symbols);

/* Where the symbols of a lattice are, in half steps: points [4, height, width]. Returns 0. */
DYNENC_API int64_t dynenc_points(const void *coder, int32_t lattice, const int32_t *symbols,
                                 int32_t height, int32_t width, void *workspace,
                                 int64_t workspace_size, int32_t *points);

#endif
