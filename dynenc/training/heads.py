"""Heads of the embedded decoder for smaller pictures: fitted by least squares to box means."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.networks.embedded_decoder import EmbeddedDecoder
from dynenc.networks.integer_decoder import Doubles, heads, plan

RIDGE = 1e-5  # of the mean square of the inputs
SIDE = 3  # of the convolutions


class Fit:
    """The normal equations of one head."""

    def __init__(self, channels: int, outputs: int, limits: Doubles) -> None:
        size = channels * SIDE**2 + 1
        self.inputs = torch.zeros(size, size, dtype=torch.float64)
        self.both = torch.zeros(size, outputs, dtype=torch.float64)
        self.limits = torch.from_numpy(limits).float()[:, None, None]

    def add(self, features: Tensor, target: Tensor) -> None:
        """Take features [B, C, h, w] and what is wanted of them, [B, N, h, w], into account."""
        rounded = (features / self.limits * 127).round().clamp(-128, 127) / 127 * self.limits
        padded = F.pad(rounded, [SIDE // 2] * 4, mode="replicate")
        columns = F.unfold(padded, SIDE).movedim(1, 0).flatten(1).double()
        columns = torch.cat([columns, torch.ones_like(columns[:1])])
        self.inputs += columns @ columns.T
        self.both += columns @ target.movedim(1, 0).flatten(1).double().T

    def solve(self) -> tuple[Doubles, Doubles]:
        """Weight [N, C, SIDE, SIDE] and bias [N]."""
        ridge = RIDGE * self.inputs.diagonal().mean() * torch.eye(len(self.inputs))
        found = torch.linalg.solve(self.inputs + ridge, self.both).T.numpy()
        return found[:, :-1].reshape(len(found), -1, SIDE, SIDE), found[:, -1].copy()


@torch.no_grad()
def fit(
    network: EmbeddedDecoder,
    limits: dict[str, Doubles],
    examples: Iterable[tuple[Tensor, Tensor]],
) -> dict[str, tuple[Doubles, Doubles]]:
    """Weight and bias of each head of a float decoder.

    Args:
        limits: of each head, the largest magnitudes [C] of its inputs, which have 8 bits.
        examples: latents [B, 4, h, w] and pictures [B, 3, 8h, 8w] in [-1, 1].
    """
    named = list(heads(*network.sizes))
    fits = {name: Fit(channels, outputs, limits[name]) for name, _, channels, outputs in named}
    for features, picture in examples:
        for index, layer in enumerate(network.layers):
            for name in exits(network).get(f"layers.{index}", ()):
                fits[name].add(features, _wanted(picture, features, len(fits[name].both[0])))
            features = layer(features)
    return {name: each.solve() for name, each in fits.items()}


def exits(network: EmbeddedDecoder) -> dict[str, list[str]]:
    """The layers whose inputs heads read, and these heads."""
    layers = [name for name, *_ in plan(*network.sizes)]
    found: dict[str, list[str]] = {}
    for name, index, _, _ in heads(*network.sizes):
        found.setdefault(layers[index], []).append(name)
    return found


def _wanted(picture: Tensor, features: Tensor, outputs: int) -> Tensor:
    """What outputs of features [B, C, h, w] become pixels: [B, outputs, h, w]."""
    factor = math.isqrt(outputs // 3)
    means = F.avg_pool2d(picture, picture.shape[-1] // (factor * features.shape[-1]))
    return F.pixel_unshuffle(means, factor)
