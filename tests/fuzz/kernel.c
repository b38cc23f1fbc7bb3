/* Coverage-guided fuzzing of the native kernel with libFuzzer; kernel.py compiles and runs it.
 *
 * An input is: mode, path, coder and lattice, cost, height, width (a byte each), step_q (2 bytes), data.
 * By mode the data are a payload, symbols, latents, gradients, changes of a coder's tensors, pixels of an
 * image, statistics of one, weights of an encoder, or the arguments of a call. What decodes must be
 * coded to the same bytes, latents must survive what they are quantised to, and every path gives the
 * same as the portable one. Images are small but for few inputs, as most of what can go wrong needs
 * no size, and few inputs do what takes long: search the trellis, backpropagate, build encoders,
 * compare paths.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

enum { CODERS = 3, CHANGEABLE = 2, ENCODERS = 4, FEATURES = 16, LARGEST_SIDE = 36, MODES = 18 };

typedef struct {
    int32_t *tensors;
    int64_t length;
    void *coder;
} Coding;

typedef struct {
    const uint8_t *at;
    int64_t size;
} Data;

/* What is read from an input before its data. */
typedef struct {
    int32_t mode, path, choice; /* choice: a byte, for all that is chosen besides */
    int32_t is_large, takes_long;
    int32_t height, width;      /* 1..LARGEST_SIDE */
    Data data;
} Input;

static Coding codings[CODERS];
static void *encoders[ENCODERS];

static void expect(int32_t holds) {
    if (!holds)
        abort();
}

static void *built(const int32_t *tensors, int64_t length) {
    const int64_t size = dynenc_coder_size(tensors, length);
    if (size < 0)
        return NULL;
    void *made = memory_of(size);
    if (!dynenc_coder_init(made, size, tensors, length))
        return made;
    free(made);
    return NULL;
}

/* Channels of the latents of an encoder. */
static int32_t channels_of(int32_t choice) { return choice == 3 ? 16 : 4; }

/* Build an encoder of the bytes' weights, cyclically, as multiples of 1/32; null if refused. */
static void *built_encoder(Data data, int32_t blocks, int32_t channels) {
    const int64_t block = 2 * 16 + 145 * 16 + 17 * 32 + 17 * 16;
    const int64_t count = (32 + channels) * 193 + blocks * block + channels * 17;
    float *weights = malloc((size_t)count * 4);
    for (int64_t i = 0, next = 0; i < count; i++, next = next + 1 == data.size ? 0 : next + 1)
        weights[i] = (float)(int8_t)data.at[next] / 32 * (data.at[0] == 7 ? 65 : 1);
    const int64_t room = dynenc_encoder_size(FEATURES, blocks, channels);
    void *encoder = memory_of(room);
    const int64_t error = dynenc_encoder_init(encoder, room, FEATURES, blocks, channels, weights, count);
    expect(error == 0 || error == DYNENC_BAD_WEIGHTS);
    free(weights);
    if (!error)
        return encoder;
    free(encoder);
    return NULL;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    FILE *file = fopen(getenv("TENSORS"), "rb"); /* of each coder the length, then the tensors */
    expect(file != NULL);
    for (Coding *coding = codings; coding < codings + CODERS; coding++) {
        int32_t length;
        expect(fread(&length, 4, 1, file) == 1);
        coding->length = length;
        coding->tensors = malloc((size_t)length * 4);
        expect(fread(coding->tensors, 4, (size_t)length, file) == (size_t)length);
        coding->coder = built(coding->tensors, length);
        expect(coding->coder != NULL);
    }
    for (int32_t i = 0; i < ENCODERS; i++) {
        uint8_t bytes[997];
        for (int32_t k = 0; k < 997; k++)
            bytes[k] = (uint8_t)((k + 1) * (k + 7 * i + 3) / 5);
        encoders[i] = built_encoder((Data){bytes, 997}, i % 3, channels_of(i));
        expect(encoders[i] != NULL);
    }
    return fclose(file);
}

static int64_t count_of(const dynenc_call *call) {
    return (int64_t)call->channels * call->height * call->width;
}

