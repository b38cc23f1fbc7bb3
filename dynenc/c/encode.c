/* Encode a PPM image to a .lat file: encode IN.ppm OUT.lat QUALITY
 *
 * An example of the C interface; docs/c.md tells how to compile it. tables.h is written by
 * `python -m dynenc.c.tables`. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dynenc.h"
#include "tables.h"

static void fail(const char *why) {
    fprintf(stderr, "encode: %s\n", why);
    exit(1);
}

/* Memory aligned to 64 bytes. */
static void *allocate(int64_t size) {
    void *memory = size < 0 ? NULL : aligned_alloc(64, ((size_t)size + 64) / 64 * 64);
    if (!memory)
        fail("there is not enough memory");
    return memory;
}

static uint32_t crc32(const uint8_t *bytes, int64_t count) {
    uint32_t crc = 0xffffffffu;
    for (int64_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? 0xedb88320u ^ crc >> 1 : crc >> 1;
    }
    return ~crc;
}

/* Write the lowest bytes of a value, the lowest first; returns the place behind them. */
static uint8_t *put(uint8_t *at, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

/* The fastest instruction set of this CPU. */
static int32_t fastest(void) {
    const int32_t order[] = {DYNENC_AVX512, DYNENC_AVX2,  DYNENC_SSE2,
                             DYNENC_NEON_DOT, DYNENC_NEON, DYNENC_SIMD128};
    for (unsigned i = 0; i < sizeof order / sizeof *order; i++)
        if (dynenc_has_path(order[i]))
            return order[i];
    return DYNENC_PORTABLE;
}

/* The next number of a PPM header, behind white space and comments; -1 if there is none. */
static int32_t read_number(FILE *file) {
    int next, number;
    while (isspace(next = fgetc(file)) || next == '#')
        if (next == '#')
            while ((next = fgetc(file)) != '\n' && next != EOF) {
            }
    ungetc(next, file);
    return fscanf(file, "%6d", &number) == 1 ? number : -1; /* of 6 digits: none overflows */
}

static uint8_t *read_ppm(const char *name, int32_t *height, int32_t *width) {
    FILE *file = fopen(name, "rb");
    if (!file || fgetc(file) != 'P' || fgetc(file) != '6')
        fail("the image is not a PPM file");
    *width = read_number(file);
    *height = read_number(file);
    if (*width < 1 || *width > 65535 || *height < 1 || *height > 65535)
        fail("the sides of the image are not within 1..65535");
    if (read_number(file) != 255 || !isspace(fgetc(file)))
        fail("the image does not have 8 bits");
    const size_t size = (size_t)*width * (size_t)*height * 3;
    uint8_t *pixels = allocate((int64_t)size);
    if (fread(pixels, 1, size, file) != size)
        fail("the image is cut short");
    fclose(file);
    return pixels;
}

/* Image -> latents [DYNENC_CHANNELS, h, w]. */
static float *latents_of(const uint8_t *pixels, int32_t height, int32_t width, int32_t h, int32_t w) {
    const int64_t size = dynenc_encoder_size(DYNENC_WIDTH, DYNENC_BLOCKS, DYNENC_CHANNELS);
    void *encoder = allocate(size); /* constant from now on: keep it for all images */
    if (dynenc_encoder_init(encoder, size, DYNENC_WIDTH, DYNENC_BLOCKS, DYNENC_CHANNELS,
                            DYNENC_ENCODER, sizeof DYNENC_ENCODER / 4))
        fail("the tables are damaged");
    dynenc_image image = {.encoder = encoder, .path = fastest(), .height = height, .width = width,
                          .pixels = pixels, .row_bytes = 3 * (int64_t)width};
    image.workspace_size = dynenc_latents_workspace(encoder, width);
    image.workspace = allocate(image.workspace_size);
    float *latents = allocate((int64_t)sizeof(float) * DYNENC_CHANNELS * h * w);
    if (dynenc_latents(&image, latents))
        fail("the image cannot be encoded");
    free(image.workspace);
    free(encoder);
    return latents;
}

/* Latents -> payload; returns its length. */
static int64_t payload_of(const float *latents, int32_t h, int32_t w, int32_t step_q,
                          uint8_t *payload, int64_t capacity) {
    const int64_t size = dynenc_coder_size(DYNENC_CODER, sizeof DYNENC_CODER / 4);
    void *coder = allocate(size); /* constant, too */
    if (dynenc_coder_init(coder, size, DYNENC_CODER, sizeof DYNENC_CODER / 4))
        fail("the tables are damaged");
    dynenc_call call = {.coder = coder, .path = fastest(), .lattice = DYNENC_LATTICE,
                        .channels = DYNENC_CHANNELS, .height = h, .width = w, .step_q = step_q};
    call.workspace_size = dynenc_workspace_size(DYNENC_CHANNELS, h, w);
    call.workspace = allocate(call.workspace_size);
    int16_t *symbols = allocate((int64_t)sizeof(int16_t) * DYNENC_CHANNELS * h * w);
    if (dynenc_quantize(&call, latents, DYNENC_BIT, symbols))
        fail("the latents cannot be quantised");
    const int64_t length = dynenc_encode(&call, symbols, payload, capacity);
    free(symbols);
    free(call.workspace);
    free(coder);
    return length;
}

int main(int count, char **arguments) {
    int32_t height, width;
    if (count != 4)
        fail("use: encode IN.ppm OUT.lat QUALITY");
    uint8_t *pixels = read_ppm(arguments[1], &height, &width);
    char *end;
    const double quality = strtod(arguments[3], &end);
    if (end == arguments[3] || *end || !(quality >= 0 && quality <= 100))
        fail("the quality is not within 0..100");
    const int32_t step_q = (int32_t)lround(DYNENC_STEP_50 * pow(2, (50 - quality) / 25));
    const int32_t h = (height + 7) / 8, w = (width + 7) / 8;
    float *latents = latents_of(pixels, height, width, h, w);

    const int64_t capacity = 6 * (int64_t)DYNENC_CHANNELS * h * w + 8;
    uint8_t *file = allocate(14 + capacity + 4), *at = file;
    at = put(at, 0x54414c89u, 4); /* docs/format.md */
    at = put(at, 1, 1);
    at = put(at, (uint32_t)width, 2);
    at = put(at, (uint32_t)height, 2);
    at = put(at, (uint32_t)step_q, 2);
    at = put(at, DYNENC_MODEL_ID, 1);
    at = put(at, DYNENC_CODER_ID, 1);
    at = put(at, DYNENC_LATTICE << 1, 1);
    const int64_t length = payload_of(latents, h, w, step_q, at, capacity);
    if (length < 0)
        fail("the latents cannot be coded");
    at = put(at + length, crc32(file, at + length - file), 4);

    FILE *out = fopen(arguments[2], "wb");
    if (!out || fwrite(file, 1, (size_t)(at - file), out) != (size_t)(at - file) || fclose(out))
        fail("the file cannot be written");
    free(file);
    free(latents);
    free(pixels);
    return 0;
}
