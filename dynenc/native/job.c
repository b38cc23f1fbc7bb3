/* Planes and their networks; see job.h. */
#include "job.h"

static Grid grid_of(int32_t channels, int32_t height, int32_t width) {
    Grid grid = {.channels = channels, .height = height, .width = width};
    grid.rows = (height + 3) / 4;
    grid.columns = (width + 3) / 4;
    grid.stride = grid.columns + 1;
    grid.plane = (grid.rows + 2) * grid.stride;
    grid.window = grid.rows * grid.stride;
    grid.length = 16 * channels * grid.plane + grid.stride + 2 + SLACK;
    return grid;
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
    int64_t searching = used, backwards = used;
    job->contexts.tables = carve(workspace, &used, blocks);
    job->contexts.coded = carve(workspace, &used, blocks);
    job->contexts.expected = carve(workspace, &used, 4 * blocks);
    job->contexts.places = carve(workspace, &used, 4 * blocks);
    job->contexts.sorted = carve(workspace, &used, 4 * blocks);
    job->targets = carve(workspace, &searching, 4 * 16 * grid->channels * blocks);
    job->weights = carve(workspace, &searching, 4 * 16 * grid->channels * blocks);
    job->search = carve(workspace, &searching, sizeof(Search));
    job->gradient = carve(workspace, &backwards, grid->length * 4);
    used = used > searching ? used : searching;
    return used > backwards ? used : backwards;
}

int64_t dynenc_workspace_size(int32_t channels, int32_t height, int32_t width) {
    if (channels < 1 || channels > MAX_CHANNELS || height < 1 || height > MAX_SIDE || width < 1 ||
        width > MAX_SIDE)
        return DYNENC_BAD_ARGUMENT;
    Job job = {.grid = grid_of(channels, height, width)};
    return lay_out(&job, NULL);
}

int64_t dynenc_start(Job *job, const dynenc_call *call) {
    if (!call)
        return DYNENC_BAD_ARGUMENT;
    const int64_t needed = dynenc_workspace_size(call->channels, call->height, call->width);
    if (needed < 0)
        return needed;
    if (!call->workspace || (uintptr_t)call->workspace % ALIGNMENT || call->step_q < 1 ||
        call->step_q > 65535 || call->lattice < DYNENC_PLAIN || call->lattice > DYNENC_TRELLIS)
        return DYNENC_BAD_ARGUMENT;
    if (call->workspace_size < needed)
        return DYNENC_TOO_SMALL;
    *job = (Job){.coder = call->coder, .kernels = dynenc_kernels(call->path)};
    job->lattice = call->lattice;
    job->step_q = call->step_q;
    if (!job->kernels.run_network || (job->coder && job->coder->channels != call->channels))
        return DYNENC_BAD_ARGUMENT;
    job->grid = grid_of(call->channels, call->height, call->width);
    lay_out(job, call->workspace);
    if (job->coder) /* without networks there are no values */
        memset(job->values, 0, (size_t)job->grid.length * 2);
    memset(job->states, 0, (size_t)job->grid.window);
    const int32_t level = job->coder ? level_of(job->coder, job->step_q) : 0;
    job->level = clamp32(level, FIRST_LEVEL, LAST_LEVEL);
    job->octave_shift = job->level - level;
    /* exact, as numerators are below 2^26 (Granlund and Montgomery, 1994) */
    const uint64_t divisor = 16u * (uint64_t)job->step_q;
    job->inverse_bits = 26;
    while (divisor >> (job->inverse_bits - 26))
        job->inverse_bits++;
    job->inverse = ((1ull << job->inverse_bits) + divisor - 1) / divisor;
    job->extra = MAX_OUTPUT / (16 * job->step_q) + 1;
    return 0;
}

int32_t dynenc_planes(const Job *job, Plane planes[MAX_PLANES]) {
    const int32_t channels = job->grid.channels;
    int32_t count = 0;
    for (int32_t pass = 0; pass < STAGES + channels - 1; pass++)
        for (int32_t channel = 0; channel < channels; channel++)
            for (int32_t place = 0; place < 16; place++)
                if (STAGE_OF[place / 4][place % 4] == pass - channel)
                    planes[count++] = (Plane){pass - channel, channel, place / 4, place % 4};
    return count;
}

