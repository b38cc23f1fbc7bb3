from itertools import product

import numpy as np
import pytest
from oracles.numpy_coder import trellis
from oracles.numpy_coder.trellis import NEXT_STATE, best_path


def shifts(symbols):
    """The lattice of each symbol of a path."""
    found, state = [], 0
    for symbol in symbols:
        found.append(state & 1)
        state = NEXT_STATE[state, symbol & 1]
    return np.array(found)


def test_the_code_is_that_of_its_polynomials():
    """The bit of a lattice is what h0 = 1011 and h1 = 0100 say of those before it."""
    symbols = np.random.default_rng(0).integers(-9, 9, 200)
    found, odd = shifts(symbols), symbols & 1
    assert np.array_equal(found[3:], found[2:-1] ^ found[:-3] ^ odd[1:-2])


def test_no_path_is_nearer():
    random = np.random.default_rng(1)
    targets = random.normal(0, 2, (7, 5)).astype(np.float32)
    weights = random.uniform(0.2, 3, targets.shape).astype(np.float32)
    coded = random.random(targets.shape) < 0.8
    found = best_path(targets, weights, coded)
    assert not found[~coded].any()
    for path in range(targets.shape[1]):
        lane = targets[:, path], weights[:, path], coded[:, path]
        least = min(distance(choice, *lane) for choice in choices(*lane[::2]))
        assert distance(found[:, path], *lane) == pytest.approx(least, rel=1e-4)


def choices(targets, coded):
    """All paths worth a try: four symbols around each target."""
    around = [
        range(int(np.floor(t)) - 1, int(np.floor(t)) + 3) if c else [0]
        for t, c in zip(targets, coded, strict=True)
    ]
    return product(*around)


def distance(symbols, targets, weights, coded):
    points = np.array(symbols) + shifts(symbols) / 2
    return (weights * coded * (points - targets) ** 2).sum()


def test_the_gain_is_that_of_the_literature():
    """Nearly 1 dB over plain rounding, on paths of 64; 1.1 dB are known for infinite ones."""
    targets = np.random.default_rng(3).uniform(-30, 30, (64, 3000)).astype(np.float32)
    ones = np.ones_like(targets)
    symbols = best_path(targets, ones, ones > 0)
    states, points = np.zeros(3000, np.int64), np.empty_like(targets)
    for n in range(64):
        points[n] = symbols[n] + (states & 1) / 2
        states = NEXT_STATE[states, symbols[n] & 1]
    gain_db = 10 * np.log10(1 / 12 / np.square(points - targets).mean())
    assert 0.93 < gain_db < 1.1


def test_paths_are_searched_in_parts(monkeypatch):
    targets = np.random.default_rng(4).normal(0, 3, (64, 50)).astype(np.float32)
    ones = np.ones_like(targets)
    whole = best_path(targets, ones, ones > 0)
    monkeypatch.setattr(trellis, "PATHS", 7)
    assert np.array_equal(best_path(targets, ones, ones > 0), whole)
