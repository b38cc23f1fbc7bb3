"""Trellis-coded (dependent) quantisation: two lattices of symbols, and the best path through them.

The second lattice is the first, moved by half a step. Which lattice a symbol is on depends on
whether the symbols before it on its path are odd or even, so nothing is stored for it. Since the
encoder may choose among all paths, the error is 1 dB lower than that of one lattice with the same
step (Marcellin and Fischer, "Trellis Coded Quantization", 1990; in video coding Schwarz et al.,
"Hybrid Video Coding with Trellis-Coded Quantization", 2019).

The state machine is Ungerboeck's 8-state code with the parity-check polynomials h0 = 13 and h1 = 4
(octal; "Channel Coding with Multilevel/Phase Signals", 1982), and is part of the file format: odd
states are those of the second lattice, and every path begins in state 0. Never imports torch.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

NEXT_STATE: Index = np.array(  # by state and symbol & 1
    [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]]
)
N_STATES = len(NEXT_STATE)
PATHS = 4096  # searched together
FORBIDDEN = np.float32(1e9)

# The two states that precede each state and the branches taken there (2 * lattice + parity): [2, S]
_INCOMING = np.argsort(NEXT_STATE.ravel(), kind="stable").reshape(N_STATES, 2).T
PREVIOUS_STATE = _INCOMING // 2
PREVIOUS_BRANCH = 2 * (PREVIOUS_STATE % 2) + _INCOMING % 2


def best_path(targets: Floats, weights: Floats, coded: Mask) -> Ints:
    """The symbols of least weighted squared error on each path, by Viterbi's algorithm.

    Args:
        targets: [N, P] in steps: N symbols on each of P paths.
        weights: [N, P], of the squared errors.
        coded: [N, P]; the other symbols are 0 and cost nothing.
    Returns: [N, P] int32.
    """
    symbols = np.empty(targets.shape, np.int32)
    for start in range(0, targets.shape[1], PATHS):
        part = np.s_[:, start : start + PATHS]
        symbols[part] = _best_path(targets[part], weights[part], coded[part])
    return symbols


def _best_path(targets: Floats, weights: Floats, coded: Mask) -> Ints:
    length, paths = targets.shape
    offsets = np.array([0, 1, 0.5, 1.5], np.float32)[:, None]  # of branch 2 * lattice + parity
    errors = targets[:, None] - offsets
    errors -= 2 * np.rint(errors / 2)  # to its nearest point, at most 1 step
    costs = errors * errors
    costs *= weights[:, None]
    costs[:, ::2] *= coded[:, None]
    np.copyto(costs[:, 1::2], FORBIDDEN, where=~coded[:, None])
    total = np.full((N_STATES, paths), FORBIDDEN, np.float32)
    total[0] = 0
    second = np.empty((length, N_STATES, paths), np.bool_)
    candidates, added = np.empty((2, 2, *total.shape), np.float32)
    for n in range(length):
        np.take(total, PREVIOUS_STATE, 0, candidates, "clip")
        candidates += np.take(costs[n], PREVIOUS_BRANCH, 0, added, "clip")
        np.less(candidates[1], candidates[0], out=second[n])
        np.minimum(candidates[0], candidates[1], out=total)
    symbols = np.empty(targets.shape, np.int32)
    path = np.arange(paths)
    state = total.argmin(0)
    for n in reversed(range(length)):
        incoming = state + N_STATES * second[n].ravel().take(state * paths + path)
        state, branch = PREVIOUS_STATE.take(incoming), PREVIOUS_BRANCH.take(incoming)
        point = targets[n] - errors[n].ravel().take(branch * paths + path)
        symbols[n] = np.rint(point - (branch >> 1) / np.float32(2))
    symbols *= coded
    return symbols
