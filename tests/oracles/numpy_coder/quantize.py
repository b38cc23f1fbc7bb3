"""Quantisation: latents <-> symbols, weighing error against bits. Never imports torch."""

import numpy as np
from oracles.numpy_coder.entropy import LIMIT, EntropyCoder
from oracles.numpy_coder.layout import Floats, Ints, Layout
from oracles.numpy_coder.trellis import best_path

STEP_UNIT = 1024  # a .lat file stores round(step * 1024)
LAMBDA = 0.04  # squared error, in squared steps, that a bit is worth; best LPIPS at equal bits
FARTHEST = LIMIT + 0.5  # steps; largest magnitude of a latent before rounding


def to_symbols(latents: Floats, step_q: int, coder: EntropyCoder) -> Ints:
    """Quantise latents to the symbols that a coder takes.

    On the plain lattice they are rounded. With a trellis these are the symbols of least squared
    error and bits (rate-distortion optimised quantisation, Sullivan and Wiegand, "Rate-Distortion
    Optimization for Video Compression", 1998), where bits are estimated from the contexts that the
    rounded latents would give.

    Args:
        latents: [C, h, w] float32, scaled as the space's diffusion model takes them.
        step_q: quantiser step in 1/1024 of a latent unit, > 0; larger means fewer bits.
    Returns: [C, h, w] int32, saturated at +-LIMIT; NaN becomes 0.
    """
    scaled = in_steps(latents, step_q)
    if not coder.has_trellis:
        return np.rint(scaled).clip(-LIMIT, LIMIT).astype(np.int32)
    return cheapest(scaled, step_q, coder)


def to_nearest(latents: Floats, step_q: int, coder: EntropyCoder) -> Ints:
    """As `to_symbols`, but the symbols of least squared error, whatever bits they cost."""
    if not coder.has_trellis:
        return to_symbols(latents, step_q, coder)
    scaled = in_steps(latents, step_q)
    return on_trellis(scaled, np.ones_like(scaled))


def in_steps(latents: Floats, step_q: int) -> Floats:
    """Latents [C, h, w] in steps; NaN becomes 0."""
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num(latents * np.float32(STEP_UNIT / step_q), nan=0.0)
    steps: Floats = scaled.clip(-FARTHEST, FARTHEST)
    return steps


def cheapest(scaled: Floats, step_q: int, coder: EntropyCoder) -> Ints:
    """The symbols on the trellis of least squared error and bits of latents [C, h, w] in steps.

    The context's prediction of each symbol is taken as a normal distribution. Then its bits are a
    squared distance as well, and what minimises both is nearest to a point between latent and mean.
    """
    rounded = np.rint(scaled)
    mean, variance = coder.expectations(rounded * np.float32(step_q / STEP_UNIT), step_q)
    share = np.float32(LAMBDA / (2 * np.log(2))) / variance
    targets = (scaled + share * mean) / (1 + share)
    return on_trellis(targets, 1 + share)


def on_trellis(scaled: Floats, weights: Floats) -> Ints:
    """The symbols on the trellis of least weighted squared error to latents [C, h, w] in steps."""
    layout = Layout.of(*scaled.shape)
    places = layout.begins[:, None] + np.arange(layout.window)
    flat = np.zeros((2, layout.length), np.float32)
    flat[:, layout.index] = scaled, weights
    chosen = np.zeros(layout.length, np.int32)
    chosen[places] = best_path(flat[0, places], flat[1, places], layout.inside[places])
    symbols = chosen[layout.index]
    if np.abs(symbols).max() > LIMIT:  # a path may leave its targets by up to two steps
        return on_trellis(scaled.clip(2 - LIMIT, LIMIT - 2), weights)
    return symbols


def from_symbols(symbols: Ints, step_q: int, coder: EntropyCoder) -> Floats:
    """Undo `to_symbols`: [C, h, w] int32 -> [C, h, w] float32."""
    return coder.points(symbols).astype(np.float32) * np.float32(step_q / (2 * STEP_UNIT))
