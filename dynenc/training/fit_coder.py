"""Fitting of the entropy coder: latents -> the integer tensors of weights/coder_*.safetensors.

The networks of a stage are trained together, one for each channel, to predict a mixture of two
Gaussians, rounded to integers, and run as the codec runs them; those of the trellis go on from
those of the plain lattice. The tables of frequencies are then counted with these networks on the
training latents, so nothing differs between training and codec but the rounding of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch

from dynenc.coding.entropy import FRACTIONS, STAGES, VARIANTS, EntropyCoder, lattice_name
from dynenc.native.kernel import Floats
from dynenc.training.context_networks import SCALES, SMALLEST_OCTAVE, Stage
from dynenc.training.samples import FitConfig, Sample, places_of


def fit(
    latents: Iterable[npt.NDArray[np.floating]],
    config: FitConfig,
    report: Callable[[int], object] | None = None,
) -> dict[str, npt.NDArray[np.generic]]:
    """Fit an entropy coder; the same input gives the same output on one machine.

    Args:
        latents: arrays [C, h, w] as the diffusion model takes them, unquantised.
        report: called with the number of networks done, of `n_parts(config)`.
    Returns: integer tensors, as `EntropyCoder.of` takes them.
    """
    thresholds = np.ceil(2 ** (np.arange(1, 257) / 16)).astype(np.int32)
    tensors: dict[str, npt.NDArray[np.generic]] = {"thresholds": thresholds}
    arrays, stages = list(latents), list[Stage]()
    for done, has_trellis in enumerate(config.lattices):

        def report_all(n_done: int, before: int = done * len(STAGES)) -> None:
            if report:
                report(before + n_done)

        tensors |= _fit_lattice(
            arrays, stages, tensors, config, report_all, has_trellis=has_trellis
        )
    return tensors


def n_parts(config: FitConfig) -> int:
    """How many parts of a fit are reported: the stages of each lattice."""
    return len(STAGES) * len(config.lattices)


def _fit_lattice(
    latents: list[npt.NDArray[np.floating]],
    stages: list[Stage],
    common: dict[str, npt.NDArray[np.generic]],
    config: FitConfig,
    report: Callable[[int], object],
    *,
    has_trellis: bool,
) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors of one lattice.

    Args:
        stages: as the lattice before left them, which this one begins with; empty for the first.
    """
    random = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    scaled = [_scaled(array, random, config) for array in latents for _ in range(config.copies)]
    samples = [Sample.on_lattice(*each, None, has_trellis=has_trellis) for each in scaled]
    names = ("neighbours", "hidden", "middle", "output", "bias")
    lattice = lattice_name(has_trellis=has_trellis)
    counts = f"{lattice}.counts"
    tensors: dict[str, npt.NDArray[np.generic]] = {counts: _flat_counts(config.radius)}
    for number in range(len(STAGES)):
        places = places_of(samples, number, random, config)
        if number == len(stages):
            stages.append(Stage.chosen(samples, places, number, config))
        parts = stages[number].fit(samples, places, random, config)
        tensors |= {
            f"{lattice}.{number}.{name}": part for name, part in zip(names, parts, strict=True)
        }
        report(number + 1)
    coder = EntropyCoder.of(common | tensors, has_trellis=has_trellis)
    tensors[counts] = _counts(coder, samples, config)
    if has_trellis:  # where symbols are chosen by what they cost
        coder = EntropyCoder.of(common | tensors, has_trellis=True)
        samples = [Sample.on_lattice(*each, coder, has_trellis=True) for each in scaled]
        tensors[counts] = _counts(coder, samples, config)
    return tensors


def _scaled(
    array: npt.NDArray[np.floating], random: np.random.Generator, config: FitConfig
) -> tuple[Floats, int]:
    """One image, perhaps faded, and a random step_q."""
    if random.random() < config.faded:
        array = array * 2 ** -random.uniform(1, 10) + random.normal(0, 0.5, (len(array), 1, 1))
    limits = np.log([config.smallest_step, config.largest_step])
    step_q = round(1024 * float(np.exp(random.uniform(*limits))))
    return array.astype(np.float32), step_q


def _flat_counts(radius: int) -> npt.NDArray[np.uint16]:
    """Tables in which everything is equally likely, until the networks are known."""
    columns = 2 * radius + 2
    counts = np.full((SCALES * VARIANTS, columns), 2**16 // columns, np.uint16)
    counts[:, 0] += 2**16 % columns
    return counts


def _counts(
    coder: EntropyCoder, samples: Iterable[Sample], config: FitConfig
) -> npt.NDArray[np.uint16]:
    """Frequencies of the residuals in the training latents, over a logistic prior."""
    radius, columns = config.radius, 2 * config.radius + 2
    seen = np.zeros(SCALES * VARIANTS * columns)
    for sample in samples:
        contexts = coder.contexts(sample.symbols, sample.step_q)
        entries = (sample.symbols - contexts.expected) * contexts.sign + radius
        entries[(entries < 0) | (entries > 2 * radius)] = columns - 1
        found = contexts.tables * np.int64(columns) + entries
        seen += np.bincount(found.ravel(), minlength=len(seen))
    index = np.arange(SCALES * VARIANTS)
    sigma = 2 ** ((index // VARIANTS + 0.5) / 4 + SMALLEST_OCTAVE)
    edges = np.arange(-radius, radius + 2) - 0.5 - (index % VARIANTS / FRACTIONS)[:, None]
    below = 1 / (1 + np.exp(-np.clip(edges / (sigma[:, None] * 0.55), -40, 40)))
    prior = np.concatenate([np.diff(below), np.full((len(index), 1), 1e-4)], 1)
    chance = seen.reshape(len(index), columns) + config.prior * prior / prior.sum(1)[:, None]
    chance /= chance.sum(1)[:, None]
    counts = 1 + np.floor(chance * (2**16 - columns)).astype(np.int64)
    counts[index, counts.argmax(1)] += 2**16 - counts.sum(1)
    result: npt.NDArray[np.uint16] = counts.astype(np.uint16)
    return result
