/* Statistics of tiles of pixels, by which text and graphics are found. */
#include "dynenc.h"

enum { SIDE = DYNENC_TILE, STILL = 0, CALM = 8, SHARP = 48, NEAR = 6 };

static uint8_t distance(uint8_t a, uint8_t b) { return a > b ? a - b : b - a; }

/* Add to counters[0..SIDE), one for each column, what is true of the pixels of a row. `right` and
 * `below` are the pixels that each is compared with. */
static void count_changes(const uint8_t *row, const uint8_t *right, const uint8_t *below,
                          uint8_t counters[3][SIDE]) {
    for (int32_t x = 0; x < SIDE; x++) {
        const uint8_t across = distance(row[x], right[x]), down = distance(row[x], below[x]);
        const uint8_t change = across > down ? across : down;
        counters[0][x] = (uint8_t)(counters[0][x] + (change <= STILL));
        counters[1][x] = (uint8_t)(counters[1][x] + (change <= CALM));
        counters[2][x] = (uint8_t)(counters[2][x] + (change >= SHARP));
    }
}

static uint16_t sum(const uint8_t *counters) {
    uint16_t total = 0;
    for (int32_t x = 0; x < SIDE; x++)
        total = (uint16_t)(total + counters[x]);
    return total;
}

static void measure(const uint8_t *tile, int64_t width, int32_t last_column, int32_t last_row,
                    uint16_t *statistics) {
    uint8_t counters[3][SIDE] = {{0}}, high[SIDE], low[SIDE], right[SIDE];
    for (int32_t x = 0; x < SIDE; x++)
        high[x] = low[x] = tile[x];
    for (int32_t y = 0; y < SIDE; y++) {
        const uint8_t *row = tile + y * width;
        for (int32_t x = 0; x < SIDE - 1; x++)
            right[x] = row[x + 1];
        right[SIDE - 1] = row[last_column ? SIDE - 1 : SIDE];
        count_changes(row, right, last_row && y == SIDE - 1 ? row : row + width, counters);
        for (int32_t x = 0; x < SIDE; x++) {
            high[x] = row[x] > high[x] ? row[x] : high[x];
            low[x] = row[x] < low[x] ? row[x] : low[x];
        }
    }
    for (int32_t x = 1; x < SIDE; x++) {
        high[0] = high[x] > high[0] ? high[x] : high[0];
        low[0] = low[x] < low[0] ? low[x] : low[0];
    }
    const uint8_t near = (uint8_t)((high[0] - low[0]) / NEAR);
    const uint8_t bright = (uint8_t)(high[0] - near), dark = (uint8_t)(low[0] + near);
    uint8_t ends[2][SIDE] = {{0}};
    for (int32_t y = 0; y < SIDE; y++)
        for (int32_t x = 0; x < SIDE; x++) {
            ends[0][x] = (uint8_t)(ends[0][x] + (tile[y * width + x] >= bright));
            ends[1][x] = (uint8_t)(ends[1][x] + (tile[y * width + x] <= dark));
        }
    for (int32_t i = 0; i < 3; i++)
        statistics[i] = sum(counters[i]);
    statistics[3] = sum(ends[0]);
    statistics[4] = sum(ends[1]);
    statistics[5] = high[0];
    statistics[6] = low[0];
}

int64_t dynenc_tiles(const uint8_t *pixels, int32_t rows, int32_t columns, uint16_t *statistics) {
    if (!pixels || !statistics || rows < 1 || columns < 1 || rows > 4096 || columns > 4096)
        return DYNENC_BAD_ARGUMENT;
    const int64_t width = (int64_t)columns * SIDE;
    for (int32_t row = 0; row < rows; row++)
        for (int32_t column = 0; column < columns; column++)
            measure(pixels + row * SIDE * width + column * SIDE, width, column == columns - 1,
                    row == rows - 1, statistics + 7 * ((int64_t)row * columns + column));
    return 0;
}
