"""The context networks: small integer networks that predict a symbol from decoded neighbours.

There is one for each stage and channel. Its arithmetic is on integers: it is done in float32 only
because matrix products are fast there, and every sum stays below 2**24 and is hence exact, in any
order of summation and on any machine.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from oracles.numpy_coder.layout import (
    MAX_VALUE,
    STAGE_OF,
    STAGES,
    Floats,
    Index,
    Ints,
    Layout,
    Planes,
)

from dynenc.errors import WeightsError

Tensors = dict[str, npt.NDArray[Any]]

LEVELS = range(96, 169)  # 16 * log2(step_q) of the steps networks were trained for: 0.0625 to 1.4
MIDDLE_LEVEL = 132
BLOCK = 8192  # symbols computed together, so that they stay in the cache
FARTHEST = 4  # rows or columns to a neighbour
N_OUTPUTS = 3  # expected latent, scale, activity


@dataclass(frozen=True, eq=False)
class ContextNetwork:
    """The network of one stage and channel: F neighbours, H hidden units, M middle units.

    Weights are integers / 1024 and values integers / 128, so sums are multiples of 2**-17. Weights
    that lead to units are held divided by 1024, which is exact too: their sums are in 2**-7, as
    values are. Biases are the weights of an additional neighbour, and of an additional hidden unit,
    that are always 1.
    """

    stage: int
    channel: int
    neighbours: Index  # [F + 1, 3]: channel, rows down, columns right; the last is a dummy
    first: Floats  # [H + 1 + 3, F + 1]: neighbours to hidden units, and directly to the outputs
    second: Floats  # [M + 3, H + 1]: hidden to middle units, and directly to the outputs
    third: Floats  # [3, M]: middle units to outputs
    bias: Index  # [H + M + 3, 2] in 2**-17: constant, and per level

    @classmethod
    def of(cls, tensors: Tensors, lattice: str, stage: int, channel: int) -> "ContextNetwork":
        """Check and build a lattice's network; raise WeightsError unless its sums are exact."""
        neighbours, hidden, middle, output, bias = (
            tensors[f"{lattice}.{stage}.{name}"][channel].astype(np.int64)
            for name in ("neighbours", "hidden", "middle", "output", "bias")
        )
        far = max(LEVELS[-1] - MIDDLE_LEVEL, MIDDLE_LEVEL - LEVELS[0])
        weights = np.concatenate([np.abs(layer).sum(1) for layer in (hidden, middle, output)])
        sums = weights * MAX_VALUE + np.abs(bias) @ [1, far]
        if sums.max() >= 2**24:
            raise WeightsError("the entropy coder's weights exceed exact arithmetic")
        known = np.isin(neighbours[:, 0], range(len(tensors[f"{lattice}.{stage}.neighbours"])))
        if not known.all() or np.abs(neighbours[:, 1:]).max() > FARTHEST:
            raise WeightsError("the entropy coder's contexts reach too far")
        third, direct, straight = np.split(output, np.cumsum([len(middle), len(hidden)]), 1)
        used = (hidden != 0).any(0) | (straight != 0).any(0)
        if (used & (last_pass(stage, neighbours) >= stage + channel)).any():
            raise WeightsError("the entropy coder's contexts use symbols that are not decoded yet")
        one = np.zeros_like(hidden[:1])
        rows = (hidden / 1024, one, straight), (middle / 1024, direct)
        first, second = (np.pad(np.concatenate(r), ((0, 0), (0, 1))) for r in rows)
        first[len(hidden), -1] = 1
        layers = [layer.astype(np.float32) for layer in (first, second, third)]
        with_dummy = np.concatenate([neighbours, [[channel, 0, 0]]])
        return cls(stage, channel, with_dummy, layers[0], layers[1], layers[2], bias)

    @property
    def n_planes(self) -> int:
        """P, the planes of its stage in its channel."""
        return len(STAGES[self.stage])

    def outputs(self, planes: Planes, level: int) -> Ints:
        """The outputs for all symbols of the network's P planes: [3, P * layout.window].

        Row 0 is the expected latent, row 1 the scale in octaves, row 2 the activity as a latent,
        all in 2**-17.
        """
        first, second = _biased(self, level)
        n_hidden, n_middle = len(first) - N_OUTPUTS, self.third.shape[1]
        starts = input_starts(planes.layout, self.stage, self.neighbours)  # [F + 1, P]
        window = planes.layout.window
        size = -(-window // -(-starts.shape[1] * window // BLOCK))
        outputs = np.empty((N_OUTPUTS, starts.shape[1], window), np.int32)
        for start in range(0, window, size):
            start = min(start, window - size)  # the last block overlaps the one before it
            inputs = planes.windows(size)[starts + start]
            inputs[-1] = 1
            sums = first @ inputs.reshape(len(starts), -1)
            output = sums[n_hidden:]
            sums = second @ _saturated(sums[:n_hidden])
            output += sums[n_middle:]
            output += self.third @ _saturated(sums[:n_middle])
            outputs[..., start : start + size] = output.reshape(N_OUTPUTS, -1, size)
        return outputs.reshape(N_OUTPUTS, -1)

    def add_gradient(
        self, gradient: Floats, of_outputs: Floats, planes: Planes, level: int
    ) -> None:
        """Backpropagate gradients of the outputs, [3, P * layout.window], to the context values.

        They are added to `gradient`, in the flat layout. Rounding counts as the identity.
        """
        first, second = _biased(self, level)
        n_hidden, n_middle = len(first) - N_OUTPUTS, self.third.shape[1]
        starts = input_starts(planes.layout, self.stage, self.neighbours)
        window = planes.layout.window
        of_outputs = of_outputs.reshape(N_OUTPUTS, -1, window)
        size = max(1, BLOCK // starts.shape[1])
        for start in range(0, window, size):
            stop = min(start + size, window)
            inputs = planes.windows(stop - start)[starts + start]
            inputs[-1] = 1
            hidden = _saturated((first @ inputs.reshape(len(starts), -1))[:n_hidden])
            middle = _saturated((second @ hidden)[:n_middle])
            output = of_outputs[..., start:stop].reshape(N_OUTPUTS, -1)
            of_middle = (self.third.T @ output) * _is_linear(middle)
            of_hidden = (second.T @ np.concatenate([of_middle, output])) * _is_linear(hidden)
            of_inputs = first.T @ np.concatenate([of_hidden, output])
            rows = of_inputs.reshape(inputs.shape)[:-1].reshape(-1, stop - start)
            for place, row in zip((starts[:-1] + start).ravel(), rows, strict=True):
                gradient[place : place + stop - start] += row


def last_pass(stage: int, neighbours: Index) -> Index:
    """The pass after which each neighbour [F, 3] is known for all planes of a stage: [F]."""
    channel, down, right = neighbours.T[:, :, None]
    row, column = np.array(STAGES[stage]).T
    last: Index = (STAGE_OF[(down + row) % 4, (right + column) % 4] + channel).max(1)
    return last


def input_starts(layout: Layout, stage: int, neighbours: Index) -> Index:
    """Where the window of each neighbour [F, 3] of a stage's P planes begins: [F, P]."""
    channel, down, right = neighbours.T[:, :, None]
    row, column = np.array(STAGES[stage]).T
    return layout.positions(channel, down + row, right + column)


@lru_cache(maxsize=256)  # images of one quality share theirs
def _biased(network: ContextNetwork, level: int) -> tuple[Floats, Floats]:
    """The first and the second layer of a network with their biases at a level."""
    first, second = network.first.copy(), network.second.copy()
    n_hidden, n_middle = len(first) - N_OUTPUTS - 1, len(second) - N_OUTPUTS
    bias = network.bias @ [1, level - MIDDLE_LEVEL]
    first[:n_hidden, -1] = bias[:n_hidden] / 1024
    first[n_hidden + 1 :, -1] = bias[n_hidden + n_middle :]
    second[:n_middle, -1] = bias[n_hidden : n_hidden + n_middle] / 1024
    return first, second


def _saturated(sums: Floats) -> Floats:
    """Units of a layer: sums in 2**-7, changed in place, rounded down to 0..MAX_VALUE."""
    np.floor(sums, out=sums)
    return sums.clip(0, MAX_VALUE, out=sums)


def _is_linear(units: Floats) -> npt.NDArray[np.bool_]:
    """Which units do not saturate."""
    return (units > 0) & (units < MAX_VALUE)
