"""Encoding one image: from latents and detail layer to the file that meets a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from dynenc.coding import bitstream, quantize, rate_control
from dynenc.coding.bitstream import Chunk
from dynenc.coding.encode_latents import encode_latents
from dynenc.coding.encode_options import EncodeOptions
from dynenc.coding.lat_file import LatFile
from dynenc.coding.rate_control import OnStep
from dynenc.imaging import arrays, notes
from dynenc.imaging import detail as detail_layer
from dynenc.imaging.arrays import RgbImage
from dynenc.imaging.detail_plan import DetailPlan
from dynenc.native.kernel import Floats
from dynenc.registry import Model

if TYPE_CHECKING:
    from PIL import Image

    from dynenc.backend import Backend
    from dynenc.networks.tiling import TiledDecoder

ALL_LAYER = "the detail layer covers the whole image, which takes fewer bytes"


@dataclass(frozen=True)
class Encoded:
    """An encoded image; `note` and `warning` are sentences without a full stop."""

    file: LatFile
    note: str = ""  # for the user: a missed target, or what the detail layer covers
    warning: str = ""  # for the user: text that will not be legible

    @cached_property
    def blob(self) -> bytes:
        """The bytes of the .lat file."""
        return self.file.to_bytes()

    @property
    def quality(self) -> float:
        """The quality of the file on the scale 0..100; with a target it may lie outside."""
        return detail_layer.file_quality(self.file)


class CodecParts(Protocol):
    """The parts of a codec that encoding needs."""

    model: Model

    @property
    def backend(self) -> Backend:
        """The networks in torch."""

    def decoder_of(self, model: Model) -> TiledDecoder:
        """The decoder in torch for a model's latents."""

    def latents(self, images: Sequence[RgbImage]) -> Floats:
        """Scaled latents [B, C, h, w] of images of equal padded size."""

    def decode_rgb(self, file: LatFile) -> Image.Image:
        """The colours of a file, with its detail layer: RGB."""


@dataclass(frozen=True, eq=False)
class EncodingJob:
    """An image being encoded: latents that can be quantised with any step."""

    codec: CodecParts
    latents: Floats  # [C, h, w], of the image beneath the detail layer
    layer: DetailPlan
    chunks: list[Chunk]  # without that of the layer
    options: EncodeOptions
    on_step: OnStep | None
    files: dict[int, LatFile] = field(init=False, default_factory=dict)  # cache, by step

    def encode(self) -> Encoded:
        """The file that meets the goal, or comes closest to it.

        Raises: TargetMissed if the goal is strict and missed; OutOfMemory during refinement.
        """
        goal, step_q = self.options.goal, rate_control.START_STEP_Q
        if goal.kind == "quality":
            has_trellis = self.codec.model.has_trellis
            step_q = quantize.quality_to_step(goal.value, has_trellis=has_trellis)
        chosen = self._smaller_variant(step_q)
        if goal.kind == "quality":
            encoded = Encoded(chosen._refined(chosen._file_at(step_q)), warning=self.layer.warning)
        elif goal.kind == "dB":
            encoded = chosen._for_psnr()
        else:
            encoded = chosen._for_size()
        if chosen is self or not detail_layer.has_layer(encoded.file):
            return encoded
        return replace(encoded, note=notes.joined(encoded.note, ALL_LAYER))

    def _smaller_variant(self, step_q: int) -> EncodingJob:
        """This file, or one whose layer covers the whole image if that is smaller."""
        if not self.layer.may_be_whole:
            return self
        other = replace(self, layer=self.layer.whole())
        return min(self, other, key=lambda each: len(each._file_at(step_q).to_bytes()))

    def _for_size(self) -> Encoded:
        goal = self.options.goal
        height, width = arrays.height_width(self.layer.image)
        max_bytes = goal.value * (height * width / 8 if goal.kind == "bpp" else 1)

        def size_of(file: LatFile) -> float:
            n_bytes = len(file.to_bytes())
            return bitstream.bpp(n_bytes, width, height) if goal.kind == "bpp" else n_bytes

        def measure(step_q: int) -> float:
            return size_of(self._file_at(step_q))

        step_q, reached = rate_control.search(measure, goal.value, at_most=True)
        if reached > goal.value and self.layer.mask is not None:  # the layer alone is too large
            [latents] = self.codec.latents([self.layer.image])
            return replace(self, latents=latents, layer=self.layer.without_layer())._for_size()
        is_close = reached >= (1 - rate_control.TOLERANCE) * goal.value
        if self.layer.can_fix_quality and not is_close:  # the layer's quality has coarse steps
            has_trellis = self.codec.model.has_trellis
            quality = quantize.step_to_quality(step_q, has_trellis=has_trellis)
            held = replace(self, layer=replace(self.layer, fixed_quality=quality))
            return held._for_size()
        refined = self._refined(self._file_at(step_q), max_bytes)
        return Encoded(refined, goal.note(size_of(refined), self._miss), self.layer.warning)

    def _for_psnr(self) -> Encoded:
        goal = self.options.goal
        files: dict[int, LatFile] = {}

        def measure(step_q: int) -> float:
            files[step_q] = self._refined(self._file_at(step_q))
            decoded = self.codec.decode_rgb(files[step_q])
            return self.codec.backend.psnr_db(decoded, self.layer.image)

        step_q, reached = rate_control.search(measure, goal.value, at_most=False)
        return Encoded(files[step_q], goal.note(reached, self._miss), self.layer.warning)

    @property
    def _miss(self) -> float:
        """The share of a target by which it may be missed."""
        return rate_control.LAYER_MISS if self.layer.is_whole else rate_control.MISS

    def _file_at(self, step_q: int) -> LatFile:
        if step_q not in self.files:
            self.files[step_q] = self._build_file(step_q)
        return self.files[step_q]

    def _build_file(self, step_q: int) -> LatFile:
        height, width = arrays.height_width(self.layer.image)
        size, model, chunks = (width, height), self.codec.model, self.chunks
        if self.layer.mask is not None:
            quality = quantize.step_to_quality(step_q, has_trellis=model.has_trellis)
            chunks = [*chunks, self.layer.chunk(quality)]
        if self.layer.is_whole:
            return detail_layer.without_latents(size, model, chunks)
        return encode_latents(self.latents, size, step_q, model, chunks)

    def _refined(self, file: LatFile, max_bytes: float = math.inf) -> LatFile:
        """The refined file, of at most max_bytes or its present size, whichever is larger."""
        if not self.options.effort or self.layer.is_whole:
            return file
        image, decoder = self.layer.image, self.codec.decoder_of(file.model)
        if self.layer.mask is not None:
            [decoded] = self.codec.backend.images([file], decoder)
            image = self.layer.with_covered_pixels(decoded)
        return self.codec.backend.refined(
            file, self.latents, image, decoder, self.options.effort, self.on_step, max_bytes
        )
