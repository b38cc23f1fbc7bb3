"""Training samples of an entropy coder: quantised latents; and the settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dynenc.coding.entropy import MAX_VALUE, STAGES, EntropyCoder
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.latent_space import ceil_div
from dynenc.native import kernel
from dynenc.native.kernel import Floats, Ints, Symbols

REACH = 4  # rows or columns to a neighbour


@dataclass(frozen=True)
class FitConfig:
    """Everything that a fit depends on besides the latents."""

    preset: str  # a coder's name in registry.MODELS
    has_trellis: bool = True  # whether to fit the trellis lattice as well as the plain one
    seed: int = 0
    hidden: int = 32  # units of a network's first layer
    middle: int = 16  # units of its second layer
    neighbours: int = 40  # at most, of a network
    radius: int = 63  # of the tables' residuals
    smallest_step: float = 0.06  # steps are drawn log-uniformly, one per image and copy
    largest_step: float = 1.4
    images: int = 0  # at most, evenly spread over all; 0: all
    copies: int = 2  # of every image, each at its own step
    faded: float = 0.06  # share of copies that lose contrast, so that flat images are known too
    samples: int = 200_000  # symbols of a channel that a network is trained on
    batch: int = 1024
    iterations: int = 2500
    learning_rate: float = 1.2e-2
    prior: float = 20.0  # symbols' worth of a logistic distribution in every table

    @property
    def lattices(self) -> tuple[bool, ...]:
        """The lattices to fit, each as whether it is the trellis."""
        return (False, True) if self.has_trellis else (False,)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image quantised with one step."""

    symbols: Symbols  # [C, h, w]
    points: Ints  # [C, h, w], where they are, in half steps
    step_q: int

    @classmethod
    def on_lattice(
        cls, latents: Floats, step_q: int, coder: EntropyCoder | None, *, has_trellis: bool
    ) -> Sample:
        """Quantise latents by a coder's bit costs, or to the nearest points without one."""
        if coder is None:
            symbols = kernel.quantize(latents, step_q, has_trellis=has_trellis)
        else:
            symbols = to_symbols(latents, step_q, coder)
        return cls(symbols, kernel.reconstruction_points(symbols, has_trellis=has_trellis), step_q)

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """The latents as the context networks see them, in 1/128: [C, h, w]."""
        values = (self.points.astype(np.int64) * self.step_q + 8) >> 4
        return values.clip(-MAX_VALUE, MAX_VALUE)

    @cached_property
    def padded(self) -> npt.NDArray[np.int16]:
        """`values` with REACH zeros around each channel."""
        sides = ((0, 0), (REACH, REACH), (REACH, REACH))
        return np.pad(self.values.astype(np.int16), sides)


def latents_of(sample: Sample, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64]) -> Floats:
    """The decoded latents of a sample at some places: [C, N]."""
    scale = np.float32(sample.step_q / (2 * STEP_UNIT))
    latents: Floats = sample.points[:, y, x].astype(np.float32) * scale
    return latents


def places_of(
    samples: list[Sample], stage: int, random: np.random.Generator, config: FitConfig
) -> list[npt.NDArray[np.int64]]:
    """Rows and columns [2, N] of symbols of a stage in each sample, drawn at random."""
    each = ceil_div(config.samples, len(samples))
    drawn = []
    for sample in samples:
        _, height, width = sample.symbols.shape
        own = [
            np.mgrid[row:height:4, column:width:4].reshape(2, -1) for row, column in STAGES[stage]
        ]
        places = np.concatenate(own, 1)
        drawn.append(places[:, random.permutation(places.shape[1])[:each]])
    return drawn


def inputs_of(
    samples: list[Sample],
    places: list[npt.NDArray[np.int64]],
    neighbours: npt.NDArray[np.int64],
) -> npt.NDArray[np.int16]:
    """The inputs of a network at places of the samples: [F, N], in 1/128."""
    other, down, right = neighbours.T[:, :, None] if len(neighbours) else np.zeros((3, 0, 1), int)
    parts = []
    for sample, (y, x) in zip(samples, places, strict=True):
        parts.append(sample.padded[other, y + down + REACH, x + right + REACH])
    return np.concatenate(parts, 1)
