"""Dependent quantisation: which of two lattices a symbol is on, and the best symbols for that.

The second lattice is the first, moved by half a step. Which one a symbol is on depends on whether
the symbols before it on its path are odd or even, so nothing is stored for it; and as a rounding
may choose among all paths, its error is 1 dB smaller than that of one lattice with the same steps
(trellis-coded quantisation, Marcellin and Fischer 1990, with Ungerboeck's codes; in video coding
Schwarz et al., "Hybrid Video Coding with Trellis-Coded Quantization", 2019).

A trellis is the table [S, 2] of the state that follows a state and an even or odd symbol. Odd
states are those of the second lattice, and paths begin in state 0. Bytes only: never imports torch.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PLAIN: Index = np.zeros((1, 2), np.int64)  # one state: uniform rounding
PATHS = 4096  # that are searched together
FORBIDDEN = np.float32(1e9)


def ungerboeck(h0: int, h1: int) -> Index:
    """The trellis of a rate-1/2 code by its parity-check polynomials; h0's degree gives 2**degree.

    Bit n of the lattice is that of the terms of h0 among the bits before it, added to those of h1
    among the parities before it (Ungerboeck, "Channel Coding with Multilevel/Phase Signals", 1982).
    """
    degree = h0.bit_length() - 1
    state, odd = np.ogrid[: 2**degree, :2]
    table: Index = (state >> 1) ^ (h0 >> 1) * (state & 1) ^ (h1 >> 1) * odd
    return table


def is_sound(trellis: Index) -> bool:
    """Whether it is plain, or every state has two before it, so that all paths can be searched."""
    states = len(trellis)
    if states == 1:
        return not trellis.any()
    inside = (trellis >= 0) & (trellis < states)
    return bool(inside.all() and (np.bincount(trellis.ravel(), minlength=states) == 2).all())


def nearest(targets: Floats, weights: Floats, coded: Mask, trellis: Index) -> Ints:
    """The symbols of least weighted squared error, by Viterbi's algorithm.

    Args:
        targets: [N, P] in steps: N places along each of P paths.
        weights: [N, P], of the errors.
        coded: [N, P]; other places count as symbol 0 and cost nothing.
    Returns: [N, P].
    """
    symbols = np.empty(targets.shape, np.int32)
    for start in range(0, targets.shape[1], PATHS):
        part = np.s_[:, start : start + PATHS]
        symbols[part] = _nearest(targets[part], weights[part], coded[part], trellis)
    return symbols


def _nearest(targets: Floats, weights: Floats, coded: Mask, trellis: Index) -> Ints:
    length, paths = targets.shape
    before, branch = _backwards(trellis.tobytes(), len(trellis))
    offsets = np.array([0, 1, 0.5, 1.5], np.float32)[:, None]  # of branch 2 * lattice + parity
    errors = targets[:, None] - offsets
    errors -= 2 * np.rint(errors / 2)  # of its nearest point, at most 1 step
    costs = errors * errors
    costs *= weights[:, None]
    costs[:, ::2] *= coded[:, None]
    np.copyto(costs[:, 1::2], FORBIDDEN, where=~coded[:, None])
    total = np.full((len(trellis), paths), FORBIDDEN, np.float32)
    total[0] = 0
    second = np.empty((length, len(trellis), paths), np.bool_)
    candidates, added = np.empty((2, 2, *total.shape), np.float32)
    for n in range(length):
        np.take(total, before, 0, candidates, "clip")
        candidates += np.take(costs[n], branch, 0, added, "clip")
        np.less(candidates[1], candidates[0], out=second[n])
        np.minimum(candidates[0], candidates[1], out=total)
    symbols = np.empty(targets.shape, np.int32)
    path = np.arange(paths)
    state = total.argmin(0)
    before, branch = before.ravel(), branch.ravel()
    for n in reversed(range(length)):
        came = state + len(trellis) * second[n].ravel().take(state * paths + path)
        state, taken = before.take(came), branch.take(came)
        point = targets[n] - errors[n].ravel().take(taken * paths + path)
        symbols[n] = np.rint(point - (taken >> 1) / np.float32(2))
    symbols *= coded
    return symbols


@lru_cache(maxsize=4)
def _backwards(trellis: bytes, states: int) -> tuple[Index, Index]:
    """The two states before each, and the branch taken there, 2 * lattice + parity: [2, S] each."""
    order = np.argsort(np.frombuffer(trellis, np.int64), kind="stable").reshape(states, 2).T
    return order // 2, 2 * (order // 2 % 2) + order % 2
