"""Fitting of the entropy coder: latents -> the integer tensors of weights/coder_*.safetensors.

Networks are trained one after another to predict a mixture of two Gaussians, then rounded to
integers and run as in the codec. The frequency tables are counted with these integer networks on
the training latents, so training and codec differ only in the rounding of weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dynenc.coding.entropy import (
    FRACTIONS,
    MAX_VALUE,
    MIDDLE_LEVEL,
    STAGES,
    VARIANTS,
    EntropyCoder,
    lattice_name,
)
from dynenc.coding.quantize import STEP_UNIT, to_symbols
from dynenc.latent_space import SD1
from dynenc.native import kernel
from dynenc.native.kernel import Floats, Ints

NETWORKS = SD1.channels * len(STAGES)
SCALES = 30  # quarter octaves of the standard deviation, in steps ...
SMALLEST_OCTAVE = -3.5  # ... from here up
VALUE = 128  # values and hidden units per latent unit
WEIGHT = 1024  # integer weights per unit
BIAS = VALUE * WEIGHT
LARGEST = 7.99  # where values saturate
REACH = 4  # largest distance of a neighbour in rows or columns
STAGE_OF = {place: stage for stage, places in enumerate(STAGES) for place in places}


@dataclass(frozen=True)
class FitConfig:
    """All settings of a fit."""

    preset: str  # a coder's name in registry.MODELS
    has_trellis: bool = True  # whether to fit the trellis lattice as well as the plain one
    seed: int = 0
    hidden: int = 32  # units of a network's first layer
    middle: int = 16  # units of its second layer
    neighbours: int = 40  # maximum number of inputs of a network
    radius: int = 63  # of the tables' residuals
    smallest_step: float = 0.06  # steps are drawn log-uniformly, one per image and copy
    largest_step: float = 1.4
    copies: int = 2  # of every image, each with its own step
    faded: float = 0.06  # share of copies with reduced contrast, to represent flat images
    samples: int = 200_000  # symbols that a network is trained on
    batch: int = 1024
    iterations: int = 2500
    learning_rate: float = 1.2e-2
    prior: float = 20.0  # symbols' worth of a logistic distribution in every table

    @property
    def lattices(self) -> tuple[bool, ...]:
        """For each lattice to fit, whether it is the trellis."""
        return (False, True) if self.has_trellis else (False,)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image quantised with one step."""

    symbols: Ints  # [C, h, w]
    points: Ints  # [C, h, w], positions of the lattice points in half steps
    step_q: int

    @classmethod
    def on_lattice(
        cls, latents: Floats, step_q: int, coder: EntropyCoder | None, *, has_trellis: bool
    ) -> "Sample":
        """Quantise latents using the bit costs of a coder, or without one to the nearest points."""
        if coder is None:
            symbols = kernel.quantize(latents, step_q, has_trellis=has_trellis)
        else:
            symbols = to_symbols(latents, step_q, coder)
        return cls(symbols, kernel.points(symbols, has_trellis=has_trellis), step_q)

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """The latents as the context networks see them, in units of 1/128: [C, h, w]."""
        values = (self.points.astype(np.int64) * self.step_q + 8) >> 4
        return values.clip(-MAX_VALUE, MAX_VALUE)


def fit(
    latents: Iterable[npt.NDArray[np.floating]],
    config: FitConfig,
    report: Callable[[int], None] | None = None,
) -> dict[str, npt.NDArray[np.generic]]:
    """Fit an entropy coder; the same input gives the same output on one machine.

    Args:
        latents: unquantised arrays [C, h, w] in the scale of the diffusion model.
        report: called with the number of networks done, of `n_networks(config)`.
    Returns: integer tensors for `EntropyCoder.of`.
    """
    thresholds = np.ceil(2 ** (np.arange(1, 257) / 16)).astype(np.int32)
    tensors: dict[str, npt.NDArray[np.generic]] = {"thresholds": thresholds}
    arrays = list(latents)
    for done, has_trellis in enumerate(config.lattices):

        def report_all(n_done: int, before: int = done * NETWORKS) -> None:
            if report:
                report(before + n_done)

        tensors |= _fit_lattice(arrays, tensors, config, report_all, has_trellis=has_trellis)
    return tensors


def n_networks(config: FitConfig) -> int:
    """The number of networks that a fit trains."""
    return NETWORKS * len(config.lattices)


