"""Symbols <-> payload bytes: a range coder whose contexts are pure integer arithmetic.

The latents are split into 16 planes by (row % 4, column % 4), the planes into six stages, coarse
to fine. Pass t codes channel c of stage t - c: a small integer network per (stage, channel) turns
neighbours from earlier passes into an expected value and a scale, and these choose one of the
tables of frequencies. Integers are held in float32 only where every sum stays below 2**24, hence
exact: all machines and thread counts agree.

A coder with a trellis (trellis.py) has its symbols on one of two lattices. The 64 symbols of every
4x4 block are a path, so a pass is read plane by plane.
"""

import math
from contextlib import ContextDecorator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any

import constriction  # type: ignore[import-untyped]  # it ships no stubs
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # as above

from dynenc.coding import trellis
from dynenc.errors import Corrupt, WeightsError
from dynenc.latent_space import SD1

Ints = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any]]

LIMIT = 32_767  # largest magnitude of a symbol
STAGES = (  # planes (row % 4, column % 4) of each stage
    ((0, 0),),
    ((2, 2),),
    ((0, 2), (2, 0)),
    ((1, 1), (1, 3), (3, 1), (3, 3)),
    ((0, 1), (0, 3), (2, 1), (2, 3)),
    ((1, 0), (1, 2), (3, 0), (3, 2)),
)
PASSES = len(STAGES) + SD1.channels - 1
ONE_BY_ONE = [range(number, number + 1) for number in range(PASSES)]
BLOCK = 8192  # symbols whose networks are computed together
MANY = 2**17  # symbols; of as many, passes go one by one, as less memory is also faster
MAX_VALUE = 1023  # a neighbour's latent, and a hidden unit, in 1/128; both saturate here
LEVELS = range(96, 169)  # steps the networks know: 16 * log2(step_q), 0.0625 to 1.4
MIDDLE_LEVEL = 132
FRACTIONS = 8  # places of the expected value within a symbol ...
VARIANTS = FRACTIONS // 2 + 1  # ... and tables for them, as signs are folded
LEAST = 0.1  # variance of what is off the expected, in steps: the neighbours, rounded, tell no more
PRECISION = 24  # bits of constriction's fixed-point probabilities
WORD = np.dtype("<u4")
ESCAPE = constriction.stream.model.Uniform(2 * LIMIT + 2)  # 256 / 2**24 each, exactly


class OneThread(ContextDecorator):
    """While anybody is within, numpy's products take one thread, in all of the process.

    They are too small to share, and a pool of threads beside torch's makes both wait.
    """

    def __init__(self) -> None:
        self.lock, self.n_within = Lock(), 0
        self.pools = ThreadpoolController().select(user_api="blas")

    def __enter__(self) -> None:
        with self.lock:
            if not self.n_within:
                self.limited = self.pools.limit(limits=1)
            self.n_within += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.n_within -= 1
            if not self.n_within:
                self.limited.restore_original_limits()


