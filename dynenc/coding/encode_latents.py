"""Latents -> the .lat file of least cost: chooses lattice and step. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.bitstream import Chunk, Header
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.coding.lat_file import LatFile, model_of
from dynenc.coding.rate_control import FINEST_STEP_Q
from dynenc.native.kernel import Floats, Symbols

FEW_BITS = 1.5  # a latent; below it the plain lattice may be cheaper, as constants repeat on it
BIT_COST = 0.09  # squared error, in squared steps, that a bit is worth when choosing a lattice
FLAT_ERROR = 0.08  # steps; where latents are flat, the RMS error of a position that is small enough
FLAT_STEPS = 5  # that are tried where latents are flat, each half of the one before


def default_coder(model: registry.Model) -> EntropyCoder:
    """The coder that new files of a model's latents are written with."""
    return load_coder(model.coder, has_trellis=model.has_trellis)


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

    def encode(coder: EntropyCoder, step_q: int) -> LatFile:
        symbols = quantize.to_symbols(latents, step_q, coder)
        return LatFile.from_symbols(symbols, coder, size, step_q, model, chunks)

    file, is_flat = encode(preferred, step_q), quantize.is_flat(latents)
    has_few_bits = 8 * len(file.payload) < FEW_BITS * latents.size
    if not is_flat and not (has_few_bits and preferred.has_trellis):
        return file
    plain = load_coder(model.coder, has_trellis=False)
    coders = list(dict.fromkeys((preferred, plain)))
    files = [file, *(encode(coder, step_q) for coder in coders[1:])]
    if not is_flat:
        return min(files, key=lambda file: _cost(file, latents))
    finer = [step for step in _finer_steps(step_q) if step >= FINEST_STEP_Q]
    files += [encode(coder, step) for step in finer for coder in coders]
    return _smallest_close(files, latents, FLAT_ERROR * step_q / quantize.STEP_UNIT)


def _finer_steps(step_q: int) -> list[int]:
    """The steps below a step that are tried where latents are flat."""
    return [step_q >> halvings for halvings in range(1, FLAT_STEPS)]


def _cost(file: LatFile, latents: Floats) -> float:
    """Rate-distortion cost of a file: squared error plus weighted bits, in squared steps."""
    return _squared_error(file, latents) + BIT_COST * 8 * len(file.payload)


def _smallest_close(files: Sequence[LatFile], latents: Floats, largest: float) -> LatFile:
    """The smallest file of at most the largest RMS error, else the one of the smallest error."""
    close = [file for file in files if rms_error(file, latents) <= largest]
    if close:
        return min(close, key=lambda file: len(file.payload))
    return min(files, key=lambda file: rms_error(file, latents))


def rms_error(file: LatFile, latents: Floats) -> float:
    """RMS over positions of the distance of a file to latents [C, h, w], in latent units."""
    in_steps = math.sqrt(_squared_error(file, latents) / latents[0].size)
    return in_steps * file.header.step_q / quantize.STEP_UNIT


def _squared_error(file: LatFile, latents: Floats) -> float:
    return quantize.squared_error(latents, file.symbols, file.header.step_q, file.coder)


def encode_quantized(
    latents: Floats, size: tuple[int, int], step_q: int, model: registry.Model
) -> LatFile:
    """Code latents that were quantised with this step before, on either lattice.

    They keep their values: the lattice is the one they are on. Ties go to the model's default.

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

    return LatFile.from_symbols(*min(choices, key=error), size, step_q, model)


def was_encoded_at(header: Header, quality: float, parse: Callable[[], LatFile]) -> bool:
    """Whether a file was encoded at a quality, judged by its quantiser step.

    Flat images may have a finer step than the quality asks for; see `encode_latents`.

    Args:
        parse: returns the whole file; called only if the header has such a finer step.
    Raises: UsageError if quality is not within 0..100; UnknownModel; what `parse` raises.
    """
    step_q = quantize.quality_to_step(quality, has_trellis=model_of(header).has_trellis)
    if header.step_q in _finer_steps(step_q):
        return quantize.is_flat(parse().latents, header.step_q)
    return header.step_q == step_q
