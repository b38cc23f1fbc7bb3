/* Coverage-guided fuzzing of the native kernel with libFuzzer; kernel.py compiles and runs it.
 *
 * An input is: mode, path, lattice, height, width (a byte each), step_q (2 bytes), data. By mode the
 * data are a payload, latents, changes of the coder's tensors, which the file $TENSORS holds, or an
 * encoder's weights and the pixels of a picture of height x width, with rows that lie step_q % 8 apart.
 * What decodes must be coded to the same bytes, and latents must survive what they are quantised to.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dynenc.h"
#include "memory.h"

static int32_t *tensors;
static int64_t length;
static void *coder;

static void *built(const int32_t *from) {
    const int64_t size = dynenc_coder_size(from, length);
    if (size < 0)
        return NULL;
    void *made = memory_of(size);
    if (!dynenc_coder_init(made, size, from, length))
        return made;
    free(made);
    return NULL;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    FILE *file = fopen(getenv("TENSORS"), "rb");
    if (!file || fseek(file, 0, SEEK_END))
        abort();
    length = ftell(file) / 4;
    tensors = malloc((size_t)length * 4);
    rewind(file);
    if (fread(tensors, 4, (size_t)length, file) != (size_t)length || !(coder = built(tensors)))
        abort();
    return fclose(file);
}

static void code(dynenc_call *call, const uint8_t *data, int64_t size, int32_t quantise) {
    const int64_t count = (int64_t)call->channels * call->height * call->width;
    int16_t *symbols = malloc((size_t)count * 2), *again = malloc((size_t)count * 2);
    const int64_t capacity = 6 * count + 8;
    uint8_t *payload = malloc((size_t)capacity);
    int64_t written = -1;
    if (quantise) {
        float *latents = calloc((size_t)count, 4);
        memcpy(latents, data, (size_t)(size < 4 * count ? size : 4 * count));
        if (dynenc_quantize(call, latents, size % 2 ? 0.0 : 0.04, symbols))
            abort();
        free(latents);
        written = dynenc_encode(call, symbols, payload, capacity);
        if (written < 0 || dynenc_decode(call, payload, written, again) ||
            memcmp(symbols, again, (size_t)count * 2))
            abort();
    } else if (!dynenc_decode(call, data, size, symbols)) {
        written = dynenc_encode(call, symbols, payload, capacity);
        if (written != size || memcmp(payload, data, (size_t)size))
            abort();
    }
    int32_t *points = malloc((size_t)count * 4);
    if (written >= 0 &&
        (dynenc_points(call, symbols, points) || dynenc_integer_latents(call, symbols, again)))
        abort();
    for (int64_t i = 0; written >= 0 && i < count; i++) {
        const int64_t latent = (int64_t)points[i] * call->step_q;
        if (again[i] != (latent < -32767 ? -32767 : latent > 32767 ? 32767 : latent))
            abort();
    }
    free(points), free(symbols), free(again), free(payload);
}

/* All paths count the same in a picture. */
static void measure_tiles(dynenc_picture picture) {
    const int64_t rows = (picture.height + 15) / 16, columns = (picture.width + 15) / 16;
    const size_t bytes = (size_t)(2 * 7 * rows * columns);
    uint16_t *first = malloc(bytes), *statistics = malloc(bytes);
    for (picture.path = 0; picture.path < DYNENC_PATHS; picture.path++)
        if (dynenc_has_path(picture.path) &&
            (dynenc_tiles(&picture, (int32_t)rows, 20, picture.path ? statistics : first) ||
             (picture.path && memcmp(first, statistics, bytes))))
            abort();
    free(first), free(statistics);
}

/* Build an encoder of the bytes' weights, cyclically, as multiples of 1/32, and encode a picture. All
 * paths give the same latents, which are finite. */
static void encode_picture(const uint8_t *data, int64_t size, int32_t height, int32_t width,
                           int32_t apart) {
    const int32_t features = 16, blocks = 1 + apart % 2;
    const int64_t block = 2 * 16 + 145 * 16 + 17 * 32 + 17 * 16;
    const int64_t count = 36 * 193 + blocks * block + 4 * 17, row_bytes = 3 * width + apart;
    float *weights = malloc((size_t)count * 4);
    for (int64_t i = 0; i < count; i++)
        weights[i] = (float)(int8_t)data[i % size] / 32 * (data[0] == 7 ? 65 : 1);
    const int64_t room = dynenc_encoder_size(features, blocks);
    void *encoder = memory_of(room);
    const int64_t error = dynenc_encoder_init(encoder, room, features, blocks, weights, count);
    const int64_t last = (int64_t)(height - 1) * row_bytes + 3 * width;
    uint8_t *pixels = malloc((size_t)last); /* not a byte more than may be read */
    for (int64_t i = 0; i < last; i++)
        pixels[i] = data[(i + i / 97) % size];
    const int64_t n = 4LL * ((height + 7) / 8) * ((width + 7) / 8);
    float *first = malloc((size_t)n * 4), *latents = malloc((size_t)n * 4);
    dynenc_picture picture = {encoder, 0, height, width, pixels, row_bytes, NULL, 0};
    measure_tiles(picture);
    if (error == 0) {
        picture.workspace_size = dynenc_latents_workspace(encoder, width);
        picture.workspace = memory_of(picture.workspace_size);
        for (picture.path = 0; picture.path < DYNENC_PATHS; picture.path++) {
            if (!dynenc_has_path(picture.path))
                continue;
            if (dynenc_latents(&picture, picture.path ? latents : first) ||
                (picture.path && memcmp(first, latents, (size_t)n * 4)))
                abort();
        }
        for (int64_t i = 0; i < n; i++)
            if (!(first[i] - first[i] == 0))
                abort();
        free(picture.workspace);
    } else if (error != DYNENC_BAD_WEIGHTS) {
        abort();
    }
    free(weights), free(encoder), free(pixels), free(first), free(latents);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 7)
        return 0;
    dynenc_call call = {.coder = coder, .path = data[1] % DYNENC_PATHS, .lattice = data[2] % 2};
    call.channels = tensors[0];
    call.height = data[3] % 20, call.width = data[4] % 20;
    call.step_q = data[5] | data[6] << 8;
    call.workspace_size = dynenc_workspace_size(call.channels, call.height, call.width);
    if (call.workspace_size < 0 || !call.step_q || !dynenc_has_path(call.path))
        return 0;
    call.workspace = memory_of(call.workspace_size);
    const uint8_t *rest = data + 7;
    const int64_t left = (int64_t)size - 7;
    if (data[0] == 8 && left && call.height && call.width) {
        encode_picture(rest, left, 7 * call.height, 7 * call.width, call.step_q % 8);
        free(call.workspace);
        return 0;
    }
    if (data[0] % 8 < 7) {
        code(&call, rest, left, data[0] % 8 > 4);
    } else { /* changes: a place and a number, 4 bytes each */
        int32_t *changed = malloc((size_t)length * 4);
        memcpy(changed, tensors, (size_t)length * 4);
        for (int64_t i = 0; i + 8 <= left && i < 80; i += 8) {
            uint32_t place;
            memcpy(&place, rest + i, 4);
            memcpy(&changed[place % length], rest + i + 4, 4);
        }
        void *other = built(changed);
        if (other && changed[0] == call.channels) {
            call.coder = other;
            code(&call, rest, left, 1);
        }
        free(other), free(changed);
    }
    free(call.workspace);
    return 0;
}
