/* Coverage-guided fuzzing of the native kernel with libFuzzer; kernel.py compiles and runs it.
 *
 * An input is: mode, path, lattice, height, width (a byte each), step_q (2 bytes), data. By mode the
 * data are a payload, latents, or changes of the coder's tensors, which the file $TENSORS holds.
 * What decodes must be coded to the same bytes, and latents must survive what they are quantised to.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dynenc.h"

static int32_t *tensors;
static int64_t length;
static void *coder;

static void *memory_of(int64_t size) {
    void *memory = aligned_alloc(64, (size_t)(size + 63) / 64 * 64);
    if (!memory)
        abort();
    memset(memory, 0xa5, (size_t)size); /* what is not written must not be read */
    return memory;
}

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
    int32_t *symbols = malloc((size_t)count * 4), *again = malloc((size_t)count * 4);
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
            memcmp(symbols, again, (size_t)count * 4))
            abort();
    } else if (!dynenc_decode(call, data, size, symbols)) {
        written = dynenc_encode(call, symbols, payload, capacity);
        if (written != size || memcmp(payload, data, (size_t)size))
            abort();
    }
    if (written >= 0 && dynenc_points(call, symbols, again))
        abort();
    free(symbols), free(again), free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 7)
        return 0;
    dynenc_call call = {.coder = coder, .path = data[1] % 5, .lattice = data[2] % 2};
    call.channels = tensors[0];
    call.height = data[3] % 20, call.width = data[4] % 20;
    call.step_q = data[5] | data[6] << 8;
    call.workspace_size = dynenc_workspace_size(call.channels, call.height, call.width);
    if (call.workspace_size < 0 || !call.step_q || !dynenc_has_path(call.path))
        return 0;
    call.workspace = memory_of(call.workspace_size);
    const uint8_t *rest = data + 7;
    const int64_t left = (int64_t)size - 7;
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
