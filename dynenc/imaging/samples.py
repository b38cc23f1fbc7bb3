"""Grey samples of more than 8 bits, integers or floats -> 8 bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynenc.errors import ImageError
from dynenc.imaging.notes import note

MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}  # Pillow's modes of such samples
INTEGER_TOPS = (255, 65_535, 2**31 - 1, 2**32 - 1)  # values that may stand for white
FLOAT_TOPS = (1.0, 255.0, 65_535.0)
OVERSHOOT = 0.25  # floats may exceed black and white by so much of the range; it is clipped

Samples = npt.NDArray[Any]


def to_grey(image: Image.Image) -> Image.Image:
    """An image of one of the `MODES` as L, or LA if a value is transparent.

    16 bits are scaled from 0..65535; other types from the range that their values need.
    Raises: ImageError if the range is unclear, or values are not finite.
    """
    top = 65_535 if image.mode.startswith("I;16") else None
    return reduced(values(image), top, transparent=image.info.get("transparency"))


def values(image: Image.Image) -> Samples:
    """The samples [height, width] of an image of one of the `MODES`."""
    if image.mode == "I;16N":  # not supported by numpy; Pillow 11 and 12 convert it to 8 bits
        return np.frombuffer(image.tobytes(), np.uint16).reshape(image.height, image.width)
    return np.asarray(image)


def reduced(
    samples: Samples, top: float | Sequence[float] | None, transparent: Any = None
) -> Image.Image:
    """Samples [height, width] as an L image, or as LA if one of their values is transparent.

    Args:
        samples: integers or floats, 0 is black.
        top: the value of white; of several, or of the usual ones (None), the smallest one that is
            not exceeded.
        transparent: the value that is transparent.
    Raises: ImageError.
    """
    if not isinstance(top, float | int):
        top = white_level(samples, top or ())
        told = "0 to 1" if top == 1 else f"0 to {top:.0f}"
        note(f"samples are scaled to 8 bits from a range of {told}, as their values suggest")
    else:
        note("more than 8 bits per channel are reduced to 8")
    scaled = samples.astype(np.float64) * (255 / top)
    grey = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def white_level(samples: Samples, candidates: Sequence[float] = ()) -> float:
    """The smallest usual value of white that samples do not exceed; raises ImageError."""
    is_float = samples.dtype.kind == "f"
    if is_float and not np.isfinite(samples).all():
        raise ImageError("the samples are not finite: NaN and infinite values are not colours")
    low, high = float(samples.min()), float(samples.max())
    slack = OVERSHOOT if is_float else 0
    for top in candidates or (FLOAT_TOPS if is_float else INTEGER_TOPS):
        if high <= top * (1 + slack):
            if low < -top * slack:
                break
            return top
    raise ImageError(
        f"the samples range from {low:g} to {high:g}, which is not a usual range: scale them to "
        f"{'0..1' if is_float else '0..65535'} first"
    )
