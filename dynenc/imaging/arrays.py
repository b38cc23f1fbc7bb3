"""Images as 8-bit arrays: checks and tiles. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.coding.bitstream import MAX_SIDE
from dynenc.errors import ImageError
from dynenc.latent_space import PATCH, latent_size
from dynenc.native.kernel import Floats

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
ImageLike: TypeAlias = "Image.Image | Pixels | Tensor"  # any mode; [H, W, 3]; [1, 3, H, W]
RgbImage: TypeAlias = "Image.Image | Pixels | Tensor"  # RGB; [H, W, 3]; [1, 3, H, W]
SMALL_PIXELS = 2**21
TILE_PATCHES = 176  # patches; larger tiles need more memory, and more time to map it


def as_rgb(image: ImageLike) -> RgbImage:
    """The colours alone as Pillow RGB, uint8 [H, W, 3] or [1, 3, H, W] of any dtype, not copied.

    Args:
        image: array, tensor, or Pillow image from `to_plain`.
    Raises: ImageError if it has another shape or type, has NaN or infinite values, or if a side is
        0 or above 65,535 px.
    """
    if isinstance(image, Image.Image):
        image = image if image.mode == "RGB" else image.convert("RGB")
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"an array of {image.dtype} {list(image.shape)} is not one RGB image: "
                "give uint8 [H, W, 3]"
            )
    else:
        from dynenc.imaging import tensors

        image = tensors.as_rgb(image)
    height, width = height_width(image)
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f"the image is {width}x{height} px; its sides must be 1 to {MAX_SIDE}")
    return image


def as_array_if_small(image: RgbImage) -> RgbImage:
    """A Pillow image of up to SMALL_PIXELS px as an array; any other image unchanged.

    Pillow copies the pixels at each access. Large images are copied in parts, to save memory.
    """
    is_small = isinstance(image, Image.Image) and image.width * image.height <= SMALL_PIXELS
    return np.asarray(image) if is_small else image


def height_width(image: RgbImage) -> tuple[int, int]:
    """Height and width of an image from `as_rgb`, in px."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    return image.shape[-2], image.shape[-1]


def part_of(image: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    """A part of an image: uint8 [h, w, 3], a view where possible.

    The box is in px; right and bottom may exceed the image.
    """
    if isinstance(image, np.ndarray):
        return image[top:bottom, left:right]
    box = left, top, min(right, image.width), min(bottom, image.height)
    if box != (0, 0, image.width, image.height):
        image = image.crop(box)
    return np.asarray(image)


@dataclass(frozen=True, slots=True)
class EncodingTile:
    """A part of an image that is encoded separately."""

    box: tuple[int, int, int, int]  # left, top, right and bottom, px; may exceed the image
    latents: tuple[slice, slice]  # rows and columns of the image's latents that it yields
    inner: tuple[slice, slice]  # the same within the latents of the tile


def tiles(height: int, width: int, reach: int) -> Iterator[EncodingTile]:
    """The tiles of an image, row by row.

    Args:
        height, width: of the image in px.
        reach: patches to each side that a latent depends on.
    """
    rows, columns = latent_size(height, width)
    side = TILE_PATCHES
    for top, left in product(range(0, rows, side), range(0, columns, side)):
        first, start = max(0, top - reach), max(0, left - reach)
        right, bottom = left + side + reach, top + side + reach
        yield EncodingTile(
            (PATCH * start, PATCH * first, PATCH * right, PATCH * bottom),
            (slice(top, min(top + side, rows)), slice(left, min(left + side, columns))),
            (slice(top - first, top - first + side), slice(left - start, left - start + side)),
        )


def encode_in_tiles(
    size: tuple[int, int], count: int, reach: int, encode: Callable[[EncodingTile], Floats]
) -> Floats:
    """Latents [count, C, h, w] of images of equal size, encoded tile by tile.

    Args:
        size: height and width in px.
        reach: see `tiles`; it makes the result equal to that of encoding the whole image.
        encode: returns the latents of the box of a tile for each image.
    """
    first, *others = tiles(*size, reach)
    found = encode(first)
    if not others:
        return found
    latents = np.empty((count, found.shape[1], *latent_size(*size)), np.float32)
    latents[(..., *first.latents)] = found[(..., *first.inner)]
    for tile in others:
        latents[(..., *tile.latents)] = encode(tile)[(..., *tile.inner)]
    return latents
