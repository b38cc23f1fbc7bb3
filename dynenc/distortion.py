"""The distortion that refinement minimises: the distance of decoded latents from an image.

Squared error alone would blur, and exploit the decoder. So the features of a network that imitates
VGG-16 are compared as well; features of deep networks agree better with perception than pixels do
(Johnson et al., "Perceptual Losses for Real-Time Style Transfer", 2016).

Pixels are compared with a mix of the original and of what the decoder makes of the encoder's
latents before rounding: networks trained on perceptual losses put texture there that squared error
would remove. This gives up some PSNR, and LPIPS and DISTS fall with effort.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynenc.imaging.tensors import pad
from dynenc.latent_space import PATCH, ceil_div, latent_size
from dynenc.native.kernel import Floats
from dynenc.networks.perceptual_network import PerceptualNetwork

if TYPE_CHECKING:
    from dynenc.networks.tiling import TiledDecoder

STRUCTURE_WEIGHT = 0.0185  # of the structure loss, relative to the squared error of pixels
FEATURE_WEIGHTS = 0.2, 0.6  # of the squared differences of features at 1/2 and at 1/4 of the size
SCALES, BLOCK = 3, 8  # octaves on which structure is compared, and side of its blocks in px
DECODED_SHARE = 0.4  # share of the decoded latents in what pixels are compared with
MARGIN = 12  # latents decoded around a window, so that its border is the same as in the whole image


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the latents that is decoded separately, and its part of the image."""

    latents: tuple[slice, slice]  # decoded; with a margin
    patches: tuple[slice, slice]  # without the margin; their pixels are compared
    inner: tuple[slice, slice]  # px of these patches within the decoded window
    pixels: tuple[slice, slice]  # px of these patches within the image


@dataclass(frozen=True, slots=True)
class Target:
    """What the pixels of a window are compared with."""

    original: Tensor  # [1, 3, H, W] in [-1, 1]
    blend: Tensor  # between the original and the decoded latents, see DECODED_SHARE
    features: list[Tensor]  # of the original, see `PerceptualNetwork`


class Distortion:
    """The distortion of latents relative to one image.

    Args:
        image: [1, 3, H, W] in [-1, 1], on the decoder's device.
        latents: of the image, [1, C, h, w], not rounded, on the same device.
        step: quantiser step of the latents that are compared with it.
        perceptual: its features are compared.
        decoder: any decoder; only its output and gradient are used.
    """

    def __init__(
        self,
        image: Tensor,
        latents: Tensor,
        step: float,
        perceptual: PerceptualNetwork,
        decoder: TiledDecoder,
    ) -> None:
        self.step, self.perceptual, self.decoder = step, perceptual, decoder
        self._image, self._latents = image, latents
        self.windows = list(windows(image.shape[-2], image.shape[-1], window_side(decoder)))

    @cached_property
    def targets(self) -> list[Target]:
        """The targets of all windows. They take far more memory than the image."""
        with torch.no_grad():
            return [self._target(window) for window in self.windows]

    def _target(self, window: Window) -> Target:
        original = self._image[(..., *window.pixels)]
        blend = torch.lerp(original, self._decoded(self._latents, 0.0, window), DECODED_SHARE)
        return Target(original, blend, self.perceptual(pad(original)))

    def _decoded(self, latents: Tensor, step: float, window: Window) -> Tensor:
        """The pixels of a window, [1, 3, height, width] in [-1, 1], of latents [1, C, h, w]."""
        decoded: Tensor = self.decoder(latents[(..., *window.latents)], step)
        return decoded[(..., *window.inner)].clamp(-1, 1)

    def of(self, latents: Tensor) -> Floats:
        """Sums over the pixels of each patch, [h, w], of latents [1, C, h, w].

        If the latents require a gradient, that of the total is added to theirs. Works window by
        window, so that the memory of each is freed before the next.
        """
        found = np.empty(latents.shape[-2:], np.float32)
        for window, target in zip(self.windows, self.targets, strict=True):
            with torch.set_grad_enabled(latents.requires_grad):
                decoded = self._decoded(latents, self.step, window)
                distances = patch_distortion(decoded, target, self.perceptual)
            if latents.requires_grad:
                distances.sum().backward()
            found[window.patches] = distances.detach().cpu().numpy()
        return found

    def with_gradient(self, latents: Tensor) -> tuple[Floats, Tensor]:
        """The result of `of`, and the gradient of the total, [1, C, h, w]."""
        leaf = latents.detach().requires_grad_()
        leaf.grad = torch.zeros_like(leaf)
        return self.of(leaf), leaf.grad


def patch_distortion(decoded: Tensor, target: Target, perceptual: PerceptualNetwork) -> Tensor:
    """The distortion of an image, [1, 3, H, W], summed over the pixels of each patch: [H/8, W/8].

    The sum of the squared error of pixels, that of features, and the loss of contrast and structure
    in 8x8 blocks of three octaves (second term of SSIM, Wang et al. 2004), which keeps texture that
    squared error alone blurs.
    """
    original = target.original
    patches = latent_size(*original.shape[-2:])

    def by_patch(errors: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(errors.mean(1), patches)[0]

    padded = pad(decoded)
    total = by_patch((padded - pad(target.blend)).square())
    seen = perceptual(padded)
    for weight, found, wanted in zip(FEATURE_WEIGHTS, seen, target.features, strict=True):
        total = total + weight * by_patch((found - wanted).square().sum(1, keepdim=True))
    for scale in range(SCALES):
        if scale:
            decoded, original = F.avg_pool2d(decoded, 2), F.avg_pool2d(original, 2)
        if min(original.shape[-2:]) < BLOCK:
            break
        total = total + STRUCTURE_WEIGHT / SCALES * by_patch(1 - _structure(decoded, original))
    return total * PATCH**2


def _structure(one: Tensor, two: Tensor) -> Tensor:
    """SSIM's contrast-structure term of overlapping blocks."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, BLOCK, BLOCK // 2)

    mean_one, mean_two = mean(one), mean(two)
    variances = mean(one * one) - mean_one**2 + mean(two * two) - mean_two**2
    covariance = mean(one * two) - mean_one * mean_two
    constant = 4 * 0.03**2  # SSIM's C2, (0.03 L)^2, for values of range L = 2
    return (2 * covariance + constant) / (variances + constant)


def window_side(decoder: TiledDecoder) -> int:
    """Side of the windows for a decoder, in latents; with margins they fit into its tile."""
    return decoder.tiles.side // 2


def windows(height: int, width: int, side: int) -> Iterator[Window]:
    """Windows of at most side x side latents and nearly equal size that cover an image."""
    for rows in _windows_1d(height, side):
        for columns in _windows_1d(width, side):
            yield Window(*zip(rows, columns, strict=True))


def _windows_1d(pixels: int, side: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """The slices of `Window` in one dimension."""
    length = ceil_div(pixels, PATCH)
    count = ceil_div(length, side)
    for first, last in pairwise(i * length // count for i in range(count + 1)):
        begin, end = max(0, first - MARGIN), min(length, last + MARGIN)
        start, stop = first * PATCH, min(last * PATCH, pixels)
        inner = slice(start - begin * PATCH, stop - begin * PATCH)
        yield slice(begin, end), slice(first, last), inner, slice(start, stop)
