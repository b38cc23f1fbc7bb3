"""Latents that are more like those of another space, told by the entropy coders of the spaces."""

import numpy as np

from dynenc import registry
from dynenc.coding import rate_control
from dynenc.coding.entropy import load_coder
from dynenc.latent_space import SPACES, LatentSpace
from dynenc.native import kernel
from dynenc.native.kernel import Floats

SIDE = 32  # latents, of the square that is coded
LEAST = 16  # latents, of a side; fewer tell too little
MAX_SIZE_RATIO = (
    0.94  # bytes of another space's coder / those of the own; 0.92 at most where it is right
)


def better_fitting_space(latents: Floats, space: LatentSpace) -> LatentSpace | None:
    """The space whose coder takes clearly fewer bytes for scaled latents [C, h, w]; None: none."""
    height, width = latents.shape[1:]
    if min(height, width) < LEAST:
        return None
    top, left = (max(0, (side - SIDE) // 2) for side in (height, width))
    part = np.ascontiguousarray(latents[:, top : top + SIDE, left : left + SIDE], np.float32)
    symbols = kernel.quantize(part, rate_control.START, has_trellis=False)
    n_bytes = {}
    for other in SPACES.values():
        if other.channels == space.channels:
            coder = load_coder(registry.IMPORTED_MODELS[other.name].coder, has_trellis=False)
            n_bytes[other.name] = len(coder.encode(symbols, rate_control.START))
    best = min(n_bytes, key=lambda name: n_bytes[name])
    return SPACES[best] if n_bytes[best] < MAX_SIZE_RATIO * n_bytes[space.name] else None
