"""Images as tensors and back, in parts and batches, and the padding to whole patches."""

import math

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dynenc.coding.bitstream import MAX_SIDE
from dynenc.errors import ImageError
from dynenc.latent_space import SD1
from dynenc.networks.encoder import to_floats

Picture = Image.Image | npt.NDArray[np.uint8] | Tensor  # any mode; [H, W, 3]; [1, 3, H, W]
MAX_FLOAT = 2.0  # of tensors; decoders overshoot [-1, 1] by less


def to_tensor(picture: Image.Image | Tensor) -> Tensor:
    """RGB Pillow image, or uint8 tensor -> [1, 3, H, W] float32 in [-1, 1]; floats stay.

    What comes of a Pillow image has the channels last in memory.
    """
    if isinstance(picture, Image.Image):
        picture = _bytes_of(picture)
    return to_floats(picture)


def _bytes_of(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def checked(picture: Picture) -> Image.Image | Tensor:
    """The colours alone as Pillow RGB or [1, 3, H, W], uint8 or float32, not copied.

    Args:
        picture: array, tensor, or Pillow image as `to_plain` gives it.
    Raises: ImageError if it is of another shape or type, holds NaN or infinity, or a side is 0 or
        above 65,535 px.
    """
    if isinstance(picture, Image.Image):
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        width, height = picture.size
    else:
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        if not isinstance(picture, Tensor):
            raise ImageError(
                f"a {type(picture).__name__} is not a picture: give a path, a Pillow image, an "
                "array or a tensor"
            )
        if picture.dim() == 3:
            picture = picture[None]
        if picture.dim() != 4 or picture.shape[:2] != (1, 3):
            raise ImageError(
                f"a tensor of shape {list(picture.shape)} is not one RGB picture [1, 3, H, W]"
            )
        if picture.dtype != torch.uint8:
            picture = _checked_floats(picture)
        height, width = picture.shape[-2:]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f"the picture is {width}x{height} px; its sides must be 1 to {MAX_SIDE}")
    return picture


def _checked_floats(picture: Tensor) -> Tensor:
    """A tensor as float32; raises ImageError unless its values are finite floats in [-1, 1]."""
    if not picture.is_floating_point():
        raise ImageError(
            f"a tensor of {picture.dtype} is not a picture: give uint8 in 0..255 or float in -1..1"
        )
    picture = picture.float()
    low, high = (float(each) for each in picture.aminmax()) if picture.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the tensor holds pixels that are NaN or infinite")
    if max(-low, high) > MAX_FLOAT:
        raise ImageError(
            f"the tensor's values reach from {low:g} to {high:g}: give them in [-1, 1]"
        )
    return picture


def _from_array(array: npt.NDArray[np.uint8]) -> Tensor:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)} is not one RGB picture: "
            "give uint8 [H, W, 3]"
        )
    if not (array.flags.c_contiguous and array.flags.writeable):  # else torch cannot look at it
        array = array.copy()
    return torch.from_numpy(array).permute(2, 0, 1)


def size_of(picture: Image.Image | Tensor) -> tuple[int, int]:
    """Height and width of what `checked` gave, in px."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[-2], picture.shape[-1]


def part_of(picture: Image.Image | Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """A part of what `checked` gave, in px: [1, 3, h, w] uint8 or float32.

    What lies beyond the picture is left out, and its edge repeated up to whole patches. Channels
    are last in memory, unless a tensor of the user's has them elsewhere.
    """
    if isinstance(picture, Tensor):
        return pad(picture[..., top:bottom, left:right])
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    if box != (0, 0, picture.width, picture.height):
        picture = picture.crop(box)
    return pad(_bytes_of(picture))


def to_picture(image: Tensor) -> Image.Image:
    """[1, 3, H, W] float, about [-1, 1] -> RGB Pillow image, rounded and clamped."""
    pixels = image[0].float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def pad(image: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are multiples of 8; any dtype.

    What is padded has the channels last in memory.
    """
    pixels = image.permute(0, 2, 3, 1)
    for side in (1, 2):
        if missing := -pixels.shape[side] % SD1.patch:
            last = pixels.narrow(side, pixels.shape[side] - 1, 1)
            pixels = torch.cat([pixels, last.repeat_interleave(missing, side)], side)
    return pixels.permute(0, 3, 1, 2)


def batch(images: list[Tensor]) -> Tensor:
    """Images [1, 3, H, W] of one size as [B, 3, H, W], channels last in memory; one as it is."""
    if len(images) == 1:
        return images[0]
    return torch.cat([image.permute(0, 2, 3, 1) for image in images]).permute(0, 3, 1, 2)
