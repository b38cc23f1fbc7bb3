"""Views: which part of an image is decoded, and at what size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from dynenc.arguments import checked_integer
from dynenc.errors import UsageError
from dynenc.latent_space import ceil_div

if TYPE_CHECKING:
    from PIL import Image

DIVISORS = (1, 2, 4, 8)  # of the sides of an image


class Region(NamedTuple):
    """A rectangle of an image, in px."""

    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow's `crop` takes them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of an array."""
        left, top, right, bottom = self.box
        return slice(top, bottom), slice(left, right)

    def common(self, other: Region) -> Region:
        """The part within another region; `is_empty` if there is none."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = (min(pair) for pair in zip(self.box[2:], other.box[2:], strict=True))
        return Region(left, top, right - left, bottom - top)

    @property
    def is_empty(self) -> bool:
        """Whether it has no pixels."""
        return self.width <= 0 or self.height <= 0

    def __str__(self) -> str:
        return ",".join(map(str, self))


@dataclass(frozen=True, slots=True)
class View:
    """A region of an image, or all of it, at a fraction of its size."""

    region: Region | None = None  # in px of the full-size image; None: all of it
    divisor: int = 1  # one of DIVISORS

    @classmethod
    def of(cls, region: Sequence[int] | None, scale: float | Fraction) -> View:
        """The view for the arguments of `Codec.decode`.

        Args:
            region: left, top, width and height in px; None is the whole image.
            scale: 1, 1/2, 1/4 or 1/8.
        Raises: UsageError.
        """
        return cls(None if region is None else region_of(region), divisor_of(scale))

    def within(self, size: tuple[int, int]) -> Region:
        """The region in an image of that width and height; raises UsageError if it is outside."""
        if self.region is None:
            return Region(0, 0, *size)
        _, _, right, bottom = self.region.box
        if right > size[0] or bottom > size[1]:
            raise UsageError(
                f"region {self.region} is not within the image of {size[0]}x{size[1]} px",
                hint="left + width and top + height must not exceed its sides",
            )
        return self.region

    def scaled(self, size: tuple[int, int]) -> Region:
        """The region in px of the scaled image, whose sides are rounded up.

        Pixels that the region only partly covers are included.
        """
        left, top, right, bottom = self.within(size).box
        left, top = left // self.divisor, top // self.divisor
        right, bottom = ceil_div(right, self.divisor), ceil_div(bottom, self.divisor)
        return Region(left, top, right - left, bottom - top)

    def covered(self, size: tuple[int, int]) -> Region:
        """The region of the full-size image that the pixels of `scaled` cover."""
        left, top, right, bottom = (self.divisor * side for side in self.scaled(size).box)
        return Region(left, top, min(right, size[0]) - left, min(bottom, size[1]) - top)

    def cut(self, image: Image.Image) -> Image.Image:
        """Crop and reduce a full-size image; pixels that become one are averaged."""
        region = self.covered(image.size)
        if region[2:] != image.size:
            image = image.crop(region.box)
        return self.reduced(image)

    def reduced(self, image: Image.Image) -> Image.Image:
        """Reduce an image of the covered region to the scale of the view."""
        return image.reduce(self.divisor) if self.divisor > 1 else image

    def __str__(self) -> str:
        region = f"region {self.region}" if self.region else ""
        scale = f"scale 1/{self.divisor}" if self.divisor > 1 else ""
        return ", ".join(filter(None, (region, scale)))


WHOLE = View()


def region_of(values: Any) -> Region:
    """A non-empty region of four integers; raises UsageError."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != 4:
        raise UsageError(f"a region is four numbers (left, top, width, height), not {values!r}")
    left, top = (
        checked_integer(f"region's {name}", value)
        for name, value in zip(("left", "top"), values[:2], strict=True)
    )
    width, height = (
        checked_integer(f"region's {name}", value, 1)
        for name, value in zip(("width", "height"), values[2:], strict=True)
    )
    return Region(left, top, width, height)


def divisor_of(scale: Any) -> int:
    """The divisor of the sides for a scale; raises UsageError."""
    if isinstance(scale, Real) and not isinstance(scale, bool):
        for divisor in DIVISORS:
            if scale * divisor == 1:
                return divisor
    raise UsageError(f"scale must be 1, 1/2, 1/4 or 1/8, not {scale}")
