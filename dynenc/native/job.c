/* Planes and their networks; see job.h. */
#include "job.h"

/* The planes of each stage, row and column in the 4x4 block. */
static const uint8_t PLACES[STAGES][4][2] = {
    {{0, 0}},
    {{2, 2}},
    {{0, 2}, {2, 0}},
    {{1, 1}, {1, 3}, {3, 1}, {3, 3}},
    {{0, 1}, {0, 3}, {2, 1}, {2, 3}},
    {{1, 0}, {1, 2}, {3, 0}, {3, 2}},
};
static const uint8_t PLACE_COUNTS[STAGES] = {1, 1, 2, 4, 4, 4};

static Grid grid_of(int32_t height, int32_t width) {
    Grid grid = {.height = height, .width = width};
    grid.rows = (height + 3) / 4;
    grid.columns = (width + 3) / 4;
    grid.stride = grid.columns + 1;
    grid.plane = (grid.rows + 2) * grid.stride;
    grid.window = grid.rows * grid.stride;
    grid.length = PLANES * grid.plane + grid.stride + 2 + SLACK;
    return grid;
}

/* The next `bytes` of a workspace, or null without one; `used` counts them. */
static void *carve(char *workspace, int64_t *used, int64_t bytes) {
    void *part = workspace ? workspace + *used : NULL;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return part;
}

/* Give a job its parts of a workspace, or null pointers without one; returns their bytes. What only
 * entropy coding and what only the search needs is the same memory. */
static int64_t lay_out(Job *job, char *workspace) {
    const Grid *grid = &job->grid;
    const int64_t blocks = (int64_t)grid->rows * grid->columns;
    int64_t used = 0;
    job->output_stride = grid->window + TILE;
    job->values = carve(workspace, &used, grid->length * 2);
    job->outputs = carve(workspace, &used, 3 * 4 * job->output_stride);
    job->states = carve(workspace, &used, grid->window);
    int64_t searching = used;
    job->contexts.tables = carve(workspace, &used, blocks);
    job->contexts.coded = carve(workspace, &used, blocks);
    job->contexts.expected = carve(workspace, &used, 4 * blocks);
    job->contexts.places = carve(workspace, &used, 4 * blocks);
    job->contexts.sorted = carve(workspace, &used, 4 * blocks);
    job->targets = carve(workspace, &searching, 4 * PLANES * blocks);
    job->weights = carve(workspace, &searching, 4 * PLANES * blocks);
    job->search = carve(workspace, &searching, sizeof(Search));
    return used > searching ? used : searching;
}

int64_t dynenc_workspace_size(int32_t height, int32_t width) {
    if (height < 1 || height > MAX_SIDE || width < 1 || width > MAX_SIDE)
        return DYNENC_BAD_ARGUMENT;
    Job job = {.grid = grid_of(height, width)};
    return lay_out(&job, NULL);
}

int64_t dynenc_start(Job *job, const void *coder, int32_t path, int32_t lattice, int32_t height,
                     int32_t width, int32_t step_q, void *workspace, int64_t workspace_size) {
    const int64_t needed = dynenc_workspace_size(height, width);
    if (needed < 0)
        return needed;
    if (!coder || !workspace || (uintptr_t)workspace % ALIGNMENT || step_q < 1 || step_q > 65535)
        return DYNENC_BAD_ARGUMENT;
    if (workspace_size < needed)
        return DYNENC_TOO_SMALL;
    *job = (Job){.coder = coder, .kernels = dynenc_kernels(path), .lattice = lattice};
    job->step_q = step_q;
    if (!job->kernels.run_network || lattice < 0 || lattice >= job->coder->lattices)
        return DYNENC_BAD_ARGUMENT;
    job->grid = grid_of(height, width);
    lay_out(job, workspace);
    memset(job->values, 0, (size_t)job->grid.length * 2);
    memset(job->states, 0, (size_t)job->grid.window);
    const int32_t level = level_of(coder, step_q);
    job->level = clamp32(level, FIRST_LEVEL, LAST_LEVEL);
    job->octave_shift = job->level - level;
    /* exact, as numerators are below 2^26 (Granlund and Montgomery, 1994) */
    const uint64_t divisor = 16u * (uint64_t)step_q;
    job->inverse_bits = 26;
    while (divisor >> (job->inverse_bits - 26))
        job->inverse_bits++;
    job->inverse = ((1ull << job->inverse_bits) + divisor - 1) / divisor;
    return 0;
}

