/* Statistics of tiles of pixels, by which text and graphics are found. */
#include "internal.h"

enum { SIDE = DYNENC_TILE, STILL = 0, CALM = 8, SHARP = 48, NEAR = 6 };
enum { BLOCK = 16 * SIDE, STRIDE = BLOCK + 64 }; /* pixels of a row that are taken at once */

enum { RED = 19595, GREEN = 38470, BLUE = 7471, HALF = 32768 }; /* weights of brightness, of 65536 */

static inline uint8_t distance(uint8_t a, uint8_t b) {
    return (uint8_t)(a > b ? a - b : b - a);
}

static inline uint8_t grey_of(const uint8_t *rgb) {
    return (uint8_t)((RED * rgb[0] + GREEN * rgb[1] + BLUE * rgb[2] + HALF) >> 16);
}

#if defined(__x86_64__)
#include <immintrin.h>

/* grey_of 8 pixels, in lanes: the products of red and green and of blue and green, whose weight, too
 * large for 16 bits, is halved. */
__attribute__((target("avx2"))) static inline __m256i grey_of_8(const uint8_t *rgb) {
    const __m128i low = _mm_loadu_si128((const __m128i *)rgb);
    const __m128i high = _mm_loadu_si128((const __m128i *)(rgb + 8)); /* 12 bytes of which count */
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    const __m256i red_green = _mm256_shuffle_epi8(
        bytes, _mm256_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1, 4, -1, 5, -1,
                                7, -1, 8, -1, 10, -1, 11, -1, 13, -1, 14, -1));
    const __m256i blue_green = _mm256_shuffle_epi8(
        bytes, _mm256_setr_epi8(2, -1, 1, -1, 5, -1, 4, -1, 8, -1, 7, -1, 11, -1, 10, -1, 6, -1, 5, -1,
                                9, -1, 8, -1, 12, -1, 11, -1, 15, -1, 14, -1));
    const __m256i first = _mm256_madd_epi16(red_green, _mm256_set1_epi32(GREEN / 2 << 16 | RED));
    const __m256i second = _mm256_madd_epi16(blue_green, _mm256_set1_epi32(GREEN / 2 << 16 | BLUE));
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(first, second), _mm256_set1_epi32(HALF));
    return _mm256_srli_epi32(sum, 16);
}

/* grey_of 32 pixels */
__attribute__((target("avx2"))) static inline void store_32_greys(const uint8_t *rgb, uint8_t *grey) {
    const __m256i first = _mm256_packus_epi32(grey_of_8(rgb), grey_of_8(rgb + 24));
    const __m256i second = _mm256_packus_epi32(grey_of_8(rgb + 48), grey_of_8(rgb + 72));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* packing works by halves */
    const __m256i greys = _mm256_packus_epi16(first, second);
    _mm256_storeu_si256((__m256i *)grey, _mm256_permutevar8x32_epi32(greys, order));
}
#endif

#define KERNELS "tiles.h"
#include "paths.h"

/* A row of a tile. */
typedef uint8_t Row __attribute__((vector_size(SIDE)));

static inline Row row_at(const uint8_t *levels) {
    Row row;
    memcpy(&row, levels, sizeof row);
    return row;
}

/* The sum of counters, each at most SIDE. */
static inline uint16_t sum(Row counters) {
    uint64_t halves[2];
    memcpy(halves, &counters, sizeof halves);
    const uint64_t ones = 0x0101010101010101;
    return (uint16_t)((halves[0] * ones >> 56) + (halves[1] * ones >> 56));
}

/* The brightest and darkest pixel of a tile, and how many are near them. */
static void measure_ends(const uint8_t grey[][STRIDE], int32_t left, uint16_t ends[4]) {
    Row highs = {0}, lows = row_at(grey[0] + left), near_high = {0}, near_low = {0};
    for (int32_t y = 0; y < SIDE; y++) {
        const Row row = row_at(grey[y] + left);
        const Row more = (Row)(row > highs), less = (Row)(row < lows);
        highs = (row & more) | (highs & ~more);
        lows = (row & less) | (lows & ~less);
    }
    uint8_t high = highs[0], low = lows[0];
    for (int32_t x = 1; x < SIDE; x++) {
        high = highs[x] > high ? highs[x] : high;
        low = lows[x] < low ? lows[x] : low;
    }
    const uint8_t near = (uint8_t)((high - low) / NEAR);
    const uint8_t bright = (uint8_t)(high - near), dark = (uint8_t)(low + near);
    for (int32_t y = 0; y < SIDE; y++) {
        const Row row = row_at(grey[y] + left);
        near_high -= (Row)(row >= bright); /* true is -1 */
        near_low -= (Row)(row <= dark);
    }
    ends[0] = sum(near_high);
    ends[1] = sum(near_low);
    ends[2] = high;
    ends[3] = low;
}

