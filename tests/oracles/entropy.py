"""A second decoder of payloads, written from docs/format.md alone: integers, symbol by symbol.

No numpy, no constriction, no code of dynenc; hundreds of times slower. tests/coding/test_entropy.py
checks that both agree.
"""

import bisect
import json
import struct
from collections.abc import Sequence

Tensor = tuple[list[int], list[int]]  # shape, values in C order

STAGES = [
    [(0, 0)],
    [(2, 2)],
    [(0, 2), (2, 0)],
    [(1, 1), (1, 3), (3, 1), (3, 3)],
    [(0, 1), (0, 3), (2, 1), (2, 3)],
    [(1, 0), (1, 2), (3, 0), (3, 2)],
]
NEXT_STATE = [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]
WORD = 2**32
STATE = 2**64


def read_tensors(blob: bytes) -> dict[str, Tensor]:
    """The integer tensors of a safetensors file."""
    (length,) = struct.unpack_from("<Q", blob)
    data = blob[8 + length :]
    tensors = {}
    for name, entry in json.loads(blob[8 : 8 + length]).items():
        if name != "__metadata__":
            code = {"I8": "b", "I16": "h", "I32": "i", "U16": "H", "U8": "B"}[entry["dtype"]]
            start, stop = entry["data_offsets"]
            count = (stop - start) // struct.calcsize(code)
            values = struct.unpack(f"<{count}{code}", data[start:stop])
            tensors[name] = (entry["shape"], list(values))
    return tensors


