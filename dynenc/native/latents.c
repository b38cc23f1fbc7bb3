/* RGB images -> latents, by an encoder of encoder.h.
 *
 * Rows of patches run through the stem, one block after the other, and the head. A block needs the rows
 * above and below, so each is one row behind what is before it, and keeps three rows of its input. */
#include <math.h>

#include "encoder.h"

#define KERNELS "latents.h"

enum { GROUP = 16 };                     /* partial sums over channels */
static const float NORM_EPSILON = 1e-5f; /* that of the normalisation in training */
static const float LEAST = 1e-30f;       /* in place of smaller largest features */

/* Inputs of a layer: `runs` runs of `pairs` pairs each, which start at starts[run] for the first
 * position and are `step` further on for each after it. */
typedef struct {
    const int16_t *starts[PATCH];
    int32_t step, runs, pairs;
} Operand;

/* What a tile is computed in. */
typedef struct {
    int32_t *sums;     /* [POSITIONS, outputs of the largest layer] */
    int16_t *integers; /* [POSITIONS, width] */
    float *floats;     /* [POSITIONS, width] */
} Scratch;

typedef float FourFloats __attribute__((vector_size(16)));
typedef int32_t FourIntegers __attribute__((vector_size(16)));

/* Two inputs as one number, the first in its low half: one load where the CPU is little-endian. */
static inline int32_t pair_of(const int16_t *x) {
    return (int32_t)((uint16_t)x[0] | (uint32_t)(uint16_t)x[1] << 16);
}

#include "paths.h"

typedef struct {
    void (*run_stem)(const Encoder *, const uint8_t *const *, int, Scratch *, float *, float *);
    void (*normalise)(const Encoder *, const float *, int, int16_t *);
    void (*run_block)(const Encoder *, const Block *, const int16_t *const *, int, Scratch *,
                      float *);
    void (*run_head)(const Encoder *, const float *, const float *, int, Scratch *, float *,
                     int64_t);
} Loops;

/* An image that is encoded. Rows have room for whole tiles. */
typedef struct {
    const Encoder *encoder;
    const dynenc_image *image;
    Loops loops;
    int32_t rows, columns, room;   /* patches; columns rounded up to whole tiles */
    uint8_t *edge;                 /* [PATCH, POSITIONS * PATCH_ROW], the last tile's pixels */
    float *features;               /* [blocks + 1, 2, room, width]: the last two rows of each input */
    int16_t *normalised;           /* [blocks, 3, 1 + room + 1, width]: the last three rows */
    float *linear;                 /* [blocks + 1, room, MAX_CHANNELS]: last rows of the linear map */
    Scratch scratch;
} Encoding;

/* Give an encoding its parts of a workspace, or null pointers without one; returns their bytes. */
static int64_t lay_out(Encoding *encoding, char *workspace) {
    const Encoder *encoder = encoding->encoder;
    const int64_t width = encoder->width, blocks = encoder->blocks, room = encoding->room;
    int64_t used = 0;
    encoding->edge = carve(workspace, &used, PATCH * POSITIONS * PATCH_ROW);
    encoding->features = carve(workspace, &used, 4 * (blocks + 1) * 2 * room * width);
    encoding->normalised = carve(workspace, &used, 2 * blocks * 3 * (room + 2) * width);
    encoding->linear = carve(workspace, &used, 4 * (blocks + 1) * room * MAX_CHANNELS);
    encoding->scratch.sums = carve(workspace, &used, 4LL * POSITIONS * encoder->stem.padded);
    encoding->scratch.integers = carve(workspace, &used, 2 * POSITIONS * width);
    encoding->scratch.floats = carve(workspace, &used, 4 * POSITIONS * width);
    return used;
}

static void set_columns(Encoding *encoding, int32_t width) {
    encoding->columns = (width + PATCH - 1) / PATCH;
    encoding->room = (encoding->columns + POSITIONS - 1) / POSITIONS * POSITIONS;
}

int64_t dynenc_latents_workspace(const void *encoder, int32_t width) {
    if (!encoder || width < 1 || width > PATCH * MAX_SIDE)
        return DYNENC_BAD_ARGUMENT;
    Encoding encoding = {.encoder = encoder};
    set_columns(&encoding, width);
    return lay_out(&encoding, NULL);
}

/* Check the arguments and set up an encoding; returns 0 or an error. */
static int64_t start(Encoding *encoding, const dynenc_image *image) {
    if (!image)
        return DYNENC_BAD_ARGUMENT;
    const int64_t needed = dynenc_latents_workspace(image->encoder, image->width);
    if (needed < 0)
        return needed;
    if (image->height < 1 || image->height > PATCH * MAX_SIDE || !image->pixels ||
        image->row_bytes < 3LL * image->width || !dynenc_has_path(image->path) ||
        !image->workspace || (uintptr_t)image->workspace % ALIGNMENT)
        return DYNENC_BAD_ARGUMENT;
    if (image->workspace_size < needed)
        return DYNENC_TOO_SMALL;
    *encoding = (Encoding){.encoder = image->encoder, .image = image};
    const int32_t path = image->path;
    encoding->loops = (Loops){SELECT(path, run_stem), SELECT(path, normalise), SELECT(path, run_block),
                         SELECT(path, run_head)};
    encoding->rows = (image->height + PATCH - 1) / PATCH;
    set_columns(encoding, image->width);
    lay_out(encoding, image->workspace);
    memset(image->workspace, 0, (size_t)needed); /* tiles may reach beyond the last column */
    return 0;
}