/* An image, or the one of half its sides. */
typedef struct {
    const dynenc_image *image;
    int32_t divisor, height, width; /* of what is seen, divided */
} Seen;

/* The brightness of `count` pixels of a row from `left` on. */
static void read_row(const Seen *seen, int32_t row, int32_t left, int32_t count, uint8_t *grey) {
    const dynenc_image *image = seen->image;
    const int32_t path = image->path, first = seen->divisor * row;
    const int32_t second = first + 1 < image->height ? first + 1 : first;
    const int64_t start = 3LL * seen->divisor * left;
    const uint8_t *above = image->pixels + first * image->row_bytes + start;
    if (seen->divisor == 1) {
        SELECT(path, to_grey)(above, count, grey);
        return;
    }
    const uint8_t *below = image->pixels + second * image->row_bytes + start;
    const int32_t there = (image->width - 2 * left) / 2; /* pairs of pixels */
    const int32_t pairs = count < there ? count : there;
    uint8_t means[6 * (BLOCK + 1)] = {0}, pixels[3 * (BLOCK + 1) + 1];
    SELECT(path, average)(above, below, 6 * pairs - 3, means);
    for (int32_t x = 0; x < pairs; x++)
        memcpy(pixels + 3 * x, means + 6 * x, 4); /* faster than 3; the next overwrites it */
    for (int32_t i = 0; i < 3 && pairs < count; i++)
        pixels[3 * pairs + i] = (uint8_t)((above[6 * pairs + i] + below[6 * pairs + i] + 1) >> 1);
    SELECT(path, to_grey)(pixels, count, grey);
}

/* Statistics of the tiles of a block of columns from `left` on, in a row of tiles; `plane` is the
 * distance between statistics of a tile. */
static void measure_block(const Seen *seen, int32_t top, int32_t left, uint16_t *statistics,
                          int64_t plane) {
    uint8_t grey[SIDE + 1][STRIDE], counters[3][BLOCK] = {{0}};
    const int32_t there = seen->width - left, count = there < BLOCK + 1 ? there : BLOCK + 1;
    for (int32_t y = 0; y <= SIDE; y++) {
        const int32_t row = top + y < seen->height ? top + y : seen->height - 1;
        read_row(seen, row, left, count, grey[y]);
        memset(grey[y] + count, grey[y][count - 1], (size_t)(STRIDE - count));
    }
    for (int32_t y = 0; y < SIDE; y++)
        SELECT(seen->image->path, count_changes)(grey[y], grey[y + 1], counters);
    for (int32_t x = 0; x < BLOCK && x < there; x += SIDE, statistics++) {
        uint16_t ends[4] = {0};
        for (int32_t i = 0; i < 3; i++)
            statistics[i * plane] = sum(row_at(counters[i] + x));
        if (statistics[2 * plane] >= DYNENC_LEAST_SHARP)
            measure_ends(grey, x, ends);
        for (int32_t i = 0; i < 4; i++)
            statistics[(3 + i) * plane] = ends[i];
    }
}

int64_t dynenc_tiles(const dynenc_image *image, int32_t rows, int32_t divisor,
                     uint16_t *statistics) {
    if (!image || !image->pixels || !statistics || !dynenc_has_path(image->path) ||
        image->height < 1 || image->height > 65536 || image->width < 1 ||
        image->width > 65536 || image->row_bytes < 3LL * image->width || divisor < 1 ||
        divisor > 2)
        return DYNENC_BAD_ARGUMENT;
    const Seen seen = {image, divisor, (image->height + divisor - 1) / divisor,
                       (image->width + divisor - 1) / divisor};
    if (rows < 1 || rows > (seen.height + SIDE - 1) / SIDE)
        return DYNENC_BAD_ARGUMENT;
    const int32_t columns = (seen.width + SIDE - 1) / SIDE;
    for (int32_t row = 0; row < rows; row++)
        for (int32_t left = 0; left < seen.width; left += BLOCK)
            measure_block(&seen, row * SIDE, left,
                          statistics + (int64_t)row * columns + left / SIDE,
                          (int64_t)rows * columns);
    return 0;
}
