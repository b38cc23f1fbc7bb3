/* Which tiles of an image hold text and graphics, by their statistics; see dynenc_tiles.
 *
 * Text and graphics have sharp edges between few levels, with flats between them, in many tiles side by
 * side whose backgrounds resemble each other; photographs have one of these, but seldom all of them. */
#include "internal.h"

enum { WHOLE_TILE = DYNENC_TILE * DYNENC_TILE };
enum {
    STILL = 64, BACKGROUND = 102,   /* rendered: pixels equal to neighbours; near one end of the levels */
    CALM = 110, SCANNED = 128, BOTH = 180, /* scanned: calm pixels; background; background and ink */
    WINDOW = 2,                     /* tiles to each side that must agree ... */
    RENDERED_PEERS = 6, SCANNED_PEERS = 9,   /* ... so many of the 25 */
    RENDERED_LEVELS = 6, SCANNED_LEVELS = 10, /* differences of backgrounds that count as the same */
    EDGE = 1, SMOOTH = 90,          /* around what is found: sharp and calm pixels */
    DITHERED = 32,                  /* still pixels in drawn gradients, which are calm everywhere */
    ACROSS = 12, FRAMED = 212,      /* at frames of photographs: pixels along an edge; calm beside it */
    CLOSINGS = 2, ENCLOSED = 5,     /* rounds in which tiles are added that have so many neighbours */
    LEAST = 6, NOISY_LEAST = 10,    /* tiles taken for text; of a halved image */
    OUTLINED = 56, WHITE = 254, BLACK = 10, /* white type with a dark outline: sharp pixels; levels */
    OUTLINED_STILL = 8, OUTLINED_BOTH = 80, OUTLINED_PEERS = 5, /* still; fill and outline; tiles */
    FLAT = 192, FLAT_PEERS = 18,    /* drawn: still pixels; tiles of the 25 that have so many */
    NOISY_CALM = 48, NOISY_BACKGROUND = 110, NOISY_INK = 32, /* text in noise; most that are ink */
};

/* What a tile by itself may be. */
enum {
    SHARP = 1 << 0, RENDERED = 1 << 1, SCAN = 1 << 2, IS_FLAT = 1 << 3, DRAWN = 1 << 4,
    HAS_EDGES = 1 << 5, IS_ACROSS = 1 << 6, IN_FRAME = 1 << 7, OUTLINED_TYPE = 1 << 8,
    TEXT = RENDERED | SCAN,
};

typedef struct {
    int32_t rows, columns, count;
    uint16_t *kinds; /* [count] */
    uint8_t *levels; /* [count], of the background */
    uint8_t *other;  /* [count], scratch: another mask */
    int32_t *queue;  /* [count], scratch */
} Tiles;

/* Statistics of one tile, in the order of dynenc_tiles. */
typedef struct {
    int32_t still, calm, sharp, bright, dark, high, low;
} Statistics;

static Statistics statistics_of(const uint16_t *statistics, int64_t plane) {
    const uint16_t *at = statistics;
    return (Statistics){at[0],         at[plane],     at[2 * plane], at[3 * plane],
                        at[4 * plane], at[5 * plane], at[6 * plane]};
}

static int32_t kind_of(Statistics tile) {
    const int32_t background = tile.bright > tile.dark ? tile.bright : tile.dark;
    const int32_t both = tile.bright + tile.dark, is_sharp = tile.sharp >= DYNENC_LEAST_SHARP;
    int32_t kind = is_sharp ? SHARP : 0;
    if (is_sharp && tile.still >= STILL && background >= BACKGROUND)
        kind |= RENDERED;
    if (is_sharp && tile.calm >= CALM && background >= SCANNED && both >= BOTH)
        kind |= SCAN;
    if (tile.still >= FLAT)
        kind |= IS_FLAT;
    if (tile.still >= STILL || (tile.still >= DITHERED && tile.calm == WHOLE_TILE))
        kind |= DRAWN;
    if (tile.sharp >= EDGE && tile.calm >= SMOOTH)
        kind |= HAS_EDGES;
    if (tile.sharp >= ACROSS)
        kind |= IS_ACROSS;
    if (tile.sharp >= ACROSS && tile.calm >= FRAMED)
        kind |= IN_FRAME;
    if (tile.sharp >= OUTLINED && tile.still >= OUTLINED_STILL && tile.high >= WHITE &&
        tile.low <= BLACK && both >= OUTLINED_BOTH)
        kind |= OUTLINED_TYPE;
    return kind;
}

