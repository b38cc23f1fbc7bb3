"""Images as tensors and back: parts, batches, and padding to whole patches."""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynenc.errors import ImageError
from dynenc.imaging import arrays
from dynenc.imaging.arrays import Pixels, RgbImage
from dynenc.latent_space import PATCH
from dynenc.networks.encoder import to_floats

MAX_FLOAT = 2.0  # of tensors; decoders overshoot [-1, 1] by less


def to_tensor(image: RgbImage) -> Tensor:
    """RGB Pillow image, or uint8 [H, W, 3] or tensor -> [1, 3, H, W] float32 in [-1, 1].

    Floats are unchanged. From a Pillow image or array, the tensor has channels last in memory.
    """
    return to_floats(image if isinstance(image, Tensor) else _of_pixels(np.asarray(image)))


def _of_pixels(pixels: Pixels) -> Tensor:
    """Pixels [H, W, 3] as uint8 [1, 3, H, W]."""
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):  # torch cannot view it
        pixels = pixels.copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def as_rgb(image: object) -> Tensor:
    """A tensor as [1, 3, H, W], uint8 or float32; see `arrays.as_rgb`.

    Raises: ImageError if it is not a tensor, has another shape or type, or NaN or infinite values.
    """
    if not isinstance(image, Tensor):
        raise ImageError(
            f"{type(image).__name__} is not a type of images: give a path, a Pillow image, an "
            "array or a tensor"
        )
    if image.layout != torch.strided or image.is_meta:
        raise ImageError("a sparse tensor, or one without data, is not an image")
    if image.dim() == 3:
        image = image[None]
    if image.dim() != 4 or image.shape[:2] != (1, 3):
        raise ImageError(f"a tensor of shape {list(image.shape)} is not one RGB image [1, 3, H, W]")
    return image if image.dtype == torch.uint8 else _checked_floats(image)


def _checked_floats(image: Tensor) -> Tensor:
    """A tensor as float32; raises ImageError unless its values are finite floats in [-1, 1]."""
    if not image.is_floating_point():
        raise ImageError(
            f"a tensor of {image.dtype} is not an image: give uint8 in 0..255 or float in -1..1"
        )
    image = image.detach().float()
    low, high = (float(each) for each in image.aminmax()) if image.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the tensor has pixels that are NaN or infinite")
    if max(-low, high) > MAX_FLOAT:
        raise ImageError(
            f"the tensor's values range from {low:g} to {high:g}: scale them to [-1, 1]"
        )
    return image


def part_of(image: RgbImage, left: int, top: int, right: int, bottom: int) -> Tensor:
    """A part of an image from `arrays.as_rgb`, in px: [1, 3, h, w] uint8 or float32.

    It is clipped to the image, whose edges are repeated up to whole patches. Channels are last in
    memory, except for a user's tensor that has them elsewhere.
    """
    if isinstance(image, Tensor):
        return pad(image[..., top:bottom, left:right])
    return pad(_of_pixels(arrays.part_of(image, left, top, right, bottom)))


def to_image(image: Tensor) -> Image.Image:
    """[1, 3, H, W] float, roughly in [-1, 1] -> RGB Pillow image, rounded and clamped."""
    pixels = image[0].float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def pad(image: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are multiples of 8; any dtype.

    A padded result has channels last in memory.
    """
    pixels = image.permute(0, 2, 3, 1)
    for side in (1, 2):
        if missing := -pixels.shape[side] % PATCH:
            last = pixels.narrow(side, pixels.shape[side] - 1, 1)
            pixels = torch.cat([pixels, last.repeat_interleave(missing, side)], side)
    return pixels.permute(0, 3, 1, 2)


def batch(images: list[Tensor]) -> Tensor:
    """Images [1, 3, H, W] of equal size as [B, 3, H, W], channels last; a single one unchanged."""
    if len(images) == 1:
        return images[0]
    return torch.cat([image.permute(0, 2, 3, 1) for image in images]).permute(0, 3, 1, 2)
