"""The entropy coder: symbols <-> payload bytes, by a range coder with integer probabilities.

For every symbol a context network (context_network.py) computes an expected value and a scale from
neighbours that are decoded already, and these select one of the tables of frequencies. All of it is
integer arithmetic, so that encoder and decoder agree on every machine.

The symbols are on one of two lattices (trellis.py), which the file's header names; each has its own
networks and tables. docs/format.md specifies the payload.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import constriction  # type: ignore[import-untyped]  # it ships no stubs
import numpy as np
from oracles.numpy_coder.context_network import LEVELS, ContextNetwork, Tensors
from oracles.numpy_coder.layout import (
    MAX_VALUE,
    STAGES,
    Floats,
    Index,
    Ints,
    Pass,
    Planes,
    context_values,
)
from safetensors.numpy import load

from dynenc.errors import Corrupt, WeightsError

LIMIT = 32_767  # largest magnitude of a symbol
FRACTIONS = 8  # the expected value is known to this fraction of a step ...
VARIANTS = FRACTIONS // 2 + 1  # ... and has tables for these fractions, as signs are folded
MIN_VARIANCE = 0.1  # of a symbol about its expectation, in steps; the networks' inputs are rounded
PRECISION = 24  # bits of constriction's fixed-point probabilities
WORD = np.dtype("<u4")
ESCAPE = constriction.stream.model.Uniform(2 * LIMIT + 2)  # 256 / 2**24 each, exactly
ESCAPE_BITS = PRECISION - 8


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """What is known of N symbols before they are decoded."""

    places: Index  # [N], index in the flat array of `Planes`
    tables: Ints  # [N], table of frequencies
    expected: Ints  # [N], expected symbol
    sign: Ints  # [N], 1 or -1, by which the residual is multiplied

    def sorted_by_table(self) -> tuple[Index, list[tuple[int, slice]]]:
        """The coding order, and for each table used the part of it that the table codes."""
        counts = np.bincount(self.tables)
        used = np.flatnonzero(counts)
        ends = np.cumsum(counts[used]).tolist()
        parts = [slice(*bounds) for bounds in pairwise([0, *ends])]
        order = np.argsort(self.tables.astype(np.uint16), kind="stable")
        return order, list(zip(used.tolist(), parts, strict=True))


@dataclass(frozen=True, eq=False)
class EntropyCoder:
    """A trained coder on one of its lattices."""

    networks: dict[tuple[int, int], ContextNetwork]  # by stage and channel
    levels: Ints  # [65536]: 16 * log2 of every positive integer, rounded down
    counts: Index  # [scales * VARIANTS, 2 R + 2]; rows sum to 2**24
    models: tuple[Any, ...]  # the same as constriction's models
    bits: Floats  # what each entry costs
    variances: Floats  # [scales], of the residuals, in steps
    radius: int  # R: residuals from -R to R have an entry in the tables; others escape
    has_trellis: bool

    @classmethod
    def load(cls, data: bytes, *, has_trellis: bool) -> "EntropyCoder":
        """Read the bytes of a .safetensors file that training/fit_coder.py made."""
        return cls.of(load(data), has_trellis=has_trellis)

    @classmethod
    def of(cls, tensors: Tensors, *, has_trellis: bool) -> "EntropyCoder":
        """Build from integer tensors, named as in docs/format.md."""
        lattice = lattice_name(has_trellis=has_trellis)
        channels = len(tensors[f"{lattice}.0.bias"])
        networks = {
            (stage, channel): ContextNetwork.of(tensors, lattice, stage, channel)
            for stage, channel in product(range(len(STAGES)), range(channels))
        }
        frequencies = tensors[f"{lattice}.counts"].astype(np.int64)
        counts = frequencies << (PRECISION - 16)
        if (counts < 1).any() or (counts.sum(1) != 2**PRECISION).any():
            raise WeightsError("the entropy coder's frequencies do not sum to one")
        # constriction adds 1 to each and scales the rest to 2**24 - n: here by exactly 1.
        rows = (counts - 1).astype(np.float64)
        models = tuple(constriction.stream.model.Categorical(row, perfect=False) for row in rows)
        levels = np.searchsorted(tensors["thresholds"], np.arange(2**16), side="right")
        bits = (PRECISION - np.log2(counts)).astype(np.float32)
        radius = counts.shape[1] // 2 - 1
        seen = frequencies[::VARIANTS, :-1] - 1  # every entry got 1 besides what was observed
        squares = np.arange(-radius, radius + 1) ** 2
        variances = (seen @ squares / np.maximum(seen.sum(1), 1)).clip(MIN_VARIANCE)
        return cls(
            networks,
            levels.astype(np.int32),
            counts,
            models,
            bits,
            variances.astype(np.float32),
            radius,
            has_trellis,
        )

    @property
    def channels(self) -> int:
        """Channels of the latents that it codes."""
        return len(self.networks) // len(STAGES)

    def points(self, symbols: Ints) -> Ints:
        """Reconstruction points of symbols [C, h, w], in half steps: [C, h, w]."""
        planes = Planes.of(symbols, 1, has_trellis=self.has_trellis)
        return planes.points[planes.layout.index]

    def encode(self, symbols: Ints, step_q: int) -> bytes:
        """Compress symbols [C, h, w], each in -LIMIT..LIMIT, of quantiser step step_q / 1024."""
        planes = Planes(*symbols.shape, has_trellis=self.has_trellis)
        planes.symbols[planes.layout.index] = symbols
        writer = constriction.stream.queue.RangeEncoder()
        for contexts in self._by_plane(planes, step_q):
            self._write(writer, contexts, planes.symbols[contexts.places])
        return _payload(writer)

    def decode(self, payload: bytes, height: int, width: int, step_q: int) -> Ints:
        """Undo `encode`: symbols [C, height, width] int32; raise Corrupt for any other payload."""
        n_symbols = self.channels * height * width
        cheapest = PRECISION - math.log2(self.counts.max())  # bits; no symbol costs less
        least = n_symbols * cheapest / 8 - WORD.itemsize  # so a few bytes cannot claim a lot
        if len(payload) % WORD.itemsize or not least < len(payload) <= 6 * n_symbols + 8:
            raise Corrupt(f"{len(payload)} bytes cannot be {height}x{width} latents")
        planes = Planes(self.channels, height, width, has_trellis=self.has_trellis)
        words = np.frombuffer(payload, WORD).astype(np.uint32)
        reader = constriction.stream.queue.RangeDecoder(words)
        writer = constriction.stream.queue.RangeEncoder()  # only what it writes is a valid payload
        try:
            for contexts in self._by_plane(planes, step_q):
                symbols = self._read(reader, contexts)
                planes.symbols[contexts.places] = symbols
                self._write(writer, contexts, symbols)
                if writer.num_words() > len(words) + 1:  # the last two may become one
                    break
        except AssertionError as exc:  # constriction's, for words that no encoder writes
            raise Corrupt("the payload is damaged") from exc
        if _payload(writer) != payload or np.abs(planes.symbols).max() > LIMIT:
            raise Corrupt("the payload is damaged, or does not end with the last symbol")
        return planes.symbols[planes.layout.index]

    def expectations(self, latents: Floats, step_q: int) -> tuple[Floats, Floats]:
        """What the contexts say about latents [C, h, w] before each is known: two of [C, h, w].

        Returns: the expected latents, in steps, and the variance about them, in squared steps.
        """
        planes = Planes(*latents.shape, has_trellis=False)
        values = (latents * np.float32(128)).clip(-MAX_VALUE, MAX_VALUE)
        planes.values[planes.layout.index] = np.rint(values)
        mean, variance = np.zeros((2, planes.layout.length), np.float32)
        for part in planes.layout.passes:
            outputs = self.outputs(planes, part, step_q)
            _, scale = self.expected(outputs, step_q)
            mean[part.places] = outputs[0] * np.float32(1 / (128 * step_q))
            variance[part.places] = self.variances[scale]
        return mean[planes.layout.index], variance[planes.layout.index]

    def contexts(self, planes: Planes, part: Pass, step_q: int) -> Contexts:
        """The contexts of a pass, once the values and shifts of the planes are known."""
        expected = self.expected(self.outputs(planes, part, step_q), step_q)
        return Contexts(part.places, *tables_of(*expected, planes.shifts[part.places]))

    def outputs(self, planes: Planes, part: Pass, step_q: int) -> Ints:
        """The outputs of the context networks for the symbols of a pass: [3, N]."""
        level = self.known_level(step_q)
        outputs = [self.networks[which].outputs(planes, level) for which in part.networks]
        found: Ints = np.concatenate(outputs, 1).take(part.outputs, 1)
        return found

    def known_level(self, step_q: int) -> int:
        """The level of a step, or the nearest that the networks were trained for."""
        return min(max(int(self.levels[step_q]), LEVELS[0]), LEVELS[-1])

    def expected(self, outputs: Ints, step_q: int) -> tuple[Ints, Ints]:
        """Outputs [3, N] of networks -> expected points in eighths of a step, and scale indices."""
        expected, scale, activity = outputs
        eighths = (expected + 8 * step_q) // (16 * step_q)
        activity = self.levels[np.minimum(np.maximum(activity >> 4, 32), 65_535)]  # of 2**-13
        octaves = activity - int(self.levels[step_q]) + self.known_level(step_q)
        scale = (scale + (octaves << 13)) >> 15  # quarter octaves, in steps
        return eighths, np.minimum(np.maximum(scale, 0), len(self.counts) // VARIANTS - 1)

    def _by_plane(self, planes: Planes, step_q: int) -> Iterator[Contexts]:
        """The contexts of plane after plane, in coding order.

        The symbols of a plane must be in `planes` before the next plane is asked for.
        """
        rank = 0
        for part in planes.layout.passes:
            eighths, scale = self.expected(self.outputs(planes, part, step_q), step_q)
            for bounds in pairwise([0, *part.ends]):
                own = slice(*bounds)
                planes.begin_plane(rank)
                places = part.places[own]
                yield Contexts(places, *tables_of(eighths[own], scale[own], planes.shifts[places]))
                planes.end_plane(rank)
                rank += 1
            points = 2 * planes.symbols[part.places] + planes.shifts[part.places]
            planes.values[part.places] = context_values(points, step_q)

    def _write(self, writer: Any, contexts: Contexts, symbols: Ints) -> None:
        """Append the symbols of a plane: by table, and then those that escape."""
        entries = (symbols - contexts.expected) * contexts.sign + self.radius
        escapes = (entries < 0) | (entries > 2 * self.radius)
        entries[escapes] = 2 * self.radius + 1
        order, parts = contexts.sorted_by_table()
        entries = entries[order]
        for table, part in parts:
            writer.encode(entries[part], self.models[table])
        if escapes.any():
            writer.encode(symbols[escapes] + LIMIT, ESCAPE)

    def _read(self, reader: Any, contexts: Contexts) -> Ints:
        """Undo `_write`."""
        order, parts = contexts.sorted_by_table()
        entries = np.empty(len(order), np.int32)
        for table, part in parts:
            n = part.stop - part.start
            entries[order[part]] = reader.decode(self.models[table], n)
        symbols: Ints = (entries - self.radius) * contexts.sign + contexts.expected
        escapes = np.flatnonzero(entries > 2 * self.radius)
        if len(escapes):
            symbols[escapes] = reader.decode(ESCAPE, len(escapes)) - LIMIT
        return symbols


def lattice_name(*, has_trellis: bool) -> str:
    """The prefix of a lattice's tensors."""
    return "trellis" if has_trellis else "plain"


def tables_of(eighths: Ints, scale: Ints, shifts: Ints) -> tuple[Ints, Ints, Ints]:
    """Expected points, scales and shifts -> tables, expected symbols, signs of the residuals."""
    eighths = eighths - FRACTIONS // 2 * shifts
    centre = (eighths + FRACTIONS // 2) >> 3
    fraction = eighths - FRACTIONS * centre  # -4..3
    sign = 1 - 2 * (fraction < 0).astype(np.int32)
    return scale * VARIANTS + np.abs(fraction), centre, sign


def _payload(writer: Any) -> bytes:
    return np.asarray(writer.get_compressed(), WORD).tobytes()
