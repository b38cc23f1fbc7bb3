/* A range coder with a 64-bit state that writes 32-bit words, after Martin (1979), the same as the
 * `queue` of the library constriction with probabilities of 24 bits.
 *
 * The interval is [lower, lower + range); frequencies are of 65536, which stand for 2^24. */
#ifndef DYNENC_RANGE_CODER_H
#define DYNENC_RANGE_CODER_H

#include "internal.h"

typedef struct {
    uint64_t lower, range;
    uint8_t *words;            /* little-endian */
    int64_t count, capacity;   /* words written, and the most there may be */
    int32_t overflow;          /* whether there were more, which are lost */
} Writer;

typedef struct {
    uint64_t lower, range;
    uint64_t offset;           /* of what is read from lower, below range if the payload is sound */
    const uint8_t *words;
    int64_t next, count;       /* the next word, which is 0 from count on */
    int32_t corrupt;
} Reader;

static inline uint32_t get_word(const uint8_t *word) {
    return (uint32_t)word[0] | (uint32_t)word[1] << 8 | (uint32_t)word[2] << 16 |
           (uint32_t)word[3] << 24;
}

static inline void put_word(uint8_t *word, uint32_t value) {
    for (int32_t i = 0; i < 4; i++)
        word[i] = (uint8_t)(value >> 8 * i);
}

static inline void write_word(Writer *writer, uint32_t value) {
    if (writer->count == writer->capacity) {
        writer->overflow = 1;
        return;
    }
    put_word(writer->words + 4 * writer->count++, value);
}

/* Add 1 to what has been written, the last word being the lowest. */
static inline void carry(Writer *writer) {
    for (int64_t i = writer->count - 1; i >= 0; i--) {
        const uint32_t value = get_word(writer->words + 4 * i) + 1;
        put_word(writer->words + 4 * i, value);
        if (value)
            return;
    }
}

/* Write a symbol of which `left` of 65536 are before it and `count` its own. */
static inline void write_slot(Writer *writer, uint32_t left, uint32_t count) {
    const uint64_t scale = writer->range >> 24 << 8, before = writer->lower;
    writer->lower += scale * left;
    writer->range = scale * count;
    if (writer->lower < before)
        carry(writer);
    if (writer->range >> 32 == 0) {
        write_word(writer, (uint32_t)(writer->lower >> 32));
        writer->lower <<= 32;
        writer->range <<= 32;
    }
}

/* The words that tell the interval, once there was a symbol: the upper half of the first point of
 * it that ends with 32 zeros, and another 0 if the interval ends in the same upper half. */
static inline int32_t last_words(uint64_t lower, uint64_t range, uint64_t *point) {
    *point = lower + 0xffffffffu;
    return (lower + range) >> 32 == *point >> 32 ? 2 : 1;
}

static inline void finish(Writer *writer) {
    uint64_t point;
    const int32_t count = last_words(writer->lower, writer->range, &point);
    if (point < writer->lower)
        carry(writer);
    write_word(writer, (uint32_t)(point >> 32));
    if (count == 2)
        write_word(writer, 0);
}

static inline uint32_t next_word(Reader *reader) {
    const int64_t i = reader->next++;
    return i < reader->count ? get_word(reader->words + 4 * i) : 0;
}

static inline Reader start_reading(const uint8_t *words, int64_t count) {
    Reader reader = {.range = UINT64_MAX, .words = words, .count = count};
    reader.offset = (uint64_t)next_word(&reader) << 32;
    reader.offset |= next_word(&reader);
    return reader;
}

/* The quantile of the next symbol, 0..65535. */
static inline uint32_t peek(Reader *reader) {
    const uint64_t quantile = reader->offset / (reader->range >> 24) >> 8;
    reader->corrupt |= quantile > 65535;
    return (uint32_t)quantile & 65535;
}

/* Go on to the symbol after one that `peek` told. */
static inline void skip_slot(Reader *reader, uint32_t left, uint32_t count) {
    const uint64_t scale = reader->range >> 24 << 8;
    reader->lower += scale * left;
    reader->offset -= scale * left;
    reader->range = scale * count;
    if (reader->range >> 32 == 0) {
        reader->lower <<= 32;
        reader->range <<= 32;
        reader->offset = reader->offset << 32 | next_word(reader);
    }
}

/* Whether the words are those that a writer of the same symbols ends with. */
static inline int32_t is_finished(const Reader *reader) {
    uint64_t point;
    const int32_t count = last_words(reader->lower, reader->range, &point);
    const uint64_t first = point >> 32 << 32;
    return !reader->corrupt && reader->next - 2 + count == reader->count &&
           reader->offset == first - reader->lower;
}

#endif