int32_t dynenc_planes_of(int32_t pass, Plane planes[LARGEST_PASS]) {
    int32_t count = 0;
    for (int32_t channel = 0; channel < CHANNELS; channel++) {
        const int32_t stage = pass - channel;
        for (int32_t i = 0; stage >= 0 && stage < STAGES && i < PLACE_COUNTS[stage]; i++)
            planes[count++] = (Plane){stage, channel, PLACES[stage][i][0], PLACES[stage][i][1]};
    }
    return count;
}

void dynenc_run_network(Job *job, const Plane *plane) {
    const char *memory = (const char *)job->coder;
    const Network *network = &job->coder->networks[plane->stage][plane->channel];
    const int32_t *bias = (const int32_t *)(memory + network->bias_at);
    const int8_t *neighbours = (const int8_t *)(memory + network->neighbours_at);
    NetworkCall call = {.network = network};
    call.hidden_weights = (const int32_t *)(memory + network->hidden_at);
    call.middle_weights = (const int32_t *)(memory + network->middle_at);
    call.output_weights = (const int32_t *)(memory + network->output_at);
    const int32_t sizes[3] = {network->hidden, network->middle, 3};
    int32_t *biases = call.bias;
    for (int32_t layer = 0; layer < 3; layer++) {
        for (int32_t i = 0; i < sizes[layer]; i++, bias += 2)
            biases[i] = bias[0] + bias[1] * (job->level - MIDDLE_LEVEL);
        biases += (sizes[layer] + 7) / 8 * 8;
    }
    for (int32_t i = 0; i < network->inputs; i++) {
        const int8_t *place = neighbours + 3 * i;
        call.starts[i] =
            start_of(&job->grid, place[0], plane->row + place[1], plane->column + place[2]);
    }
    const int64_t count = rows_of(&job->grid, plane) * job->grid.stride;
    job->kernels.run_network(&call, job->values, count, job->outputs, job->output_stride);
}

/* Latents in 1/128, saturated, of a point in half steps. */
static inline int32_t value_of(int32_t point, int32_t step_q) {
    const int32_t most = 16 * MAX_VALUE / step_q + 1; /* from here on all saturate */
    const int32_t value = (clamp32(point, -most, most) * step_q + 8) >> 4;
    return clamp32(value, -MAX_VALUE, MAX_VALUE);
}

void dynenc_leave_plane(Job *job, const Plane *plane, const int32_t *symbols, int32_t *points) {
    static const uint8_t plain[STATES][2] = {{0}};
    const uint8_t(*next)[2] = job->lattice == TRELLIS ? NEXT_STATE : plain;
    const Grid *grid = &job->grid;
    const int32_t rows = rows_of(grid, plane), columns = columns_of(grid, plane);
    const int64_t first = start_of(grid, plane->channel, plane->row, plane->column);
    for (int32_t y = 0; y < grid->rows; y++) {
        uint8_t *states = job->states + y * grid->stride;
        const int32_t inside = y < rows ? columns : 0;
        int16_t *values = job->values + first + y * grid->stride;
        for (int32_t x = 0; x < inside; x++) {
            const uint32_t place = place_of(grid, plane, y, x);
            const int32_t symbol = symbols[place], point = 2 * symbol + (states[x] & 1);
            values[x] = (int16_t)value_of(point, job->step_q);
            states[x] = next[states[x]][symbol & 1];
            if (points)
                points[place] = point;
        }
        for (int32_t x = inside; x < grid->columns; x++)
            states[x] = next[states[x]][0];
    }
}

void dynenc_enter_all(Job *job, const int32_t *symbols, int32_t *points) {
    for (int32_t pass = 0; pass < PASSES; pass++) {
        Plane planes[LARGEST_PASS];
        const int32_t count = dynenc_planes_of(pass, planes);
        for (int32_t i = 0; i < count; i++)
            dynenc_leave_plane(job, &planes[i], symbols, points);
    }
    memset(job->states, 0, (size_t)job->grid.window);
}
