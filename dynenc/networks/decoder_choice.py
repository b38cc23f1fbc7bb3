"""The names of decoders, and the decoder that each selects. Never imports torch.

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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dynenc import registry, runtime
from dynenc.errors import OtherLatents, WeightsError
from dynenc.latent_space import DYNENC_SPACES, SD1, SPACES, LatentSpace
from dynenc.networks.vae_files import from_hub, on_disk

SD_VAE_VARIABLE = "DYNENC_SD_VAE"  # environment: path or hub id of the SD VAE to use
SD_VAES = (  # all are looked up in the hub cache; only the first is downloaded
    "stabilityai/sd-vae-ft-mse",
    "stabilityai/sd-vae-ft-ema",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "CompVis/stable-diffusion-v1-4",
)


@dataclass(frozen=True, slots=True)
class DecoderChoice:
    """The decoder of the latents of a space on a device: what runs, and why."""

    name: str  # for messages and reports: "embedded", a hub id or a path
    space: LatentSpace
    note: str  # why this one, and how to get another
    path: Path | None = None  # of an external one on this disk
    in_integers: bool = False  # runs in the native kernel, else in torch


def choose_decoder(
    name: str = "auto", space: LatentSpace | None = None, device: object = "auto"
) -> DecoderChoice:
    """The decoder that a name selects on this machine. Loads and downloads nothing.

    Args:
        space: of the latents; None: that of the named decoder, or SD 1.x.
        device: that the decoder will run on: see `Codec`.
    Raises: OtherLatents if that decoder cannot read latents of the space; WeightsError if the name,
        or the one in DYNENC_SD_VAE, cannot be a decoder.
    """
    named = registry.MODELS[name] if name in registry.names("decoder") else None
    space = space or (named.space if named else SD1)
    embedded = registry.small_decoder(space)
    if embedded and name == "embedded":
        named = embedded
    if named and named.space is space:
        return _shipped(named, "as requested", device)
    if space is SD1 and not named:
        return _choose_for_sd1(name, device)
    title = "Stable Diffusion" if space is SD1 else space.title
    if embedded is None and name in ("auto", "embedded", "fine", "sd-vae"):
        raise OtherLatents(
            f"the latents are those of {title}, for which dynenc has no decoder",
            hint=f"name a VAE of {title} with --decoder",
        )
    if embedded and name == "auto":
        return _shipped(embedded, f"dynenc's decoder for {title}", device)
    is_external = not named and name != "sd-vae"
    path = on_disk(name) if is_external else None  # refuses what is no decoder of any latents
    if not is_external or space.is_dynenc_only:
        raise OtherLatents(
            f"the latents are those of {title}, which decoder {name} cannot read",
            hint="leave out --decoder",
        )
    return DecoderChoice(name, space, "as requested", path)


def possible_decoders(name: str, device: object = "auto") -> Iterator[str]:
    """The names of the decoders that a name selects, each for latents of some space; SD 1.x first.

    Each is chosen when it is asked for, as that looks for files.

    Raises: WeightsError like `choose_decoder`.
    """
    for space in (*SPACES.values(), *DYNENC_SPACES.values()):
        with suppress(OtherLatents):
            yield choose_decoder(name, space, device).name


def _shipped(model: registry.Model, note: str, device: object) -> DecoderChoice:
    """A decoder that is part of dynenc."""
    in_integers = model.kind == "decoder" and runtime.uses_cpu(device)
    return DecoderChoice(model.name, model.space, note, in_integers=in_integers)


def _choose_for_sd1(name: str, device: object) -> DecoderChoice:
    """A decoder of SD 1.x latents: by "auto", "sd-vae", or the name of an external one."""
    if name not in ("auto", "sd-vae"):
        return DecoderChoice(name, SD1, "as requested", on_disk(name))
    if chosen := os.environ.get(SD_VAE_VARIABLE):
        try:
            path = on_disk(chosen)
        except WeightsError as exc:
            raise WeightsError(f"{SD_VAE_VARIABLE} is set, but {exc}") from exc
        if path is None and name == "auto":
            raise WeightsError(
                f"{chosen}, set by {SD_VAE_VARIABLE}, is not on this disk",
                hint=f"download it once with --decoder {chosen}, or unset {SD_VAE_VARIABLE}",
            )
        note = f"set by {SD_VAE_VARIABLE}; the embedded decoder is faster"
        return DecoderChoice(chosen, SD1, note, path)
    for repository in SD_VAES:
        if path := from_hub(repository, download=False):
            note = "found in the hub cache; the embedded decoder is faster"
            return DecoderChoice(repository, SD1, note, path)
    if name == "sd-vae":
        note = "from the Hugging Face hub; the embedded decoder is faster"
        return DecoderChoice(SD_VAES[0], SD1, note)
    missing = "no SD VAE is on this disk"
    if runtime.uses_cpu(device):
        finer = "fine, or sd-vae (a 335 MB download), is slower and finer"
        return _shipped(registry.MODELS["embedded"], f"{missing}; {finer}", device)
    return _shipped(registry.MODELS["fine"], f"{missing}; embedded is faster", device)