/* Decode a payload; what is accepted must be coded to the same bytes. */
static void decode(const dynenc_call *call, Data payload) {
    const int64_t capacity = 6 * count_of(call) + 8;
    int16_t *symbols = malloc((size_t)count_of(call) * 2);
    if (!dynenc_decode(call, payload.at, payload.size, symbols)) {
        uint8_t *again = malloc((size_t)capacity);
        expect(dynenc_encode(call, symbols, again, capacity) == payload.size);
        expect(!memcmp(payload.at, again, (size_t)payload.size));
        free(again);
    }
    free(symbols);
}

/* Symbols of 1 or 2 bytes, cyclically. */
static int16_t *symbols_of(const dynenc_call *call, Data data) {
    int16_t *symbols = malloc((size_t)count_of(call) * 2);
    for (int64_t i = 0, next = 1; i < count_of(call); i++, next++) {
        int32_t symbol = (int8_t)data.at[next % data.size];
        if (data.at[0] % 4 == 0 && symbol % 8 == 0)
            symbol = symbol * 256 + data.at[++next % data.size];
        symbols[i] = (int16_t)(symbol < -32767 ? -32767 : symbol);
    }
    return symbols;
}

/* Code symbols and decode the payload; then decode it with a changed byte, or have too little room. */
static void code(dynenc_call *call, const int16_t *symbols, int32_t change) {
    int16_t *again = malloc((size_t)count_of(call) * 2);
    int32_t *points = malloc((size_t)count_of(call) * 4);
    const int64_t capacity = 6 * count_of(call) + 8;
    uint8_t *room = malloc((size_t)capacity);
    const int64_t written = dynenc_encode(call, symbols, room, capacity);
    expect(written > 0 && written <= capacity);
    uint8_t *payload = malloc((size_t)written); /* not a byte more than may be read */
    memcpy(payload, room, (size_t)written);
    expect(!dynenc_decode(call, payload, written, again));
    expect(!memcmp(symbols, again, (size_t)count_of(call) * 2));
    if (change & 1) {
        payload[(change >> 8) % written] ^= (uint8_t)change;
        decode(call, (Data){payload, written});
    } else if (change & 2) {
        expect(dynenc_encode(call, symbols, room, (change >> 8) % written) == DYNENC_TOO_SMALL);
    }
    expect(!dynenc_points(call, symbols, points));
    expect(!dynenc_integer_latents(call, symbols, again));
    for (int64_t i = 0; i < count_of(call); i++) {
        const int64_t latent = (int64_t)points[i] * call->step_q;
        expect(again[i] == (latent < -32767 ? -32767 : latent > 32767 ? 32767 : latent));
    }
    free(again), free(points), free(payload), free(room);
}

/* Quantise latents of any bits, and code what they are quantised to. */
static void quantise(dynenc_call *call, Data data) {
    float *latents = calloc((size_t)count_of(call), 4);
    int16_t *symbols = malloc((size_t)count_of(call) * 2);
    const int64_t size = data.size < 4 * count_of(call) ? data.size : 4 * count_of(call);
    memcpy(latents, data.at, (size_t)size);
    expect(!dynenc_quantize(call, latents, data.size % 2 ? 0.0 : 0.04, symbols));
    dynenc_roughness(latents, call->channels, call->height, call->width);
    code(call, symbols, 0);
    free(latents), free(symbols);
}

/* Contexts of symbols, and perhaps the gradient of what networks return. */
static void find_contexts(dynenc_call *call, Data data, int32_t differentiate) {
    const size_t count = (size_t)count_of(call);
    int16_t *symbols = symbols_of(call, data);
    int32_t *expected = malloc(count * 4);
    int32_t *signs = malloc(count * 4), *outputs = malloc(count * 12);
    uint8_t *tables = malloc(count);
    float *by_output = malloc(count * 12), *by_value = malloc(count * 4);
    expect(!dynenc_contexts(call, symbols, tables, expected, signs, outputs));
    if (differentiate) {
        for (size_t i = 0; i < 3 * count; i++)
            by_output[i] = (float)(outputs[i] % 1024);
        expect(!dynenc_gradient(call, symbols, by_output, by_value));
        for (size_t i = 0; i < count; i++)
            expect(by_value[i] - by_value[i] == 0);
    }
    free(symbols), free(expected), free(signs), free(outputs), free(tables);
    free(by_output), free(by_value);
}

