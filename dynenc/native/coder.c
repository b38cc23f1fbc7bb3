/* The tables of an entropy coder: checked, and in the order in which the kernels read them. */
#include "internal.h"

/* Names of the numbers at the beginning of the tensors. */
typedef struct {
    int32_t channels, tables, columns, thresholds;
} Header;

static int32_t rounded(int32_t n, int32_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

/* Fill `coder`, all but what offsets point to, with sizes and offsets; reads the header alone.
 * Returns the coder's size in bytes, or an error. */
static int64_t plan(Coder *coder, Header *header, const int32_t *tensors, int64_t length) {
    if (!tensors || length < DYNENC_HEADER(1))
        return DYNENC_BAD_SHAPE;
    memset(coder, 0, sizeof *coder);
    *header = (Header){tensors[0], tensors[1], tensors[2], tensors[3]};
    if (header->channels < 1 || header->channels > MAX_CHANNELS || header->tables < VARIANTS || header->tables % VARIANTS ||
        header->tables > MAX_SCALES * VARIANTS || header->columns < 4 || header->columns % 2 ||
        header->columns > MAX_COLUMNS || header->thresholds < 1 || header->thresholds > 256 ||
        length < DYNENC_HEADER(header->channels))
        return DYNENC_BAD_SHAPE;
    int64_t size = aligned(sizeof(Coder));
    int64_t numbers = DYNENC_HEADER(header->channels) + header->thresholds +
                      (int64_t)header->tables * header->columns;
    for (int32_t i = 0; i < STAGES * header->channels; i++) {
        const int32_t *sizes = tensors + 4 + 3 * i, f = sizes[0], h = sizes[1], m = sizes[2];
        if (f < 1 || f > MAX_INPUTS || h < 1 || h > MAX_INPUTS || m < 1 || m > MAX_INPUTS)
            return DYNENC_BAD_SHAPE;
        Network *network = &coder->networks[i / header->channels][i % header->channels];
        network->inputs = f, network->hidden = h, network->middle = m;
        network->input_pairs = rounded(f, 2) / 2;
        network->hidden_pairs = rounded(h, 8) / 2;
        network->middle_pairs = rounded(m, 8) / 2;
        network->neighbours_at = size;
        size += aligned(3 * f);
        network->hidden_at = size;
        size += aligned(4LL * 2 * network->hidden_pairs * network->input_pairs);
        network->middle_at = size;
        size += aligned(4LL * 2 * network->middle_pairs * network->hidden_pairs);
        network->output_at = size;
        size += aligned(
            16LL * (network->input_pairs + network->hidden_pairs + network->middle_pairs));
        network->bias_at = size;
        size += aligned(8LL * (h + m + 3));
        numbers += 3LL * f + (int64_t)h * f + (int64_t)m * h + 3LL * (m + h + f) + 2LL * (h + m + 3);
    }
    coder->levels_at = size;
    size += LEVELS;
    coder->slots_at = size;
    size += aligned((int64_t)sizeof(Slot) * header->tables * header->columns);
    coder->starts_at = size;
    size += aligned(256LL * header->tables);
    coder->size = (uint64_t)size;
    return numbers == length ? size : DYNENC_BAD_SHAPE;
}

int64_t dynenc_coder_size(const int32_t *tensors, int64_t length) {
    Coder coder;
    Header header;
    return plan(&coder, &header, tensors, length);
}

/* Put weight [row, column] of a layer into pairs [rows / block, pairs, block]. */
static void put_weight(int32_t *layer, int32_t block, int32_t pairs, int32_t row, int32_t column,
                       int32_t weight) {
    int32_t *pair = layer + ((int64_t)(row / block) * pairs + column / 2) * block + row % block;
    const uint32_t half = (uint32_t)weight & 0xffff;
    *pair = (int32_t)((uint32_t)*pair | (column % 2 ? half << 16 : half));
}

/* The pass after which all symbols of a plane are known. */
static int32_t pass_of(int32_t channel, int32_t row, int32_t column) {
    return channel + STAGE_OF[row & 3][column & 3];
}

/* Check and pack one network whose tensors begin at *at, which moves to their end. */
static int64_t add_network(Coder *coder, int32_t stage, int32_t channel, const int32_t **at) {
    const Network *network = &coder->networks[stage][channel];
    const int32_t f = network->inputs, h = network->hidden, m = network->middle;
    const int32_t *neighbours = *at, *hidden = neighbours + 3 * f, *middle = hidden + h * f;
    const int32_t *output = middle + m * h, *bias = output + 3 * (m + h + f);
    char *memory = (char *)coder;
    const int64_t far = LAST_LEVEL - MIDDLE_LEVEL; /* FIRST_LEVEL is as far */
    for (int32_t i = 0; i < h + m + 3; i++) {
        const int32_t *row = i < h ? hidden + i * f
                             : i < h + m ? middle + (i - h) * h
                                         : output + (i - h - m) * (m + h + f);
        const int32_t length = i < h ? f : i < h + m ? h : m + h + f;
        int64_t sum = 0;
        for (int32_t j = 0; j < length; j++)
            sum += row[j] < 0 ? -(int64_t)row[j] : row[j];
        const int64_t constant = bias[2 * i], slope = bias[2 * i + 1];
        sum = sum * MAX_VALUE + (constant < 0 ? -constant : constant);
        sum += far * (slope < 0 ? -slope : slope);
        if (sum >= MAX_OUTPUT)
            return DYNENC_INEXACT;
    }
    for (int32_t i = 0; i < f; i++) {
        const int32_t *place = neighbours + 3 * i;
        if (place[0] < 0 || place[0] >= coder->channels || place[1] < -FARTHEST ||
            place[1] > FARTHEST || place[2] < -FARTHEST || place[2] > FARTHEST)
            return DYNENC_TOO_FAR;
        int32_t used = 0;
        for (int32_t row = 0; row < h; row++)
            used |= hidden[row * f + i];
        for (int32_t row = 0; row < 3; row++)
            used |= output[row * (m + h + f) + m + h + i];
        for (int32_t p = 0; p < 16; p++)
            if (used && pass_of(0, p / 4, p % 4) == stage &&
                pass_of(place[0], p / 4 + place[1], p % 4 + place[2]) >= stage + channel)
                return DYNENC_NOT_CAUSAL;
        for (int32_t j = 0; j < 3; j++)
            ((int8_t *)(memory + network->neighbours_at))[3 * i + j] = (int8_t)place[j];
    }
    for (int32_t i = 0; i < h * f; i++)
        put_weight((int32_t *)(memory + network->hidden_at), 8, network->input_pairs, i / f, i % f,
                   hidden[i]);
    for (int32_t i = 0; i < m * h; i++)
        put_weight((int32_t *)(memory + network->middle_at), 8, network->hidden_pairs, i / h, i % h,
                   middle[i]);
    for (int32_t row = 0; row < 3; row++)
        for (int32_t i = 0; i < m + h + f; i++) {
            int32_t column = i - m - h; /* the kernels' order is inputs, hidden, middle */
            if (i < m + h)
                column = 2 * network->input_pairs + i - m;
            if (i < m)
                column = 2 * (network->input_pairs + network->hidden_pairs) + i;
            put_weight((int32_t *)(memory + network->output_at), 4, 0, row, column,
                       output[row * (m + h + f) + i]);
        }
    memcpy(memory + network->bias_at, bias, 8 * ((size_t)h + (size_t)m + 3));
    *at = bias + 2 * (h + m + 3);
    return 0;
}

/* Check and pack the tables of frequencies, counts [tables, columns]. */
static int64_t add_tables(Coder *coder, const Header *header, const int32_t *counts) {
    char *memory = (char *)coder;
    coder->columns = header->columns;
    coder->scales = header->tables / VARIANTS;
    coder->radius = header->columns / 2 - 1;
    for (int32_t table = 0; table < header->tables; table++) {
        const int32_t *row = counts + (int64_t)table * header->columns;
        Slot *slots = (Slot *)(memory + coder->slots_at) + (int64_t)table * header->columns;
        uint8_t *starts = (uint8_t *)(memory + coder->starts_at) + 256LL * table;
        int32_t left = 0, start = 0;
        int64_t seen = 0, squares = 0;
        for (int32_t column = 0; column < header->columns; column++) {
            if (row[column] < 1 || row[column] > 65536 - left)
                return DYNENC_BAD_COUNTS;
            slots[column] = (Slot){(uint16_t)left, (uint16_t)row[column]};
            left += row[column];
            for (; start < 256 && 256 * start < left; start++)
                starts[start] = (uint8_t)column;
            if (column < header->columns - 1) { /* 1 of a count is for what was never seen */
                const int64_t residual = column - coder->radius;
                seen += row[column] - 1;
                squares += (row[column] - 1) * residual * residual;
            }
        }
        if (left != 65536)
            return DYNENC_BAD_COUNTS;
        if (table % VARIANTS == 0) {
            const double variance = (double)squares / (double)(seen > 1 ? seen : 1);
            coder->variances[table / VARIANTS] = (float)(variance < 0.1 ? 0.1 : variance);
        }
    }
    return 0;
}

/* Check the thresholds and tabulate how many of them each number has reached. */
static int64_t add_levels(Coder *coder, const int32_t *thresholds, int32_t count) {
    uint8_t *levels = (uint8_t *)coder + coder->levels_at;
    int32_t begin = 0;
    for (int32_t level = 0; level <= count; level++) {
        const int32_t *next = thresholds + level;
        if (level > 0 && level < count && next[0] < next[-1])
            return DYNENC_BAD_SHAPE;
        const int32_t end = level < count ? clamp32(*next, begin, LEVELS) : LEVELS;
        if (level > 255 && begin < end)
            return DYNENC_BAD_SHAPE;
        memset(levels + begin, level, (size_t)(end - begin));
        begin = end;
    }
    return 0;
}

int64_t dynenc_coder_init(void *memory, int64_t size, const int32_t *tensors, int64_t length) {
    Coder *coder = memory;
    Coder sizes;
    Header header;
    const int64_t needed = plan(&sizes, &header, tensors, length);
    if (needed < 0)
        return needed;
    if (!memory || (uintptr_t)memory % ALIGNMENT)
        return DYNENC_BAD_ARGUMENT;
    if (size < needed)
        return DYNENC_TOO_SMALL;
    memset(memory, 0, (size_t)needed);
    plan(coder, &header, tensors, length);
    const int32_t *at = tensors + DYNENC_HEADER(header.channels);
    int64_t error = 0;
    coder->channels = header.channels;
    for (int32_t i = 0; i < STAGES * header.channels && !error; i++)
        error = add_network(coder, i / header.channels, i % header.channels, &at);
    if (!error)
        error = add_tables(coder, &header, at);
    at += (int64_t)header.tables * header.columns;
    if (!error)
        error = add_levels(coder, at, header.thresholds);
    return error;
}
