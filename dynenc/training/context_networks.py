"""Context networks in training: which neighbours they see, their floats, and their integers.

The networks of a stage are trained together, one for each channel, to predict a mixture of two
Gaussians, and rounded to integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc.coding.entropy import MIDDLE_LEVEL, STAGES
from dynenc.training.samples import REACH, FitConfig, Sample, inputs_of, latents_of

SCALES = 30  # quarter octaves of the standard deviation, in steps ...
SMALLEST_OCTAVE = -3.5  # ... from here up
VALUE = 128  # values and hidden units per latent unit
WEIGHT = 1024  # integer weights per unit
BIAS = VALUE * WEIGHT
LARGEST = 7.99  # where values saturate
OTHER_REACH = 2  # rows or columns to a neighbour in another channel
NEAREST = 12  # neighbours in the same channel that a network has in any case
RIDGE = 1e-3  # added to the mean squares of neighbours when those that tell most are chosen
CHOICE_SAMPLES = 4_000  # symbols that they are chosen by
STAGE_OF = {place: stage for stage, places in enumerate(STAGES) for place in places}


@dataclass(frozen=True, eq=False)
class Stage:
    """The networks of a stage, and what they see."""

    neighbours: npt.NDArray[np.int64]  # [C, F, 3]: channel, down, right
    networks: _Trainees

    @classmethod
    def chosen(
        cls,
        samples: list[Sample],
        places: list[npt.NDArray[np.int64]],
        number: int,
        config: FitConfig,
    ) -> Stage:
        """Choose the neighbours; the networks begin with a linear prediction from them."""
        chosen = [
            _choose(samples, places, number, channel, config)
            for channel in range(len(samples[0].symbols))
        ]
        most = max(len(rows) for rows, _ in chosen)
        neighbours = np.zeros((len(chosen), most, 3), np.int64)
        used, linear = np.zeros((2, len(chosen), most), np.float32)
        for channel, (rows, weights) in enumerate(chosen):  # of weight 0 where there are fewer
            neighbours[channel, : len(rows)] = np.reshape(rows, (-1, 3))
            used[channel, : len(rows)] = 1
            linear[channel, : len(rows)] = weights
        return cls(neighbours, _Trainees(torch.from_numpy(used), torch.from_numpy(linear), config))

    def fit(
        self,
        samples: list[Sample],
        places: list[npt.NDArray[np.int64]],
        random: np.random.Generator,
        config: FitConfig,
    ) -> list[npt.NDArray[np.generic]]:
        """Train on symbols: integer neighbours, hidden, middle, output and bias tensors."""
        inputs = np.stack([inputs_of(samples, places, one) for one in self.neighbours])
        given = list(zip(samples, places, strict=True))
        targets = np.concatenate([latents_of(sample, *each) for sample, each in given], 1)
        octaves = np.concatenate(
            [
                np.full(each.shape[1], np.log2(sample.step_q) - MIDDLE_LEVEL / 16, np.float32)
                for sample, each in given
            ]
        )
        order = random.permutation(len(octaves))
        parts = (inputs, targets, octaves)
        shuffled = [torch.from_numpy(part[..., order]) for part in parts]
        trained = _train(self.networks, shuffled[0], shuffled[1], shuffled[2], config)
        return [self.neighbours.astype(np.int8), *trained]


def available(stage: int, channel: int, channels: int) -> list[tuple[int, int, int]]:
    """The neighbours (channel, down, right) decoded before a stage of a channel, nearest first."""
    found = []
    for other in range(channels):
        reach = REACH if other == channel else OTHER_REACH
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                planes = [((y + down) % 4, (x + right) % 4) for y, x in STAGES[stage]]
                if all(STAGE_OF[plane] + other < stage + channel for plane in planes):
                    found.append((down**2 + right**2, other != channel, other, down, right))
    return [place for _, _, *place in sorted(found)]  # type: ignore[misc]


def _choose(
    samples: list[Sample],
    places: list[npt.NDArray[np.int64]],
    stage: int,
    channel: int,
    config: FitConfig,
) -> tuple[list[tuple[int, int, int]], npt.NDArray[np.floating]]:
    """The neighbours of a network: the nearest in its channel, then those that tell most.

    Returns: the neighbours, and the weights of the linear prediction from them.

    One after another, each is the one that explains most of what a linear prediction from those
    before it leaves (orthogonal matching pursuit, Pati et al., 1993).
    """
    rows = available(stage, channel, len(samples[0].symbols))
    chosen = [i for i, (other, _, _) in enumerate(rows) if other == channel]
    chosen = chosen[: min(NEAREST, config.neighbours)]
    every = max(1, sum(each.shape[1] for each in places) // CHOICE_SAMPLES)
    thinned = [each[:, ::every] for each in places]
    seen = inputs_of(samples, thinned, np.array(rows, np.int64).reshape(-1, 3))
    inputs = seen.astype(np.float32) / VALUE
    target = np.concatenate(
        [latents_of(sample, *each)[channel] for sample, each in zip(samples, thinned, strict=True)]
    )
    gram = (inputs @ inputs.T).astype(np.float64) + RIDGE * len(target) * np.eye(len(rows))
    moment = inputs @ target
    while len(chosen) < min(config.neighbours, len(rows)):
        weights = np.linalg.solve(gram[np.ix_(chosen, chosen)], moment[chosen])
        gain = np.square(moment - gram[:, chosen] @ weights) / gram.diagonal()
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    weights = np.linalg.solve(gram[np.ix_(chosen, chosen)], moment[chosen])
    return [rows[i] for i in chosen], weights


class _Trainees(nn.Module):
    """The context networks of a stage in floats, one for each channel.

    [C, F, N], [N] -> expected latent and scale octave, 2 x [C, N].
    """

    def __init__(self, used: Tensor, linear: Tensor, config: FitConfig) -> None:
        """Begin with a linear prediction.

        Args:
            used: [C, F], 1 for the inputs that a network has, else 0.
            linear: [C, F], weights of the expected latent.
        """
        super().__init__()
        self.used: Tensor
        channels, inputs = used.shape
        hidden, middle = config.hidden, config.middle
        self.register_buffer("used", used[:, None])
        layers = (
            ("hidden", hidden, inputs + 1),
            ("middle", middle, hidden),
            ("output", 3, middle + hidden + inputs + 1),
        )
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for name, outputs, columns in layers:  # as nn.Linear begins
            span = columns**-0.5
            weight = torch.empty(channels, outputs, columns).uniform_(-span, span)
            bias = torch.empty(channels, outputs, 1).uniform_(-span, span)
            self.weights[name], self.biases[name] = nn.Parameter(weight), nn.Parameter(bias)
        tail = torch.tensor([-2.0, 0.8]).repeat(channels, 1)  # weight and width of the mixture
        self.tail = nn.Parameter(tail)
        with torch.no_grad():
            self.weights["output"].mul_(0.1)
            self.weights["output"][:, 0] = 0
            self.weights["output"][:, 0, -1 - inputs : -1] = linear
            self.weights["output"][:, 1, -1] = -1.0  # finer steps, larger residuals
            self.biases["output"][:] = torch.tensor([[0.0], [4.25], [0.5]])
        self.limit()

    def forward(self, neighbours: Tensor, octave: Tensor) -> tuple[Tensor, Tensor]:
        octaves = octave.expand(len(neighbours), 1, -1)
        inputs = torch.cat([neighbours, octaves], 1)
        units, weights = {}, self.weights
        units["hidden"] = self._sums("hidden", inputs).clamp(0, LARGEST)
        units["middle"] = self._sums("middle", units["hidden"]).clamp(0, LARGEST)
        sizes = [len(units["middle"][0]), len(units["hidden"][0]), len(inputs[0])]
        middle, hidden, direct = weights["output"].split(sizes, 2)
        sums = torch.baddbmm(self.biases["output"], middle, units["middle"])
        sums = torch.baddbmm(sums, hidden, units["hidden"]).baddbmm(direct, inputs)
        expected, scale, activity = sums.unbind(1)
        return expected, scale + torch.log2(activity.clamp(1 / 256, LARGEST))

    def _sums(self, layer: str, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[layer], self.weights[layer], inputs)

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the weights small enough for the exact sums of integers."""
        n_inputs = self.used.shape[2]
        for name in ("hidden", "output"):
            self.weights[name][..., -1].clamp_(-3, 3)
            self.weights[name][..., -1 - n_inputs : -1].mul_(self.used)
        for name, weight in self.weights.items():
            weight = weight if name == "middle" else weight[..., :-1]
            weight.mul_((12 / weight.abs().sum(2, keepdim=True)).clamp(max=1))
            self.biases[name].clamp_(-8, 8)

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the norm of each network's gradient to 1."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (1 / (norm + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))

    def bits(self, neighbours: Tensor, target: Tensor, octave: Tensor) -> Tensor:
        """Bits of the targets [C, N], under a mixture of two Gaussians."""
        step = torch.exp2(octave + (MIDDLE_LEVEL / 16 - 10))
        expected, scale = self(neighbours, octave)
        sigma = torch.exp2(scale.clamp(0, SCALES / 4) + SMALLEST_OCTAVE)
        distance = (target - expected).abs() / step
        weight, width = torch.sigmoid(self.tail[:, :1]), 1 + F.softplus(self.tail[:, 1:])
        chance = torch.zeros_like(target)
        for part, spread in ((1 - weight, sigma), (weight, sigma * width)):
            upper, lower = (
                torch.special.erfc((distance + edge) / (spread * 2**0.5)) for edge in (0.5, -0.5)
            )
            chance = chance + part * (lower - upper) / 2
        return -torch.log2(chance + 1e-6)


