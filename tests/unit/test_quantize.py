import numpy as np
import pytest
import torch

from dynenc.entropy import LIMIT
from dynenc.quantize import from_symbols, quality_to_step, to_symbols


def test_steps_of_the_readme():
    assert [quality_to_step(q) for q in (0, 25, 50, 75, 100)] == [1229, 614, 307, 154, 77]


def test_higher_quality_is_a_smaller_step():
    steps = [quality_to_step(q / 2) for q in range(201)]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("step_q", [1, 77, 307, 1229, 65_535])
def test_error_is_at_most_half_a_step(step_q):
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 9, 7).clamp(-3, 3)
    error = (from_symbols(to_symbols(latents, step_q), step_q) - latents).abs().max()
    assert error <= step_q / 1024 / 2 + 1e-5


def test_symbols_saturate():
    latents = torch.tensor([1e9, -1e9, float("nan"), float("inf")]).view(1, 4, 1, 1)
    symbols = to_symbols(latents, 1)
    assert symbols.dtype == np.int32
    assert symbols[:3, 0, 0].tolist() == [LIMIT, -LIMIT, 0]
    assert abs(int(symbols[3, 0, 0])) <= LIMIT
