"""The codec: image -> latents -> symbols -> bytes, and back.

torch is imported only for the networks: see `backend`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dynenc import registry, runtime
from dynenc.arguments import StrPath, checked_name
from dynenc.coding import bitstream
from dynenc.coding.encode_latents import default_coder
from dynenc.coding.encode_options import DetailMode, EncodeOptions
from dynenc.coding.lat_file import LatFile
from dynenc.coding.rate_control import OnStep
from dynenc.encoding import Encoded, EncodingJob
from dynenc.imaging import arrays, extras, notes, pixels
from dynenc.imaging import detail as detail_layer
from dynenc.imaging.arrays import ImageLike, RgbImage
from dynenc.imaging.detail_plan import plan_detail
from dynenc.imaging.read import open_image
from dynenc.native import encoder as native
from dynenc.native.kernel import Floats
from dynenc.networks import integer_decoder
from dynenc.networks.decoder_choice import DecoderChoice, choose_decoder
from dynenc.view import WHOLE, View

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dynenc.backend import Backend
    from dynenc.networks.encoder import Encoder
    from dynenc.networks.published import PublishedEncoder
    from dynenc.networks.tiling import TiledDecoder

logger = logging.getLogger(__name__)


class Codec:
    """Image <-> bytes of a .lat file. Encoder and decoder are loaded on first use.

    Args:
        encoder: a name of `registry.names("encoder")`, such as 'light', or a .safetensors file that
            `loading.load_path` reads.
        decoder: 'auto', 'embedded', 'fine', 'sd-vae', a hub id or a path; see `load_decoder`. For
            files of the autoencoder, 'auto' and 'embedded' mean its own decoder.
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', or a `torch.device`.
    Raises: WeightsError if the encoder is unknown, DeviceError.
    """

    def __init__(
        self,
        encoder: StrPath = registry.DEFAULT_ENCODER,
        decoder: StrPath = "auto",
        device: str | torch.device = "auto",
    ) -> None:
        self.encoder_name = checked_name("an encoder", encoder)
        self.decoder_name = checked_name("a decoder", decoder)
        self.model = registry.encoder_model(self.encoder_name)
        self._device = device
        self._assigned: dict[str, TiledDecoder] = {}  # decoders that the caller set, by space
        self._choices: dict[str, DecoderChoice] = {}  # by space
        self._is_encoder_exposed = False  # the caller has the network, and may have changed it
        if not native.runs_natively(self.model, device):
            _ = self.backend

    @classmethod
    def from_pretrained(
        cls,
        encoder: StrPath = registry.DEFAULT_ENCODER,
        decoder: StrPath = "embedded",
        device: str | torch.device = "auto",
    ) -> Codec:
        """A codec with all loaded that it will use: see `load`.

        Its decoder is the embedded one unless another is named, whatever is on this disk.
        """
        codec = cls(encoder, decoder, device)
        codec.load()
        return codec

    def load(self) -> None:
        """Load what encodes 8-bit images and decodes them, in torch only where that runs.

        Raises: WeightsError if a part is missing.
        """
        default_coder(self.model)
        if self.native_encoder is None:
            _ = self.backend.encoder
        if self._decodes_in_integers(self.model):
            integer_decoder.load(self._choice(self.model).name)
        else:
            self.decoder_of(self.model)

    @cached_property
    def native_encoder(self) -> native.Encoder | None:
        """The encoder in the native kernel, for 8-bit pixels; None if there is only `encoder`."""
        if not native.runs_natively(self.model, self._device):
            return None
        logger.debug("encoder: %s in the native kernel", self.encoder_name)
        return native.load(self.model)

    @cached_property
    def backend(self) -> Backend:
        """The networks; raises DeviceError if the device does not exist."""
        from dynenc.backend import Backend  # imports torch

        return Backend(self.encoder_name, self._device)

    @property
    def device(self) -> torch.device:
        """The device that the networks run on."""
        return self.backend.device

    @property
    def encoder(self) -> Encoder | PublishedEncoder:
        """Image [B, 3, H, W] in [-1, 1] -> scaled latents [B, C, H/8, W/8] of the model's space."""
        self._is_encoder_exposed = True
        return self.backend.encoder

    @encoder.setter
    def encoder(self, encoder: Encoder | PublishedEncoder) -> None:
        self._is_encoder_exposed = True
        self.backend.encoder = encoder

    @property
    def decoder(self) -> TiledDecoder:
        """Scaled latents [B, C, h, w] -> image [B, 3, 8h, 8w], roughly in [-1, 1]."""
        return self.decoder_of(self.model)

    @decoder.setter
    def decoder(self, decoder: TiledDecoder) -> None:
        self._assigned[decoder.space.name] = decoder

    def decoder_of(self, model: registry.Model) -> TiledDecoder:
        """The decoder in torch for a model's latents.

        Raises: OtherLatents if the chosen decoder cannot read them.
        """
        if (space := model.space.name) in self._assigned:
            return self._assigned[space]
        return self.backend.decoder(self._choice(model))

    def name_of_decoder(self, model: registry.Model) -> str:
        """The name of the decoder for a model's latents; raises OtherLatents like `decoder_of`."""
        assigned = self._assigned.get(model.space.name)
        return assigned.name if assigned is not None else self._choice(model).name

    def _choice(self, model: registry.Model) -> DecoderChoice:
        """The decoder that the codec's decoder name selects for a model's latents."""
        space = model.space
        if space.name not in self._choices:
            choice = choose_decoder(self.decoder_name, space, self._device)
            logger.debug("decoder: %s, %s", choice.name, choice.note)
            self._choices[space.name] = choice
        return self._choices[space.name]

    def _decodes_in_integers(self, model: registry.Model) -> bool:
        """Whether a model's latents are decoded in integers, in the native kernel."""
        return model.space.name not in self._assigned and self._choice(model).in_integers

    def encode(
        self,
        image: ImageLike | StrPath,
        *,
        quality: float | None = None,
        target_bpp: float | None = None,
        target_size: int | str | None = None,
        target_psnr: float | None = None,
        strict: bool = False,
        effort: int = 0,
        detail: DetailMode = "auto",
        keep_metadata: bool = False,
    ) -> bytes:
        """Compress one image to the bytes of a .lat file.

        Args:
            image: path of an image file, Pillow image of any mode, array [H, W, 3] uint8, or
                tensor [1, 3, H, W] (or [3, H, W]), uint8, or float in [-1, 1].
            quality: 0..100, higher is better and larger; 50 if no target is given. See
                `quantize.quality_to_step`.
            target_bpp: make the largest file of at most this many bits per pixel.
            target_size: make the largest file of at most this many bytes; "5KB" works, too.
            target_psnr: make the smallest file with at least this PSNR in dB after decoding.
            strict: raise TargetMissed if no file meets the target.
            effort: 0..9; above 0 the latents are refined through the codec's decoder: slower, but
                a better image in no more bytes. See refine.py.
            detail: 'auto' stores text and graphics in a separate layer that keeps them legible;
                'on' finds more of them; 'off' stores everything as latents.
            keep_metadata: keep EXIF, XMP, the ICC profile, IPTC, comment, PNG texts and resolution
                of the image's `info`.
        At most one of quality and the targets may be given. If a target cannot be reached, the
        closest file is made and the miss is logged, unless `strict` is set.
        Raises: ImageError if the image cannot be read, has a side of 0 or above 65,535 px, or an
            unsupported shape or dtype; UsageError if an argument is out of range; OutOfMemory if
            there is too little memory for the effort; TargetMissed (only with `strict`);
            WeightsError and DeviceError, as networks are loaded on first use.
        Warns: ImageWarning if something cannot be kept (see `pixels.to_plain` and
            `metadata.from_image`), or if text will not be legible.
        """
        options = EncodeOptions.from_arguments(
            quality=quality,
            target_bpp=target_bpp,
            target_size=target_size,
            target_psnr=target_psnr,
            strict=strict,
            effort=effort,
            detail=detail,
            keep_metadata=keep_metadata,
        )
        name = ""
        if isinstance(image, str | os.PathLike):
            path = Path(checked_name("an image", image))
            name = f"{path}: "
            image = open_image(path, keep_metadata=keep_metadata)
        [encoded] = self.encode_batch([image], options)
        if encoded.note:
            logger.info(encoded.note)
        if encoded.warning:
            notes.note(f"{name}{encoded.warning}")
        return encoded.blob

    def encode_batch(
        self,
        images: Sequence[ImageLike],
        options: EncodeOptions,
        on_step: OnStep | None = None,
    ) -> list[Encoded]:
        """Encode images of equal padded size (sides rounded up to 8 px); the encoder runs once.

        Args:
            images: as for `encode`, but no paths.
            on_step: called after each step of refinement with its number and the total.
        Returns: one `Encoded` for each image, in order.
        Raises: like `encode`.
        """
        if not images:
            return []
        images = [pixels.to_plain(p) if isinstance(p, Image.Image) else p for p in images]
        chunks = [
            extras.to_chunks(extras.from_image(image, keep_metadata=options.keep_metadata))
            if isinstance(image, Image.Image)
            else []
            for image in images
        ]
        checked = [arrays.as_array_if_small(arrays.as_rgb(image)) for image in images]
        layers = [plan_detail(image, options.detail) for image in checked]
        latents = self.latents([layer.base_image for layer in layers])
        todo = [
            EncodingJob(
                self,
                latents=layer.zero_covered_latents(of_image),
                layer=layer,
                chunks=chunks_of_image,
                options=options,
                on_step=on_step,
            )
            for of_image, layer, chunks_of_image in zip(latents, layers, chunks, strict=True)
        ]
        run = map if options.needs_decoder else runtime.in_threads  # torch has its own
        return list(run(EncodingJob.encode, todo))

    def latents(self, images: Sequence[RgbImage]) -> Floats:
        """Encode images of equal padded size.

        Args:
            images: RGB: Pillow images, arrays [H, W, 3] uint8, or tensors [1, 3, H, W], uint8 or
                float in [-1, 1].
        Returns: [B, C, ceil(H / 8), ceil(W / 8)] float32, scaled as the diffusion model takes them.
        Raises: WeightsError, DeviceError.
        """
        pixels = [image for image in images if isinstance(image, Image.Image | np.ndarray)]
        encoder = self.native_encoder
        if encoder is None or self._is_encoder_exposed or len(pixels) < len(images):
            return self.backend.latents(images)

        def encode(tile: arrays.EncodingTile) -> Floats:
            found = [encoder.latents(arrays.part_of(p, *tile.box)) for p in pixels]
            return found[0][None] if len(found) == 1 else np.stack(found)  # which takes 20 us

        return arrays.encode_in_tiles(
            arrays.height_width(pixels[0]), len(pixels), encoder.blocks, encode
        )

    def decode(
        self,
        file: bytes | StrPath | LatFile,
        *,
        region: Sequence[int] | None = None,
        scale: float | Fraction = 1,
        max_pixels: int = bitstream.MAX_PIXELS,
    ) -> Image.Image:
        """Decode a .lat file to 8-bit sRGB: RGB, or RGBA, L or LA as the original was.

        Kept metadata is in its `info`; with an `icc_profile`, the pixels are in that profile, and
        grey ones are RGB if the profile is.

        Args:
            file: the bytes of a .lat file, its path, or what `LatFile.parse` returned.
            region: left, top, width and height in px of the full-size image; None: all of it.
            scale: 1, 1/2, 1/4 or 1/8; sides are rounded up, and partly covered pixels included.
            max_pixels: refuse files that declare more pixels.
        Raises: BitstreamError, of which `OtherLatents` if the decoder cannot read the latents;
            WeightsError; UsageError if the region is not within the image.
        Warns: ImageWarning if a kept colour profile cannot be applied.
        """
        view = View.of(region, scale)
        parsed = LatFile.load(file, max_pixels=max_pixels)
        view.within(parsed.size)
        kept = extras.from_chunks(parsed.chunks, parsed.size)
        # the decoded image is not bound to a name, so that `restore` can free it
        return extras.restore(self.decode_latents([parsed], view)[0], kept, view)

    def decode_latents(self, files: Sequence[LatFile], view: View = WHOLE) -> list[Image.Image]:
        """Decode the latents of files of one shape and model: RGB, without detail layers.

        If the layers cover every image whole, nothing is decoded and the images are black.
        """
        if all(detail_layer.is_whole(file) for file in files):
            sizes = [view.scaled(f.size)[2:] for f in files]
            return [Image.new("RGB", size) for size in sizes]
        model = files[0].model
        if self._decodes_in_integers(model):
            regions = [detail_layer.visible_region(file) for file in files]
            name = self._choice(model).name
            return [
                integer_decoder.decode(file, name, view, region)
                for file, region in zip(files, regions, strict=True)
            ]
        return self.backend.images(files, self.decoder_of(model), view)

    def decode_tensor(
        self, file: bytes | StrPath | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS
    ) -> Tensor:
        """Decode to RGB without alpha: [1, 3, H, W] float32 in [-1, 1] on the codec's device.

        Pixels of a detail layer have 8-bit precision. For arguments and errors see `decode`.
        """
        parsed = LatFile.load(file, max_pixels=max_pixels)
        if detail_layer.has_layer(parsed) or self._decodes_in_integers(parsed.model):
            return self.backend.to_tensor(self.decode_rgb(parsed))
        return self.backend.decode_tensor(parsed, self.decoder_of(parsed.model))

    def decode_rgb(self, file: LatFile) -> Image.Image:
        """Decode a file with its detail layer: RGB, without alpha and metadata."""
        layer = detail_layer.from_chunks(file.chunks, file.size)
        [image] = self.decode_latents([file])
        return layer.composite_over(image) if layer else image