/* Changes of a coder's tensors: a place and a number, 4 bytes each. */
static void change_coder(dynenc_call *call, Data data) {
    const Coding *coding = &codings[CHANGEABLE];
    int32_t *changed = malloc((size_t)coding->length * 4);
    memcpy(changed, coding->tensors, (size_t)coding->length * 4);
    for (int64_t i = 0; i + 8 <= data.size && i < 80; i += 8) {
        uint32_t place;
        memcpy(&place, data.at + i, 4);
        memcpy(&changed[place % coding->length], data.at + i + 4, 4);
    }
    void *other = built(changed, coding->length);
    if (other && changed[0] == call->channels) {
        call->coder = other;
        int16_t *symbols = symbols_of(call, data);
        code(call, symbols, 0);
        free(symbols);
    }
    free(other), free(changed);
}

/* Find text and graphics by statistics of tiles [7, rows, columns]. */
static void find_graphics(const uint16_t *statistics, int32_t rows, int32_t columns, int32_t search) {
    const int32_t count = rows * columns;
    void *workspace = memory_of(8LL * count);
    uint8_t *found = malloc((size_t)count);
    const int64_t missed = dynenc_graphics(statistics, rows, columns, search, workspace, found);
    int32_t others = 0;
    for (int32_t i = 0; i < count; i++) {
        expect(found[i] <= 1);
        others += !found[i];
    }
    expect(missed >= 0 && missed <= others);
    free(workspace), free(found);
}

/* The same of any statistics. */
static void find_in_anything(const Input *input) {
    const int32_t count = input->height * input->width;
    uint16_t *statistics = malloc(14 * (size_t)count);
    for (int64_t i = 0, next = 0; i < 7 * count; i++, next += 1 + i % 13 / 12)
        statistics[i] = (uint16_t)(input->data.at[next % input->data.size] << (i % 97 == 96) * 8);
    find_graphics(statistics, input->height, input->width, input->choice % 3);
    free(statistics);
}

/* Count tiles; if compared, the portable path must count the same. Then find text by them. */
static void measure_tiles(dynenc_image image, int32_t choice, int32_t compared) {
    const int32_t divisor = 1 + choice % 2, side = 16 * divisor;
    const int32_t rows = (image.height + side - 1) / side;
    const int32_t columns = (image.width + side - 1) / side;
    const size_t bytes = 14 * (size_t)rows * (size_t)columns;
    uint16_t *expected = malloc(bytes), *statistics = malloc(bytes);
    expect(!dynenc_tiles(&image, rows, divisor, statistics));
    find_graphics(statistics, rows, columns, choice % 3);
    image.path = DYNENC_PORTABLE;
    if (compared)
        expect(!dynenc_tiles(&image, rows, divisor, expected) &&
               !memcmp(expected, statistics, bytes));
    free(expected), free(statistics);
}

/* Encode an image to latents, which must be finite and, if compared, those of the portable path. */
static void encode(dynenc_image image, int32_t channels, int32_t compared) {
    const int64_t count = (int64_t)channels * ((image.height + 7) / 8) * ((image.width + 7) / 8);
    float *expected = malloc((size_t)count * 4), *latents = malloc((size_t)count * 4);
    image.workspace_size = dynenc_latents_workspace(image.encoder, image.width);
    image.workspace = workspace_of(image.workspace_size);
    expect(!dynenc_latents(&image, latents));
    for (int64_t i = 0; i < count; i++)
        expect(latents[i] - latents[i] == 0);
    image.path = DYNENC_PORTABLE;
    if (compared)
        expect(!dynenc_latents(&image, expected) &&
               !memcmp(expected, latents, (size_t)count * 4));
    free(expected), free(latents);
}

/* An image of the bytes, with rows that lie some bytes apart, to an encoder of the input's choice, or
 * its tiles if null. */
static void see(const Input *input, const void *encoder) {
    const int32_t apart = input->choice / 16 % 4;
    dynenc_image image = {.encoder = encoder, .path = input->path};
    image.height = input->is_large ? 6 * input->height : input->height;
    image.width = input->is_large ? 6 * input->width : 3 * input->width;
    image.row_bytes = 3 * image.width + apart;
    const int64_t last = (image.height - 1) * image.row_bytes + 3 * image.width;
    uint8_t *pixels = malloc((size_t)last); /* not a byte more than may be read */
    const Data data = input->data;
    for (int64_t i = 0, next = 0; i < last; i++, next = next + 1 >= data.size ? 0 : next + 1) {
        pixels[i] = data.at[next];
        next += i % 97 == 96 && next + 1 < data.size;
    }
    image.pixels = pixels;
    if (encoder)
        encode(image, channels_of(input->choice / 64), input->takes_long);
    else
        measure_tiles(image, input->choice, input->takes_long);
    free(pixels);
}

