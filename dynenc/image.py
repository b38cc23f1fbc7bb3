"""Pictures: file or Pillow image <-> tensor, and the padding to whole patches."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dynenc.encoder import PATCH
from dynenc.errors import ImageError

WIDE_MODES = {"I;16", "I;16B", "I;16L", "I", "F"}  # of more than 8 bits; only grey ones exist


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Read a picture file as RGB, upright.

    The EXIF orientation is applied, transparency is composited onto white, 16-bit grey is scaled to
    8 bits. Raises: ImageError if the file is missing, not a picture, damaged, or a decompression
    bomb by Pillow's limits.
    """
    name = source if isinstance(source, Path) else "the input"
    try:
        with Image.open(source) as picture:
            return to_rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as exc:
        raise ImageError(f"{name} does not exist") from exc
    except UnidentifiedImageError as exc:
        raise ImageError(f"{name} cannot be read as a picture: no known format") from exc
    except Exception as exc:  # Pillow's plugins raise whatever a damaged file makes them trip over
        raise ImageError(f"{name} cannot be read as a picture: {exc}") from exc


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB, over white where it is transparent."""
    if picture.mode in WIDE_MODES:
        grey = np.asarray(picture, np.float64)
        if picture.mode != "F":
            grey = grey / 257  # 65535 -> 255
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB Pillow image -> [1, 3, H, W] float32 in [-1, 1], channels last in memory."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1)[None].float().div_(127.5).sub_(1)


def to_picture(image: Tensor) -> Image.Image:
    """[1, 3, H, W] float, about [-1, 1] -> RGB Pillow image, rounded and clamped."""
    pixels = image[0].float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def pad(image: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are multiples of 8."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % PATCH, 0, -height % PATCH), mode="replicate")
