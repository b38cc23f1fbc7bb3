"""dynenc in the place of a diffusers `AutoencoderKL`: what pipelines and trainers use of it.

This module and `decoder` are the only ones that know diffusers.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from dynenc import codec, registry
from dynenc.errors import WeightsError
from dynenc.imaging import tensors
from dynenc.latent_space import SD1
from dynenc.networks import loading
from dynenc.networks.external_vae import SMALL_TILE, load_decoder

CONFIG = {  # of the SD 1.x VAE, as far as pipelines ask for it
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": SD1.channels,
    "block_out_channels": (
        128,
        256,
        512,
        512,
    ),  # their number tells pipelines that sides shrink by 8
    "sample_size": 512,
    "scaling_factor": SD1.scale,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": False,
}


class Vae(nn.Module):
    """An encoder and a decoder of dynenc with the interface of diffusers' `AutoencoderKL`.

    As there, latents are raw: pipelines multiply them by `config.scaling_factor`. The encoder gives
    one answer and no distribution, so `latent_dist.sample()` is its `mode()`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.config: Any = FrozenDict(CONFIG)  # type: ignore[no-untyped-call]
        self.use_slicing = False
        self._tile: Any = decoder.tile

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's weights, and of what `encode` and `decode` return."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.encoder.parameters()).device

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Images [B, 3, H, W] in [-1, 1] -> raw latents [B, 4, H/8, W/8], sides rounded up.

        Returns: an object with `latent_dist`, or without `return_dict` a tuple of it.
        """
        mean = self.encoder(tensors.pad(x.to(self.device, self.dtype))) / SD1.scale
        moments = torch.cat([mean, torch.zeros_like(mean)], dim=1)
        latent_dist = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=latent_dist) if return_dict else (latent_dist,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Raw latents [B, 4, h, w] -> images [B, 3, 8h, 8w], about [-1, 1].

        Args:
            generator: as pipelines pass it; there is nothing random here.
        Returns: an object with `sample`, or without `return_dict` a tuple of it.
        """
        parts = z.split(1) if self.use_slicing else [z]
        sample = torch.cat([self.decoder(part * SD1.scale) for part in parts]).to(self.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, sample_posterior: bool = False) -> Any:
        """Encode and decode images [B, 3, H, W]; `sample_posterior` changes nothing."""
        return self.decode(self.encode(sample).latent_dist.mode())

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode in smaller tiles; latents too large for the decoder are tiled in any case."""
        tile = min(self._tile, SMALL_TILE) if use_tiling else self._tile
        self.decoder.tile = tile

    def disable_tiling(self) -> None:
        """Decode in tiles only if latents are too large for the decoder."""
        self.enable_tiling(False)

    def enable_slicing(self) -> None:
        """Decode the pictures of a batch one by one."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the pictures of a batch together."""
        self.use_slicing = False


def vae(
    encoder: str = codec.DEFAULT_ENCODER, decoder: str = "embedded", device: str = "auto"
) -> Vae:
    """A stand-in for the VAE of Stable Diffusion 1.x pipelines: `pipe.vae = dynenc.vae("light")`.

    Args:
        encoder: 'nano', 'light' or 'base'.
        decoder: see `decoder.load_decoder`.
        device: 'auto', 'cpu', 'cuda' or 'mps'.
    Raises: WeightsError, DeviceError.
    """
    where = codec.pick_device(device)
    if encoder in registry.names("autoencoder"):
        raise WeightsError(f"the latents of the {encoder} are not those of Stable Diffusion")
    return Vae(loading.load_encoder(encoder).to(where), load_decoder(decoder, where))