int32_t dynenc_are_symbols(const Job *job, const int16_t *symbols) {
    const Grid *grid = &job->grid;
    int32_t outside = !symbols;
    for (int64_t i = 0; symbols && i < (int64_t)grid->channels * grid->height * grid->width; i++)
        outside |= symbols[i] < -LIMIT;
    return !outside;
}

NetworkCall dynenc_network_call(const Job *job, const Plane *plane) {
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
    return call;
}

void dynenc_run_network(Job *job, const Plane *plane) {
    const NetworkCall call = dynenc_network_call(job, plane);
    const int64_t count = rows_of(&job->grid, plane) * job->grid.stride;
    job->kernels.run_network(&call, job->values, count, job->outputs, job->output_stride);
}

void dynenc_leave_plane(Job *job, const Plane *plane, const int16_t *symbols, int32_t *points) {
    const Grid grid = job->grid; /* a copy, which no store may change: nothing is read twice */
    const int32_t step_q = job->step_q, has_states = job->lattice == DYNENC_TRELLIS;
    const int32_t most = 16 * MAX_VALUE / step_q + 1; /* half steps; from here on values saturate */
    const int32_t largest = LIMIT / step_q + 1;       /* as do latents */
    int16_t *latents = job->latents;
    const int32_t rows = rows_of(&grid, plane), columns = columns_of(&grid, plane);
    const int64_t first = start_of(&grid, plane->channel, plane->row, plane->column);
    for (int32_t y = 0; y < grid.rows; y++) {
        uint8_t *states = job->states + y * grid.stride;
        const int32_t inside = y < rows ? columns : 0;
        const uint32_t place = place_of(&grid, plane, y, 0);
        int16_t *values = job->values + first + y * grid.stride;
        for (int32_t x = 0; x < inside; x++) {
            const int32_t point = 2 * symbols[place + 4 * (uint32_t)x] + (states[x] & 1);
            const int32_t value = (clamp32(point, -most, most) * step_q + 8) >> 4;
            if (points)
                points[place + 4 * (uint32_t)x] = point;
            else if (latents)
                latents[place + 4 * (uint32_t)x] =
                    (int16_t)clamp32(clamp32(point, -largest, largest) * step_q, -LIMIT, LIMIT);
            else
                values[x] = (int16_t)clamp32(value, -MAX_VALUE, MAX_VALUE);
        }
        if (!has_states)
            continue;
        for (int32_t x = 0; x < inside; x++)
            states[x] = NEXT_STATE[states[x]][symbols[place + 4 * (uint32_t)x] & 1];
        for (int32_t x = inside; x < grid.columns; x++)
            states[x] = NEXT_STATE[states[x]][0];
    }
}

void dynenc_enter_all(Job *job, const int16_t *symbols, int32_t *points) {
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(job, planes);
    for (const Plane *plane = planes; plane < planes + count; plane++)
        dynenc_leave_plane(job, plane, symbols, points);
    memset(job->states, 0, (size_t)job->grid.window);
}

void dynenc_find_contexts(Job *job, const Plane *plane) {
    const int32_t rows = rows_of(&job->grid, plane), columns = columns_of(&job->grid, plane);
    const Job here = *job; /* a copy, which no store may change */
    const Contexts contexts = job->contexts;
    int64_t i = 0;
    for (int32_t y = 0; y < rows; y++) {
        const int64_t row = y * here.grid.stride;
        const uint32_t place = place_of(&here.grid, plane, y, 0);
        const int32_t *expected = here.outputs + row;
        const int32_t *scale = expected + here.output_stride;
        const int32_t *activity = scale + here.output_stride;
        for (int32_t x = 0; x < columns; x++, i++) {
            const int32_t shift = here.states[row + x] & 1;
            const int32_t eighths = eighths_of(&here, expected[x]) - FRACTIONS / 2 * shift;
            const int32_t centre = (eighths + FRACTIONS / 2) >> 3;
            const int32_t fraction = eighths - FRACTIONS * centre; /* -4..3 */
            const int32_t folded = fraction < 0;
            contexts.tables[i] = (uint8_t)(scale_of(&here, scale[x], activity[x]) * VARIANTS +
                                         (folded ? -fraction : fraction));
            contexts.expected[i] = 2 * centre + folded;
            contexts.places[i] = place + 4 * (uint32_t)x;
        }
    }
    job->contexts.count = i;
}
