"""Latents <-> symbols: rounding that knows what bits cost, and the step of a quality."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynenc.coding import trellis
from dynenc.coding.entropy import LIMIT, EntropyModel, Layout

STEP_UNIT = 1024  # a .lat file stores round(step * 1024)
FINER = 1.12  # times the step, rounding on a trellis has the noise of plain rounding
BIT = 0.04  # squared error, in steps, that a bit is worth: what keeps most LPIPS at equal bits
FARTHEST = LIMIT + 0.5  # steps, that a symbol can be from 0

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def quality_to_step(quality: float, coder: EntropyModel) -> int:
    """The quantiser step of a quality, in 1/1024 of a latent unit.

    For plain rounding it is 0.3 at quality 50, and halves with every 25 points: 1.2 at 0, 0.075 at
    100. For a coder with a trellis it is larger, so that there is as much noise.
    Raises: ValueError if quality is not within 0..100.
    """
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} is not within 0..100")
    plain = 0.3 * 2 ** ((50 - quality) / 25)
    return round(plain * (FINER if coder.is_dependent else 1) * STEP_UNIT)


def to_symbols(latents: Tensor, step_q: int, coder: EntropyModel, bit: float = BIT) -> Ints:
    """Round latents to the symbols of a coder.

    With a trellis these are the symbols of the least squared error and bits, as far as it is known
    what bits cost before the neighbours are rounded (Sullivan and Wiegand, "Rate-Distortion
    Optimization for Video Compression", 1998).

    Args:
        latents: [1, 4, h, w] float32 in SD scale (times 0.18215).
        step_q: quantiser step in 1/1024 of a latent unit, > 0; larger means fewer bits.
        bit: the squared error, in steps, that a bit is worth to a coder with a trellis; 0 rounds
            to what is nearest.
    Returns: [4, h, w] int32, saturated at +-LIMIT; NaN becomes 0.
    """
    scaled = in_steps(latents, step_q)
    if not coder.is_dependent:
        return np.rint(scaled).clip(-LIMIT, LIMIT).astype(np.int32)
    if not bit:
        return nearest(scaled, np.ones_like(scaled), coder.trellis)
    return cheapest(scaled, np.rint(scaled), step_q, coder, bit)


def in_steps(latents: Tensor, step_q: int) -> Floats:
    """Latents [1, 4, h, w] in SD scale -> [4, h, w] float32 in steps; NaN becomes 0."""
    array: Floats = (latents[0].float() * (STEP_UNIT / step_q)).nan_to_num(0.0).cpu().numpy()
    return array.clip(-FARTHEST, FARTHEST)


def cheapest(
    scaled: Floats,
    decoded: Floats,
    step_q: int,
    coder: EntropyModel,
    bit: float = BIT,
) -> Ints:
    """Symbols of the least squared error and bits, of latents [4, h, w] in steps.

    What is expected of each is taken to be a normal distribution; then its bits, too, are a squared
    distance, and what is nearest to both is nearest to a point between them.

    Args:
        decoded: [4, h, w], about what will be decoded, in steps, for the contexts.
    """
    mean, variance = coder.expectations(decoded * np.float32(step_q / STEP_UNIT), step_q)
    share = np.float32(bit / (2 * np.log(2))) / variance
    targets = (scaled + share * mean) / (1 + share)
    return nearest(targets, 1 + share, coder.trellis)


def nearest(scaled: Floats, weights: Floats, states: trellis.Index) -> Ints:
    """Symbols of the least weighted squared error, on the lattices of a trellis."""
    _, height, width = scaled.shape
    layout = Layout.of(height, width)
    places = layout.begun[:, None] + np.arange(layout.window)
    flat = np.zeros((2, layout.length), np.float32)
    flat[:, layout.index] = scaled, weights
    chosen = np.zeros(layout.length, np.int32)
    targets, heavy = flat[0, places], flat[1, places]
    chosen[places] = trellis.nearest(targets, heavy, layout.inside[places], states)
    symbols = chosen[layout.index]
    if np.abs(symbols).max() > LIMIT:  # a path may go two beyond its targets
        return nearest(scaled.clip(2 - LIMIT, LIMIT - 2), weights, states)
    return symbols


def from_symbols(symbols: Ints, step_q: int, coder: EntropyModel) -> Tensor:
    """Undo `to_symbols`: [4, h, w] int32 -> [1, 4, h, w] float32 in SD scale."""
    return torch.from_numpy(coder.points(symbols))[None].float() * (step_q / (2 * STEP_UNIT))
