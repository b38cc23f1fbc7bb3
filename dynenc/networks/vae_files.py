"""Files of Stable Diffusion's autoencoders: finding them on disk or the hub, checks, reading.

`huggingface_hub` is imported to look for a file, `diffusers` and torch to read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dynenc import registry
from dynenc.errors import WeightsError, first_line
from dynenc.latent_space import SD1, SDXL, SPACES, LatentSpace

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PARTS = ("encoder.", "quant_conv.", "decoder.", "post_quant_conv.")  # of an autoencoder
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def on_disk(name: str) -> Path | None:
    """The local path of a named decoder; None for a hub id that is not in the hub cache."""
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as exc:  # no such user, or a name that is too long
        raise WeightsError(f"{name:.99} cannot be the name of a decoder") from exc
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{name} is a pickle, which can run any code when it is read: convert it to "
            ".safetensors and use that file"
        )
    if exists:
        return path
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not registry.is_weight_file(name):
        return from_hub(name, download=False)
    if re.fullmatch(r"[\w-]+", name):
        raise WeightsError(
            f"there is no decoder {name}: use auto, embedded, fine, sd-vae, a folder, a "
            ".safetensors file or a hub id"
        )
    raise WeightsError(f"{name} does not exist: give a folder, a .safetensors file or a hub id")


def weights_of(name: str) -> str:
    """The SHA-256 of an autoencoder's weights; raises WeightsError if they are not on this disk."""
    return sha256_of(_find(existing(name))[1])


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file of weights, in hexadecimal; raises WeightsError."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as exc:
        raise WeightsError(f"{file} cannot be read: {exc.strerror}") from exc


def existing(name: str) -> Path:
    """The local path of a named autoencoder; raises WeightsError if it is not on this disk."""
    if (found := on_disk(name)) is None:
        raise WeightsError(f"{name} is not on this disk: download it first")
    return found


def from_hub(repository: str, *, download: bool, space: LatentSpace | None = None) -> Path | None:
    """Folder of the hub cache with a repository's autoencoder, first filled if allowed, or None.

    Args:
        space: of the latents that it has to be for; None: any.
    """
    if not download and not _is_in_hub_cache(repository):
        return None
    for folder in ("vae/", ""):
        if config := _hub_file(repository, folder + "config.json", download):
            found = _read_config(config)
            if space:
                check_space(found, repository, space)  # before a large download
            for name in WEIGHTS:
                if file := _hub_file(repository, folder + name, download):
                    return file.parent
    return None


def _is_in_hub_cache(repository: str) -> bool:
    """Whether the hub cache has a folder of a repository; asking the hub's library takes 0.3 s."""
    from huggingface_hub import constants

    folder = constants.REPO_ID_SEPARATOR.join(["models", *repository.split("/")])
    return os.path.isdir(os.path.join(constants.HF_HUB_CACHE, folder))  # noqa: PTH112, PTH118