/* Positions of the tile that begins at a column. */
static int32_t count_of(const Encoding *encoding, int32_t column) {
    const int32_t left = encoding->columns - column;
    return left < POSITIONS ? left : POSITIONS;
}

static float *features_of(const Encoding *encoding, int32_t block, int32_t row) {
    return encoding->features + (2LL * block + row % 2) * encoding->room * encoding->encoder->width;
}

static int16_t *normalised_of(const Encoding *encoding, int32_t block, int32_t row) {
    const int64_t length = (int64_t)(encoding->room + 2) * encoding->encoder->width;
    return encoding->normalised + (3LL * block + row % 3) * length;
}

static float *linear_of(const Encoding *encoding, int32_t row) {
    const int32_t rows = encoding->encoder->blocks + 1;
    return encoding->linear + (int64_t)(row % rows) * encoding->room * MAX_CHANNELS;
}

/* Point at the 8 rows of pixels of a tile. Where the image ends they are a copy whose edge is
 * repeated. */
static void find_pixels(Encoding *encoding, int32_t row, int32_t column, const uint8_t *rows[PATCH]) {
    const dynenc_image *image = encoding->image;
    const int64_t first = (int64_t)column * PATCH, left = image->width - first;
    for (int32_t i = 0; i < PATCH; i++) {
        const int32_t y = row * PATCH + i, last = image->height - 1;
        const uint8_t *pixels = image->pixels + (y < last ? y : last) * image->row_bytes;
        rows[i] = pixels + 3 * first;
        if (left >= POSITIONS * PATCH)
            continue;
        uint8_t *copy = encoding->edge + i * POSITIONS * PATCH_ROW;
        memcpy(copy, rows[i], (size_t)(3 * left));
        for (int64_t x = 3 * left; x < POSITIONS * PATCH_ROW; x++)
            copy[x] = copy[x - 3];
        rows[i] = copy;
    }
}

/* Normalise the features of a row that a block is to read, and repeat them at both ends. */
static void enter_block(Encoding *encoding, int32_t block, int32_t row) {
    const int32_t width = encoding->encoder->width;
    int16_t *normalised = normalised_of(encoding, block, row);
    for (int32_t column = 0; column < encoding->columns; column += POSITIONS)
        encoding->loops.normalise(encoding->encoder,
                                  features_of(encoding, block, row) + (int64_t)column * width,
                                  count_of(encoding, column),
                                  normalised + (int64_t)(column + 1) * width);
    memcpy(normalised, normalised + width, 2 * (size_t)width);
    int16_t *last = normalised + (int64_t)encoding->columns * width;
    memcpy(last + width, last, 2 * (size_t)width);
}

/* The stem of a row of patches. */
static void enter_row(Encoding *encoding, int32_t row) {
    for (int32_t column = 0; column < encoding->columns; column += POSITIONS) {
        const uint8_t *rows[PATCH];
        find_pixels(encoding, row, column, rows);
        encoding->loops.run_stem(encoding->encoder, rows, count_of(encoding, column), &encoding->scratch,
                            features_of(encoding, 0, row) + (int64_t)column * encoding->encoder->width,
                            linear_of(encoding, row) + (int64_t)column * MAX_CHANNELS);
    }
}

/* A row of a block; those above and below it have been entered. Its output is the input of the next. */
static void run_row(Encoding *encoding, int32_t block, int32_t row) {
    const Encoder *encoder = encoding->encoder;
    const int32_t above = row ? row - 1 : 0, below = row + 1 < encoding->rows ? row + 1 : row;
    const int32_t which[3] = {above, row, below};
    float *features = features_of(encoding, block + 1, row);
    const size_t length = 4 * (size_t)encoding->columns * (size_t)encoder->width;
    memcpy(features, features_of(encoding, block, row), length);
    for (int32_t column = 0; column < encoding->columns; column += POSITIONS) {
        const int64_t first = (int64_t)column * encoder->width;
        const int16_t *rows[3];
        for (int32_t i = 0; i < 3; i++)
            rows[i] = normalised_of(encoding, block, which[i]) + first;
        encoding->loops.run_block(encoder, &encoder->block[block], rows, count_of(encoding, column),
                             &encoding->scratch, features + first);
    }
}

static void leave_row(Encoding *encoding, int32_t row, float *latents) {
    const Encoder *encoder = encoding->encoder;
    const float *features = features_of(encoding, encoder->blocks, row), *linear = linear_of(encoding, row);
    for (int32_t column = 0; column < encoding->columns; column += POSITIONS)
        encoding->loops.run_head(encoder, features + (int64_t)column * encoder->width,
                            linear + (int64_t)column * MAX_CHANNELS, count_of(encoding, column),
                            &encoding->scratch, latents + (int64_t)row * encoding->columns + column,
                            (int64_t)encoding->rows * encoding->columns);
}

int64_t dynenc_latents(const dynenc_image *image, float *latents) {
    Encoding encoding;
    const int64_t error = start(&encoding, image);
    if (error)
        return error;
    if (!latents)
        return DYNENC_BAD_ARGUMENT;
    const int32_t blocks = encoding.encoder->blocks;
    for (int32_t step = 0; step < encoding.rows + blocks; step++)
        for (int32_t block = 0; block <= blocks; block++) {
            const int32_t row = step - block; /* that is complete before this block */
            if (row < 0 || row >= encoding.rows)
                continue;
            if (block == 0)
                enter_row(&encoding, row);
            else
                run_row(&encoding, block - 1, row);
            if (block < blocks)
                enter_block(&encoding, block, row);
            else
                leave_row(&encoding, row, latents);
        }
    return 0;
}
