/* Shared by the kernel's source files; not part of the interface. */
#ifndef DYNENC_INTERNAL_H
#define DYNENC_INTERNAL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dynenc.h"

#if defined(__FAST_MATH__)
#error "compile without -ffast-math, with which latents differ from those of other machines"
#endif

enum {
    ALIGNMENT = 64,     /* of memory and its parts, in bytes */
    MAX_CHANNELS = 16,  /* of latents */
    STAGES = 6,
    MAX_PLANES = 16 * MAX_CHANNELS,
    FARTHEST = 4,       /* rows or columns to a neighbour */
    LIMIT = 32767,      /* largest magnitude of a symbol */
    MAX_VALUE = 1023,   /* largest magnitude of a value and of a unit, in 1/128 */
    MAX_SIDE = 8192,    /* latents */
    MAX_INPUTS = 128,   /* of a network; as many hidden and middle units at most */
    MAX_OUTPUT = 1 << 24,
    STATES = 8,         /* of the trellis */
    FRACTIONS = 8,      /* places of the expected symbol within a step */
    VARIANTS = FRACTIONS / 2 + 1, /* tables of a scale, as signs are folded */
    MAX_SCALES = 51,    /* so that a table's number fits one byte */
    MAX_COLUMNS = 256,
    LEVELS = 65536,     /* 16 * log2 of every positive integer below */
    FIRST_LEVEL = 96, LAST_LEVEL = 168, MIDDLE_LEVEL = 132, /* of the steps that networks know */
    TILE = 32,          /* most symbols that a network computes at once */
    SLACK = 2 * TILE,   /* values after the planes that a tile may read */
};

/* The order of coding: the stage of each symbol of a 4x4 block, by row and column. */
static const uint8_t STAGE_OF[4][4] = {{0, 4, 2, 4}, {5, 3, 5, 3}, {2, 4, 1, 4}, {5, 3, 5, 3}};

/* One integer network. Offsets are bytes from the beginning of the coder. Weights are pairs of int16
 * for two inputs that follow each other, [rows / 8, pairs, 8], of the outputs [pairs, 4]. */
typedef struct {
    int32_t inputs, hidden, middle;                    /* F, H, M */
    int32_t input_pairs, hidden_pairs, middle_pairs;   /* rounded up: to 1, 4 and 4 pairs */
    int64_t neighbours_at;                             /* int8 [F, 3]: channel, down, right */
    int64_t hidden_at, middle_at, output_at;           /* int32 */
    int64_t bias_at;                                   /* int32 [H + M + 3, 2] */
} Network;

typedef struct {
    uint16_t left, count; /* a symbol's frequencies before it, and its own, of 65536 */
} Slot;

typedef struct {
    uint64_t size;
    int32_t channels, scales, columns, radius;
    Network networks[STAGES][MAX_CHANNELS];
    float variances[MAX_SCALES + 1];  /* of the residuals of a scale, in squared steps */
    int64_t levels_at;                /* uint8 [LEVELS] */
    int64_t slots_at;                 /* Slot [tables, columns] */
    int64_t starts_at;                /* uint8 [tables, 256]: the symbol of every 256th quantile */
} Coder;

/* The trellis, Ungerboeck's code of 8 states with the parity-check polynomials 13 and 4 (octal): the
 * state after a state and an even or odd symbol. Odd states are those of the lattice that is moved by
 * half a step. */
static const uint8_t NEXT_STATE[STATES][2] = {
    {0, 2}, {5, 7}, {1, 3}, {4, 6}, {2, 0}, {7, 5}, {3, 1}, {6, 4},
};
/* Its inverse: the two states before each, and the branch from there, 2 * lattice + parity. */
static const uint8_t STATES_BEFORE[2][STATES] = {{0, 2, 0, 2, 3, 1, 3, 1}, {4, 6, 4, 6, 7, 5, 7, 5}};
static const uint8_t BRANCHES[2][STATES] = {{0, 0, 1, 1, 2, 2, 3, 3}, {1, 1, 0, 0, 3, 3, 2, 2}};
/* How far from even symbols of the plain lattice the points of a branch are, in steps. */
static const float OFFSETS[4] = {0.0f, 1.0f, 0.5f, 1.5f};

/* What a network computes, at `count` places that follow each other in the values. */
typedef struct {
    const Network *network;
    const int32_t *hidden_weights, *middle_weights, *output_weights;
    int32_t bias[2 * MAX_INPUTS + 4];          /* hidden, middle, outputs, each rounded up */
    int64_t starts[MAX_INPUTS];                /* in the values, of every input */
} NetworkCall;

/* One stretch of the trellis search: PATHS paths of one place in each plane. */
enum { PATHS = 64 };
typedef struct {
    int32_t places;
    float targets[MAX_PLANES][PATHS], weights[MAX_PLANES][PATHS]; /* weight 0: not coded */
    int32_t second[MAX_PLANES][PATHS]; /* bit s: state s was reached from the second before it */
    float totals[2][STATES][PATHS];
} Search;

typedef void RunNetwork(const NetworkCall *call, const int16_t *values, int64_t count,
                        int32_t *outputs, int64_t stride);
typedef void RunSearch(Search *search);
enum { GRADIENT_TILE = 16 };
typedef void AddGradient(const NetworkCall *call, const int16_t *values, int64_t at,
                         const float by_output[3][GRADIENT_TILE], float *gradient);
typedef void RoundLatents(const float *latents, int64_t count, float per_step, int16_t *symbols);
typedef struct {
    RoundLatents *round_latents;
    RunNetwork *run_network;
    RunSearch *run_search;
    AddGradient *add_gradient;
} Kernels;

/* The kernels of an instruction set; null pointers if it is not there. */
Kernels dynenc_kernels(int32_t path);

static inline int64_t aligned(int64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* The next `bytes` of a workspace, or null without one; `used` counts them. */
static inline void *carve(char *workspace, int64_t *used, int64_t bytes) {
    void *part = workspace ? workspace + *used : NULL;
    *used += aligned(bytes);
    return part;
}

static inline int32_t clamp32(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

/* The nearest integer, ties to even, of a magnitude below 2^22. */
static inline float nearest_integer(float value) {
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    return (value + magic) - magic;
}

/* How far a value of magnitude below 2^22 is from the nearest even integer. */
static inline float from_nearest_even(float value) {
    return value - 2.0f * nearest_integer(value * 0.5f);
}

static inline float clampf(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}

/* A latent in steps, within what rounds to symbols; NaN counts as 0. */
static inline float in_steps(float latent, float per_step) {
    const float largest = (float)LIMIT + 0.5f;
    latent *= per_step;
    return latent != latent ? 0.0f : clampf(latent, -largest, largest);
}

#endif
