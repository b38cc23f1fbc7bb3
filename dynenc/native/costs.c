/* Contexts of known symbols, and how the networks' outputs change with the values around them: for
 * searches that weigh bits. */
#include "job.h"

int64_t dynenc_contexts(const dynenc_call *call, const int16_t *symbols, uint8_t *tables,
                        int32_t *expected, int32_t *signs, int32_t *outputs) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!job.coder || !tables || !expected || !signs || !outputs ||
        !dynenc_are_symbols(&job, symbols))
        return DYNENC_BAD_ARGUMENT;
    const Grid *grid = &job.grid;
    const int64_t total = (int64_t)grid->channels * grid->height * grid->width;
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(&job, planes);
    dynenc_enter_all(&job, symbols, NULL);
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        const Contexts *contexts = &job.contexts;
        dynenc_run_network(&job, plane);
        dynenc_find_contexts(&job, plane);
        for (int64_t i = 0; i < contexts->count; i++) {
            const uint32_t place = contexts->places[i];
            const int64_t y = i / columns_of(grid, plane), x = i % columns_of(grid, plane);
            tables[place] = contexts->tables[i];
            expected[place] = contexts->expected[i] >> 1;
            signs[place] = contexts->expected[i] & 1 ? -1 : 1;
            for (int32_t row = 0; row < 3; row++)
                outputs[row * total + place] =
                    job.outputs[row * job.output_stride + y * grid->stride + x];
        }
        dynenc_leave_plane(&job, plane, symbols, NULL);
    }
    return 0;
}

int64_t dynenc_gradient(const dynenc_call *call, const int16_t *symbols, const float *by_output,
                        float *by_value) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!job.coder || !by_output || !by_value || !dynenc_are_symbols(&job, symbols))
        return DYNENC_BAD_ARGUMENT;
    const Grid *grid = &job.grid;
    const int64_t total = (int64_t)grid->channels * grid->height * grid->width;
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(&job, planes);
    dynenc_enter_all(&job, symbols, NULL);
    memset(job.gradient, 0, (size_t)grid->length * 4);
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        const NetworkCall network = dynenc_network_call(&job, plane);
        for (int32_t y = 0; y < rows_of(grid, plane); y++)
            for (int32_t first = 0; first < columns_of(grid, plane); first += GRADIENT_TILE) {
                const int32_t rest = columns_of(grid, plane) - first;
                const int32_t width = rest < GRADIENT_TILE ? rest : GRADIENT_TILE;
                float outputs[3][GRADIENT_TILE] = {{0}};
                for (int32_t row = 0; row < 3; row++)
                    for (int32_t x = 0; x < width; x++)
                        outputs[row][x] =
                            by_output[row * total + place_of(grid, plane, y, first + x)];
                job.kernels.add_gradient(&network, job.values, y * grid->stride + first,
                                         (const float(*)[GRADIENT_TILE])outputs, job.gradient);
            }
    }
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        const int64_t start = start_of(grid, plane->channel, plane->row, plane->column);
        for (int32_t y = 0; y < rows_of(grid, plane); y++)
            for (int32_t x = 0; x < columns_of(grid, plane); x++) {
                const int64_t at = start + y * grid->stride + x;
                const int32_t saturated = job.values[at] >= MAX_VALUE || job.values[at] <= -MAX_VALUE;
                by_value[place_of(grid, plane, y, x)] = saturated ? 0.0f : job.gradient[at];
            }
    }
    return 0;
}
