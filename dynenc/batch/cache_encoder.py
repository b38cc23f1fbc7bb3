"""Encode one image for a latent cache: image -> bucket -> .lat files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageOps
from PIL.Image import Image

from dynenc import registry
from dynenc.arguments import StrPath, checked_integer, checked_name, checked_number
from dynenc.batch.inputs import read_image
from dynenc.codec import Codec
from dynenc.coding.encode_latents import encode_latents
from dynenc.coding.quantize import quality_to_step
from dynenc.errors import DynencError, ImageError, with_name
from dynenc.imaging import buckets, notes
from dynenc.imaging.pixels import to_rgb
from dynenc.imaging.read import open_image
from dynenc.interop.latent_cache import CacheSettings, Entry
from dynenc.io import names
from dynenc.io.shards import is_archive
from dynenc.latent_space import SD1, SPACES, LatentSpace
from dynenc.native.kernel import Floats
from dynenc.networks.vae_files import weights_of

LEAST_RESOLUTION = 64  # px


class Source(NamedTuple):
    """An image to cache."""

    key: str
    path: str


class Member(NamedTuple):
    """An image of a shard to write: its entry, whose places are still to be set, and its files."""

    entry: Entry
    blobs: Sequence[bytes]
    notes: Sequence[str] = ()  # on what is lost of the image


def cache_settings(
    space: LatentSpace,
    encoder: str,
    vae: StrPath | None,
    resolution: int | None,
    quality: float,
    flips: bool,
) -> CacheSettings:
    """The settings that arguments of `make_cache` stand for. Raises: UsageError, WeightsError."""
    encoder = checked_name("an encoder", encoder)
    quality = checked_number("quality", quality)
    quality_to_step(quality, has_trellis=True)  # refuses what is out of range
    if resolution is None:
        resolution = 512 if space is SD1 else 1024
    resolution = checked_integer("resolution", resolution, LEAST_RESOLUTION)
    if vae is None:
        model = registry.encoder_of_space(encoder, space)
        encoder, weights = model.name, model.sha256
    else:
        vae = checked_name("a VAE", vae)
        encoder, weights = names.basename(vae.rstrip("/")), weights_of(vae)
    return CacheSettings(space.name, encoder, weights, resolution, quality, bool(flips))


@dataclass(frozen=True)
class CacheEncoder:
    """Encodes images with dynenc's encoder, or with a VAE of the space."""

    settings: CacheSettings
    vae: StrPath | None  # folder or file
    device: str

    @cached_property
    def model(self) -> registry.Model:
        """The model that the files name."""
        if self.vae is None:
            return registry.MODELS[self.settings.encoder]
        return registry.IMPORTED_MODELS[self.settings.space]

    @cached_property
    def codec(self) -> Codec:
        """dynenc's encoder."""
        return Codec(self.settings.encoder, device=self.device)

    @cached_property
    def vae_encoder(self) -> Any:
        """The VAE's encoder: image -> scaled latents."""
        from dynenc.networks.compat import pick_device
        from dynenc.networks.decoders import load_autoencoder

        encoder, _ = load_autoencoder(str(self.vae), SPACES[self.settings.space])
        return encoder.to(pick_device(self.device))

    @property
    def threads(self) -> int | None:
        """How many threads encode images; None: as many as the process may use."""
        return None if self.vae is None and self.codec.native_encoder else 1

    def encode(self, source: Source) -> Member | DynencError:
        """Encode an image; an error of the image is returned."""
        if is_archive(source.path):
            return ImageError(f"{source.path} is an archive: unpack it to cache its images")
        try:
            data = read_image(source.path)
            with notes.collected() as lost:
                image = open_image(data, name=source.path)
            size = buckets.bucket(*image.size, self.settings.resolution)
            if not all(size):
                raise ImageError(f"{source.path} is smaller than 8 px, the side of a latent")
            return self._encode(source.key, data, image, size)._replace(notes=lost)
        except ImageError as exc:
            return with_name(exc, source.path)

    def _encode(self, key: str, data: bytes, image: Image, size: tuple[int, int]) -> Member:
        fitted = buckets.fit(to_rgb(image), size)
        images = [fitted.image]
        if self.settings.flips:
            images.append(ImageOps.mirror(fitted.image))
        step_q = quality_to_step(self.settings.quality, has_trellis=self.model.has_trellis)
        files = [encode_latents(self.latents(one), size, step_q, self.model) for one in images]
        digest, none = hashlib.sha256(data).hexdigest(), (0, 0)
        entry = Entry(key, digest, image.size, size, (fitted.left, fitted.top), none)
        return Member(entry, [file.to_bytes() for file in files])

    def latents(self, image: Image) -> Floats:
        """The latents [C, h, w] of an image whose sides are multiples of the patch."""
        latents: Floats
        if self.vae is None:
            latents = self.codec.latents([image])[0]
            return latents
        import torch

        from dynenc.imaging.tensors import to_tensor
        from dynenc.networks.compat import without_autocast

        device = next(self.vae_encoder.parameters()).device
        with torch.inference_mode(), without_autocast():
            encoded = self.vae_encoder(to_tensor(image).to(device))[0]
        latents = encoded.float().cpu().numpy()
        if not np.isfinite(latents).all():
            raise ImageError(f"{self.vae} encodes it to NaN or infinite latents: try another VAE")
        return latents
