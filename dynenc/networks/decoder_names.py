"""Decoder names, and which decoder each selects on this machine. Never imports torch.

A name of a decoder is one of

    auto       an SD VAE that is already on this disk, else `fine` on a GPU and `embedded` on a
               CPU; never downloads
    embedded   the small decoder that is shipped with dynenc, of the space of the latents
    fine       the larger one, which is shipped as well
    autoencoder   that of the autoencoder, for its own latents only
    sd-vae     the SD VAE; downloaded from the Hugging Face hub if it is not on this disk
    anything else: a folder in diffusers form (or with one in `vae/`), a .safetensors file in
               diffusers' or CompVis' naming, or a hub id such as stabilityai/sd-vae-ft-mse
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dynenc import registry, runtime
from dynenc.errors import WeightsError
from dynenc.networks.vae_files import from_hub, on_disk

VARIABLE = "DYNENC_SD_VAE"  # environment: path or hub id of the SD VAE to use
SD_VAES = (  # all are looked up in the hub cache; only the first is downloaded
    "stabilityai/sd-vae-ft-mse",
    "stabilityai/sd-vae-ft-ema",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The decoder that a name selects on this machine."""

    name: str  # for messages and reports: "embedded", a hub id or a path
    note: str  # why this one, and how to get the other
    path: Path | None = None  # on this disk; None: the embedded one, or still to be downloaded


def resolve(name: str = "auto", device: object = "auto") -> Choice:
    """Find the decoder that a name selects, without loading or downloading anything.

    Args:
        device: that the decoder will run on: see `Codec`.
    Raises: WeightsError if the name, or the one in DYNENC_SD_VAE, cannot be a decoder.
    """
    if name in registry.names("decoder"):
        return Choice(name, "as requested")
    if name not in ("auto", "sd-vae"):
        return Choice(name, "as requested", on_disk(name))
    if own := os.environ.get(VARIABLE):
        try:
            path = on_disk(own)
        except WeightsError as exc:
            raise WeightsError(f"{VARIABLE} is set, but {exc}") from exc
        if path is None and name == "auto":
            raise WeightsError(
                f"{own}, set by {VARIABLE}, is not on this disk",
                hint=f"download it once with --decoder {own}, or unset {VARIABLE}",
            )
        return Choice(own, f"set by {VARIABLE}; the embedded decoder is faster", path)
    for repository in SD_VAES:
        if path := from_hub(repository, download=False):
            note = "found in the hub cache; the embedded decoder is faster"
            return Choice(repository, note, path)
    if name == "sd-vae":
        return Choice(SD_VAES[0], "from the Hugging Face hub; the embedded decoder is faster")
    missing = "no SD VAE is on this disk"
    if runtime.uses_cpu(device):
        finer = "fine, or sd-vae (a 335 MB download), is slower and finer"
        return Choice("embedded", f"{missing}; {finer}")
    return Choice("fine", f"{missing}; embedded is faster")
