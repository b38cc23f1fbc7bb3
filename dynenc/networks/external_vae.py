"""Decoders of SD 1.x latents: the embedded one, and external autoencoders.

`decoder_names` resolves their names.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynenc import registry
from dynenc.arguments import file_name
from dynenc.errors import WeightsError
from dynenc.networks import loading
from dynenc.networks.compat import fast_dtype, pick_device
from dynenc.networks.decoder_names import Choice, resolve
from dynenc.networks.tiling import EMBEDDED_TILES, LARGE_TILE, SMALL_TILE, Decoder
from dynenc.networks.vae_files import (
    PARTS,
    WEIGHTS,
    from_hub,
    import_diffusers,
    load_vae,
    on_disk,
)

logger = logging.getLogger(__name__)


def load_decoder(name: str | Path | Choice = "auto", device: torch.device | str = "cpu") -> Decoder:
    """Load a decoder by name (see `decoder_names`) or as chosen by `resolve`.

    External decoders run in float16 on an accelerator, in bfloat16 on a CPU with units for it, else
    in float32. The embedded one keeps float32 weights; for its products see `compat.in_bfloat16`.

    Raises: WeightsError if the decoder is missing, cannot be read, or is not for SD latents;
        DeviceError if the device does not exist; UsageError if the name is not a string.
    """
    choice = name if isinstance(name, Choice) else resolve(file_name("a decoder", name))
    device = pick_device(device)
    logger.debug("decoder: %s on %s", choice.name, device)
    if choice.name in registry.names("decoder"):
        network = loading.load_named(choice.name, "decoder")
        return Decoder(choice.name, network, **EMBEDDED_TILES).to(device)
    import_diffusers(choice.name)
    path = choice.path or from_hub(choice.name, download=True)
    if path is None:
        raise WeightsError(
            f"{choice.name} on the Hugging Face hub has no {WEIGHTS[0]}, neither at the top nor "
            "in vae/: choose another decoder"
        )
    decoder = _decoder(choice.name, load_vae(path, choice.name, PARTS[2:]))
    return decoder.to(device, fast_dtype(device))


def load_teacher(path: Path | str) -> tuple[nn.Module, Decoder]:
    """Load both halves of a local autoencoder of SD latents, frozen, in float32.

    Returns: encoder, [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale, and `Decoder`.
    Raises: WeightsError like `load_decoder`.
    """
    found = on_disk(str(path))
    if found is None:
        raise WeightsError(f"{path} is not on this disk: download it first")
    vae = load_vae(found, str(path), PARTS)
    decoder, encoder = _decoder(str(path), vae), vae.encoder
    if _has_posterior(vae):
        encoder = nn.Sequential(encoder, vae.quant_conv or nn.Identity())
        encoder = _MeanEncoder(encoder, decoder.scale, decoder.shift)
    return encoder.eval().requires_grad_(False), decoder


class _MeanEncoder(nn.Module):
    """The encoder of an AutoencoderKL: image -> mean of the posterior, in SD scale."""

    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1] -> [B, 4, H/8, W/8] in SD scale."""
        mean: Tensor = self.network(image).chunk(2, dim=1)[0]
        return (mean - self.shift) * self.scale


def _decoder(name: str, vae: Any) -> Decoder:
    """The decoding half of a diffusers autoencoder."""
    network, tile = vae.decoder, LARGE_TILE
    if _has_posterior(vae):
        network, tile = nn.Sequential(vae.post_quant_conv or nn.Identity(), network), SMALL_TILE
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    return Decoder(name, network, scale=scale, shift=shift, tile=tile)


def _has_posterior(vae: Any) -> bool:
    """Whether it is an AutoencoderKL, which has a posterior, and not an AutoencoderTiny."""
    return isinstance(vae, import_diffusers("the autoencoder").AutoencoderKL)
