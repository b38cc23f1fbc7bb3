"""Colours for transparent pixels."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.latent_space import PATCH

Array = npt.NDArray[Any]


def filled(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """An L or RGB image with transparent pixels filled smoothly, which costs the fewest bits."""
    seen = np.asarray(alpha) > 0
    colours = np.asarray(image.convert("RGB"))
    coarse = _spread(*_reduced(colours * seen[..., None], seen, PATCH))
    background = Image.fromarray(coarse.round().astype(np.uint8))
    background = background.resize(image.size, Image.Resampling.BILINEAR).convert(image.mode)
    return Image.composite(image, background, Image.fromarray(seen))


def _spread(colours: Array, seen: Array) -> Array:
    """Fill unseen pixels with the mean colour of seen ones nearby, from coarse to fine.

    [h, w, 3] float, 0 where not seen, and [h, w] bool -> [h, w, 3] (the push-pull of Gortler et
    al., The Lumigraph, 1996).
    """
    if seen.all() or seen.size == 1:
        return colours
    coarse = _spread(*_reduced(colours, seen, 2))
    height, width = seen.shape
    near = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(seen[..., None], colours, near)


def _reduced(colours: Array, seen: Array, by: int) -> tuple[Array, Array]:
    """The mean of the seen pixels in each square of by x by pixels, and whether there are any."""

    def total(values: Array) -> Array:
        for axis in (0, 1):
            starts = np.arange(0, values.shape[axis], by)
            values = np.add.reduceat(values, starts, axis, dtype=np.float64)
        return values

    count = total(seen)
    return total(colours) / np.maximum(count, 1)[..., None], count > 0
