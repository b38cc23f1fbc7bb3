"""Latents -> the .lat file of least cost: chooses lattice and step. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.bitstream import Chunk, Header
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.coding.lat_file import LatFile, model_of
from dynenc.coding.rate_control import FINEST_STEP_Q
from dynenc.native.kernel import Floats, Symbols

FEW_BITS = 1.5  # a latent; below it the plain lattice may be cheaper, as constants repeat on it
BIT_COST = 0.09  # squared error, in squared steps, that a bit is worth when choosing a lattice
FLAT_ERROR = 0.065  # steps; where latents are flat, the largest RMS error of a position
FLAT_STEPS = 16  # finer ones that are tried where latents are flat ...
FLAT_RATIO = 2**-0.25  # ... each by this factor
ON_LATTICE = 0.1  # steps; largest RMS error of latents that were quantised, and stored since


def default_coder(model: registry.Model) -> EntropyCoder:
    """The coder that new files of a model's latents are written with."""
    return load_coder(model.coder, has_trellis=model.has_trellis)


@dataclass(frozen=True, eq=False)
class _Quantised:
    """Latents quantised with a step on a coder's lattice."""

    latents: Floats
    step_q: int
    coder: EntropyCoder

    @cached_property
    def symbols(self) -> Symbols:
        return quantize.to_symbols(self.latents, self.step_q, self.coder)

    @cached_property
    def squared_error(self) -> float:
        """Sum over all latents, in squared steps."""
        return quantize.squared_error(self.latents, self.symbols, self.step_q, self.coder)

    @property
    def rms_error(self) -> float:
        """RMS over positions of the distance to the latents, in latent units."""
        n_positions = self.latents[0].size
        return math.sqrt(self.squared_error / n_positions) * self.step_q / quantize.STEP_UNIT

    def cost(self, file: LatFile) -> float:
        """Rate-distortion cost of its file, in squared steps."""
        return self.squared_error + BIT_COST * 8 * len(file.payload)


def encode_latents(
    latents: Floats,
    size: tuple[int, int],
    step_q: int,
    model: registry.Model,
    chunks: Sequence[Chunk] = (),
) -> LatFile:
    """Quantise latents and code them.

    Where the latents are flat, an error shows as a colour cast: finer steps are tried as well, and
    the smallest file is taken whose error is below FLAT_ERROR. Where latents cost few bits, both
    lattices are tried, and the file of least error and bits is taken.

    Args:
        latents: [C, h, w] float32, scaled as the space's diffusion model takes them.
        size, step_q, model, chunks: as for `LatFile.from_symbols`.
    """
    preferred = default_coder(model)

    def encode(one: _Quantised) -> LatFile:
        return LatFile.from_symbols(one.symbols, one.coder, size, one.step_q, model, chunks)

    if quantize.is_flat(latents):
        coders = dict.fromkeys((preferred, load_coder(model.coder, has_trellis=False)))
        steps = [step_q, *_finer_steps(step_q)]
        tried = [_Quantised(latents, step, coder) for step in steps for coder in coders]
        largest = FLAT_ERROR * step_q / quantize.STEP_UNIT
        close = [one for one in tried if one.rms_error <= largest]
        close = close or [min(tried, key=lambda one: one.rms_error)]
        return min(map(encode, close), key=lambda file: len(file.payload))
    first = _Quantised(latents, step_q, preferred)
    file = encode(first)
    if not preferred.has_trellis or 8 * len(file.payload) >= FEW_BITS * latents.size:
        return file
    second = _Quantised(latents, step_q, load_coder(model.coder, has_trellis=False))
    other = encode(second)
    return other if second.cost(other) < first.cost(file) else file


def _finer_steps(step_q: int) -> list[int]:
    """The steps below a step that are tried where latents are flat."""
    steps = (round(step_q * FLAT_RATIO**n) for n in range(1, FLAT_STEPS + 1))
    return sorted({step for step in steps if FINEST_STEP_Q <= step < step_q}, reverse=True)


def encode_quantized(
    latents: Floats, size: tuple[int, int], step_q: int, model: registry.Model
) -> LatFile | None:
    """Code latents that were quantised with this step before, on either lattice.

    They keep their values: the lattice is the one they are on. Ties go to the model's default.
    Returns None if they are on neither, as after a change.

    Args:
        latents: [C, h, w] float32, multiples of the step, or on the trellis of half of it.
        size, step_q, model: as for `LatFile.from_symbols`.
    """
    name = registry.full_coder(model).name
    full = (load_coder(name, has_trellis=has_trellis) for has_trellis in (True, False))
    choices = [
        (quantize.to_nearest(latents, step_q, coder), coder)
        for coder in dict.fromkeys((default_coder(model), *full))
    ]

    def error(choice: tuple[Symbols, EntropyCoder]) -> float:
        symbols, coder = choice
        return quantize.squared_error(latents, symbols, step_q, coder)

    nearest = min(choices, key=error)
    if error(nearest) > ON_LATTICE**2 * latents.size:
        return None
    return LatFile.from_symbols(*nearest, size, step_q, model)


def was_encoded_at(header: Header, quality: float, parse: Callable[[], LatFile]) -> bool:
    """Whether a file was encoded at a quality, judged by its quantiser step.

    Flat images may have a finer step than the quality asks for (see `encode_latents`), one that
    several qualities lead to.

    Args:
        parse: returns the whole file; called only if the header has such a finer step.
    Raises: UsageError if quality is not within 0..100; UnknownModel; what `parse` raises.
    """
    step_q = quantize.quality_to_step(quality, has_trellis=model_of(header).has_trellis)
    if header.step_q in _finer_steps(step_q):
        return quantize.is_flat(parse().latents, header.step_q)
    return header.step_q == step_q
