"""Random weights of a small VGG-16."""

import torch
from torch import Tensor


def vgg_weights(width: int = 4) -> dict[str, Tensor]:
    """Convolutions of `width` channels, the heads of LPIPS and the weights of DISTS."""
    inputs = [3] + [width] * 12
    convolutions = {
        f"conv.{i}.weight": torch.randn(width, n, 3, 3) / 3 for i, n in enumerate(inputs)
    }
    biases = {f"conv.{i}.bias": torch.zeros(width) for i in range(13)}
    heads = {f"head.{i}": torch.rand(1, width, 1, 1) for i in range(5)}
    channels = {name: torch.rand(1, 3 + 5 * width, 1, 1) for name in ("alpha", "beta")}
    return convolutions | biases | heads | channels
