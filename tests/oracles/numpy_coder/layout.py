"""Layout of the symbols: the order in which they are coded, and where they stand in memory.

Latents [C, h, w] are split into 16 C planes by channel, row % 4 and column % 4, and the planes of a
channel into six stages, coarse to fine. Pass t codes channel c of stage t - c, so a context may use
all earlier passes: coarser stages of the same channel and the stages of the channels before it.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
from oracles.numpy_coder import trellis

Ints = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

STAGES = (  # planes (row % 4, column % 4) of each stage
    ((0, 0),),
    ((2, 2),),
    ((0, 2), (2, 0)),
    ((1, 1), (1, 3), (3, 1), (3, 3)),
    ((0, 1), (0, 3), (2, 1), (2, 3)),
    ((1, 0), (1, 2), (3, 0), (3, 2)),
)
STAGE_OF = np.zeros((4, 4), np.int64)  # by row % 4, column % 4
for _stage, _planes in enumerate(STAGES):
    STAGE_OF[tuple(np.transpose(_planes))] = _stage
MAX_VALUE = 1023  # largest magnitude of a context value, in 1/128 of a latent unit
LARGE = 2**15  # positions of latents whose layout is not kept in memory


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """The N symbols of one pass, in coding order: by plane, then by row, then by column."""

    networks: list[tuple[int, int]]  # (stage, channel) of the context networks, in order
    places: Index  # [N], index in the flat array
    outputs: Index  # [N], index in the networks' outputs, concatenated
    ranks: Ints  # [N], number of the symbol's plane within the pass
    ends: list[int]  # of each plane's symbols


@cache
def planes_in_order(channels: int) -> Index:
    """Pass, channel, row % 4 and column % 4 of all planes in coding order: [16 * channels, 4]."""
    return np.array(
        [
            (number, channel, row, column)
            for number in range(n_passes(channels))
            for channel in range(channels)
            if 0 <= number - channel < len(STAGES)
            for row, column in STAGES[number - channel]
        ]
    )


def n_passes(channels: int) -> int:
    """Number of passes for latents of so many channels."""
    return len(STAGES) + channels - 1


class Layout:
    """Where the symbols of latents [C, h, w] stand in one flat array, plane by plane.

    Row Y, column X of plane (channel, row, column) is the symbol at (4 Y + row, 4 X + column).
    Planes have ceil(h / 4) rows. One zero ends each row, a row of zeros ends each plane, and there
    are zeros before the first and after the last plane, so that a neighbour of a whole plane is a
    contiguous window, whether it lies inside the latents or not.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        rows, self.stride = -(-height // 4), -(-width // 4) + 1
        self.size = (rows + 2) * self.stride
        self.window = rows * self.stride  # length of a plane, zeros at the ends of rows included
        self.length = 16 * channels * self.size + self.stride + 2
        channel, y, x = np.ogrid[:channels, :height, :width]
        self.index = self.positions(channel, y, x)  # [C, h, w], index in the flat array
        self.inside = np.zeros(self.length, np.bool_)
        self.inside[self.index] = True
        self.order = planes_in_order(channels)
        self.begins = self.positions(*self.order.T[1:])  # of the planes, in coding order
        self.passes = [self._pass(number) for number in range(n_passes(channels))]

    @staticmethod
    def of(channels: int, height: int, width: int) -> "Layout":
        """The layout for latents of a size; the last few small ones are cached."""
        make = Layout if height * width >= LARGE else _cached_layout
        return make(channels, height, width)

    def positions(self, channel: Index, y: Index, x: Index) -> Index:
        """Index in the flat array of row y, column x of a channel; both may be slightly outside."""
        plane = 16 * channel + 4 * (y % 4) + x % 4
        return plane * self.size + (y // 4 + 1) * self.stride + x // 4 + 1

    def _pass(self, number: int) -> Pass:
        order = self.order
        networks = list(
            dict.fromkeys((number - int(c), int(c)) for c in order[order[:, 0] == number, 1])
        )
        begins = self.begins[order[:, 0] == number]
        places = (begins[:, None] + np.arange(self.window)).ravel()
        coded = np.flatnonzero(self.inside[places])
        ranks = np.arange(len(begins), dtype=np.int32).repeat(self.window).take(coded)
        ends = np.cumsum(np.bincount(ranks, minlength=len(begins))).tolist()
        return Pass(networks, places.take(coded), coded, ranks, ends)


@lru_cache(maxsize=4)
def _cached_layout(channels: int, height: int, width: int) -> Layout:
    return Layout(channels, height, width)


class Planes:
    """The symbols, lattice shifts and context values of latents [C, h, w], in a `Layout`."""

    def __init__(self, channels: int, height: int, width: int, *, has_trellis: bool) -> None:
        self.layout = Layout.of(channels, height, width)
        self.symbols = np.zeros(self.layout.length, np.int32)
        self.shifts = np.zeros(self.layout.length, np.int32)  # 1: moved by half a step
        self.values = np.zeros(self.layout.length, np.float32)  # latents in 1/128, saturated
        self.has_trellis = has_trellis
        self._states = np.zeros(self.layout.window, np.int64)  # of the trellis, one a 4x4 block

    @classmethod
    def of(cls, symbols: Ints, step_q: int, *, has_trellis: bool) -> "Planes":
        """The planes of known symbols [C, h, w]."""
        planes = cls(*symbols.shape, has_trellis=has_trellis)
        planes.symbols[planes.layout.index] = symbols
        for rank in range(len(planes.layout.begins)):
            planes.begin_plane(rank)
            planes.end_plane(rank)
        planes.values[:] = context_values(planes.points, step_q)
        return planes

    @property
    def points(self) -> Ints:
        """Reconstruction points of the symbols, in half steps."""
        points: Ints = 2 * self.symbols + self.shifts
        return points

    def begin_plane(self, rank: int) -> None:
        """Set the shifts of the plane of that rank, which the planes before it determine."""
        if self.has_trellis:
            plane = self._plane(rank)
            self.shifts[plane] = (self._states & 1) * self.layout.inside[plane]

    def end_plane(self, rank: int) -> None:
        """Advance the states of the trellis past the symbols of a plane."""
        if self.has_trellis:
            odd = self.symbols[self._plane(rank)] & 1
            self._states = trellis.NEXT_STATE[self._states, odd]

    def _plane(self, rank: int) -> slice:
        begin = self.layout.begins[rank]
        return slice(begin, begin + self.layout.window)

    def windows(self, size: int) -> Floats:
        """View of the values in which row i holds values i to i + size: [n, size]."""
        shape, step = (len(self.values) - size + 1, size), self.values.itemsize
        return np.ndarray(shape, np.float32, self.values, strides=(step, step))


def context_values(points: Ints, step_q: int) -> Ints:
    """Points in half steps -> latents in 1/128, saturated: what the context networks take."""
    most = 16 * MAX_VALUE // step_q + 1  # larger points saturate anyway; keeps within int32
    values: Ints = (np.minimum(np.maximum(points, -most), most) * np.int32(step_q) + 8) >> 4
    return np.minimum(np.maximum(values, -MAX_VALUE), MAX_VALUE)
