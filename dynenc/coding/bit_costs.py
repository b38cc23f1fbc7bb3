"""The cost of symbols in bits, and how it changes with them: for the search in refine.py."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dynenc.coding.entropy import PRECISION, VARIANTS, Contexts, EntropyCoder
from dynenc.native.kernel import Floats, Ints, Symbols


def bit_costs(coder: EntropyCoder, symbols: Symbols, step_q: int) -> Floats:
    """Bits of every symbol, if it alone is decremented, unchanged or incremented: [3, C, h, w].

    The contexts are those of the unchanged neighbours.

    Args:
        symbols: [C, h, w].
        step_q: quantiser step, 1/1024 latent unit.
    """
    contexts, bits = coder.contexts(symbols, step_q), _table_bits(coder)
    changed = (_residuals(contexts, symbols + np.int32(change)) for change in (-1, 0, 1))
    return np.stack([_bits(coder, bits, contexts.tables, residuals) for residuals in changed])


def context_gradient(coder: EntropyCoder, symbols: Symbols, step_q: int) -> Floats:
    """The change in bits of all other symbols if a symbol is incremented: [C, h, w].

    First-order estimate, as the symbol is part of their contexts. `bit_costs` plus this is the cost
    of a change. Arguments as for `bit_costs`.
    """
    contexts, bits = coder.contexts(symbols, step_q), _table_bits(coder)
    tables, residuals = contexts.tables.astype(np.int32), _residuals(contexts, symbols)
    sign, activity = contexts.sign, contexts.outputs[2]
    less, more = (_bits(coder, bits, tables, residuals + change * sign) for change in (-1, 1))
    last = len(coder.counts) - VARIANTS
    scale = tables // VARIANTS * VARIANTS
    wider, narrower = np.minimum(scale + VARIANTS, last), np.maximum(scale - VARIANTS, 0)
    by_scale = [_bits(coder, bits, tables - scale + near, residuals) for near in (wider, narrower)]
    by_octave = 2 * (by_scale[0] - by_scale[1])
    inside = activity.clip(32 << 4, 65_535 << 4)
    by_output = (
        (less - more) / 2 / (128 * step_q),
        by_octave / 2**17,
        by_octave * (inside == activity) / (math.log(2) * inside),
    )
    gradient = coder.kernel.gradient(symbols, np.stack(by_output).astype(np.float32), step_q)
    return gradient * np.float32(step_q / 8)


def _residuals(contexts: Contexts, symbols: Symbols) -> Ints:
    residuals: Ints = (symbols - contexts.expected) * contexts.sign
    return residuals


def _table_bits(coder: EntropyCoder) -> Floats:
    """Bits of each entry of the tables; an escape includes the symbol that follows it."""
    bits = PRECISION - np.log2(coder.counts)
    bits[:, -1] += PRECISION
    costs: Floats = bits.astype(np.float32)
    return costs


def _bits(coder: EntropyCoder, bits: Floats, tables: npt.NDArray[Any], residuals: Ints) -> Floats:
    """The cost of residuals in their tables, in bits."""
    entries = residuals + coder.radius
    entries[(entries < 0) | (entries > 2 * coder.radius)] = 2 * coder.radius + 1
    found: Floats = bits[tables, entries]
    return found