/* A call whose arguments are the data: refused, or sound. */
static void call_with_anything(dynenc_call *call, Data data) {
    const void *coder = call->coder;
    int32_t arguments[7] = {call->path, call->lattice, call->channels, call->height, call->width,
                            call->step_q, 0};
    for (int64_t i = 0; i + 5 <= data.size && i < 20; i += 5)
        memcpy(&arguments[data.at[i] % 7], data.at + i + 1, 4);
    int16_t symbols[64] = {0};
    uint8_t payload[512] = {0};
    float latents[64] = {0};
    dynenc_call other = {coder, arguments[0], arguments[1], arguments[2], arguments[3],
                         arguments[4], arguments[5], NULL, 0};
    const int64_t needed = dynenc_workspace_size(arguments[2], arguments[3], arguments[4]);
    expect(dynenc_encode(&other, symbols, payload, 512) < 0); /* no workspace */
    if (needed > 0 && count_of(&other) > 64)
        return;
    other.workspace_size = needed < 0 ? 1 << 16 : needed;
    other.workspace = memory_of(other.workspace_size);
    other.workspace_size -= arguments[6] & 3;
    const int64_t written = dynenc_encode(&other, symbols, payload, 512);
    const int64_t quantised = dynenc_quantize(&other, latents, 0.04, symbols);
    const int64_t decoded = dynenc_decode(&other, payload, written < 0 ? 4 : written, symbols);
    expect(written > 0 ? !decoded && !quantised : written < 0 && decoded < 0);
    expect(needed > 0 || (written < 0 && quantised < 0));
    free(other.workspace);
}

static void run(const Input *input, dynenc_call *call) {
    int16_t *symbols;
    void *encoder;
    switch (input->mode) {
    case 0: case 1: case 2: case 3:
        decode(call, input->data);
        break;
    case 4: case 5: case 6: case 7:
        symbols = symbols_of(call, input->data);
        code(call, symbols, input->data.at[0] << 8 | input->data.at[input->data.size - 1]);
        free(symbols);
        break;
    case 8:
        call->lattice = input->takes_long ? DYNENC_TRELLIS : DYNENC_PLAIN;
        quantise(call, input->data);
        break;
    case 9: case 10:
        find_contexts(call, input->data, input->takes_long);
        break;
    case 11:
        change_coder(call, input->data);
        break;
    case 12: case 13:
        see(input, encoders[input->choice / 64]);
        break;
    case 14:
        see(input, NULL);
        break;
    case 15:
        encoder = built_encoder(input->data, input->choice / 64 % 3, channels_of(input->choice / 64));
        if (encoder)
            see(input, encoder);
        free(encoder);
        break;
    case 16:
        find_in_anything(input);
        break;
    default:
        call_with_anything(call, input->data);
    }
}

/* A side of few latents for most bytes. */
static int32_t side_of(uint8_t byte, int32_t is_large) {
    return 1 + byte % (is_large ? LARGEST_SIDE : byte < 32 ? 12 : 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    if (size < 9)
        return 0;
    const uint8_t choice = bytes[2], cost = bytes[3];
    Input input = {.mode = bytes[0] % MODES, .choice = choice};
    input.path = path_of(bytes[1]);
    input.is_large = cost % 16 == 1, input.takes_long = cost / 16 == 1;
    input.height = side_of(bytes[4], input.is_large);
    input.width = side_of(bytes[5], input.is_large);
    input.data = (Data){bytes + 8, (int64_t)size - 8};
    const Coding *coding = &codings[input.mode == 11 ? CHANGEABLE : choice / 2 % 8 == 7];
    dynenc_call call = {.coder = coding->coder, .path = input.path, .lattice = choice % 2};
    call.channels = coding->tensors[0];
    call.height = input.height, call.width = input.width;
    call.step_q = bytes[6] | bytes[7] << 8;
    call.step_q += !call.step_q;
    call.workspace_size = dynenc_workspace_size(call.channels, call.height, call.width);
    call.workspace = workspace_of(call.workspace_size);
    run(&input, &call);
    return 0;
}
