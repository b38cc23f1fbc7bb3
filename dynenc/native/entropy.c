/* Symbols <-> payload. */
#include "job.h"
#include "range_coder.h"

/* Sort the plane's symbols by table. */
static void sort_by_table(Contexts *contexts, int32_t tables) {
    uint32_t counts[256] = {0}, starts[256], total = 0;
    for (int64_t i = 0; i < contexts->count; i++)
        counts[contexts->tables[i]]++;
    for (int32_t table = 0; table < tables; table++) {
        starts[table] = total;
        total += counts[table];
    }
    for (int64_t i = 0; i < contexts->count; i++)
        contexts->sorted[starts[contexts->tables[i]]++] = (uint32_t)i;
}

/* Write the symbols of a plane, table by table, then those that have no place in the tables. */
static void write_plane(Job *job, Writer *writer, const int16_t *symbols) {
    const Coder *coder = job->coder;
    const Slot *slots = (const Slot *)((const char *)coder + coder->slots_at);
    Contexts *contexts = &job->contexts;
    const int32_t radius = coder->radius;
    int64_t escapes = 0;
    for (int64_t i = 0; i < contexts->count; i++) {
        const int32_t context = contexts->expected[i];
        const int32_t residual = symbols[contexts->places[i]] - (context >> 1);
        const int32_t column = (context & 1 ? -residual : residual) + radius;
        const int32_t escaped = column < 0 || column > 2 * radius;
        contexts->coded[i] = (uint8_t)(escaped ? 2 * radius + 1 : column);
        escapes += escaped;
    }
    sort_by_table(contexts, coder->scales * VARIANTS);
    for (int64_t i = 0; i < contexts->count; i++) {
        const uint32_t place = contexts->sorted[i];
        const Slot *slot = slots + contexts->tables[place] * coder->columns + contexts->coded[place];
        write_slot(writer, slot->left, slot->count);
    }
    for (int64_t i = 0; escapes; i++)
        if (contexts->coded[i] > 2 * radius) {
            write_slot(writer, (uint32_t)(symbols[contexts->places[i]] + LIMIT), 1);
            escapes--;
        }
}

/* Read the symbols of a plane; returns 0 or an error. */
static int64_t read_plane(Job *job, Reader *reader, int16_t *symbols) {
    const Coder *coder = job->coder;
    const Slot *slots = (const Slot *)((const char *)coder + coder->slots_at);
    const uint8_t *starts = (const uint8_t *)coder + coder->starts_at;
    Contexts *contexts = &job->contexts;
    const int32_t radius = coder->radius;
    int64_t escapes = 0;
    int32_t outside = 0;
    sort_by_table(contexts, coder->scales * VARIANTS);
    for (int64_t i = 0; i < contexts->count; i++) {
        const uint32_t place = contexts->sorted[i], quantile = peek(reader);
        const int32_t table = contexts->tables[place];
        const Slot *first = slots + table * coder->columns;
        const Slot *slot = first + starts[256 * table + (int32_t)(quantile >> 8)];
        while (quantile - slot->left >= slot->count)
            slot++;
        skip_slot(reader, slot->left, slot->count);
        const int32_t column = (int32_t)(slot - first), residual = column - radius;
        const int32_t context = contexts->expected[place];
        const int32_t symbol = (context >> 1) + (context & 1 ? -residual : residual);
        const int32_t escaped = column > 2 * radius;
        contexts->coded[place] = (uint8_t)column;
        escapes += escaped;
        outside |= !escaped & (symbol < -LIMIT || symbol > LIMIT);
        symbols[contexts->places[place]] = (int16_t)symbol;
    }
    for (int64_t i = 0; escapes; i++)
        if (contexts->coded[i] > 2 * radius) {
            const uint32_t quantile = peek(reader);
            skip_slot(reader, quantile, 1);
            const int32_t symbol = (int32_t)quantile - LIMIT;
            const int32_t residual = symbol - (contexts->expected[i] >> 1);
            if (residual >= -radius && residual <= radius)
                return DYNENC_BAD_ESCAPE;
            outside |= symbol > LIMIT;
            symbols[contexts->places[i]] = (int16_t)symbol;
            escapes--;
        }
    /* a payload too short reads as zeros without end */
    return outside || reader->corrupt || reader->next > reader->count + 1 ? DYNENC_CORRUPT : 0;
}

/* Code all symbols, plane by plane: read if there is a reader, or else written. Returns 0 or an
 * error. */
static int64_t code(Job *job, Writer *writer, Reader *reader, int16_t *symbols) {
    Plane planes[MAX_PLANES];
    const int32_t count = dynenc_planes(job, planes);
    for (const Plane *plane = planes; plane < planes + count; plane++) {
        dynenc_run_network(job, plane);
        dynenc_find_contexts(job, plane);
        if (reader) {
            const int64_t error = read_plane(job, reader, symbols);
            if (error)
                return error;
        } else {
            write_plane(job, writer, symbols);
        }
        dynenc_leave_plane(job, plane, symbols, NULL);
    }
    return 0;
}

int64_t dynenc_encode(const dynenc_call *call, const int16_t *symbols, uint8_t *payload,
                      int64_t capacity) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!job.coder || !payload || capacity < 0 || !dynenc_are_symbols(&job, symbols))
        return DYNENC_BAD_ARGUMENT;
    Writer writer = {.range = UINT64_MAX, .words = payload, .capacity = capacity / 4};
    code(&job, &writer, NULL, (int16_t *)symbols);
    finish(&writer);
    return writer.overflow ? DYNENC_TOO_SMALL : 4 * writer.count;
}

int64_t dynenc_decode(const dynenc_call *call, const uint8_t *payload, int64_t length,
                      int16_t *symbols) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!job.coder || !payload || length < 0 || !symbols)
        return DYNENC_BAD_ARGUMENT;
    if (length % 4)
        return DYNENC_CORRUPT;
    Reader reader = start_reading(payload, length / 4);
    const int64_t corrupt = code(&job, NULL, &reader, symbols);
    return corrupt ? corrupt : is_finished(&reader) ? 0 : DYNENC_CORRUPT;
}

int64_t dynenc_points(const dynenc_call *call, const int16_t *symbols, int32_t *points) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!points || !dynenc_are_symbols(&job, symbols))
        return DYNENC_BAD_ARGUMENT;
    dynenc_enter_all(&job, symbols, points);
    return 0;
}

int64_t dynenc_integer_latents(const dynenc_call *call, const int16_t *symbols,
                               int16_t *latents) {
    Job job;
    const int64_t error = dynenc_start(&job, call);
    if (error)
        return error;
    if (!latents || !dynenc_are_symbols(&job, symbols))
        return DYNENC_BAD_ARGUMENT;
    job.latents = latents;
    dynenc_enter_all(&job, symbols, NULL);
    return 0;
}
