"""Quantisation: latents <-> symbols, weighing error against bits. Never imports torch.

Symbols are on one of two lattices. The plain lattice rounds every latent independently. The trellis
(dependent quantisation) has two quantisers, offset by half a step. A state machine, driven by the
parity of the preceding symbols, selects the quantiser, so the choice costs no bits. As the encoder
searches all paths, the error is 1 dB lower than that of rounding with the same step (Marcellin and
Fischer, "Trellis Coded Quantization", 1990; in video coding Schwarz et al., "Hybrid Video Coding
with Trellis-Coded Quantization", 2019). The state machine is Ungerboeck's 8-state code with the
parity-check polynomials 13 and 4 (octal; "Channel Coding with Multilevel/Phase Signals", 1982).

Everywhere, `step_q` is the quantiser step in 1/1024 of a latent unit, 1..65535.
"""

import math

import numpy as np

from dynenc.coding.entropy import EntropyCoder
from dynenc.errors import UsageError
from dynenc.native import kernel
from dynenc.native.kernel import Floats, Shorts, Symbols

MIDDLE_STEP = 0.3  # latent units; of quality 50 on the plain lattice
STEP_UNIT = 1024  # a .lat file stores round(step * 1024)
TRELLIS_STEP = 1.12  # a trellis with steps this much larger has the noise of uniform quantisation
LAMBDA = 0.04  # squared error, in squared steps, that a bit is worth; best LPIPS at equal bits
FLAT = 0.05  # latent units; RMS difference of neighbours below which latents are flat


def quality_to_step(quality: float, *, has_trellis: bool) -> int:
    """The quantiser step of a quality, in 1/1024 of a latent unit.

    On the plain lattice it is 0.3 at quality 50 and halves with every 25 points: 1.2 at 0, 0.075
    at 100. With a trellis it is larger by `TRELLIS_STEP`, for about the same noise.
    Raises: UsageError if quality is not within 0..100.
    """
    if not 0 <= quality <= 100:
        raise UsageError(f"quality {quality} is not within 0..100")
    plain = MIDDLE_STEP * 2 ** ((50 - quality) / 25)
    return round(plain * (TRELLIS_STEP if has_trellis else 1) * STEP_UNIT)


def step_to_quality(step_q: int, *, has_trellis: bool) -> float:
    """The quality of a quantiser step: the inverse of `quality_to_step`.

    A whole number if one gives exactly this step, else rounded to one decimal; steps that no
    quality gives have values outside 0..100.
    """
    unit = TRELLIS_STEP if has_trellis else 1.0
    quality = 50 + 25 * math.log2(MIDDLE_STEP * unit * STEP_UNIT / step_q)
    whole = min(max(round(quality), 0), 100)
    is_whole = quality_to_step(whole, has_trellis=has_trellis) == step_q
    return float(whole) if is_whole else round(quality, 1)


def to_symbols(latents: Floats, step_q: int, coder: EntropyCoder) -> Shorts:
    """Quantise latents to the symbols that a coder takes.

    On the plain lattice they are rounded. With a trellis these are the symbols of least squared
    error and bits (rate-distortion optimised quantisation, Sullivan and Wiegand, "Rate-Distortion
    Optimization for Video Compression", 1998), where bits are estimated from the contexts that the
    rounded latents would give: the prediction of each symbol is taken as a normal distribution, so
    that its bits are a squared distance as well, and what minimises both is nearest to a point
    between latent and mean.

    Args:
        latents: [C, h, w] float32, scaled as the space's diffusion model takes them.
        step_q: quantiser step, 1/1024 latent unit; larger means fewer bits.
        coder: gives the lattice and the costs in bits.
    Returns: [C, h, w] int16, saturated at +-MAX_SYMBOL; NaN becomes 0.
    """
    return coder.kernel.quantize(latents, step_q, LAMBDA)


def to_nearest(latents: Floats, step_q: int, coder: EntropyCoder) -> Shorts:
    """As `to_symbols`, but the symbols of least squared error, whatever bits they cost."""
    return coder.kernel.quantize(latents, step_q, 0)


def is_flat(latents: Floats, step_q: int = 0) -> bool:
    """Whether latents [C, h, w] belong to a flat image: one colour, a gradient, faint noise.

    The error of a constant is a constant: what is noise elsewhere is a colour cast there.

    Args:
        step_q: step that they were quantised with; 0: they were not.
    """
    noise = 2 * (step_q / STEP_UNIT) ** 2 / 12  # of the difference of two rounded latents
    return kernel.roughness(latents) < FLAT**2 + noise


def from_symbols(symbols: Symbols, step_q: int, coder: EntropyCoder) -> Floats:
    """Undo `to_symbols`: [C, h, w] int16 -> scaled latents [C, h, w] float32.

    Args:
        step_q: quantiser step, 1/1024 latent unit.
        coder: gives the lattice.
    """
    points = kernel.reconstruction_points(symbols, has_trellis=coder.has_trellis)
    unit = np.float32(step_q / (2 * STEP_UNIT))
    return np.multiply(points, unit, dtype=np.float32, casting="unsafe")


def squared_error(latents: Floats, symbols: Symbols, step_q: int, coder: EntropyCoder) -> float:
    """Sum of the squared differences of latents and symbols, both [C, h, w], in squared steps."""
    error = (from_symbols(symbols, step_q, coder) - latents) * np.float32(STEP_UNIT / step_q)
    return float(np.square(error).sum())