class RangeDecoder:
    """64-bit state, 32-bit words, 24-bit probabilities."""

    def __init__(self, payload: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(payload) // 4}I", payload))
        self.next = 0
        self.lower, self.range = 0, STATE - 1
        self.point = self.read() * WORD + self.read()

    def read(self) -> int:
        self.next += 1
        return self.words[self.next - 1] if self.next <= len(self.words) else 0

    def decode(self, frequencies: Sequence[int]) -> int:
        """One symbol; the frequencies sum to 2**24."""
        scale = self.range >> 24
        quantile = (self.point - self.lower) % STATE // scale
        symbol, left = 0, 0
        while quantile >= left + frequencies[symbol]:
            left += frequencies[symbol]
            symbol += 1
        self.lower = (self.lower + scale * left) % STATE
        self.range = scale * frequencies[symbol]
        if self.range < WORD:
            self.lower = self.lower * WORD % STATE
            self.range *= WORD
            self.point = (self.point * WORD + self.read()) % STATE
        return symbol


def decode(
    tensors: dict[str, Tensor],
    payload: bytes,
    height: int,
    width: int,
    step_q: int,
    *,
    has_trellis: bool,
) -> list[list[list[int]]]:
    """Symbols [channels][height][width] of a payload."""
    coder = RangeDecoder(payload)
    lattice = "trellis" if has_trellis else "plain"
    states = {(y, x): 0 for y in range(-(-height // 4)) for x in range(-(-width // 4))}
    (tables, columns), counts = tensors[f"{lattice}.counts"]
    channels = tensors[f"{lattice}.0.neighbours"][0][0]
    radius = columns // 2 - 1

    def level_of(number: int) -> int:
        return bisect.bisect_right(tensors["thresholds"][1], number)

    level = level_of(step_q)
    known = min(max(level, 96), 168)
    symbols = [[[0] * width for _ in range(height)] for _ in range(channels)]
    values = [[[0] * width for _ in range(height)] for _ in range(channels)]

    def value(channel: int, y: int, x: int) -> int:
        return values[channel][y][x] if 0 <= y < height and 0 <= x < width else 0

    for number in range(channels + 5):
        contexts = []
        for channel in range(channels):
            stage = number - channel
            if not 0 <= stage < 6:
                continue
            (_, n_inputs, _), neighbours = tensors[f"{lattice}.{stage}.neighbours"]
            (_, n_hidden, _), hidden = tensors[f"{lattice}.{stage}.hidden"]
            (_, n_middle, _), middle = tensors[f"{lattice}.{stage}.middle"]
            (_, _, n_all), output = tensors[f"{lattice}.{stage}.output"]
            bias = tensors[f"{lattice}.{stage}.bias"][1]
            n_sums = n_hidden + n_middle + 3
            shifts = []
            for i in range(channel * n_sums, (channel + 1) * n_sums):
                shifts.append(bias[2 * i] + bias[2 * i + 1] * (known - 132))
            for row, column in STAGES[stage]:
                for y in range(row, height, 4):
                    for x in range(column, width, 4):
                        inputs = []
                        for i in range(n_inputs):
                            at = 3 * (channel * n_inputs + i)
                            other, down, right = neighbours[at : at + 3]
                            inputs.append(value(other, y + down, x + right))
                        first = []
                        for i in range(n_hidden):
                            at = (channel * n_hidden + i) * n_inputs
                            total = dot(hidden[at : at + n_inputs], inputs) + shifts[i]
                            first.append(min(max(total >> 10, 0), 1023))
                        second = []
                        for i in range(n_middle):
                            at = (channel * n_middle + i) * n_hidden
                            total = dot(middle[at : at + n_hidden], first) + shifts[n_hidden + i]
                            second.append(min(max(total >> 10, 0), 1023))
                        outputs = []
                        for i in range(3):
                            at = (3 * channel + i) * n_all
                            total = dot(output[at : at + n_all], second + first + inputs)
                            outputs.append(total + shifts[n_hidden + n_middle + i])
                        expected, scale, activity = outputs
                        eighths = (expected + 8 * step_q) // (16 * step_q)
                        activity = level_of(min(max(activity >> 4, 32), 65535))
                        scale = (scale + (activity - level + known) * 8192) >> 15
                        scale = min(max(scale, 0), tables // 5 - 1)
                        contexts.append((channel, (row, column), y, x, eighths, scale))
        planes = [(c, place) for c in range(channels) for place in stages_of(number - c)]
        shifts_of = {}
        for plane in planes:
            part = []
            for channel, place, y, x, eighths, scale in contexts:
                if plane == (channel, place):
                    shift = has_trellis * (states[y // 4, x // 4] % 2)
                    shifts_of[channel, y, x] = shift
                    centre = (eighths - 4 * shift + 4) // 8
                    fraction = eighths - 4 * shift - 8 * centre
                    table = 5 * scale + abs(fraction)
                    part.append((table, len(part), channel, y, x, centre, fraction < 0))
            escapes = []
            for table, order, channel, y, x, centre, flip in sorted(part):
                row_of_counts = counts[table * columns : (table + 1) * columns]
                residual = coder.decode([256 * count for count in row_of_counts]) - radius
                if residual > radius:
                    escapes.append((order, channel, y, x))
                symbols[channel][y][x] = centre - residual if flip else centre + residual
            for _, channel, y, x in sorted(escapes):
                symbols[channel][y][x] = coder.decode([256] * 65536) - 32767
            channel, (row, column) = plane
            for (y, x), state in states.items():
                inside = 4 * y + row < height and 4 * x + column < width
                odd = symbols[channel][4 * y + row][4 * x + column] % 2 if inside else 0
                states[y, x] = NEXT_STATE[state][odd]
        for channel, _, y, x, _, _ in contexts:
            point = 2 * symbols[channel][y][x] + shifts_of[channel, y, x]
            values[channel][y][x] = min(max((point * step_q + 8) >> 4, -1023), 1023)
    return symbols


def stages_of(stage: int) -> list[tuple[int, int]]:
    """The planes of a stage, if there is one of that number."""
    return STAGES[stage] if 0 <= stage < len(STAGES) else []


def dot(left: Sequence[int], right: Sequence[int]) -> int:
    """Sum of products."""
    return sum(a * b for a, b in zip(left, right, strict=True))
