/* Coverage-guided fuzzing of the integer decoder of images with libFuzzer; kernel.py compiles and runs
 * it.
 *
 * An input is: mode, height and width of the latents, blocks, sizes and channels, then 4 numbers of the region
 * (2 bytes each), then two paths, then data, which are read cyclically: changes of the tensors, the
 * tensors, and latents. Tensors are within the rules of docs/decoder.md but for what modes change.
 * Whatever is accepted decodes to the same pixels on every path, those of a region being those of the
 * whole.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

enum { WIDTH = 32, LAST = 12, MAX_LATENTS = 16, LEAST_ROOM = 8, CHANGED = 1, RAW = 2, HOSTILE_CALL = 4 };

typedef struct {
    const uint8_t *data;
    int64_t size, at;
    int32_t rounds; /* through the data */
} Bytes;

typedef struct {
    int32_t *numbers;
    int8_t *weights;
    int64_t n_numbers, n_weights;
    Bytes *bytes;
} Tensors;

static uint8_t next(Bytes *b) {
    if (++b->at == b->size)
        b->at = 0, b->rounds++;
    return (uint8_t)(b->data[b->at] + 31 * b->rounds);
}

static int32_t next32(Bytes *b) {
    uint32_t value = 0;
    for (int32_t i = 0; i < 4; i++)
        value = value << 8 | next(b);
    return (int32_t)value;
}

/* A number within least..most, often one of these. */
static void number(Tensors *t, int32_t least, int32_t most) {
    const uint32_t choice = next(t->bytes), range = (uint32_t)most - (uint32_t)least + 1;
    const int32_t inside = (int32_t)(least + (int64_t)((uint32_t)next32(t->bytes) % range));
    t->numbers[t->n_numbers++] = choice < 8 ? least : choice < 24 ? most : inside;
}

static void numbers(Tensors *t, int32_t count, int32_t least, int32_t most) {
    for (int32_t i = 0; i < count; i++)
        number(t, least, most);
}

static void product(Tensors *t, int32_t outputs, int32_t length, int32_t has_slope) {
    const int32_t wide = next(t->bytes) % 8 == 0;
    numbers(t, outputs, wide ? -(1 << 30) : -4000, wide ? 1 << 30 : 4000);
    if (has_slope)
        numbers(t, outputs, wide ? -32767 : -40, wide ? 32767 : 40);
    numbers(t, outputs, wide ? 0 : 4000, 32767);
    number(t, 0, wide ? 24 : 4);
    for (int32_t i = 0; i < outputs * length; i += 4) {
        int8_t *w = t->weights + t->n_weights;
        for (int32_t k = 0; k < 4; k++)
            w[k] = (int8_t)(next(t->bytes) % 65 - 32);
        if (i % 8 == 0 && next(t->bytes) < 16) /* the other three of its sum become zeros */
            w[0] = -128, w[1] = 0;
        else if (i % 8 == 4 && w[-4] == -128)
            w[0] = w[1] = 0;
        t->n_weights += 4;
    }
}

static void input(Tensors *t) {
    numbers(t, WIDTH, -32767, 32767);
    numbers(t, WIDTH, -32767, 32767);
    number(t, 0, 15);
}

/* Tensors that are accepted. */
static void fill(Tensors *t, int32_t channels, const int32_t blocks[3], int32_t stages) {
    t->numbers[t->n_numbers++] = channels;
    for (int32_t i = 0; i < DYNENC_DECODER_HEADER - 1; i++)
        t->numbers[t->n_numbers++] = i % 3 >= stages ? 0 : i < 3 ? WIDTH : blocks[i - 3];
    product(t, WIDTH, 9 * channels, 1);
    for (int32_t stage = 0; stage < stages; stage++) {
        for (int32_t block = 0; block < blocks[stage]; block++) {
            input(t);
            product(t, WIDTH, 9 * WIDTH, 0);
            product(t, 2 * WIDTH, WIDTH, 0);
            numbers(t, WIDTH, 0, 32767);
            product(t, WIDTH, WIDTH, 0);
        }
        input(t);
        const int32_t last = stage + 1 == stages;
        product(t, last ? LAST : 4 * WIDTH, last ? 9 * WIDTH : WIDTH, 0);
    }
}

/* The decoder of tensors in memory of its very size; null if they are refused. */
static void *built(const int32_t *numbers, int64_t n_numbers, const int8_t *weights,
                   int64_t n_weights) {
    const int64_t size = dynenc_decoder_size(numbers, n_numbers, weights, n_weights);
    if (size < 0)
        return NULL;
    void *decoder = memory_of(size);
    if (dynenc_decoder_init(decoder, size, numbers, n_numbers, weights, n_weights))
        abort(); /* what has a size is sound */
    return decoder;
}