def _hub_file(repository: str, name: str, download: bool) -> Path | None:
    """A repository's file in the hub cache, downloaded if allowed; None if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    try:
        with _silenced(logging):
            return Path(hf_hub_download(repository, name, local_files_only=not download))
    except Exception as exc:  # of huggingface_hub or its HTTP library, depending on the version
        unreachable = isinstance(exc, LocalEntryNotFoundError)
        if not download or (isinstance(exc, EntryNotFoundError) and not unreachable):
            return None
        why = "the Hugging Face hub cannot be reached" if unreachable else first_line(exc)
        raise WeightsError(
            f"{repository} is not on this disk and could not be downloaded ({why})",
            hint="check the name and the connection, or use --decoder embedded",
        ) from exc


def load_vae(path: Path, name: str, parts: tuple[str, ...], space: LatentSpace) -> Any:
    """Load some parts of a diffusers autoencoder from a folder or a file.

    Args:
        name: for messages.
        parts: prefixes of PARTS to fill; the other tensors stay on the meta device.
        space: that the latents must be of.
    Returns: a diffusers AutoencoderKL or AutoencoderTiny in float32.
    Raises: WeightsError, also if it is for latents of another space.
    """
    diffusers = import_diffusers(name)
    import torch

    config, file = _find(path)
    try:
        state = _read(file, space)
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{file} is not valid safetensors ({exc}): download it again") from exc
    config = config or _architecture(state, file, space)
    check_space(config, name, space)
    try:
        with _silenced(diffusers.utils.logging), torch.device("meta"):
            vae = getattr(diffusers, config["_class_name"]).from_config(config)
        n_levels = len(vae.config.block_out_channels)
    except Exception as exc:  # diffusers computes with whatever stands there
        raise WeightsError(f"the config of {name} is not valid: {first_line(exc)}") from exc
    if n_levels != 4:
        raise WeightsError(f"{name} does not upscale by 8: use a decoder of {space.title} latents")
    expected = {key: t.shape for key, t in vae.state_dict().items() if key.startswith(parts)}
    shapes = {key: tensor.shape for key, tensor in state.items() if key.startswith(parts)}
    if wrong := sorted(key for key, _ in expected.items() ^ shapes.items()):
        raise WeightsError(
            f"{file} does not fit its architecture: {len(set(wrong))} tensors are missing, "
            f"unknown or of another shape, including {wrong[0]}"
        )
    filled = {key: state[key].float() for key in expected}
    vae.load_state_dict(filled, strict=False, assign=True)
    return vae


def import_diffusers(name: str) -> Any:
    """The module diffusers; raises WeightsError that says what needs it, by name."""
    try:
        import diffusers
    except ImportError as exc:
        raise WeightsError(
            f"{name} needs diffusers, which cannot be imported ({first_line(exc)}): reinstall it"
        ) from exc
    return diffusers


def _find(path: Path) -> tuple[dict[str, Any], Path]:
    """Config and weight file of a path; an empty config if a file has none beside it."""
    if path.is_file():
        folder, files = path.parent, [path]
        if path.name not in WEIGHTS or not (folder / "config.json").exists():
            return {}, path
    else:
        folder = path / "vae" if (path / "vae" / "config.json").exists() else path
        files = [folder / file for file in WEIGHTS if (folder / file).exists()]
    config = _read_config(folder / "config.json")
    if not files:
        pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        why = f", only {pickles[0]}, a pickle, which can run any code" if pickles else ""
        raise WeightsError(f"{folder} has no {WEIGHTS[0]}{why}: convert or download it")
    return config, files[0]


def _read_config(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        raise WeightsError(
            f"{file} is missing or not JSON: use the folder of an autoencoder in diffusers form"
        ) from exc


def _read(file: Path, space: LatentSpace) -> dict[str, Tensor]:
    """Read the autoencoder of a .safetensors file, under the names that diffusers uses now."""
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
        if space is not SDXL and any(key.startswith("conditioner.") for key in keys):
            raise wrong_space(str(file), f"is for {SDXL.title} latents", space)
        prefixes = ("first_stage_model.", "vae.", "")  # of a whole checkpoint
        prefix = next(
            (p for p in prefixes if any(key.startswith(p + "decoder.") for key in keys)), ""
        )
        named = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
        state = {
            short: tensors.get_tensor(key)
            for short, key in named.items()
            if short.startswith(PARTS)
        }
    if any(key.startswith("decoder.up.") for key in state):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        blocks = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}  # only counted
        return dict(convert_ldm_vae_checkpoint(state, blocks))  # type: ignore[no-untyped-call]
    pattern = re.compile(rf"(?<=attentions\.0\.)({'|'.join(OLD_ATTENTION)})(?=\.)")
    return {pattern.sub(lambda m: OLD_ATTENTION[m[0]], key): t for key, t in state.items()}


def _architecture(state: dict[str, Tensor], file: Path, space: LatentSpace) -> dict[str, Any]:
    """The config of a file without one, from the shapes of its tensors, taken to be of a space."""
    try:
        if (first := state.get("decoder.layers.0.weight")) is not None:
            return {"_class_name": "AutoencoderTiny", "latent_channels": first.shape[1]}
        widths = [len(state[f"decoder.up_blocks.{i}.resnets.0.conv1.bias"]) for i in (3, 2, 1, 0)]
        channels = state["decoder.conv_in.weight"].shape[1]
    except KeyError as exc:
        raise WeightsError(
            f"{file} is not an autoencoder in diffusers' or CompVis' naming: no {exc.args[0]}"
        ) from exc
    except (IndexError, TypeError) as exc:  # of a tensor with fewer dimensions
        raise WeightsError(f"{file} is not an autoencoder: a weight has no shape") from exc
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": channels,
        "scaling_factor": space.scale,
        "shift_factor": space.shift,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
    }


def check_space(config: dict[str, Any], name: str, space: LatentSpace) -> None:
    """Raise WeightsError unless a config is of an autoencoder of a space's latents.

    That of an AutoencoderKL tells by channels, scale and shift. An AutoencoderTiny, whose latents
    are scaled already, has no mark but its channels and its name.
    """
    kind = config.get("_class_name")
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise WeightsError(f"{name} is of class {kind}: use an AutoencoderKL or AutoencoderTiny")
    is_tiny = kind == "AutoencoderTiny"
    right = (1.0, 0.0) if is_tiny else (space.scale, space.shift)
    channels = config.get("latent_channels", SD1.channels)
    scale = config.get("scaling_factor", 1.0 if is_tiny else SD1.scale)
    found = scale, config.get("shift_factor") or 0.0
    names = f"{Path(name).name} {config.get('_name_or_path')}"
    is_named = space.is_named_in(names)
    for other in SPACES.values():
        is_other = not is_tiny and (channels, *found) == (other.channels, other.scale, other.shift)
        if other is not space and (is_other or (other.is_named_in(names) and not is_named)):
            raise wrong_space(name, f"is for {other.title} latents", space)
    if channels != space.channels:
        raise wrong_space(
            name, f"is for latents of {channels} channels, not {space.channels}", space
        )
    if found != right:
        raise wrong_space(name, f"is for latents with scale {scale}, not {right[0]}", space)


def wrong_space(name: str, why: str, space: LatentSpace) -> WeightsError:
    """The error for an autoencoder that is not of the space it is loaded for."""
    return WeightsError(f"{name} {why}: use a decoder of {space.title} latents")


@contextmanager
def _silenced(logging: Any) -> Iterator[None]:
    """A context in which a library only logs errors; one thread at a time can be in it."""
    with _SILENCE:
        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(before)


_SILENCE = threading.Lock()