def _train(
    networks: _Trainees, neighbours: Tensor, target: Tensor, octave: Tensor, config: FitConfig
) -> list[npt.NDArray[np.signedinteger]]:
    """Train the networks of a stage; returns their integer hidden, middle, output, bias tensors.

    Args:
        neighbours: [C, F, N] int16, in 1/128.
        target: [C, N].
        octave: [N] of the steps.
    """
    optimiser = torch.optim.AdamW(
        networks.parameters(), config.learning_rate, weight_decay=1e-3, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, config.iterations
    )
    for _ in range(config.iterations):
        # neighbouring columns, of samples in no order: picking as many from all over takes longer
        start = int(torch.randint(max(1, len(octave) - config.batch + 1), ()))
        batch = slice(start, start + config.batch)
        inputs = neighbours[..., batch].float() / VALUE
        loss = networks.bits(inputs, target[:, batch], octave[batch]).mean(1).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        networks.clip()
        optimiser.step()
        schedule.step()
        networks.limit()
    weights = {name: array.detach().double().numpy() for name, array in networks.weights.items()}
    biases = [networks.biases[name][..., 0].detach().double().numpy() for name in weights]
    biases[2][:, 1] -= 13  # activities are in 2**-13
    slopes = [weights["hidden"][..., -1], np.zeros_like(biases[1]), weights["output"][..., -1]]
    bias = np.stack([np.concatenate(biases, 1), np.concatenate(slopes, 1) / 16], 2)
    weights |= {name: weights[name][..., :-1] for name in ("hidden", "output")}
    layers = [np.rint(layer * WEIGHT).astype(np.int16) for layer in weights.values()]
    return [*layers, np.rint(bias * BIAS).astype(np.int32)]
