/* The networks of entropy coding and the trellis search, for every instruction set. */
#define KERNELS "networks.h"
#include "internal.h"

/* The weight of one input in packed pairs, `block` rows together. */
static inline float weight_of(const int32_t *layer, int block, int pairs, int row, int column) {
    const int32_t pair = layer[(row / block * pairs + column / 2) * block + row % block];
    return (float)(column % 2 ? pair >> 16 : (int16_t)(pair & 0xffff));
}

#include "paths.h"

Kernels dynenc_kernels(int32_t path) {
    if (!dynenc_has_path(path))
        return (Kernels){NULL, NULL, NULL, NULL};
    return (Kernels){SELECT(path, round_latents), SELECT(path, run_network),
                     SELECT(path, run_search), SELECT(path, add_gradient)};
}