def _fit_lattice(
    latents: list[npt.NDArray[np.floating]],
    common: dict[str, npt.NDArray[np.generic]],
    config: FitConfig,
    report: Callable[[int], None],
    *,
    has_trellis: bool,
) -> dict[str, npt.NDArray[np.generic]]:
    """The tensors of one lattice."""
    random = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    scaled = [_scaled(array, random, config) for array in latents for _ in range(config.copies)]
    samples = [Sample.on_lattice(*each, None, has_trellis=has_trellis) for each in scaled]
    networks: dict[tuple[int, int], list[npt.NDArray[np.generic]]] = {}
    for done, which in enumerate(product(range(len(STAGES)), range(SD1.channels)), 1):
        networks[which] = _fit_network(samples, *which, random, config)
        report(done)
    names = ("neighbours", "hidden", "middle", "output", "bias")
    lattice = lattice_name(has_trellis=has_trellis)
    counts = f"{lattice}.counts"
    tensors: dict[str, npt.NDArray[np.generic]] = {counts: _flat_counts(config.radius)}
    for stage in range(len(STAGES)):
        parts = [networks[stage, channel] for channel in range(SD1.channels)]
        for name, part in zip(names, zip(*parts, strict=True), strict=True):
            tensors[f"{lattice}.{stage}.{name}"] = np.stack(part)
    coder = EntropyCoder.of(common | tensors, has_trellis=has_trellis)
    tensors[counts] = _counts(coder, samples, config)
    if has_trellis:  # where symbols are chosen by what they cost
        coder = EntropyCoder.of(common | tensors, has_trellis=True)
        samples = [Sample.on_lattice(*each, coder, has_trellis=True) for each in scaled]
        tensors[counts] = _counts(coder, samples, config)
    return tensors


def available(stage: int, channel: int, most: int) -> list[tuple[int, int, int]]:
    """The nearest neighbours (channel, down, right) decoded before a stage of a channel."""
    found = []
    for other in range(SD1.channels):
        for down in range(-REACH, REACH + 1):
            for right in range(-REACH, REACH + 1):
                planes = [((y + down) % 4, (x + right) % 4) for y, x in STAGES[stage]]
                if all(STAGE_OF[plane] + other < stage + channel for plane in planes):
                    distance = down**2 + right**2 + (0 if other == channel else 2.5)
                    found.append((distance, other, down, right))
    return [(other, down, right) for _, other, down, right in sorted(found)[:most]]


def _scaled(
    array: npt.NDArray[np.floating], random: np.random.Generator, config: FitConfig
) -> tuple[Floats, int]:
    """The latents of one image, possibly with reduced contrast, and a random step_q."""
    if random.random() < config.faded:
        array = array * 2 ** -random.uniform(1, 10) + random.normal(0, 0.5, (SD1.channels, 1, 1))
    limits = np.log([config.smallest_step, config.largest_step])
    step_q = round(1024 * float(np.exp(random.uniform(*limits))))
    return array.astype(np.float32), step_q


def _fit_network(
    samples: list[Sample],
    stage: int,
    channel: int,
    random: np.random.Generator,
    config: FitConfig,
) -> list[npt.NDArray[np.generic]]:
    """Train one network: its integer neighbours, hidden, middle, output and bias tensors."""
    rows = available(stage, channel, config.neighbours)
    most = max(len(available(stage, each, config.neighbours)) for each in range(SD1.channels))
    neighbours = np.zeros((most, 3), np.int64)  # padded with neighbours of weight 0
    neighbours[: len(rows)] = np.array(rows, np.int64).reshape(-1, 3)
    inputs, targets, octaves = _examples(samples, stage, channel, neighbours, random, config)
    inputs[:, len(rows) :] = 0
    trained = _train(inputs, targets, octaves, len(rows), config)
    return [neighbours.astype(np.int8), *trained]


