/* Hot loops of tiles.c; paths.h tells what is defined here. */

/* The brightness of pixels uint8 [count, 3], as Pillow has it. */
TARGET static void PATH(to_grey)(const uint8_t *pixels, int32_t count, uint8_t *grey) {
    int32_t x = 0;
#if LANES >= 8
    for (; x + 32 <= count; x += 32)
        store_32_greys(pixels + 3 * x, grey + x);
#endif
    for (; x < count; x++)
        grey[x] = grey_of(pixels + 3 * x);
}

/* Add to counters [3][BLOCK] what is true of the pixels of a row, each compared with those right of
 * it and below. */
TARGET static void PATH(count_changes)(const uint8_t *row, const uint8_t *below,
                                       uint8_t counters[3][BLOCK]) {
    for (int32_t x = 0; x < BLOCK; x++) {
        const uint8_t across = distance(row[x], row[x + 1]), down = distance(row[x], below[x]);
        const uint8_t change = across > down ? across : down;
        counters[0][x] = (uint8_t)(counters[0][x] + (change <= STILL));
        counters[1][x] = (uint8_t)(counters[1][x] + (change <= CALM));
        counters[2][x] = (uint8_t)(counters[2][x] + (change >= SHARP));
    }
}

/* Means of 2x2 pixels of two rows, of each byte with that of the same colour right of it: means[i] is
 * of bytes i and i + 3. */
TARGET static void PATH(average)(const uint8_t *above, const uint8_t *below, int32_t count,
                                 uint8_t *means) {
    for (int32_t i = 0; i < count; i++)
        means[i] = (uint8_t)((above[i] + above[i + 3] + below[i] + below[i + 3] + 2) >> 2);
}
