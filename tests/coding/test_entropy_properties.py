import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynenc.coding.entropy import load_coder
from dynenc.errors import Corrupt
from dynenc.native.kernel import MAX_SYMBOL

KINDS = (("fast", False), ("full", False), ("full", True))
coders = st.sampled_from([load_coder(name, has_trellis=which) for name, which in KINDS])
sides = st.integers(1, 11)
steps = st.one_of(st.integers(77, 1229), st.integers(1, 65535))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    model=coders,
    height=sides,
    width=sides,
    step_q=steps,
    most=st.sampled_from([1, 9, MAX_SYMBOL]),
)
def test_any_symbols_survive(data, model, height, width, step_q, most):
    elements = st.integers(-most, most)
    symbols = data.draw(hnp.arrays(np.int32, (4, height, width), elements=elements))
    payload = model.encode(symbols, step_q)
    assert np.array_equal(model.decode(payload, height, width, step_q), symbols)


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=400), model=coders, height=sides, width=sides, step_q=steps)
def test_any_bytes_decode_or_are_corrupt(junk, model, height, width, step_q):
    with contextlib.suppress(Corrupt):
        symbols = model.decode(junk, height, width, step_q)
        assert symbols.shape == (4, height, width)
        assert np.abs(symbols).max() <= MAX_SYMBOL


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0), model=coders, step_q=steps)
def test_a_flipped_bit_is_corrupt_or_decodes_to_symbols(bit, model, step_q):
    symbols = np.random.default_rng(0).integers(-9, 10, (4, 6, 6), np.int32)
    damaged = bytearray(model.encode(symbols, step_q))
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    with contextlib.suppress(Corrupt):
        assert np.abs(model.decode(bytes(damaged), 6, 6, step_q)).max() <= MAX_SYMBOL