/* Whether a tile could be text in noise; so could some of a photograph. */
static int32_t may_be_noisy_text(Statistics tile) {
    const int32_t background = tile.bright > tile.dark ? tile.bright : tile.dark;
    const int32_t ink = tile.bright > tile.dark ? tile.dark : tile.bright;
    return tile.sharp >= DYNENC_LEAST_SHARP && tile.calm >= NOISY_CALM && ink <= NOISY_INK &&
           background >= NOISY_BACKGROUND;
}

/* The tiles within `distance` of one, as far as there are such tiles; ends are exclusive. */
typedef struct {
    int32_t top, bottom, left, right;
} Around;

static Around around(const Tiles *tiles, int32_t tile, int32_t distance) {
    const int32_t row = tile / tiles->columns, column = tile % tiles->columns;
    return (Around){clamp32(row - distance, 0, row), clamp32(row + distance + 1, 0, tiles->rows),
                    clamp32(column - distance, 0, column),
                    clamp32(column + distance + 1, 0, tiles->columns)};
}

/* Of the tiles near one, itself included, the number of a kind whose background is within `tolerance`. */
static int32_t count_peers(const Tiles *tiles, int32_t tile, int32_t kind, int32_t tolerance) {
    const Around near = around(tiles, tile, WINDOW);
    const int32_t level = tiles->levels[tile];
    int32_t peers = 0;
    for (int32_t row = near.top; row < near.bottom; row++)
        for (int32_t column = near.left; column < near.right; column++) {
            const int32_t other = row * tiles->columns + column;
            const int32_t apart = tiles->levels[other] - level;
            peers += (tiles->kinds[other] & kind) && apart <= tolerance && -apart <= tolerance;
        }
    return peers;
}

static int32_t count_kind(const Tiles *tiles, int32_t kinds) {
    int32_t count = 0;
    for (int32_t tile = 0; tile < tiles->count; tile++)
        count += (tiles->kinds[tile] & kinds) != 0;
    return count;
}

static int32_t count_found(const Tiles *tiles, const uint8_t *found) {
    int32_t count = 0;
    for (int32_t tile = 0; tile < tiles->count; tile++)
        count += found[tile];
    return count;
}

/* Grow what is found by up to `rings` rings of tiles of some kinds. */
static void grow(Tiles *tiles, uint8_t *found, int32_t kinds, int32_t rings) {
    int32_t next = 0, end = 0;
    for (int32_t tile = 0; tile < tiles->count; tile++)
        if (found[tile])
            tiles->queue[end++] = tile;
    for (int32_t ring = 0; ring < rings && next < end; ring++)
        for (const int32_t last = end; next < last; next++) {
            const Around near = around(tiles, tiles->queue[next], 1);
            for (int32_t row = near.top; row < near.bottom; row++)
                for (int32_t column = near.left; column < near.right; column++) {
                    const int32_t tile = row * tiles->columns + column;
                    if (found[tile] || !(tiles->kinds[tile] & kinds))
                        continue;
                    found[tile] = 1;
                    tiles->queue[end++] = tile;
                }
        }
}

/* Add tiles of which most neighbours are found; tiles beyond the border are as those at it. */
static void close_gaps(Tiles *tiles, uint8_t *found) {
    memcpy(tiles->other, found, (size_t)tiles->count);
    for (int32_t tile = 0; tile < tiles->count; tile++) {
        const int32_t row = tile / tiles->columns, column = tile % tiles->columns;
        int32_t neighbours = -tiles->other[tile];
        for (int32_t y = row - 1; y <= row + 1; y++)
            for (int32_t x = column - 1; x <= column + 1; x++)
                neighbours += tiles->other[clamp32(y, 0, tiles->rows - 1) * tiles->columns +
                                            clamp32(x, 0, tiles->columns - 1)];
        found[tile] |= neighbours >= ENCLOSED;
    }
}

