"""The networks of a codec, on its device: pixels -> latents, and latents -> pixels.

`Codec` needs torch only for these steps, and imports this module before the first of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from dynenc import metrics, registry, runtime
from dynenc.coding.lat_file import LatFile
from dynenc.coding.rate_control import OnStep
from dynenc.imaging import arrays, tensors
from dynenc.imaging.arrays import RgbImage
from dynenc.native.kernel import Floats
from dynenc.networks import loading
from dynenc.networks.compat import pick_device, without_autocast
from dynenc.networks.decoder_choice import DecoderChoice
from dynenc.networks.decoders import load_chosen
from dynenc.networks.encoder import Encoder
from dynenc.networks.perceptual_network import PerceptualNetwork
from dynenc.networks.published import PublishedEncoder
from dynenc.networks.tiling import TiledDecoder
from dynenc.refine import Refiner
from dynenc.view import WHOLE, View

logger = logging.getLogger(__name__)


class Backend:
    """The networks of a codec, each loaded on first use; for the arguments see `Codec`.

    Raises: DeviceError.
    """

    def __init__(self, encoder: str, device: str | torch.device) -> None:
        self.encoder_name = encoder
        self.device = pick_device(device)
        self._decoders: dict[DecoderChoice, TiledDecoder] = {}

    @cached_property
    @torch.inference_mode(False)  # parameters must not become inference tensors
    def encoder(self) -> Encoder | PublishedEncoder:
        """Image [B, 3, H, W] in [-1, 1] -> latents [B, C, H/8, W/8], scaled."""
        logger.debug("encoder: %s on %s", self.encoder_name, self.device)
        space = registry.encoder_model(self.encoder_name).space
        return loading.load_encoder(self.encoder_name, None if space.is_dynenc_only else space).to(
            self.device
        )

    @cached_property
    @torch.inference_mode(False)
    def perceptual(self) -> PerceptualNetwork:
        """The network whose features refinement compares."""
        return loading.load_named("perceptual", "perceptual").to(self.device)

    @torch.inference_mode(False)
    def decoder(self, choice: DecoderChoice) -> TiledDecoder:
        """Scaled latents [B, C, h, w] -> image [B, 3, 8h, 8w], roughly in [-1, 1]; loaded once."""
        if choice not in self._decoders:
            self._decoders[choice] = load_chosen(choice, self.device)
        return self._decoders[choice]

    @torch.inference_mode()
    @without_autocast()
    def latents(self, images: Sequence[RgbImage]) -> Floats:
        """Scaled latents [B, C, h, w] of images of equal padded size, tile by tile.

        A tile is encoded with the surrounding patches that its latents depend on, so the result
        equals that of encoding the whole image.
        """

        def encode(tile: arrays.EncodingTile) -> Floats:
            parts = [tensors.part_of(image, *tile.box) for image in images]
            latents: Floats = (
                self.encoder(tensors.batch(parts).to(self.device)).float().cpu().numpy()
            )
            return latents

        size = arrays.height_width(images[0])
        with runtime.threads_for(math.prod(size)):
            return arrays.encode_in_tiles(size, len(images), self.encoder.reach, encode)

    @torch.inference_mode()
    @without_autocast()
    def images(
        self, files: Sequence[LatFile], decoder: TiledDecoder, view: View = WHOLE
    ) -> list[Image.Image]:
        """Decode files of one shape and model in one pass: RGB, without detail layers.

        Large images are decoded in bands, so that only one band is in memory as floats. For a view
        with a divisor, the full-size pixels are averaged.
        """
        regions = [view.covered(f.size) for f in files]
        images = [Image.new("RGB", region[2:]) for region in regions]
        width, height = (max(r[i] for r in regions) for i in (2, 3))
        largest = regions[0]._replace(width=width, height=height)  # all have the same corner
        top = 0
        latents = torch.stack([torch.from_numpy(file.latents) for file in files])
        steps = torch.tensor([file.step for file in files])
        with runtime.threads_for(width * height):
            for band in decoder.bands(latents, steps, largest):
                for image, rows in zip(images, band.split(1), strict=True):
                    image.paste(tensors.to_image(rows), (0, top))  # clips the padding
                top += band.shape[2]
        return [view.reduced(image) for image in images]

    @torch.no_grad()  # not inference_mode: callers may use the result in autograd
    @without_autocast()
    def decode_tensor(self, file: LatFile, decoder: TiledDecoder) -> Tensor:
        """Decode a file: [1, 3, H, W] float32 in [-1, 1] on the device."""
        latents = torch.from_numpy(file.latents)[None]
        decoded: Tensor = decoder(latents, file.step)
        return decoded[..., : file.header.height, : file.header.width].clamp(-1, 1)

    def to_tensor(self, image: Image.Image) -> Tensor:
        """An RGB image as [1, 3, H, W] float32 in [-1, 1] on the device."""
        return tensors.to_tensor(image).to(self.device)

    def psnr_db(self, decoded: Image.Image, image: RgbImage) -> float:
        """PSNR in dB of a decoded RGB image against the original of equal size."""
        original = tensors.to_tensor(image).cpu()
        return metrics.psnr_db(tensors.to_tensor(decoded), original)

    @torch.inference_mode()
    @without_autocast()
    def refined(
        self,
        file: LatFile,
        latents: Floats,
        image: RgbImage,
        decoder: TiledDecoder,
        effort: int,
        on_step: OnStep | None,
        max_bytes: float,
    ) -> LatFile:
        """Refine the latents of a file; see `Refiner.refine`.

        Args:
            file: made from `latents`, at any step.
            latents: [C, h, w] float32, not quantised.
            effort: 1..9.
            max_bytes: limit of the whole file; at least its present size is allowed.
        """
        refiner = Refiner(self.perceptual, decoder, effort, on_step)
        original = tensors.to_tensor(image).to(self.device)
        start = torch.from_numpy(latents)[None].to(self.device)
        with runtime.threads_for(math.prod(arrays.height_width(image))):
            return refiner.refine(file, start, original, max_bytes)
