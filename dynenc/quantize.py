"""Latents <-> symbols: uniform rounding, and the step that a quality stands for."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynenc.entropy import LIMIT

STEP_UNIT = 1024  # a .lat file stores round(step * 1024)


def quality_to_step(quality: float) -> int:
    """The quantiser step of a quality, in 1/1024 of a latent unit.

    The step is 0.3 at quality 50, and halves with every 25 points: 1.2 at 0, 0.075 at 100.
    Raises: ValueError if quality is not within 0..100.
    """
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} is not within 0..100")
    return round(0.3 * 2 ** ((50 - quality) / 25) * STEP_UNIT)


def to_symbols(latents: Tensor, step_q: int) -> npt.NDArray[np.int32]:
    """Round latents to symbols.

    Args:
        latents: [1, 4, h, w] float32 in SD scale (times 0.18215).
        step_q: quantiser step in 1/1024 of a latent unit, > 0; larger means fewer bits.
    Returns: [4, h, w] int32, saturated at +-LIMIT; NaN becomes 0.
    """
    scaled = (latents[0].float() * (STEP_UNIT / step_q)).nan_to_num(0.0)
    return scaled.round().clamp(-LIMIT, LIMIT).to(torch.int32).cpu().numpy()


def from_symbols(symbols: npt.NDArray[np.int32], step_q: int) -> Tensor:
    """Undo `to_symbols`: [4, h, w] int32 -> [1, 4, h, w] float32 in SD scale."""
    return torch.from_numpy(symbols)[None].float() * (step_q / STEP_UNIT)
