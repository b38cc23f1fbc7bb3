"""What symbols cost, and how the cost changes with them: for the encoder's search (refine.py)."""

import math

import numpy as np
from oracles.numpy_coder.entropy import (
    ESCAPE_BITS,
    VARIANTS,
    Contexts,
    EntropyCoder,
    tables_of,
)
from oracles.numpy_coder.layout import MAX_VALUE, Floats, Ints, Pass, Planes


def bit_costs(coder: EntropyCoder, symbols: Ints, step_q: int) -> Floats:
    """What every symbol costs if it alone were one less, unchanged, or one more: [3, C, h, w] bits.

    In its own context, which is that of the unchanged neighbours.
    """
    planes = Planes.of(symbols, step_q, has_trellis=coder.has_trellis)
    costs = np.zeros((3, len(planes.symbols)), np.float32)
    for part in planes.layout.passes:
        contexts = coder.contexts(planes, part, step_q)
        for change in (-1, 0, 1):
            residuals = _residuals(contexts, planes.symbols[part.places] + change)
            costs[change + 1, part.places] = _bits(coder, contexts.tables, residuals)
    return costs[:, planes.layout.index]


def context_gradient(coder: EntropyCoder, symbols: Ints, step_q: int) -> Floats:
    """How many more bits all other symbols cost for each symbol that is one more: [C, h, w].

    To first order, as the symbol is part of their contexts. With `bit_costs`, the cost of a change.
    """
    planes = Planes.of(symbols, step_q, has_trellis=coder.has_trellis)
    gradient = np.zeros(planes.layout.length, np.float32)
    for part in planes.layout.passes:
        _add_gradient(gradient, coder, planes, part, step_q)
    gradient *= np.abs(planes.values) < MAX_VALUE
    return gradient[planes.layout.index] * np.float32(step_q / 8)


def _add_gradient(
    gradient: Floats, coder: EntropyCoder, planes: Planes, part: Pass, step_q: int
) -> None:
    """Add the gradient of the bits of a pass by the context values, in the flat layout."""
    outputs = coder.outputs(planes, part, step_q)
    shifts = planes.shifts[part.places]
    contexts = Contexts(part.places, *tables_of(*coder.expected(outputs, step_q), shifts))
    tables, residuals = contexts.tables, _residuals(contexts, planes.symbols[part.places])
    less, more = (_bits(coder, tables, residuals + change * contexts.sign) for change in (-1, 1))
    last = len(coder.counts) - VARIANTS
    scale = tables // VARIANTS * VARIANTS
    wider, narrower = np.minimum(scale + VARIANTS, last), np.maximum(scale - VARIANTS, 0)
    by_scale = [_bits(coder, tables - scale + other, residuals) for other in (wider, narrower)]
    by_octave = 2 * (by_scale[0] - by_scale[1])
    activity = outputs[2].clip(32 << 4, 65_535 << 4)
    window = planes.layout.window
    by_output = np.zeros((3, len(part.ends) * window), np.float32)
    by_output[:, part.outputs] = (
        (less - more) / 2 / (128 * step_q),
        by_octave / 2**17,
        by_octave * (activity == outputs[2]) / (math.log(2) * activity),
    )
    level, start = coder.known_level(step_q), 0
    for which in part.networks:
        network = coder.networks[which]
        end = start + network.n_planes * window
        network.add_gradient(gradient, by_output[:, start:end], planes, level)
        start = end


def _residuals(contexts: Contexts, symbols: Ints) -> Ints:
    residuals: Ints = (symbols - contexts.expected) * contexts.sign
    return residuals


def _bits(coder: EntropyCoder, tables: Ints, residuals: Ints) -> Floats:
    """What residuals cost in their tables."""
    entries = residuals + coder.radius
    escapes = (entries < 0) | (entries > 2 * coder.radius)
    entries[escapes] = 2 * coder.radius + 1
    bits: Floats = coder.bits[tables, entries]
    bits[escapes] += ESCAPE_BITS
    return bits
