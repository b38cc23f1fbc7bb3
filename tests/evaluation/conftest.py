from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from dynenc.evaluation import vgg

WIDTHS = [3, *(2 + i % 3 for i in range(vgg.CONVOLUTIONS))]  # channels of a small VGG-16


@pytest.fixture(scope="session")
def lpips_path(tmp_path_factory):
    """A small AlexNet with random weights, and LPIPS heads for it."""
    generator = torch.Generator().manual_seed(0)
    widths, state = [3, 4, 6, 5, 4, 4], {}
    for i, kernel in enumerate([11, 5, 3, 3, 3]):
        shape = widths[i + 1], widths[i], kernel, kernel
        state[f"AlexNet_0.Conv_{i}.kernel"] = torch.randn(shape, generator=generator)
        state[f"AlexNet_0.Conv_{i}.bias"] = torch.zeros(widths[i + 1])
        head = torch.rand(1, widths[i + 1], 1, 1, generator=generator)
        state[f"NetLinLayer_{i}.Conv_0.kernel"] = head
    path = tmp_path_factory.mktemp("metrics") / "lpips.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def vgg_state():
    """A small VGG-16 with random weights in float16, LPIPS heads and DISTS weights for it."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, (before, after) in enumerate(pairwise(WIDTHS)):
        weight = torch.randn(after, before, 3, 3, generator=generator) / (3 * before**0.5)
        state[f"conv.{i}.weight"] = weight.half()
        state[f"conv.{i}.bias"] = torch.full((after,), 0.1).half()
    layers = [WIDTHS[end + 1] for end in vgg.LAYER_ENDS]
    for i, width in enumerate(layers):
        state[f"head.{i}"] = torch.rand(1, width, 1, 1, generator=generator)
    for name in ("alpha", "beta"):
        state[name] = torch.rand(3 + sum(layers), generator=generator)
    return state


@pytest.fixture(scope="session")
def vgg_path(tmp_path_factory, vgg_state):
    """The same as a file."""
    path = tmp_path_factory.mktemp("metrics") / "vgg.safetensors"
    save_file(vgg_state, path)
    return path
