"""Detect latents of another space: its entropy coder compresses them better."""

import numpy as np

from dynenc import registry
from dynenc.coding import rate_control
from dynenc.coding.entropy import load_coder
from dynenc.latent_space import SPACES, LatentSpace
from dynenc.native import kernel
from dynenc.native.kernel import Floats

CODED_SIDE = 32  # latents, of the square that is coded
LEAST_SIDE = 16  # latents; fewer tell too little
# bytes of another space's coder / those of the own; 0.92 at most where it is right
MAX_SIZE_RATIO = 0.94


def better_fitting_space(latents: Floats, space: LatentSpace) -> LatentSpace | None:
    """The space whose coder takes clearly fewer bytes for scaled latents [C, h, w]; None: none."""
    height, width = latents.shape[1:]
    if min(height, width) < LEAST_SIDE:
        return None
    top, left = (max(0, (side - CODED_SIDE) // 2) for side in (height, width))
    part = np.ascontiguousarray(
        latents[:, top : top + CODED_SIDE, left : left + CODED_SIDE], np.float32
    )
    symbols = kernel.quantize(part, rate_control.START_STEP_Q, has_trellis=False)
    n_bytes = {}
    for other in SPACES.values():
        if other.channels == space.channels:
            coder = load_coder(registry.IMPORTED_MODELS[other.name].coder, has_trellis=False)
            n_bytes[other.name] = len(coder.encode(symbols, rate_control.START_STEP_Q))
    best = min(n_bytes, key=lambda name: n_bytes[name])
    return SPACES[best] if n_bytes[best] < MAX_SIZE_RATIO * n_bytes[space.name] else None