/* The pixels of a call, in memory of their very size; null if it is refused. */
static uint8_t *decoded(dynenc_pixels_call call, int32_t hostile) {
    call.workspace_size = dynenc_pixels_workspace(&call);
    if (call.workspace_size < 0 || call.workspace_size > 1 << 26) {
        if (call.workspace_size < 0 && dynenc_pixels(&call) >= 0)
            abort();
        return NULL;
    }
    call.workspace_size -= hostile / 2;
    call.workspace = workspace_of(call.workspace_size);
    const int64_t size = call.stride * (call.rows - 1) + 3 * call.columns;
    call.pixels = calloc(1, (size_t)size);
    uint8_t *pixels = call.pixels;
    const int32_t room = call.room;
    while (call.done < call.rows) {
        const int32_t rest = call.rows - call.done, before = call.done;
        call.pixels = pixels + before * call.stride;
        call.room = room < rest ? room : rest;
        const int64_t error = dynenc_pixels(&call);
        if ((error || call.done <= before) && !hostile)
            abort();
        if (error) {
            free(pixels);
            return NULL;
        }
        if (call.done <= before)
            break;
    }
    return pixels;
}

static void compare(dynenc_pixels_call whole, dynenc_pixels_call part) {
    uint8_t *all = decoded(whole, 0);
    uint8_t *pixels = decoded(part, 0);
    for (int32_t y = 0; pixels && y < part.rows; y++)
        if (memcmp(pixels + y * part.stride,
                   all + (y + part.top) * whole.stride + 3 * part.left,
                   (size_t)(3 * part.columns)))
            abort();
    free(all), free(pixels);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 18)
        return 0;
    Bytes bytes = {data + 14, (int64_t)size - 14, 0, 0};
    const int32_t mode = data[0], path = path_of(data[12]), other_path = path_of(data[13]);
    const int32_t most = path && other_path ? 5 : 2; /* the portable path takes long */
    const int32_t height = 1 + data[1] % most, width = 1 + data[2] % most;
    const int32_t blocks[3] = {data[3] % 2, data[3] / 2 % 2, data[3] / 4 % 2};
    Tensors t = {.numbers = malloc(16384 * 4), .weights = malloc(65536), .bytes = &bytes};
    const int32_t stages = 1 + data[3] / 8 % 3, side = 1 << stages;
    const int32_t channels = data[3] / 32 % 2 ? 16 : 4;
    fill(&t, channels, blocks, stages);
    /* not a number more than may be read */
    int32_t *own = malloc((size_t)t.n_numbers * 4);
    int8_t *weights = malloc((size_t)t.n_weights);
    memcpy(own, t.numbers, (size_t)t.n_numbers * 4);
    memcpy(weights, t.weights, (size_t)t.n_weights);
    free(t.numbers), free(t.weights);
    if (mode & CHANGED) {
        own[(uint32_t)next32(&bytes) % (mode & 8 ? DYNENC_DECODER_HEADER : t.n_numbers)] = next32(&bytes);
        weights[(uint32_t)next32(&bytes) % t.n_weights] = (int8_t)next(&bytes);
    }
    if (mode & RAW) /* fewer than there should be */
        t.n_numbers = (uint32_t)next32(&bytes) % (t.n_numbers + 1);
    void *decoder = built(own, t.n_numbers, weights, t.n_weights);
    if (!decoder && !(mode & (CHANGED | RAW)))
        abort();
    free(own), free(weights);
    if (!decoder)
        return 0;
    int16_t *latents = malloc(2 * MAX_LATENTS * (size_t)(height * width)); /* changed channels fit */
    for (int32_t i = 0; i < MAX_LATENTS * height * width; i++) {
        latents[i] = (int16_t)(next(&bytes) << 8 | next(&bytes));
        if (latents[i] == INT16_MIN)
            latents[i] = INT16_MAX;
    }
    dynenc_pixels_call call = {
        .decoder = decoder, .path = path, .height = height, .width = width,
        .step_q = (int32_t)((uint32_t)next32(&bytes) >> 16),
        .rows = side * height, .columns = side * width, .room = 1 << 16,
        .stride = 3 * side * width, .latents = latents,
    };
    int32_t place[4];
    for (int32_t i = 0; i < 4; i++)
        place[i] = data[4 + 2 * i] | data[5 + 2 * i] << 8;
    dynenc_pixels_call part = call;
    part.path = other_path;
    if (mode & HOSTILE_CALL) {
        const int32_t far = place[0] % 3 ? 1 : 30000;
        part.step_q -= place[3] % 7 * 1000;
        part.top = place[0] * far - 4, part.left = place[1] * far - 4;
        part.rows = place[2] * far - 1, part.columns = place[3] * far - 1;
        part.stride = 3LL * part.columns - place[3] % 2;
        part.room = place[3], part.step = place[2] * (place[3] % 2), part.done = place[1] % 5;
        free(decoded(part, 1 + place[2] % 64));
    } else {
        part.top = place[0] % call.rows, part.left = place[1] % call.columns;
        part.rows = 1 + place[2] % (call.rows - part.top);
        part.columns = 1 + place[3] % (call.columns - part.left);
        part.stride = 3LL * part.columns + place[3] % 2;
        part.room = LEAST_ROOM + place[0] % 32;
        compare(call, part);
    }
    free(latents), free(decoder);
    return 0;
}