one_thread = OneThread()


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The N symbols of some passes, in the order of the format."""

    networks: list[tuple[int, int]]  # stage and channel of the networks that they belong to
    places: Index  # [N] in the flat array
    outputs: Index  # [N] among the outputs of those networks, one network after another
    passes: Ints  # [N], how many of the passes come before a symbol's own
    planes: Ints  # [N], how many of their planes come before its own
    ends: list[int]  # of the symbols of each plane


@dataclass(frozen=True, eq=False)
class Stage:
    """The integer networks of a stage, one a channel: F neighbours, H hidden, M middle units.

    Weights are integers / 1024, values integers / 128: sums are multiples of 2**-17. Weights that
    lead to units are held divided by 1024, which is exact too: their sums are in 2**-7, like
    values. Biases are the weights of one more neighbour, and of one more hidden unit, that are 1.
    """

    places: Index  # [3, 4, F + 1, P]: plane, row, column of the P planes' neighbours and selves
    first: Floats  # [4, H + 1 + 3, F + 1]: neighbours to hidden units, and straight to the outputs
    second: Floats  # [4, M + 3, H + 1]: hidden to middle units, and straight to the outputs
    third: Floats  # [4, 3, M]: middle units to outputs
    bias: Index  # [4, H + M + 3, 2] in 2**-17: constant, and per level

    @classmethod
    def of(cls, tensors: Tensors, number: int) -> "Stage":
        """Check and build one stage; raise WeightsError unless all its sums are exact."""
        neighbours, hidden, middle, output, bias = (
            tensors[f"{number}.{name}"].astype(np.int64)
            for name in ("neighbours", "hidden", "middle", "output", "bias")
        )
        far = max(LEVELS[-1] - MIDDLE_LEVEL, MIDDLE_LEVEL - LEVELS[0])
        weights = np.concatenate([np.abs(layer).sum(2) for layer in (hidden, middle, output)], 1)
        sums = weights * MAX_VALUE + np.abs(bias) @ [1, far]
        if sums.max() >= 2**24 or np.abs(neighbours).max() > SD1.channels:
            raise WeightsError("the entropy coder's tables exceed exact arithmetic")
        places = np.stack([places_of(number, each) for each in neighbours], 1)
        passes = PASS_OF[places[0]].max(2)  # [4, F]: when the last of a neighbour's is known
        third, direct, straight = np.split(output, np.cumsum([middle.shape[1], hidden.shape[1]]), 2)
        used = (hidden != 0).any(1) | (straight != 0).any(1)
        if (used & (passes >= number + np.arange(SD1.channels)[:, None])).any():
            raise WeightsError("the entropy coder's tables use what is not known yet")
        selves = np.stack(
            [places_of(number, np.array([[c, 0, 0]])) for c in range(SD1.channels)], 1
        )
        one = np.zeros_like(hidden[:, :1])
        rows = (hidden / 1024, one, straight), (middle / 1024, direct)
        first, second = (np.pad(np.concatenate(r, 1), ((0, 0), (0, 0), (0, 1))) for r in rows)
        first[:, hidden.shape[1], -1] = 1
        layers = [layer.astype(np.float32) for layer in (first, second, third)]
        return cls(np.concatenate([places, selves], 2), layers[0], layers[1], layers[2], bias)

    def __call__(self, planes: "Planes", channels: slice, level: int) -> Ints:
        """What the networks of some channels say of all their symbols: [C, 3, P * planes.window].

        In 2**-17: latent units, octaves, latent units. Computed in blocks that stay in the cache.
        """
        first, second = (layer[channels] for layer in _biased(self, level))
        third = self.third[channels]
        n_hidden, n_middle = first.shape[1] - 3, third.shape[2]
        starts = planes.layout.starts(*self.places[:, channels])  # [C, F + 1, P]
        n_channels, n_inputs, n_planes = starts.shape
        window = planes.layout.window
        size = -(-window // -(-n_channels * n_planes * window // BLOCK))
        outputs = np.empty((n_channels, 3, n_planes, window), np.int32)
        for start in range(0, window, size):
            start = min(start, window - size)  # the last block overlaps the one before
            inputs = planes.windows(size)[starts + start]
            inputs[:, -1] = 1
            sums = first @ inputs.reshape(n_channels, n_inputs, -1)
            output = sums[:, n_hidden:]
            sums = second @ _saturated(sums[:, :n_hidden])
            output += sums[:, n_middle:]
            output += third @ _saturated(sums[:, :n_middle])
            outputs[..., start : start + size] = output.reshape(n_channels, 3, n_planes, size)
        return outputs.reshape(n_channels, 3, -1)

    def add_slopes(self, slopes: Floats, of_outputs: Floats, planes: "Planes", level: int) -> None:
        """Chain rule: slopes by outputs, [4, 3, P * planes.window] -> by the planes' flat values.

        They are added to `slopes`, and rounding counts as the identity.
        """
        first, second = _biased(self, level)
        n_hidden, n_middle = first.shape[1] - 3, self.third.shape[2]
        starts = planes.layout.starts(*self.places)  # [4, F + 1, P]
        window = planes.layout.window
        of_outputs = of_outputs.reshape(SD1.channels, 3, -1, window)
        size = max(1, BLOCK // (SD1.channels * starts.shape[2]))
        for start in range(0, window, size):
            stop = min(start + size, window)
            inputs = planes.windows(stop - start)[starts + start]
            inputs[:, -1] = 1
            hidden = _saturated((first @ inputs.reshape(*starts.shape[:2], -1))[:, :n_hidden])
            middle = _saturated((second @ hidden)[:, :n_middle])
            output = of_outputs[..., start:stop].reshape(SD1.channels, 3, -1)
            of_middle = _through(self.third, output) * _is_free(middle)
            of_hidden = _through(second, np.concatenate([of_middle, output], 1)) * _is_free(hidden)
            of_inputs = _through(first, np.concatenate([of_hidden, output], 1))
            rows = of_inputs.reshape(inputs.shape)[:, :-1].reshape(-1, stop - start)
            for place, row in zip((starts[:, :-1] + start).ravel(), rows, strict=True):
                slopes[place : place + stop - start] += row


@lru_cache(maxsize=8 * len(STAGES))  # pictures of one quality share theirs
def _biased(stage: Stage, level: int) -> tuple[Floats, Floats]:
    """The first and the second layer of a stage with their biases."""
    first, second = stage.first.copy(), stage.second.copy()
    n_hidden, n_middle = first.shape[1] - 4, second.shape[1] - 3
    bias = stage.bias @ [1, level - MIDDLE_LEVEL]
    first[:, :n_hidden, -1] = bias[:, :n_hidden] / 1024
    first[:, n_hidden + 1 :, -1] = bias[:, n_hidden + n_middle :]
    second[:, :n_middle, -1] = bias[:, n_hidden : n_hidden + n_middle] / 1024
    return first, second


def places_of(stage: int, neighbours: Index) -> Index:
    """Neighbours [F, 3] of a stage's P planes -> their plane, row, column: [3, F, P]."""
    channel, down, right = neighbours.T[:, :, None]
    row, column = np.array(STAGES[stage]).T
    down, right = down + row, right + column
    return np.stack([plane_of(channel, down, right), down // 4 + 1, right // 4 + 1])


def plane_of(channel: Index, row: Index, column: Index) -> Index:
    """Which of the 64 planes a symbol of latents [4, h, w] is in."""
    return 16 * channel + 4 * (row % 4) + column % 4


def _planes() -> Index:
    """Pass, channel, row and column of the 64 planes in the order in which they are coded."""
    return np.array(
        [
            (number, channel, row, column)
            for number in range(PASSES)
            for channel in range(SD1.channels)
            if 0 <= number - channel < len(STAGES)
            for row, column in STAGES[number - channel]
        ]
    )


PLANES = _planes()
PASS_OF = PLANES[plane_of(*PLANES.T[1:]).argsort(), 0]  # by plane


def _saturated(sums: Floats) -> Floats:
    """Units of a layer: sums in 2**-7, changed in place, rounded down to 0..MAX_VALUE."""
    np.floor(sums, out=sums)
    return sums.clip(0, MAX_VALUE, out=sums)


def _is_free(units: Floats) -> npt.NDArray[np.bool_]:
    """Which of them do not saturate."""
    return (units > 0) & (units < MAX_VALUE)


def _through(layer: Floats, slopes: Floats) -> Floats:
    """Slopes by what a layer gives, [4, O, N] -> by what it is given, [4, I, N]."""
    return layer.swapaxes(1, 2) @ slopes


class Layout:
    """Where the symbols of latents [4, h, w] stand in one flat array, as 64 planes.

    Row Y, column X of plane (channel, row, column) is the symbol at (4 Y + row, 4 X + column).
    Planes have ceil(h / 4) rows; a column of zeros parts rows, a row of zeros parts planes, and
    there are zeros around them all.
    """

    def __init__(self, height: int, width: int) -> None:
        rows, self.stride = -(-height // 4), -(-width // 4) + 1
        self.size = (rows + 2) * self.stride
        self.window = rows * self.stride  # a plane's symbols with the zeros between them
        self.length = 64 * self.size + self.stride + 2
        channel, y, x = np.ogrid[: SD1.channels, :height, :width]
        self.index = self.starts(plane_of(channel, y, x), y // 4 + 1, x // 4 + 1)  # [4, h, w]
        self.inside = np.zeros(self.length, np.bool_)
        self.inside[self.index] = True
        _, channel, row, column = PLANES.T
        self.begun = self.starts(plane_of(channel, row, column), row // 4 + 1, column // 4 + 1)
        self.is_large = _is_large(height, width)
        self.orders: dict[range, Order] = {}

    @staticmethod
    def of(height: int, width: int) -> "Layout":
        """That of a size; those of the last few small ones are kept."""
        make = Layout if _is_large(height, width) else _small_layout
        return make(height, width)

    def starts(self, plane: Index, row: Index, column: Index) -> Index:
        """Index in the flat array."""
        return plane * self.size + row * self.stride + column

    def together(self) -> list[range]:
        """Passes whose symbols, once known, are best coded together."""
        return ONE_BY_ONE if self.is_large else [range(PASSES)]

    def order(self, passes: range) -> Order:
        """The order of the format in some passes."""
        if passes not in self.orders:
            order = self._order(passes)
            if self.is_large:
                return order
            self.orders[passes] = order
        return self.orders[passes]

    def _order(self, passes: range) -> Order:
        networks = [
            (stage, channel)
            for number in passes
            for channel in range(SD1.channels)
            if 0 <= (stage := number - channel) < len(STAGES)
        ]
        among = np.flatnonzero((PLANES[:, 0] >= passes[0]) & (PLANES[:, 0] <= passes[-1]))
        places = (self.begun[among, None] + np.arange(self.window)).ravel()
        coded = np.flatnonzero(self.inside[places])
        rank = np.arange(len(among), dtype=np.int32).repeat(self.window).take(coded)
        number = (PLANES[among, 0] - passes[0]).astype(np.int32).take(rank)
        ends = np.cumsum(np.bincount(rank, minlength=len(among))).tolist()
        return Order(networks, places.take(coded), coded, number, rank, ends)


def _is_large(height: int, width: int) -> bool:
    return SD1.channels * height * width >= MANY


@lru_cache(maxsize=4)
def _small_layout(height: int, width: int) -> Layout:
    return Layout(height, width)


class Planes:
    """Symbols, lattices and values of latents [4, h, w], flat, as their layout says."""

    def __init__(self, height: int, width: int, states: Index = trellis.PLAIN) -> None:
        self.layout = Layout.of(height, width)
        self.symbols = np.zeros(self.layout.length, np.int32)
        self.shifts = np.zeros(self.layout.length, np.int32)  # 1 on the second lattice, half a step
        self.values = np.zeros(self.layout.length, np.float32)  # latents in 1/128
        self.trellis = states
        self._state = np.zeros(self.layout.window, np.int64)  # of every block

    @classmethod
    def of(cls, symbols: Ints, step_q: int, states: Index = trellis.PLAIN) -> "Planes":
        """Those of known symbols [4, h, w]."""
        _, height, width = symbols.shape
        planes = cls(height, width, states)
        planes.symbols[planes.layout.index] = symbols
        for rank in range(len(PLANES) if len(states) > 1 else 0):
            planes.enter(rank)
            planes.leave(rank)
        planes.values[:] = values_of(planes.points, step_q)
        return planes

    @property
    def points(self) -> Ints:
        """Where the symbols are, in half steps."""
        points: Ints = 2 * self.symbols + self.shifts
        return points

    def enter(self, rank: int) -> None:
        """Say on which lattice the symbols of a plane are, by those of the planes before it."""
        plane = self._plane(rank)
        self.shifts[plane] = (self._state & 1) * self.layout.inside[plane]

    def leave(self, rank: int) -> None:
        """Go on to the next plane, once the symbols of this one are known."""
        odd = self.symbols[self._plane(rank)] & 1
        self._state = self.trellis.take(2 * self._state + odd)

    def _plane(self, rank: int) -> slice:
        start = self.layout.begun[rank]
        return slice(start, start + self.layout.window)

    def windows(self, size: int) -> Floats:
        """View of the values in which row i begins with value i: [n, size]."""
        shape, step = (len(self.values) - size + 1, size), self.values.itemsize
        return np.ndarray(shape, np.float32, self.values, strides=(step, step))


def values_of(points: Ints, step_q: int) -> Ints:
    """Points in half steps -> latents in 1/128, saturating: what the networks see."""
    most = 16 * MAX_VALUE // step_q + 1  # from here on all saturate; keeps within int32
    values: Ints = (np.minimum(np.maximum(points, -most), most) * np.int32(step_q) + 8) >> 4
    return np.minimum(np.maximum(values, -MAX_VALUE), MAX_VALUE)


def _tables(eighths: Ints, scale: Ints, shifts: Ints) -> tuple[Ints, Ints, Ints]:
    """Expected points, scales and lattices -> table, expected symbol, and the residual's sign."""
    eighths = eighths - FRACTIONS // 2 * shifts
    centre = (eighths + FRACTIONS // 2) >> 3
    fraction = eighths - FRACTIONS * centre  # -4..3
    sign = 1 - 2 * (fraction < 0).astype(np.int32)
    return scale * VARIANTS + np.abs(fraction), centre, sign


@dataclass(frozen=True, eq=False)
class EntropyModel:
    """Tables of one trained entropy coder; build it with EntropyModel.load()."""

    stages: tuple[Stage, ...]
    levels: Ints  # [65536]: of every positive integer, 16 * log2, rounded down
    counts: Index  # [scales * (FRACTIONS // 2 + 1), 2 R + 2], rows sum to 2**24
    models: tuple[Any, ...]  # the same as constriction's models
    bits: Floats  # what each of them costs
    variances: Floats  # [scales], of the residuals
    radius: int  # R: residuals from -R to R have a place in the tables; others escape
    trellis: Index  # [S, 2]

    @classmethod
    def load(cls, data: bytes) -> "EntropyModel":
        """Read the bytes of a .safetensors file made by entropy_fit; raise WeightsError if not."""
        try:
            return cls.of(load(data))
        except (SafetensorError, KeyError, ValueError, IndexError) as exc:
            raise WeightsError(f"the file does not hold an entropy coder: {exc}") from exc

    @classmethod
    def of(cls, tensors: Tensors) -> "EntropyModel":
        """Build from integer tensors, named as in the README."""
        stages = tuple(Stage.of(tensors, number) for number in range(len(STAGES)))
        counts = tensors["counts"].astype(np.int64) << (PRECISION - 16)
        if (counts < 1).any() or (counts.sum(1) != 2**PRECISION).any():
            raise WeightsError("the entropy coder's frequencies do not sum to one")
        # constriction adds 1 to each and scales the rest to 2**24 - n: here by exactly 1.
        rows = (counts - 1).astype(np.float64)
        models = tuple(constriction.stream.model.Categorical(row, perfect=False) for row in rows)
        levels = np.searchsorted(tensors["thresholds"], np.arange(2**16), side="right")
        bits = (PRECISION - np.log2(counts)).astype(np.float32)
        radius = counts.shape[1] // 2 - 1
        seen = tensors["counts"][::VARIANTS, :-1].astype(np.int64) - 1  # 1 is for what never was
        squares = np.arange(-radius, radius + 1) ** 2
        variances = (seen @ squares / np.maximum(seen.sum(1), 1)).clip(LEAST).astype(np.float32)
        states = tensors.get("trellis", trellis.PLAIN).astype(np.int64)
        if states.ndim != 2 or states.shape[1] != 2 or not trellis.is_sound(states):
            raise WeightsError("the entropy coder's trellis cannot be searched")
        octaves: Ints = levels.astype(np.int32)
        return cls(stages, octaves, counts, models, bits, variances, radius, states)

    @property
    def is_dependent(self) -> bool:
        """Whether there is more than one lattice for symbols to be on."""
        return len(self.trellis) > 1

    def points(self, symbols: Ints) -> Ints:
        """Where symbols [4, h, w] are: [4, h, w] in half steps."""
        planes = Planes.of(symbols, 1, self.trellis)
        return planes.points[planes.layout.index]

    def contexts(
        self, planes: Planes, passes: range, step_q: int
    ) -> tuple[Index, Ints, Ints, Ints]:
        """What is known of the symbols of some passes before they are decoded.

        Returns: for each of their symbols in order, the index in the flat planes, the table, the
            expected symbol, and the sign (1 or -1) that the residual is multiplied by.
        """
        order = planes.layout.order(passes)
        expected = self._expected(self._outputs(planes, passes, step_q), step_q)
        return order.places, *_tables(*expected, planes.shifts[order.places])

    def expectations(self, latents: Floats, step_q: int) -> tuple[Floats, Floats]:
        """What is expected of decoded latents [4, h, w] by those before each: two of [4, h, w].

        Returns: the expected latents, in steps, and the variance of what is off it.
        """
        planes = Planes(*latents.shape[1:])
        values = (latents * np.float32(128)).clip(-MAX_VALUE, MAX_VALUE)
        planes.values[planes.layout.index] = np.rint(values)
        mean, variance = np.zeros((2, planes.layout.length), np.float32)
        for passes in planes.layout.together():
            order = planes.layout.order(passes)
            outputs = self._outputs(planes, passes, step_q)
            _, scale = self._expected(outputs, step_q)
            mean[order.places] = outputs[0] * np.float32(1 / (128 * step_q))
            variance[order.places] = self.variances[scale]
        return mean[planes.layout.index], variance[planes.layout.index]

    def _known_level(self, step_q: int) -> int:
        """The level of a step, or the nearest that the networks know."""
        return min(max(int(self.levels[step_q]), LEVELS[0]), LEVELS[-1])

    def _outputs(self, planes: Planes, passes: range, step_q: int) -> Ints:
        """What the networks of some passes say of their symbols, in order: [3, N]."""
        every = self._all_outputs(planes, passes, step_q)
        outputs: Ints = every.take(planes.layout.order(passes).outputs, 1)
        return outputs

    @one_thread
    def _all_outputs(self, planes: Planes, passes: range, step_q: int) -> Ints:
        """What the networks of some passes say, one after another: [3, M], as Stage returns it."""
        by_network = {}
        for number, stage in enumerate(self.stages):
            channels = [c for c in range(SD1.channels) if number + c in passes]
            if channels:
                some = slice(channels[0], channels[-1] + 1)
                outputs = stage(planes, some, self._known_level(step_q))
                for channel, output in zip(channels, outputs, strict=True):
                    by_network[number, channel] = output
        networks = planes.layout.order(passes).networks
        return np.concatenate([by_network[network] for network in networks], 1)

    def _expected(self, outputs: Ints, step_q: int) -> tuple[Ints, Ints]:
        """Outputs of networks, [3, N] -> expected points in eighths of a step, and scales."""
        expected, scale, activity = outputs
        eighths = (expected + 8 * step_q) // (16 * step_q)
        activity = self.levels[np.minimum(np.maximum(activity >> 4, 32), 65_535)]  # of 2**-13
        octaves = activity - int(self.levels[step_q]) + self._known_level(step_q)
        scale = (scale + (octaves << 13)) >> 15  # quarter octaves, in symbols
        return eighths, np.minimum(np.maximum(scale, 0), len(self.counts) // VARIANTS - 1)

    def _bits(self, tables: Ints, residuals: Ints) -> Floats:
        """What residuals cost, by their tables."""
        coded = residuals + self.radius
        far = (coded < 0) | (coded > 2 * self.radius)
        coded[far] = 2 * self.radius + 1
        bits: Floats = self.bits[tables, coded]
        bits[far] += PRECISION - 8  # ESCAPE's own
        return bits

    def bits_near(self, symbols: Ints, step_q: int) -> Floats:
        """What every symbol, alone one less, and alone one more, costs: [3, 4, h, w] bits.

        In the order less, as it is, more; the contexts are those of the symbols as they are.
        """
        planes = Planes.of(symbols, step_q, self.trellis)
        costs = np.zeros((3, len(planes.symbols)), np.float32)
        places, tables, centre, sign = self.contexts(planes, range(PASSES), step_q)
        for change in (-1, 0, 1):
            residuals = (planes.symbols[places] + change - centre) * sign
            costs[change + 1, places] = self._bits(tables, residuals)
        return costs[:, planes.layout.index]

    @one_thread
    def context_slopes(self, symbols: Ints, step_q: int) -> Floats:
        """How many bits more all others cost for each symbol that is one more: [4, h, w].

        To first order, as the symbol is in their contexts. With `bits_near`, what a change costs.
        """
        planes = Planes.of(symbols, step_q, self.trellis)
        order = planes.layout.order(range(PASSES))
        every = self._all_outputs(planes, range(PASSES), step_q)
        outputs = every.take(order.outputs, 1)
        expected = self._expected(outputs, step_q)
        tables, centre, sign = _tables(*expected, planes.shifts[order.places])
        residuals = (planes.symbols[order.places] - centre) * sign
        less, more = (self._bits(tables, residuals + change * sign) for change in (-1, 1))
        last = len(self.counts) - VARIANTS
        scale = tables // VARIANTS * VARIANTS
        wider, narrower = np.minimum(scale + VARIANTS, last), np.maximum(scale - VARIANTS, 0)
        slopes = [self._bits(tables - scale + other, residuals) for other in (wider, narrower)]
        by_octave = 2 * (slopes[0] - slopes[1])
        activity = outputs[2].clip(32 << 4, 65_535 << 4)
        by_output = np.zeros(every.shape, np.float32)
        by_output[:, order.outputs] = (
            (less - more) / 2 / (128 * step_q),
            by_octave / 2**17,
            by_octave * (activity == outputs[2]) / (math.log(2) * activity),
        )
        width = planes.layout.window
        sizes = [len(STAGES[stage]) * width for stage, _ in order.networks]
        parts = np.split(by_output, np.cumsum(sizes)[:-1], 1)
        by_network = dict(zip(order.networks, parts, strict=True))
        found = np.zeros(planes.layout.length, np.float32)
        for number, stage in enumerate(self.stages):
            of_outputs = np.stack([by_network[number, channel] for channel in range(SD1.channels)])
            stage.add_slopes(found, of_outputs, planes, self._known_level(step_q))
        found *= np.abs(planes.values) < MAX_VALUE
        return found[planes.layout.index] * np.float32(step_q / 8)

    def encode(self, symbols: Ints, step_q: int) -> bytes:
        """Compress symbols [4, h, w], each in -LIMIT..LIMIT, rounded with step step_q / 1024."""
        return self._code(Planes.of(symbols, step_q, self.trellis), step_q)

    def decode(self, payload: bytes, height: int, width: int, step_q: int) -> Ints:
        """Undo encode(): symbols [4, height, width] int32; raise Corrupt for any other bytes."""
        n_symbols = SD1.channels * height * width
        cheapest = PRECISION - float(np.log2(self.counts.max()))  # bits; no symbol costs less
        least = n_symbols * cheapest / 8 - WORD.itemsize  # so that a few bytes cannot claim much
        if len(payload) % WORD.itemsize or not least < len(payload) <= 6 * n_symbols + 8:
            raise Corrupt(f"{len(payload)} bytes cannot be {height}x{width} latents")
        planes = Planes(height, width, self.trellis)
        words = np.frombuffer(payload, WORD).astype(np.uint32)
        try:
            reader = constriction.stream.queue.RangeDecoder(words)
            again = self._code(planes, step_q, reader, len(words))
        except AssertionError as exc:  # of constriction, for words that no encoder writes
            raise Corrupt("the payload is damaged") from exc
        if again != payload or np.abs(planes.symbols).max() > LIMIT:
            raise Corrupt("the payload is damaged, or does not end with the last symbol")
        return planes.symbols[planes.layout.index]

    def _code(self, planes: Planes, step_q: int, reader: Any = None, n_words: int = 0) -> bytes:
        """The payload of the planes' symbols, which come from the reader if there is one.

        A reader knows the symbols of one pass at a time, and goes on for ever: its symbols end
        early once they do not fit into its n_words.
        """
        writer = constriction.stream.queue.RangeEncoder()
        for passes in planes.layout.together() if reader is None else ONE_BY_ONE:
            order = planes.layout.order(passes)
            eighths, scale = self._expected(self._outputs(planes, passes, step_q), step_q)
            groups = order.planes if self.is_dependent else order.passes
            if reader is None:
                symbols = planes.symbols[order.places]
                tables, centre, sign = _tables(eighths, scale, planes.shifts[order.places])
                tables += groups * np.int32(len(self.models))
                self._code_groups(tables, symbols, centre, sign, writer)
                continue
            first = int(np.searchsorted(PLANES[:, 0], passes[0]))
            ends = order.ends if groups is order.planes else [len(groups)]
            for rank, (start, end) in enumerate(pairwise([0, *ends]), first):
                planes.enter(rank)
                places = order.places[start:end]
                shifts = planes.shifts[places]
                known = _tables(eighths[start:end], scale[start:end], shifts)
                symbols = np.zeros(len(places), np.int32)
                self._code_groups(known[0], symbols, *known[1:], writer, reader)
                planes.symbols[places] = symbols
                planes.leave(rank)
            points = 2 * planes.symbols[order.places] + planes.shifts[order.places]
            planes.values[order.places] = values_of(points, step_q)
            if writer.num_words() > n_words + 1:  # the last two may join
                break
        return np.asarray(writer.get_compressed(), WORD).tobytes()

    def _code_groups(
        self, tables: Ints, symbols: Ints, centre: Ints, sign: Ints, writer: Any, reader: Any = None
    ) -> None:
        """Write symbols, after having read them if there is a reader, sorted by table.

        One group after another, whose number times that of all tables is added to the table.
        """
        coded = (symbols - centre) * sign + self.radius
        coded[(coded < 0) | (coded > 2 * self.radius)] = 2 * self.radius + 1
        order = np.argsort(tables.astype(np.uint16), kind="stable")
        counts = np.bincount(tables)
        used = np.flatnonzero(counts)
        group, table = np.divmod(used, len(self.models))
        models = [self.models[number] for number in table.tolist()]
        bounds = [0, *np.cumsum(counts[used]).tolist()]
        coded = coded[order]
        may_escape = reader is not None or bool((coded > 2 * self.radius).any())
        changes = (np.flatnonzero(np.diff(group)) + 1).tolist() if may_escape else []
        for first, last in pairwise([0, *changes, len(used)]):
            for number in range(first, last):
                part = coded[bounds[number] : bounds[number + 1]]
                if reader is not None:
                    part[:] = reader.decode(models[number], len(part))
                writer.encode(part, models[number])
            own = slice(bounds[first], bounds[last])
            escaped = np.sort(order[own][coded[own] > 2 * self.radius])
            if reader is not None:
                symbols[order] = (coded - self.radius) * sign[order] + centre[order]
                if len(escaped):
                    symbols[escaped] = reader.decode(ESCAPE, len(escaped)) - LIMIT
                    if (np.abs(symbols[escaped] - centre[escaped]) <= self.radius).any():
                        raise Corrupt("the payload is damaged: it escapes what has a place")
            if len(escaped):
                writer.encode(symbols[escaped] + LIMIT, ESCAPE)
