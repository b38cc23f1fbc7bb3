import numpy as np
import pytest
import torch
from PIL import Image

from dynenc.codec import Codec
from dynenc.coding.entropy import load_coder
from dynenc.coding.quantize import from_symbols, quality_to_step, to_nearest, to_symbols
from dynenc.imaging import tensors
from dynenc.native.kernel import MAX_SYMBOL

PLAIN, TRELLIS = (load_coder("full", has_trellis=which) for which in (False, True))


def noise(height=9, width=7):
    torch.manual_seed(0)
    return torch.randn(4, height, width).clamp(-3, 3).numpy()


def test_steps_of_the_documentation():
    assert [quality_to_step(q, has_trellis=False) for q in (0, 25, 50, 75, 100)] == [
        1229,
        614,
        307,
        154,
        77,
    ]
    assert [quality_to_step(q, has_trellis=True) for q in (0, 50, 100)] == [1376, 344, 86]


@pytest.mark.parametrize("has_trellis", [False, True])
def test_higher_quality_is_a_smaller_step(has_trellis):
    steps = [quality_to_step(q / 2, has_trellis=has_trellis) for q in range(201)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("step_q", [1, 77, 307, 1229, 65_535])
def test_error_is_at_most_half_a_step(step_q):
    latents = noise()
    error = np.abs(from_symbols(to_symbols(latents, step_q, PLAIN), step_q, PLAIN) - latents).max()
    assert error <= step_q / 1024 / 2 + 1e-5


def mean_square(latents, step_q, coder, quantise=to_nearest):
    symbols = quantise(latents, step_q, coder)
    return np.square(from_symbols(symbols, step_q, coder) - latents).mean(), symbols


@pytest.mark.parametrize("step_q", [77, 307, 1229])
def test_a_trellis_has_the_noise_of_finer_steps(step_q):
    """As much as plain rounding with the step of the same quality: within a twentieth."""
    latents = noise(64, 64)
    plain, _ = mean_square(latents, round(step_q / 1.12), PLAIN)
    assert mean_square(latents, step_q, TRELLIS)[0] == pytest.approx(plain, rel=0.05)


def test_bits_are_saved_where_they_cost_little(photo_path):
    """At fewer bits, less noise than coarser steps have."""
    with torch.no_grad(), Image.open(photo_path) as photo:
        [latents] = (
            Codec("light", device="cpu").encoder(tensors.pad(tensors.to_tensor(photo))).numpy()
        )
    found = [(614, to_nearest), (614, to_symbols), (645, to_nearest)]
    errors, symbols = zip(*(mean_square(latents, s, TRELLIS, how) for s, how in found), strict=True)
    n_bytes = [len(TRELLIS.encode(one, s)) for one, (s, _) in zip(symbols, found, strict=True)]
    print(errors, n_bytes)  # pytest -rP shows it
    assert errors[0] < errors[1] < errors[2]
    assert n_bytes[1] < 0.97 * n_bytes[0]
    assert n_bytes[1] < n_bytes[2]


EXTREME = torch.tensor([1e9, -1e9, float("nan"), float("inf")]).view(4, 1, 1).numpy()


def test_symbols_saturate():
    symbols = to_symbols(EXTREME, 1, PLAIN)
    assert symbols.dtype == np.int16
    assert symbols[:3, 0, 0].tolist() == [MAX_SYMBOL, -MAX_SYMBOL, 0]
    assert abs(int(symbols[3, 0, 0])) <= MAX_SYMBOL


@pytest.mark.parametrize("quantise", [to_nearest, to_symbols])
def test_symbols_on_a_trellis_saturate(quantise):
    symbols = quantise(EXTREME, 1, TRELLIS)
    assert symbols.dtype == np.int16
    assert np.abs(symbols[:3, 0, 0] - [MAX_SYMBOL, -MAX_SYMBOL, 0]).max() <= 5
    assert np.abs(symbols).max() <= MAX_SYMBOL
    assert np.array_equal(TRELLIS.decode(TRELLIS.encode(symbols, 1), 1, 1, 1), symbols)