/* Add what adjoins the tiles found and resembles text, flats or frames. */
static void complete(Tiles *tiles, uint8_t *found) {
    grow(tiles, found, TEXT | HAS_EDGES | DRAWN, 2);
    grow(tiles, found, DRAWN, tiles->rows + tiles->columns);
    grow(tiles, found, IN_FRAME, 1);
    for (int32_t round = 0; round < CLOSINGS; round++)
        close_gaps(tiles, found);
}

static int32_t is_text(const Tiles *tiles, int32_t tile) {
    const int32_t kind = tiles->kinds[tile];
    if (kind & RENDERED && (count_peers(tiles, tile, RENDERED, RENDERED_LEVELS) >= RENDERED_PEERS ||
                            count_peers(tiles, tile, IS_FLAT, 255) >= FLAT_PEERS))
        return 1;
    return kind & SCAN &&
           count_peers(tiles, tile, SCAN, SCANNED_LEVELS) >= SCANNED_PEERS;
}

/* Find text, graphics and what adjoins them; nothing if fewer than `least` tiles resemble text. */
static void find_text(Tiles *tiles, int32_t search, int32_t least, uint8_t *found) {
    for (int32_t tile = 0; tile < tiles->count; tile++)
        found[tile] = search == DYNENC_EAGER ? (tiles->kinds[tile] & TEXT) != 0
                                             : (uint8_t)is_text(tiles, tile);
    if (count_found(tiles, found) < least) {
        memset(found, 0, (size_t)tiles->count);
        return;
    }
    complete(tiles, found);
    const int64_t sharp = count_kind(tiles, SHARP), text = count_kind(tiles, TEXT);
    if (4LL * count_found(tiles, found) >= 3LL * tiles->count || 5 * text < 3 * sharp)
        return;
    for (int32_t tile = 0; tile < tiles->count; tile++) /* a document */
        found[tile] |= (tiles->kinds[tile] & TEXT) != 0;
    complete(tiles, found);
}

/* Add white type with a dark outline, which stands upon photographs. */
static void find_outlined(Tiles *tiles, uint8_t *found) {
    uint8_t *outlined = tiles->other;
    for (int32_t tile = 0; tile < tiles->count; tile++)
        outlined[tile] = tiles->kinds[tile] & OUTLINED_TYPE &&
                         count_peers(tiles, tile, OUTLINED_TYPE, 255) >= OUTLINED_PEERS;
    if (count_found(tiles, outlined) < LEAST)
        return;
    grow(tiles, outlined, IS_ACROSS, 1);
    for (int32_t tile = 0; tile < tiles->count; tile++)
        found[tile] |= outlined[tile];
}

int64_t dynenc_graphics(const uint16_t *statistics, int32_t rows, int32_t columns, int32_t search,
                        void *workspace, uint8_t *found) {
    enum { MOST = 65536 / DYNENC_TILE };
    if (!statistics || rows < 1 || rows > MOST || columns < 1 || columns > MOST ||
        search < DYNENC_TEXT || search > DYNENC_HALVED || !workspace ||
        (uintptr_t)workspace % ALIGNMENT || !found)
        return DYNENC_BAD_ARGUMENT;
    Tiles tiles = {.rows = rows, .columns = columns, .count = rows * columns};
    tiles.queue = workspace;
    tiles.kinds = (uint16_t *)(tiles.queue + tiles.count);
    tiles.levels = (uint8_t *)(tiles.kinds + tiles.count);
    tiles.other = tiles.levels + tiles.count;
    for (int32_t tile = 0; tile < tiles.count; tile++) {
        const Statistics each = statistics_of(statistics + tile, tiles.count);
        tiles.kinds[tile] = (uint16_t)kind_of(each);
        tiles.levels[tile] = (uint8_t)(each.bright > each.dark ? each.high : each.low);
    }
    const int32_t least = search == DYNENC_EAGER ? 1 : search == DYNENC_HALVED ? NOISY_LEAST : LEAST;
    find_text(&tiles, search, least, found);
    if (search != DYNENC_HALVED)
        find_outlined(&tiles, found);
    int32_t missed = 0;
    for (int32_t tile = 0; tile < tiles.count; tile++)
        missed += !found[tile] && may_be_noisy_text(statistics_of(statistics + tile, tiles.count));
    return missed;
}
