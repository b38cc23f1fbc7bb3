"""The entropy coder: symbols <-> payload bytes, by a range coder with integer probabilities.

For every symbol a small integer network computes an expected value and a scale from neighbours that
are decoded already, and these select one of the tables of frequencies. All of it is integer
arithmetic, so that encoder and decoder agree on every machine; the native kernel does it.

The symbols are on one of two lattices, which the file's header names; each has its own networks and
tables. docs/format.md specifies the payload. Never imports torch.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from dynenc import registry
from dynenc.errors import Corrupt, WeightsError
from dynenc.native import kernel
from dynenc.native.kernel import Bytes, Ints, Shorts, Symbols

Tensors = dict[str, npt.NDArray[Any]]

STAGES = (  # planes (row % 4, column % 4) of each stage, coarse to fine
    ((0, 0),),
    ((2, 2),),
    ((0, 2), (2, 0)),
    ((1, 1), (1, 3), (3, 1), (3, 3)),
    ((0, 1), (0, 3), (2, 1), (2, 3)),
    ((1, 0), (1, 2), (3, 0), (3, 2)),
)
FRACTIONS = 8  # the expected value is known to this fraction of a step ...
VARIANTS = FRACTIONS // 2 + 1  # ... and has tables for these fractions, as signs are folded
MAX_VALUE = 1023  # largest magnitude of a context value, in 1/128 of a latent unit
MIDDLE_LEVEL = 132  # 16 * log2(step_q) at which the networks' biases are constant
PRECISION = 16  # bits of the frequencies
WORD = 4  # bytes that the range coder writes at once


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """What the coder knows about symbols [C, h, w] before it decodes them."""

    tables: Bytes  # [C, h, w], table of frequencies
    expected: Ints  # [C, h, w], expected symbol
    sign: Ints  # [C, h, w], 1 or -1, by which the residual is multiplied
    outputs: Ints  # [3, C, h, w] of the networks: expected latent, octaves, activity; in 2**-17


@dataclass(frozen=True, eq=False)
class EntropyCoder:
    """A trained coder on one of its lattices; `load_coder` returns those of dynenc."""

    kernel: kernel.Coder
    counts: npt.NDArray[np.int64]  # [scales * VARIANTS, 2 R + 2]; rows sum to 2**16
    coder_id: int = 0  # in a file's header; 0: not one of dynenc's

    @classmethod
    def load(cls, data: bytes, *, has_trellis: bool) -> "EntropyCoder":
        """Read the bytes of a .safetensors file that training/fit_coder.py made.

        Raises: WeightsError if it is not such a file.
        """
        try:
            return cls.of(load(data), has_trellis=has_trellis)
        except WeightsError:
            raise
        except (SafetensorError, KeyError, ValueError, IndexError) as exc:
            raise WeightsError(f"the file does not hold an entropy coder: {exc}") from exc

    @classmethod
    def of(cls, tensors: Tensors, *, has_trellis: bool) -> "EntropyCoder":
        """Build from integer tensors, named as in docs/format.md; raises WeightsError."""
        coder = kernel.Coder(packed(tensors, has_trellis=has_trellis), has_trellis=has_trellis)
        counts = tensors[f"{lattice_name(has_trellis=has_trellis)}.counts"].astype(np.int64)
        return cls(coder, counts)

    @property
    def channels(self) -> int:
        """Number of channels of the latents it codes."""
        return self.kernel.channels

    @property
    def has_trellis(self) -> bool:
        """Whether its symbols are on the lattices of the trellis."""
        return self.kernel.has_trellis

    @property
    def radius(self) -> int:
        """R: residuals from -R to R have an entry in the tables; others escape."""
        return int(self.counts.shape[1]) // 2 - 1

    def encode(self, symbols: Symbols, step_q: int) -> bytes:
        """Compress symbols [C, h, w] in -MAX_SYMBOL..MAX_SYMBOL, of step step_q / 1024."""
        return self.kernel.encode(symbols, step_q)

    def decode(self, payload: bytes, height: int, width: int, step_q: int) -> Shorts:
        """Undo `encode`: symbols [C, height, width] int16; raise Corrupt for any other payload."""
        n_symbols = self.channels * height * width
        least = n_symbols * self._cheapest / 8 - WORD  # so a few bytes cannot claim a lot
        if len(payload) % WORD or not least < len(payload) <= 6 * n_symbols + 8:
            raise Corrupt(f"{len(payload)} bytes cannot be {height}x{width} latents")
        return self.kernel.decode(payload, height, width, step_q)

    @cached_property
    def _cheapest(self) -> float:
        """Bits of the most frequent symbol of all tables."""
        return PRECISION - math.log2(self.counts.max())

    def contexts(self, symbols: Symbols, step_q: int) -> Contexts:
        """The contexts that the coder would use for symbols [C, h, w]; see `quantize` for step_q.

        Raises: ValueError if a symbol exceeds MAX_SYMBOL.
        """
        return Contexts(*self.kernel.contexts(symbols, step_q))


@cache
def load_coder(name: str, *, has_trellis: bool) -> EntropyCoder:
    """The coder of that name in `registry.MODELS`, on one of its lattices; raises WeightsError."""
    model = registry.named(name, "coder")
    coder = EntropyCoder.load(registry.read_file(model), has_trellis=has_trellis)
    return replace(coder, coder_id=model.number)


def packed(tensors: Tensors, *, has_trellis: bool) -> Ints:
    """The tensors of a coder on one lattice, as the kernel takes them; raises WeightsError."""
    lattice = lattice_name(has_trellis=has_trellis)
    names = ("neighbours", "hidden", "middle", "output", "bias")
    stages = [
        [_integers(tensors, f"{lattice}.{stage}.{name}", 3) for name in names]
        for stage in range(len(STAGES))
    ]
    channels = len(stages[0][-1])
    networks = [
        [tensor[channel] for tensor in stage] for stage, channel in product(stages, range(channels))
    ]
    counts = _integers(tensors, f"{lattice}.counts", 2)
    thresholds = _integers(tensors, "thresholds", 1)
    return kernel.pack_tensors(channels, networks, counts, thresholds)


def _integers(tensors: Tensors, name: str, dimensions: int) -> npt.NDArray[Any]:
    """An integer tensor of that many dimensions; raises WeightsError, or KeyError if missing."""
    tensor = tensors[name]
    if tensor.ndim != dimensions or tensor.dtype.kind not in "iu":
        raise WeightsError(
            f"{name} of the entropy coder must be integers in {dimensions} dimensions"
        )
    return tensor


def lattice_name(*, has_trellis: bool) -> str:
    """The prefix of a lattice's tensors."""
    return "trellis" if has_trellis else "plain"
