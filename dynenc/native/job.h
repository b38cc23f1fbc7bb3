/* One call on latents of one size: planes, values, and what the networks say of a plane. */
#ifndef DYNENC_JOB_H
#define DYNENC_JOB_H

#include "internal.h"

/* Where the values of latents stand: 64 planes by (channel, row % 4, column % 4), a column of zeros
 * between rows and a row of zeros between planes. */
typedef struct {
    int32_t channels, height, width;
    int32_t rows, columns;                /* of a plane */
    int64_t stride, plane, window;        /* of a row; of a plane; values of one with its zeros */
    int64_t length;                       /* of all planes, with what a tile may read after them */
} Grid;

/* The plane of a channel's symbols at one row and column, 0..3, of every 4x4 block. */
typedef struct {
    int32_t stage, channel, row, column;
} Plane;

/* The symbols of a plane, row by row: each its table, the expected symbol, whether
 * the residual's sign is folded, and the index among all symbols. `sorted` is by table. */
typedef struct {
    uint8_t *tables, *coded;
    int32_t *expected; /* 2 * expected symbol + folded */
    uint32_t *places, *sorted;
    int64_t count;
} Contexts;

typedef struct {
    const Coder *coder;
    Kernels kernels;
    Grid grid;
    int32_t step_q, level, octave_shift; /* level: of the step, as far as networks know it */
    uint64_t inverse;                    /* of 16 * step_q, in 2^-inverse_bits */
    int32_t inverse_bits, extra;         /* extra * 16 * step_q is above all outputs */
    int16_t *values;                     /* [grid.length], 1/128 */
    int32_t *outputs;                    /* [3, output_stride], of one plane */
    int64_t output_stride;
    int32_t lattice;                     /* enum dynenc_lattice */
    uint8_t *states;                     /* [grid.window], of each block's path; plain: all 0 */
    Contexts contexts;                   /* of the plane that is coded */
    float *targets, *weights;            /* [planes, rows * columns], of the search */
    Search *search;
    float *gradient;                     /* [grid.length], by the values */
    int16_t *latents;                    /* null, or where latents in 1/2048 go instead of values */
} Job;

/* Check the arguments that all calls share, and set up a job with zeroed values and states. Returns
 * 0 or an error. */
int64_t dynenc_start(Job *job, const dynenc_call *call);

/* Whether there are symbols, and all are in -LIMIT..LIMIT. */
int32_t dynenc_are_symbols(const Job *job, const int16_t *symbols);

/* All planes, in the order of the format; returns how many. */
int32_t dynenc_planes(const Job *job, Plane planes[MAX_PLANES]);

/* The weights of a plane's network, its biases at the step's level, and where its inputs are. */
NetworkCall dynenc_network_call(const Job *job, const Plane *plane);

/* Compute a plane's network at all its places, into job->outputs. */
void dynenc_run_network(Job *job, const Plane *plane);

/* Enter the values of a plane's known symbols and move the states of the paths on. If `points` is not
 * null, it receives the symbols' places in half steps, and no values are entered. */
void dynenc_leave_plane(Job *job, const Plane *plane, const int16_t *symbols, int32_t *points);

/* As dynenc_leave_plane, of all symbols, beginning from states of 0. */
void dynenc_enter_all(Job *job, const int16_t *symbols, int32_t *points);

/* Rows and columns of a plane that are in the latents. */
static inline int32_t rows_of(const Grid *grid, const Plane *plane) {
    return (grid->height - plane->row + 3) / 4;
}
static inline int32_t columns_of(const Grid *grid, const Plane *plane) {
    return (grid->width - plane->column + 3) / 4;
}

/* Index in the values of the first symbol of the plane that (channel, row, column) is in; rows and
 * columns from -4 to 7. */
static inline int64_t start_of(const Grid *grid, int32_t channel, int32_t row, int32_t column) {
    const int32_t plane = 16 * channel + 4 * (row & 3) + (column & 3);
    return plane * grid->plane + ((row + 4) / 4) * grid->stride + (column + 4) / 4;
}

/* Index in [4, height, width] of the symbol in row y and column x of a plane. */
static inline uint32_t place_of(const Grid *grid, const Plane *plane, int32_t y, int32_t x) {
    const uint32_t row = (uint32_t)(4 * y + plane->row), column = (uint32_t)(4 * x + plane->column);
    return ((uint32_t)plane->channel * (uint32_t)grid->height + row) * (uint32_t)grid->width +
           column;
}

/* 16 * log2 of a number in 0..65535, rounded down. */
static inline int32_t level_of(const Coder *coder, int32_t number) {
    return ((const uint8_t *)coder)[coder->levels_at + number];
}

/* Find the contexts of a plane's symbols; job->outputs are the plane's, job->states those before it.
 */
void dynenc_find_contexts(Job *job, const Plane *plane);

/* The expected point in eighths of a step: floor((output + 8 step_q) / (16 step_q)), |output| below
 * 2^24. */
static inline int32_t eighths_of(const Job *job, int32_t output) {
    const uint64_t numerator = (uint64_t)(output + (8 + 16 * job->extra) * job->step_q);
    return (int32_t)(numerator * job->inverse >> job->inverse_bits) - job->extra;
}

/* The scale, quarter octaves of the standard deviation in steps, from two outputs. */
static inline int32_t scale_of(const Job *job, int32_t scale, int32_t activity) {
    const int32_t octaves = level_of(job->coder, clamp32(activity >> 4, 32, LEVELS - 1));
    scale = (scale + (octaves + job->octave_shift) * 8192) >> 15;
    return clamp32(scale, 0, job->coder->scales - 1);
}

#endif
