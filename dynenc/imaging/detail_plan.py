"""Plan the detail layer of an image to encode: which tiles, in which quality, or a warning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from PIL import Image, features

from dynenc.coding.bitstream import Chunk
from dynenc.coding.encode_options import DetailMode
from dynenc.imaging import arrays, detail, graphics
from dynenc.imaging.arrays import RgbImage
from dynenc.imaging.graphics import Mask
from dynenc.imaging.notes import ILLEGIBLE
from dynenc.native.kernel import TILE, Floats

WHOLE_LAYER_SHARE = 0.5  # share of tiles from which on a layer of the whole image is tried
WHOLE_QUALITY_GAIN = 17.0  # added to the quality of a layer that replaces a photograph's latents
PHOTO_QUALITY_CUT = 8.0  # quality that a layer beside a photograph needs less to be as legible
CONTRAST = 6.0  # levels; the standard deviation of brightness in tiles of a photograph is larger
PHOTOGRAPHIC = 0.25  # share of such tiles among those outside the mask that make a photograph
NO_FORM = "install a Pillow that writes AVIF, or use another format"
TOO_LARGE = "it is too large for AVIF, use another format"


@dataclass(frozen=True, eq=False)
class DetailPlan:
    """The detail layer of one image, if it has one."""

    image: RgbImage
    mask: Mask | None = None  # None: no layer
    warning: str = ""  # that text will not be legible
    chunks: dict[int, Chunk] = field(default_factory=dict)  # made before, by the layer's quality
    quality_offset: float = 0.0  # added to the file's quality for the layer
    fixed_quality: float | None = None  # of the file, for the layer; None: the file's own

    @property
    def is_whole(self) -> bool:
        """Whether the layer covers the whole image."""
        return self.mask is not None and bool(self.mask.all())

    @property
    def can_fix_quality(self) -> bool:
        """Whether the file's size can be changed by the latents alone."""
        return self.mask is not None and not self.is_whole and self.fixed_quality is None

    @property
    def may_be_whole(self) -> bool:
        """Whether a layer of the whole image could be smaller than latents plus layer."""
        return self.mask is not None and WHOLE_LAYER_SHARE <= self.mask.mean() < 1

    @cached_property
    def rgb(self) -> Image.Image:
        """The image with 8 bits: RGB."""
        return _rgb(self.image)

    @cached_property
    def base_image(self) -> RgbImage:
        """The image to encode to latents."""
        return self.image if self.mask is None else detail.base_image(self.rgb, self.mask)

    @property
    def has_photograph(self) -> bool:
        """Whether most tiles outside the mask are not those of paper, flats or gradients."""
        assert self.mask is not None
        rows, columns = self.rgb.height // TILE, self.rgb.width // TILE  # whole ones alone
        levels = np.asarray(self.rgb.convert("L"))[: rows * TILE, : columns * TILE]
        contrast = levels.reshape(rows, TILE, columns, TILE).std((1, 3), dtype=np.float32)
        outside = contrast[~self.mask[:rows, :columns]]
        return bool(outside.size) and float((outside > CONTRAST).mean()) >= PHOTOGRAPHIC

    def zero_covered_latents(self, latents: Floats) -> Floats:
        """Latents [C, h, w] of `base_image`, 0 where the layer hides them to cost few bits."""
        if self.mask is None:
            return latents
        return np.where(detail.hidden_latents(self.mask, self.rgb.size), np.float32(0), latents)

    def with_covered_pixels(self, decoded: Image.Image) -> Image.Image:
        """`base_image`, with hidden pixels taken from `decoded`: refinement need not match them."""
        assert self.mask is not None
        outside = detail.weights(self.mask, self.rgb.size, detail.KEPT_EDGE) <= detail.KEPT_EDGE
        assert isinstance(self.base_image, Image.Image)
        return Image.composite(self.base_image, decoded, Image.fromarray(outside))

    def whole(self) -> DetailPlan:
        """A copy whose layer covers the whole image, at a higher quality if it has a photograph."""
        mask = np.ones(graphics.shape_of(self.rgb), np.bool_)
        if not detail.layer_format(mask, self.rgb.size):
            return self
        quality_offset = WHOLE_QUALITY_GAIN if self.has_photograph else 0.0
        return replace(self, mask=mask, chunks={}, quality_offset=quality_offset)

    def without_layer(self) -> DetailPlan:
        """A copy without a layer, with a warning that text will be illegible."""
        warning = "" if self.mask is None else _warning(self.mask, "use a larger target")
        return replace(self, mask=None, warning=warning, chunks={})

    def chunk(self, quality: float) -> Chunk:
        """The chunk of the layer for a quality of the file; there must be a layer."""
        assert self.mask is not None
        of_file = quality if self.fixed_quality is None else self.fixed_quality
        wanted = of_file + self.quality_offset
        level = detail.layer_quality(wanted)
        if level not in self.chunks:
            self.chunks[level] = detail.to_chunk(self.rgb, self.mask, wanted)
        return detail.with_quality(self.chunks[level], quality)


def plan_detail(image: RgbImage, mode: DetailMode) -> DetailPlan:
    """The layer for an image from `arrays.as_rgb`.

    Args:
        mode: 'auto' looks for text and graphics; 'on' also accepts less certain tiles; 'off' makes
            no layer.
    """
    seen = image if isinstance(image, Image.Image | np.ndarray) else _rgb(image)
    mask = graphics.find(seen, eager=mode == "on")
    if not mask.any():
        return DetailPlan(image)
    if mode == "off":
        return DetailPlan(image, warning=_warning(mask, "use --detail auto, or another format"))
    height, width = arrays.height_width(image)
    if not detail.layer_format(mask, (width, height)):
        advice = TOO_LARGE if features.check("avif") else NO_FORM
        return DetailPlan(image, warning=_warning(mask, advice))
    plan = DetailPlan(image, mask)
    return replace(plan, quality_offset=-PHOTO_QUALITY_CUT) if plan.has_photograph else plan


def _rgb(image: RgbImage) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    from dynenc.imaging import tensors  # imports torch, as the caller has done

    return tensors.to_image(tensors.to_tensor(image))


def _warning(mask: Mask, advice: str) -> str:
    percent = max(1, round(100 * float(mask.mean())))
    return f"{percent} % {ILLEGIBLE}: {advice}"