def _examples(
    samples: list[Sample],
    stage: int,
    channel: int,
    neighbours: npt.NDArray[np.int64],
    random: np.random.Generator,
    config: FitConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols in random order: latents of neighbours [N, F], own [N], octaves of the step [N]."""
    inputs, targets, octaves = [], [], []
    each = -(-config.samples // len(samples))
    for sample in samples:
        step_q, (_, height, width) = sample.step_q, sample.symbols.shape
        own = [
            np.mgrid[row:height:4, column:width:4].reshape(2, -1) for row, column in STAGES[stage]
        ]
        places = np.concatenate(own, 1)
        pick = random.permutation(places.shape[1])[:each]
        y, x = places[:, pick]
        values = np.pad(sample.values, ((0, 0), (REACH, REACH), (REACH, REACH)))
        other, down, right = neighbours.T[:, :, None]
        inputs.append(values[other, y + down + REACH, x + right + REACH].T / VALUE)
        targets.append(sample.points[channel, y, x] * np.float32(step_q / (2 * STEP_UNIT)))
        octaves.append(np.full(len(pick), np.log2(step_q) - MIDDLE_LEVEL / 16, np.float32))
    rows = random.permutation(sum(len(part) for part in targets))
    stacked = (np.concatenate(part)[rows] for part in (inputs, targets, octaves))
    first, second, third = (torch.from_numpy(part.astype(np.float32)) for part in stacked)
    return first, second, third


class _Trainee(nn.Module):
    """A context network in floats: [N, F], [N] -> expected latent and scale octave [N, 2]."""

    def __init__(self, inputs: int, config: FitConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs + 1, config.hidden)
        self.middle = nn.Linear(config.hidden, config.middle)
        self.output = nn.Linear(config.middle + config.hidden + inputs + 1, 3)
        self.tail = nn.Parameter(torch.tensor([-2.0, 0.8]))  # weight and width of the mixture
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.weight[1, -1] = -1.0  # a finer step has larger residuals
            self.output.bias.copy_(torch.tensor([0.0, 4.25, 0.5]))

    def forward(self, neighbours: Tensor, octave: Tensor) -> Tensor:
        inputs = torch.cat([neighbours, octave[:, None]], 1)
        hidden = self.hidden(inputs).clamp(0, LARGEST)
        middle = self.middle(hidden).clamp(0, LARGEST)
        expected, scale, activity = self.output(torch.cat([middle, hidden, inputs], 1)).unbind(1)
        return torch.stack([expected, scale + torch.log2(activity.clamp(1 / 256, LARGEST))], 1)

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the weights small enough for the exact sums of integers."""
        for layer in (self.hidden, self.middle, self.output):
            weight = layer.weight[:, :-1] if layer is not self.middle else layer.weight
            weight.mul_((12 / weight.abs().sum(1, keepdim=True)).clamp(max=1))
            layer.bias.clamp_(-8, 8)
            if layer is not self.middle:
                layer.weight[:, -1].clamp_(-3, 3)

    def bits(self, neighbours: Tensor, target: Tensor, octave: Tensor) -> Tensor:
        """Bits of the targets [N] under a mixture of two Gaussians."""
        step = torch.exp2(octave + (MIDDLE_LEVEL / 16 - 10))
        expected, scale = self(neighbours, octave).unbind(1)
        sigma = torch.exp2(scale.clamp(0, SCALES / 4) + SMALLEST_OCTAVE)
        distance = (target - expected).abs() / step
        weight, width = torch.sigmoid(self.tail[0]), 1 + nn.functional.softplus(self.tail[1])
        chance = torch.zeros_like(target)
        for part, spread in ((1 - weight, sigma), (weight, sigma * width)):
            edges = torch.stack([distance - 0.5, distance + 0.5]) / (spread * 2**0.5)
            upper = torch.special.erfc(edges)
            chance = chance + part * (upper[0] - upper[1]) / 2
        return -torch.log2(chance + 1e-6)


def _train(
    neighbours: Tensor, target: Tensor, octave: Tensor, used: int, config: FitConfig
) -> list[npt.NDArray[np.signedinteger]]:
    """Train one network; returns its integer hidden, middle, output and bias tensors."""
    network = _Trainee(neighbours.shape[1], config)
    optimiser = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=1e-3, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, config.iterations
    )
    for _ in range(config.iterations):
        # consecutive rows, as the samples are already shuffled: gathering would take longer
        start = int(torch.randint(max(1, len(target) - config.batch), ()))
        batch = slice(start, start + config.batch)
        loss = network.bits(neighbours[batch], target[batch], octave[batch]).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        network.limit()
    state = {name: array.detach().double().numpy() for name, array in network.named_parameters()}
    hidden, middle, output = (state[f"{name}.weight"] for name in ("hidden", "middle", "output"))
    per_level = [hidden[:, -1], np.zeros(config.middle), output[:, -1]]
    constant = [state[f"{name}.bias"] for name in ("hidden", "middle", "output")]
    constant[2][1] -= 13  # activities are in 2**-13
    bias = np.stack([np.concatenate(constant), np.concatenate(per_level) / 16], axis=1)
    hidden, output = hidden[:, :-1].copy(), output[:, :-1].copy()
    hidden[:, used:] = 0
    output[:, config.middle + config.hidden + used :] = 0
    layers = [np.rint(layer * WEIGHT).astype(np.int16) for layer in (hidden, middle, output)]
    return [*layers, np.rint(bias * BIAS).astype(np.int32)]


def _flat_counts(radius: int) -> npt.NDArray[np.uint16]:
    """Uniform tables, used until the networks are trained."""
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
        entries = (sample.symbols - contexts.centre) * contexts.sign + radius
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
