/* The reader of .lat files in WebAssembly: dynenc.h with plain numbers as arguments, and memory.
 *
 * Memory is a stack, from the end of the program's own to that of WebAssembly's memory, which grows.
 * Addresses are below 2^31 (build.py), so a negative result is an error: one of `enum dynenc_error`,
 * or NO_MEMORY. dynenc.js checks lengths and the container.
 */
#include "dynenc.h"

#include <string.h>

#define EXPORT(name) __attribute__((export_name(#name))) name

enum { NO_MEMORY = -100, ALIGNMENT = 64, PAGE = 65536, CHANNELS = 4 };
enum { MEMORY_LIMIT = 0x7fff0000 };

extern char __heap_base;
static uintptr_t top;

#if defined(__wasm_simd128__)
enum { PATH = DYNENC_SIMD128 };
#else
enum { PATH = DYNENC_PORTABLE };
#endif

/* Where the memory that is taken ends; `release` takes it. */
int32_t EXPORT(mark)(void) {
    if (!top)
        top = ((uintptr_t)&__heap_base + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return (int32_t)top;
}

/* Give up what was taken since a mark. */
void EXPORT(release)(int32_t to) { top = (uintptr_t)to; }

static void *take_memory(int64_t bytes) {
    const uintptr_t start = (uintptr_t)mark();
    if (bytes < 0 || bytes > (int64_t)(MEMORY_LIMIT - start))
        return NULL;
    const uintptr_t end = start + ((uintptr_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const uintptr_t pages = (end + PAGE - 1) / PAGE, there = __builtin_wasm_memory_size(0);
    if (pages > there && __builtin_wasm_memory_grow(0, pages - there) == (uintptr_t)-1)
        return NULL;
    top = end;
    return (void *)start;
}

/* Take memory of some bytes. */
int32_t EXPORT(take)(double bytes) {
    void *memory = bytes <= MEMORY_LIMIT ? take_memory((int64_t)bytes) : NULL;
    return memory ? (int32_t)memory : NO_MEMORY;
}

/* Move what was made of tensors to where they were, the last memory that was taken but for it. */
static int32_t keep(void *tensors, const void *made, int64_t size) {
    memmove(tensors, made, (size_t)size);
    top = (uintptr_t)tensors;
    take_memory(size);
    return (int32_t)tensors;
}

/* Build a coder from its tensors, in whose memory it is from then on. */
int32_t EXPORT(coder)(int32_t *tensors, int32_t length) {
    const int64_t size = dynenc_coder_size(tensors, length);
    if (size < 0)
        return (int32_t)size;
    void *made = take_memory(size);
    if (!made)
        return NO_MEMORY;
    const int64_t error = dynenc_coder_init(made, size, tensors, length);
    return error ? (int32_t)error : keep(tensors, made, size);
}

/* Build a decoder, as `coder`; the weights follow the numbers in memory. */
int32_t EXPORT(decoder)(int32_t *numbers, int32_t length, const int8_t *weights,
                        int32_t n_weights) {
    const int64_t size = dynenc_decoder_size(numbers, length, weights, n_weights);
    if (size < 0)
        return (int32_t)size;
    void *made = take_memory(size);
    if (!made)
        return NO_MEMORY;
    const int64_t error = dynenc_decoder_init(made, size, numbers, length, weights, n_weights);
    return error ? (int32_t)error : keep(numbers, made, size);
}

/* Latents in 1/2048 of a payload, int16 [4, h, w] of an image of width x height pixels. */
int32_t EXPORT(latents)(const void *coder, int32_t lattice, int32_t width, int32_t height,
                        int32_t step_q, const uint8_t *payload, int32_t length) {
    dynenc_call call = {.coder = coder, .path = PATH, .lattice = lattice, .channels = CHANNELS,
                        .height = (height + 7) / 8, .width = (width + 7) / 8, .step_q = step_q};
    const int64_t count = (int64_t)CHANNELS * call.height * call.width;
    int16_t *latents = take_memory(2 * count);
    const int32_t end = mark();
    int16_t *symbols = take_memory(2 * count);
    call.workspace_size = dynenc_workspace_size(CHANNELS, call.height, call.width);
    call.workspace = take_memory(call.workspace_size);
    if (!latents || !symbols || !call.workspace)
        return call.workspace_size < 0 ? (int32_t)call.workspace_size : NO_MEMORY;
    int64_t error = dynenc_decode(&call, payload, length, symbols);
    if (!error)
        error = dynenc_integer_latents(&call, symbols, latents);
    if (error)
        return (int32_t)error;
    release(end);
    return (int32_t)latents;
}

/* RGB pixels [height, width, 3] of latents that were quantised with a step. */
int32_t EXPORT(pixels)(const void *decoder, const int16_t *latents, int32_t width,
                       int32_t height, int32_t step_q) {
    dynenc_pixels_call call = {.decoder = decoder, .path = PATH, .height = (height + 7) / 8,
                               .width = (width + 7) / 8, .step_q = step_q, .rows = height,
                               .columns = width, .room = height, .latents = latents,
                               .stride = 3LL * width};
    call.pixels = take_memory(call.stride * height);
    const int32_t end = mark();
    call.workspace_size = dynenc_pixels_workspace(&call);
    if (call.workspace_size < 0)
        return (int32_t)call.workspace_size;
    call.workspace = take_memory(call.workspace_size);
    if (!call.pixels || !call.workspace)
        return NO_MEMORY;
    const int64_t error = dynenc_pixels(&call);
    release(end);
    return error ? (int32_t)error : (int32_t)call.pixels;
}
