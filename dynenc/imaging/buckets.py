"""Buckets: the few sizes that training images are brought to, so that they share batches."""

import math
from dataclasses import dataclass

from PIL import Image

STEP = 64  # px, of both sides
MOST_ASPECT = 4.0  # of the longer to the shorter side


@dataclass(frozen=True, slots=True)
class Fitted:
    """An image in the size of its bucket."""

    image: Image.Image
    left: int  # px, cut off after resizing; as much is cut off on the other side
    top: int


def bucket(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The size for an image: of at most resolution^2 px, never enlarged.

    Sides are multiples of STEP, or for smaller images of 8. Of the largest sizes of each width, the
    nearest in aspect ratio is taken.
    Returns: width and height, px; 0 for sides below 8 px.
    """
    step = STEP if min(width, height) >= STEP else 8
    limit = min(resolution**2, width * height)
    sizes = []
    for w in range(step, min(width, limit // step) + 1, step):
        h = min(height, limit // w) // step * step
        if h and max(w, h) <= MOST_ASPECT * min(w, h):
            sizes.append((w, h))
    if not sizes:  # a strip: the middle of it
        side = min(width, height, resolution) // step * step
        longer = int(MOST_ASPECT) * side
        return (longer, side) if width > height else (side, longer)
    aspect = math.log(width / height)
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - aspect), 6), -s[0] * s[1]))


def fit(image: Image.Image, size: tuple[int, int]) -> Fitted:
    """Resize an image to cover a size, and cut the middle out of it."""
    scale = max(wanted / has for wanted, has in zip(size, image.size, strict=True))
    covering = [
        max(round(has * scale), wanted) for wanted, has in zip(size, image.size, strict=True)
    ]
    if tuple(covering) != image.size:
        image = image.resize((covering[0], covering[1]), Image.Resampling.LANCZOS)
    left, top = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    cut = image.crop((left, top, left + size[0], top + size[1]))
    return Fitted(cut, left, top)
