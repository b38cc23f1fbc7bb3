"""Finding text and graphics in an image: type, lines, user interfaces, charts.

Tiles are judged by statistics of their pixels; native/graphics.c says how.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.imaging import arrays
from dynenc.imaging.arrays import Pixels
from dynenc.latent_space import ceil_div
from dynenc.native import kernel
from dynenc.native.kernel import TILE, Counts, Search

Mask = npt.NDArray[np.bool_]

NOISY_TILES, NOISY_SHARE = 60, 1 / 3  # tiles that could be text in noise, alone and of those found
STRIP = 2**20  # px that are looked at at once


def find(image: Image.Image | Pixels, *, eager: bool = False) -> Mask:
    """The tiles of an RGB image that hold text or graphics, and flats that adjoin them.

    Args:
        eager: take single tiles for text, too, that resemble it by themselves.
    Returns: [rows, columns] of tiles of 16x16 px, those at the right and lower edge cut off.
    """
    search = Search.EAGER if eager else Search.TEXT
    found, n_noisy = kernel.find_graphics_tiles(_measured(image), search)
    if n_noisy < NOISY_TILES or n_noisy < NOISY_SHARE * np.count_nonzero(found):
        return found
    halved, _ = kernel.find_graphics_tiles(
        _measured(image, 2), Search.HALVED
    )  # with half the noise
    rows, columns = found.shape
    return found | halved.repeat(2, 0).repeat(2, 1)[:rows, :columns]


def _measured(image: Image.Image | Pixels, divisor: int = 1) -> Counts:
    """The statistics of an image's tiles, in strips, as the pixels of a Pillow image are copied.

    Args:
        divisor: 2 for the tiles of the image of half the sides.
    """
    height, width = arrays.height_width(image)
    side = divisor * TILE
    high = side * max(1, STRIP // (side * width))
    found = []
    for top in range(0, height, high):
        below = min(top + high, height)
        strip = arrays.part_of(image, 0, top, width, min(below + divisor, height))
        found.append(kernel.tile_statistics(strip, ceil_div(below - top, side), divisor))
    return found[0] if len(found) == 1 else np.concatenate(found, 1)


def shape_of(image: Image.Image) -> tuple[int, int]:
    """The number of rows and columns of tiles."""
    return ceil_div(image.height, TILE), ceil_div(image.width, TILE)


def dilated(mask: Mask) -> Mask:
    """A dilation by one tile in all eight directions."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    high = wide.copy()
    high[:, 1:] |= wide[:, :-1]
    high[:, :-1] |= wide[:, 1:]
    return high
