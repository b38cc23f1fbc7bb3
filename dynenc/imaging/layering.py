"""What becomes of text and graphics in an image that is encoded: a detail layer, or a warning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image

from dynenc.coding.bitstream import Chunk
from dynenc.coding.rate_control import DETAIL_MODES, DetailMode
from dynenc.errors import UsageError
from dynenc.imaging import arrays, detail, graphics
from dynenc.imaging.arrays import Checked
from dynenc.imaging.graphics import Mask
from dynenc.imaging.notes import ILLEGIBLE

NEARLY = 0.5  # share of tiles from which on a layer of the whole image is tried
NO_FORM = "this Pillow writes no AVIF or WebP image of its size"


@dataclass(frozen=True, eq=False)
class Layering:
    """The layer that one image gets, if it gets one."""

    picture: Checked
    mask: Mask | None = None  # None: no layer
    warning: str = ""  # that text will not be legible
    chunks: dict[int, Chunk] = field(default_factory=dict)  # made before, by the layer's quality

    @property
    def is_whole(self) -> bool:
        """Whether the layer is all of the image."""
        return self.mask is not None and bool(self.mask.all())

    @property
    def may_be_whole(self) -> bool:
        """Whether a layer of the whole image may be smaller than latents and layer."""
        return self.mask is not None and NEARLY <= self.mask.mean() < 1

    @cached_property
    def rgb(self) -> Image.Image:
        """The picture with 8 bits: RGB."""
        return _rgb(self.picture)

    @cached_property
    def beneath(self) -> Checked:
        """The picture to take latents of."""
        return self.picture if self.mask is None else detail.beneath(self.rgb, self.mask)

    def whole(self) -> Layering:
        """The same with a layer of the whole image."""
        mask = np.ones(graphics.shape_of(self.rgb), np.bool_)
        if not detail.writable(mask, self.rgb.size):
            return self
        return replace(self, mask=mask, chunks={})

    def dropped(self) -> Layering:
        """The same without a layer."""
        warning = "" if self.mask is None else _warning(self.mask, "use a larger target")
        return replace(self, mask=None, warning=warning, chunks={})

    def chunk(self, quality: float) -> list[Chunk]:
        """The chunk of the layer for a quality of the file, if there is a layer."""
        if self.mask is None:
            return []
        level = detail.layer_quality(quality)
        if level not in self.chunks:
            self.chunks[level] = detail.to_chunk(self.rgb, self.mask, quality)
        return [detail.with_quality(self.chunks[level], quality)]


def of(picture: Checked, mode: DetailMode) -> Layering:
    """The layer for a picture that `arrays.checked` gave.

    Args:
        mode: 'auto' looks for text and graphics; 'on' takes for that what resembles it less, too;
            'off' makes no layer.
    Raises: UsageError if there is no such mode.
    """
    if mode not in DETAIL_MODES:
        raise UsageError(f"there is no detail {mode!r}: choose one of {', '.join(DETAIL_MODES)}")
    seen = picture if isinstance(picture, Image.Image | np.ndarray) else _rgb(picture)
    mask = graphics.find(seen, eager=mode == "on")
    if not mask.any():
        return Layering(picture)
    if mode == "off":
        return Layering(picture, warning=_warning(mask, "use --detail auto, or another format"))
    height, width = arrays.size_of(picture)
    if not detail.writable(mask, (width, height)):
        return Layering(picture, warning=_warning(mask, f"{NO_FORM}, use another format"))
    return Layering(picture, mask)


def _rgb(picture: Checked) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    from dynenc.imaging import tensors  # imports torch, as the caller has done

    return tensors.to_picture(tensors.to_tensor(picture))


def _warning(mask: Mask, advice: str) -> str:
    percent = max(1, round(100 * float(mask.mean())))
    return f"{percent} % {ILLEGIBLE}: {advice}"
