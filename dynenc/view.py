"""Views: which part of a picture is decoded, and at which size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from dynenc.arguments import integer
from dynenc.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

DIVISORS = (1, 2, 4, 8)  # of the sides of a picture


class Region(NamedTuple):
    """A part of a picture, in px."""

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

    def __str__(self) -> str:
        return ",".join(map(str, self))


@dataclass(frozen=True, slots=True)
class View:
    """What is decoded of a picture: a region of it, or all, at a fraction of its size."""

    region: Region | None = None  # in px of the picture at its full size; None: all of it
    divisor: int = 1  # one of DIVISORS

    @classmethod
    def of(cls, region: Sequence[int] | None, scale: float | Fraction) -> View:
        """The view that users ask for.

        Args:
            region: left, top, width and height in px; None is the whole picture.
            scale: 1, 1/2, 1/4 or 1/8.
        Raises: UsageError.
        """
        return cls(None if region is None else region_of(region), divisor_of(scale))

    def within(self, size: tuple[int, int]) -> Region:
        """The part of a picture of that width and height; raises UsageError if it is outside."""
        if self.region is None:
            return Region(0, 0, *size)
        _, _, right, bottom = self.region.box
        if right > size[0] or bottom > size[1]:
            raise UsageError(
                f"region {self.region} is not within the picture of {size[0]}x{size[1]} px",
                hint="choose left + width and top + height within it",
            )
        return self.region

    def scaled(self, size: tuple[int, int]) -> Region:
        """The part of the picture at the view's scale, whose sides are rounded up.

        Pixels that a region cuts are part of it.
        """
        left, top, right, bottom = self.within(size).box
        left, top = left // self.divisor, top // self.divisor
        right, bottom = -(-right // self.divisor), -(-bottom // self.divisor)
        return Region(left, top, right - left, bottom - top)

    def covered(self, size: tuple[int, int]) -> Region:
        """The part of the picture at its full size that the pixels of `scaled` stand for."""
        left, top, right, bottom = (self.divisor * side for side in self.scaled(size).box)
        return Region(left, top, min(right, size[0]) - left, min(bottom, size[1]) - top)

    def cut(self, picture: Image.Image) -> Image.Image:
        """This of a whole picture, by the mean of the pixels that become one."""
        region = self.covered(picture.size)
        if region[2:] != picture.size:
            picture = picture.crop(region.box)
        return self.reduced(picture)

    def reduced(self, picture: Image.Image) -> Image.Image:
        """A picture of what the view covers at the view's scale."""
        return picture.reduce(self.divisor) if self.divisor > 1 else picture

    def __str__(self) -> str:
        region = f"region {self.region}" if self.region else ""
        scale = f"scale 1/{self.divisor}" if self.divisor > 1 else ""
        return ", ".join(filter(None, (region, scale)))


WHOLE = View()


def region_of(values: Any) -> Region:
    """A region of four whole numbers, not empty; raises UsageError."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or len(values) != 4:
        raise UsageError(f"region {values!r} is not four numbers: left, top, width and height")
    left, top = (
        integer(f"region's {name}", value)
        for name, value in zip(("left", "top"), values[:2], strict=True)
    )
    width, height = (
        integer(f"region's {name}", value, 1)
        for name, value in zip(("width", "height"), values[2:], strict=True)
    )
    return Region(left, top, width, height)


def divisor_of(scale: Any) -> int:
    """What a scale divides the sides by; raises UsageError."""
    if isinstance(scale, Real) and not isinstance(scale, bool):
        for divisor in DIVISORS:
            if scale * divisor == 1:
                return divisor
    raise UsageError(f"scale {scale} is not possible: choose 1, 1/2, 1/4 or 1/8")
