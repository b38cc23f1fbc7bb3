/* Latents -> symbols: rounding that knows what bits cost, on the lattices of a trellis. */
#include <math.h>

#include "job.h"

/* Enter the values of latents that are rounded to the nearest step. */
static void enter_rounded(Job *job, const float *latents, float per_step) {
    const Grid *grid = &job->grid;
    const float step = (float)(job->step_q / 1024.0);
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(job, planes);
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        const int32_t rows = rows_of(grid, plane), columns = columns_of(grid, plane);
        const int64_t first = start_of(grid, plane->channel, plane->row, plane->column);
        for (int32_t y = 0; y < rows; y++) {
            int16_t *values = job->values + first + y * grid->stride;
            for (int32_t x = 0; x < columns; x++) {
                const float latent = latents[place_of(grid, plane, y, x)];
                const float decoded = nearest_integer(in_steps(latent, per_step)) * step;
                values[x] = (int16_t)nearest_integer(
                    clampf(decoded * 128.0f, -(float)MAX_VALUE, (float)MAX_VALUE));
            }
        }
    }
}

/* The points that symbols should be near, and the weights of their squared errors, plane by plane.
 *
 * What is expected of a latent is taken to be a normal distribution; then its bits, too, are a
 * squared distance, and what is nearest to both is nearest to a point between them. */
static void set_targets(Job *job, const float *latents, float per_step, double bit) {
    const Grid *grid = &job->grid;
    const int64_t blocks = (int64_t)grid->rows * grid->columns;
    const float per_output = (float)(1.0 / (128 * job->step_q));
    const float bit_share = (float)(bit / (2.0 * 0.693147180559945309417)); /* 2 log(2) */
    if (bit > 0)
        enter_rounded(job, latents, per_step);
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(job, planes);
    memset(job->weights, 0, 4 * (size_t)(count * blocks));
    memset(job->targets, 0, 4 * (size_t)(count * blocks));
    float *targets = job->targets, *weights = job->weights;
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        if (bit > 0)
            dynenc_run_network(job, plane);
        const int32_t rows = rows_of(grid, plane), columns = columns_of(grid, plane);
        for (int32_t y = 0; y < rows; y++)
            for (int32_t x = 0; x < columns; x++) {
                const int64_t block = (int64_t)y * grid->columns + x;
                const float latent = in_steps(latents[place_of(grid, plane, y, x)], per_step);
                targets[block] = latent;
                weights[block] = 1.0f;
                if (bit > 0) {
                    const int32_t *output = job->outputs + y * grid->stride + x;
                    const int32_t scale = scale_of(job, output[job->output_stride],
                                                   output[2 * job->output_stride]);
                    const float mean = (float)((double)output[0] * (double)per_output);
                    const float share = bit_share / job->coder->variances[scale];
                    targets[block] = (latent + share * mean) / (1.0f + share);
                    weights[block] = 1.0f + share;
                }
            }
        targets += blocks;
        weights += blocks;
    }
}

/* Follow the best path of one column of a search backwards; found: [search->places] symbols. */
static void trace_back(const Search *search, int32_t path, int32_t *found) {
    int32_t state = 0;
    for (int32_t other = 1; other < STATES; other++)
        if (search->totals[0][other][path] < search->totals[0][state][path])
            state = other;
    for (int32_t place = search->places - 1; place >= 0; place--) {
        const int32_t second = search->second[place][path] >> state & 1;
        const int32_t branch = BRANCHES[second][state];
        const float target = search->targets[place][path];
        const float error = from_nearest_even(target - OFFSETS[branch]);
        const float symbol = nearest_integer(target - error - (float)(branch >> 1) / 2.0f);
        found[place] = search->weights[place][path] == 0.0f ? 0 : (int32_t)symbol;
        state = STATES_BEFORE[second][state];
    }
}

/* Search the paths of all blocks for the least weighted squared error, by Viterbi's algorithm.
 * Returns the largest magnitude of a symbol. */
static int32_t search_all(Job *job, int16_t *symbols) {
    const Grid *grid = &job->grid;
    const int64_t blocks = (int64_t)grid->rows * grid->columns;
    Search *search = job->search;
    Plane planes[MAX_PLANES];
    const int32_t n_planes = dynenc_planes(job, planes);
    int32_t largest = 0;
    memset(search, 0, sizeof *search);
    search->places = n_planes;
    for (int64_t first = 0; first < blocks; first += PATHS) {
        const int32_t count = (int32_t)(blocks - first < PATHS ? blocks - first : PATHS);
        for (int32_t place = 0; place < n_planes; place++) {
            memcpy(search->targets[place], job->targets + place * blocks + first,
                   4 * (size_t)count);
            memcpy(search->weights[place], job->weights + place * blocks + first,
                   4 * (size_t)count);
        }
        job->kernels.run_search(search);
        for (int32_t path = 0; path < count; path++) {
            int32_t found[MAX_PLANES];
            trace_back(search, path, found);
            const int32_t y = (int32_t)((first + path) / grid->columns);
            const int32_t x = (int32_t)((first + path) % grid->columns);
            for (int32_t place = 0; place < n_planes; place++) {
                const Plane *plane = &planes[place];
                if (y >= rows_of(grid, plane) || x >= columns_of(grid, plane))
                    continue;
                symbols[place_of(grid, plane, y, x)] = (int16_t)found[place];
                const int32_t magnitude = found[place] < 0 ? -found[place] : found[place];
                largest = magnitude > largest ? magnitude : largest;
            }
        }
    }
    return largest;
}

int64_t dynenc_quantize(const dynenc_call *call, const float *latents, double bit,
                        int16_t *symbols) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    const int32_t plain = job.lattice == DYNENC_PLAIN;
    if (!latents || !symbols || !(bit >= 0.0 && bit < 1e6) || !(job.coder || plain || bit == 0.0))
        return DYNENC_BAD_ARGUMENT;
    const Grid *grid = &job.grid;
    const float per_step = (float)(1024.0 / job.step_q);
    if (plain) {
        const int64_t count = (int64_t)grid->channels * grid->height * grid->width;
        job.kernels.round_latents(latents, count, per_step, symbols);
        return 0;
    }
    set_targets(&job, latents, per_step, bit);
    if (search_all(&job, symbols) > LIMIT) { /* a path may go two beyond its targets */
        const int64_t count = 16LL * grid->channels * grid->rows * grid->columns;
        for (int64_t i = 0; i < count; i++)
            job.targets[i] = clampf(job.targets[i], 2 - LIMIT, LIMIT - 2);
        search_all(&job, symbols);
    }
    return 0;
}

double dynenc_roughness(const float *latents, int32_t channels, int32_t height, int32_t width) {
    if (!latents || channels < 1 || channels > MAX_CHANNELS || height < 1 || height > MAX_SIDE ||
        width < 1 || width > MAX_SIDE)
        return DYNENC_BAD_ARGUMENT;
    double sum = 0;
    for (int64_t row = 0; row < (int64_t)channels * height; row++) {
        const float *at = latents + row * width;
        float right = 0, down = 0;
        for (int32_t x = 0; x + 1 < width; x++)
            right += (at[x + 1] - at[x]) * (at[x + 1] - at[x]);
        for (int32_t x = 0; x < width && (row + 1) % height; x++)
            down += (at[x + width] - at[x]) * (at[x + width] - at[x]);
        sum += (double)right + (double)down;
    }
    const int64_t pairs = (int64_t)height * (width - 1) + (int64_t)(height - 1) * width;
    return pairs ? sum / (double)(channels * pairs) : 0;
}
