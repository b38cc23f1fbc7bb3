/* Payloads to pixels on one instruction set, for processors that Python does not run on here.
 *
 *     conformance PATH CODER LATTICE NUMBERS WEIGHTS < FILES > PIXELS
 *
 * CODER, NUMBERS and WEIGHTS are files of what dynenc_coder_init and dynenc_decoder_init take, of one
 * latent space. FILES are, one after the other: width, height, step_q and length of the payload, 4
 * bytes each, and the payload. PIXELS are theirs, [height, width, 3]. Exits with 2 if the instruction
 * set is missing.
 */
#include <stdio.h>
#include <stdlib.h>

#include "dynenc.h"

static void check(int64_t result) {
    if (result < 0) {
        fprintf(stderr, "error %d\n", (int)result);
        exit(1);
    }
}

static void *memory_of(int64_t size) {
    check(size);
    return aligned_alloc(64, (size_t)(size + 63) / 64 * 64);
}

static void *contents(const char *name, int64_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        exit(1);
    *size = ftell(file);
    rewind(file);
    void *data = memory_of(*size);
    if (fread(data, 1, (size_t)*size, file) != (size_t)*size || fclose(file))
        exit(1);
    return data;
}

static void decode(dynenc_call call, dynenc_pixels_call to, const uint8_t *payload,
                   int64_t length) {
    const int64_t count = (int64_t)call.channels * call.height * call.width;
    int16_t *symbols = memory_of(2 * count), *latents = memory_of(2 * count);
    call.workspace_size = dynenc_workspace_size(call.channels, call.height, call.width);
    call.workspace = memory_of(call.workspace_size);
    check(dynenc_decode(&call, payload, length, symbols));
    check(dynenc_integer_latents(&call, symbols, latents));
    to.latents = latents;
    to.pixels = memory_of(to.stride * to.rows);
    to.workspace_size = dynenc_pixels_workspace(&to);
    to.workspace = memory_of(to.workspace_size);
    check(dynenc_pixels(&to));
    fwrite(to.pixels, 1, (size_t)(to.stride * to.rows), stdout);
    free(symbols), free(latents), free(call.workspace);
    free(to.pixels), free(to.workspace);
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 1;
    const int32_t path = atoi(argv[1]);
    if (!dynenc_has_path(path))
        return 2;
    int64_t length, n_numbers, n_weights;
    const int32_t *tensors = contents(argv[2], &length);
    const int32_t *numbers = contents(argv[4], &n_numbers);
    const int8_t *weights = contents(argv[5], &n_weights);
    int64_t size = dynenc_coder_size(tensors, length / 4);
    void *coder = memory_of(size);
    check(dynenc_coder_init(coder, size, tensors, length / 4));
    size = dynenc_decoder_size(numbers, n_numbers / 4, weights, n_weights);
    void *decoder = memory_of(size);
    check(dynenc_decoder_init(decoder, size, numbers, n_numbers / 4, weights, n_weights));
    uint32_t fields[4];
    while (fread(fields, sizeof fields, 1, stdin) == 1) {
        const int32_t width = (int32_t)fields[0], height = (int32_t)fields[1];
        uint8_t *payload = memory_of(fields[3] + 1);
        if (fread(payload, 1, fields[3], stdin) != fields[3])
            return 1;
        const dynenc_call call = {
            .coder = coder, .path = path, .lattice = atoi(argv[3]), .channels = numbers[0],
            .height = (height + 7) / 8, .width = (width + 7) / 8, .step_q = (int32_t)fields[2],
        };
        const dynenc_pixels_call pixels = {
            .decoder = decoder, .path = path, .height = call.height, .width = call.width,
            .step_q = call.step_q, .rows = height, .columns = width, .room = height, .stride = 3LL * width,
        };
        decode(call, pixels, payload, fields[3]);
        free(payload);
    }
    return fflush(stdout) ? 1 : 0;
}
