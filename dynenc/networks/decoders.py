"""Load decoders of latents, those of dynenc and external ones, and external autoencoders.

`decoder_choice` finds the decoder that a name selects.
"""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynenc import registry
from dynenc.arguments import StrPath, checked_name
from dynenc.errors import OtherLatents, WeightsError
from dynenc.latent_space import PATCH, SD1, SDXL, LatentSpace
from dynenc.networks import loading
from dynenc.networks.compat import fast_dtype, pick_device
from dynenc.networks.decoder_choice import DecoderChoice, choose_decoder
from dynenc.networks.tiling import (
    EMBEDDED_TILES,
    FINE_TILES,
    LARGE_TILES,
    SMALL_TILES,
    TiledDecoder,
)
from dynenc.networks.vae_files import (
    PARTS,
    WEIGHTS,
    existing,
    from_hub,
    import_diffusers,
    load_vae,
    wrong_space,
)

logger = logging.getLogger(__name__)

PROBE_COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
WRONG_SPACE_RATIO = 1.5  # of a decoder's errors, from which it is taken to be of the other space


def load_decoder(
    name: StrPath = "auto",
    device: torch.device | str = "cpu",
    space: LatentSpace | None = None,
) -> TiledDecoder:
    """Load the decoder that a name selects: see `decoder_choice`.

    `fine` and external decoders run in float16 on an accelerator. On a CPU, external ones run in
    bfloat16 if it is made for that, else in float32, and those of dynenc keep float32 weights and
    compute as `compat.maybe_bfloat16` says.

    Args:
        name: 'auto', 'embedded', 'fine', 'sd-vae', a hub id or a path.
        device: 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', or a `torch.device`.
        space: of the latents; None: that of the named decoder, or SD 1.x.
    Raises: WeightsError if there is no such decoder, it cannot be read, or is for latents of
        another space; DeviceError if there is no such device; UsageError if the name is not a
        string.
    """
    try:
        choice = choose_decoder(checked_name("a decoder", name), space, device)
    except OtherLatents as exc:  # there is no file here that has them
        raise WeightsError(str(exc), hint=exc.hint) from exc
    return load_chosen(choice, device)


def load_chosen(choice: DecoderChoice, device: torch.device | str) -> TiledDecoder:
    """Load a decoder as `choose_decoder` chose it; for errors and dtypes see `load_decoder`."""
    name, space, device = choice.name, choice.space, pick_device(device)
    logger.debug("decoder: %s on %s", name, device)
    if name in registry.names("decoder"):
        network = loading.load_named(name, "decoder")
        if name != "fine":
            return TiledDecoder(name, network, space=space, tiles=EMBEDDED_TILES).to(device)
        decoder = TiledDecoder(name, network, space=space, tiles=FINE_TILES).to(device)
        return decoder if device.type == "cpu" else decoder.to(fast_dtype(device))
    import_diffusers(name)
    path = choice.path or from_hub(name, download=True, space=space)
    if path is None:
        raise WeightsError(
            f"{name} on the Hugging Face hub has no {WEIGHTS[0]}, neither at the top nor "
            "in vae/: choose another decoder"
        )
    decoder = _decoder(name, load_vae(path, name, PARTS[2:], space), space)
    return decoder.to(device, fast_dtype(device))


def load_autoencoder(path: Path | str, space: LatentSpace = SD1) -> tuple[nn.Module, TiledDecoder]:
    """Load both halves of an autoencoder that is on this disk, frozen, in float32.

    Returns: the encoder, [B, 3, H, W] in [-1, 1] -> scaled latents [B, C, H/8, W/8], and the
        decoder.
    Raises: WeightsError as `load_decoder`.
    """
    vae = load_vae(existing(str(path)), str(path), PARTS, space)
    decoder, encoder = _decoder(str(path), vae, space), vae.encoder
    if _has_posterior(vae):
        encoder = nn.Sequential(encoder, vae.quant_conv or nn.Identity())
        encoder = _MeanEncoder(encoder, space)
    return encoder.eval().requires_grad_(False), decoder


class _MeanEncoder(nn.Module):
    """The encoder of an AutoencoderKL: image -> mean of the posterior, scaled."""

    def __init__(self, network: nn.Module, space: LatentSpace) -> None:
        super().__init__()
        self.network, self.space = network, space

    def forward(self, image: Tensor) -> Tensor:
        """Encode: [B, 3, H, W] in [-1, 1] -> [B, C, H/8, W/8], scaled."""
        mean: Tensor = self.network(image).chunk(2, dim=1)[0]
        return self.space.scaled(mean)


def _decoder(name: str, vae: Any, space: LatentSpace) -> TiledDecoder:
    """The decoding half of a diffusers autoencoder; raises WeightsError, see `_check_latents`."""
    network, tiles = vae.decoder, LARGE_TILES
    if _has_posterior(vae):
        network, tiles = nn.Sequential(vae.post_quant_conv or nn.Identity(), network), SMALL_TILES
    scale, shift = (space.scale, space.shift) if _has_posterior(vae) else (1.0, 0.0)
    decoder = TiledDecoder(name, network, space=space, scale=scale, shift=shift, tiles=tiles)
    _check_latents(decoder)
    return decoder


@torch.inference_mode()
def _check_latents(decoder: TiledDecoder) -> None:
    """Raise WeightsError if an external decoder makes no RGB, or is evidently of another space.

    A file without a config does not say its space, and the VAEs of SD 1.x and SDXL have the same
    architecture. So a small image of four colours is encoded for both: either TAESD decodes the
    latents of its own space with half the error of the other's.
    """
    try:
        made = decoder(torch.zeros(1, decoder.space.channels, 2, 2)).shape
    except (RuntimeError, TypeError, ValueError, IndexError) as exc:
        raise WeightsError(f"{decoder.name} does not decode latents: {exc}") from exc
    if made != (1, 3, 2 * PATCH, 2 * PATCH):
        raise WeightsError(f"{decoder.name} makes {list(made)} of 2x2 latents, not RGB images")
    spaces = (SD1, SDXL)
    if decoder.space not in spaces:
        return
    colours = torch.tensor(PROBE_COLOURS).reshape(2, 2, 3).permute(2, 0, 1)[None]
    image = F.interpolate(colours * 1.2 - 0.6, scale_factor=2.0 * PATCH)
    latents = torch.cat([loading.load_encoder("light", space)(image) for space in spaces])
    difference = decoder(latents).clamp(-1, 1) - image
    errors = difference.square().mean((1, 2, 3)).sqrt().tolist()
    error = dict(zip(spaces, errors, strict=True))
    other = SDXL if decoder.space is SD1 else SD1
    if error[decoder.space] > WRONG_SPACE_RATIO * error[other]:
        raise wrong_space(decoder.name, f"is for {other.title} latents", decoder.space)


def _has_posterior(vae: Any) -> bool:
    """Whether it is an AutoencoderKL, which has a posterior, and not an AutoencoderTiny."""
    return isinstance(vae, import_diffusers("the autoencoder").AutoencoderKL)
