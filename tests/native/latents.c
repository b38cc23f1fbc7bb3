/* Pixels to latents on the portable path, for processors that Python does not run on here.
 *
 *     latents < INPUT > LATENTS
 *
 * INPUT: the encoder's width, blocks, channels and number of weights, then the image's height and
 * width, int32; the weights, float32; the pixels. LATENTS: float32 [channels, height / 8, width / 8].
 * Numbers are in the processor's byte order.
 */
#include <stdio.h>
#include <stdlib.h>

#include "dynenc.h"

static int64_t check(int64_t result) {
    if (result < 0)
        exit(1);
    return result;
}

static void *memory_of(int64_t size) {
    return aligned_alloc(64, (size_t)(check(size) + 63) / 64 * 64);
}

static void *taken(int64_t size) {
    void *data = memory_of(size);
    check(fread(data, 1, (size_t)size, stdin) == (size_t)size ? 0 : -1);
    return data;
}

int main(void) {
    const int32_t *sizes = taken(24), height = sizes[4], width = sizes[5];
    const float *tensors = taken(4LL * sizes[3]);
    const int64_t size = dynenc_encoder_size(sizes[0], sizes[1], sizes[2]);
    void *encoder = memory_of(size);
    check(dynenc_encoder_init(encoder, size, sizes[0], sizes[1], sizes[2], tensors, sizes[3]));
    const int64_t scratch = dynenc_latents_workspace(encoder, width);
    const dynenc_image image = {
        .encoder = encoder, .path = DYNENC_PORTABLE, .height = height, .width = width,
        .pixels = taken(3LL * height * width), .row_bytes = 3LL * width,
        .workspace = memory_of(scratch), .workspace_size = scratch,
    };
    const size_t count = (size_t)sizes[2] * (size_t)(height / 8) * (size_t)(width / 8);
    float *latents = memory_of(4 * (int64_t)count);
    check(dynenc_latents(&image, latents));
    return fwrite(latents, 4, count, stdout) == count ? 0 : 1;
}
