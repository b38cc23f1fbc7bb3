"""Recognise a file of latents: its program, and the space and scale of its latents.

| program | file | latents | scale |
|---|---|---|---|
| sd-scripts | `*_sd.npz`, `*_sdxl.npz`, `*.npz` | `latents`, `latents_{h}x{w}` | raw |
| | `*_sd3.npz` | `latents_{h}x{w}` | raw |
| | `*_flux.npz`, `*_lumina.npz` | the same | scaled |
| musubi-tuner | `*_zi.safetensors` | `latents_1x{h}x{w}_{dtype}` | raw |
| | `*_fk.safetensors` | the same, `latents_control_..` | scaled |
| ai-toolkit | safetensors with `latent_space_version` | `latent` | scaled |
| OneTrainer | .pt | `latent_image` | raw |
| ComfyUI | .latent with `latent_format_version_0` | `latent_tensor` | raw |
| | the same without | `latent_tensor` | times 0.18215 |

Others, dynenc's own among them, hold `latents`, or a tensor without a name, and may say the rest. A
file is recognised by its content; its name tells the space where nothing else does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dynenc.errors import LatentsError
from dynenc.interop.containers import Container
from dynenc.interop.scaling import RAW, Scaling
from dynenc.latent_space import FLUX1, SD1, SD3, SDXL, SPACES, LatentSpace

COMFY_OLD = Scaling(SD1.scale)  # what ComfyUI's loader undoes, whatever the space
MARKER = "latent_format_version_0"
SD_SCRIPTS_SPACES = {"sd": SD1, "sdxl": SDXL, "sd3": SD3, "flux": FLUX1, "lumina": FLUX1}
MUSUBI_SPACES = {"z_image": FLUX1, "flux_kontext": FLUX1}
AI_TOOLKIT_SPACES = SPACES | dict.fromkeys(("zimage", "chroma", "flux_kontext"), FLUX1)
MODEL_KEY = re.compile("model|space|vae|architecture|checkpoint|ckpt", re.IGNORECASE)
MODEL_FILE = re.compile(r'"([^"\n]*)\.(safetensors|ckpt|pt|sft)"')  # in ComfyUI's workflows
OTHER_PROGRAMS = re.compile(r"_(anima|hi)\.npz$")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of the tensors that a program writes to a file of latents."""

    format_name: str  # of LATENT_FORMATS; "": that of the container
    latents: re.Pattern[str]  # names of all tensors of latents
    first: re.Pattern[str]  # names of those of the image itself
    mask: str | None = None  # start of the names of masks, which end as those of the latents do


PLAIN = Layout("", re.compile("latents|"), re.compile("latents|"))
COMFY = Layout("comfy", re.compile("latent_tensor"), re.compile("latent_tensor"))
SD_SCRIPTS = Layout(
    "npz",
    re.compile(r"latents(_flipped)?(_\d+x\d+)?|arr_0"),
    re.compile(r"latents(_\d+x\d+)?|arr_0"),
    "alpha_mask",
)
MUSUBI = Layout(
    "musubi",
    re.compile(r"latents(_control)?_1x\d+x\d+_\w+"),
    re.compile(r"latents_1x\d+x\d+_\w+"),
)
AI_TOOLKIT = Layout("ai-toolkit", re.compile("latent"), re.compile("latent"))
ONETRAINER = Layout(
    "pt",
    re.compile("latent_image|latent_conditioning_image"),
    re.compile("latent_image"),
    "latent_mask",
)


@dataclass(frozen=True, slots=True)
class RecognisedFile:
    """A file of latents: its layout, space and scaling, as far as they are known."""

    layout: Layout
    space: LatentSpace | None = None  # None: the file does not say
    scaling: Scaling | None = None  # None: the file does not say ...
    is_scaled: bool | None = None  # ... but whether it is that of its space, or raw
    unknown: str = ""  # name of the model of the latents, if the file gives one without a space


def recognise(container: Container, name: str, asked: LatentSpace | None = None) -> RecognisedFile:
    """Tell what a file is.

    Args:
        name: of the file; its end tells the space of sd-scripts' caches.
        asked: the space that its latents are said to be of.
    Raises: LatentsError if it holds no latents, or those of a model that dynenc does not know.
    """
    tensors, metadata = container.tensors, container.metadata
    named = _space_named(metadata, name)
    if "latent_tensor" in tensors:
        return RecognisedFile(COMFY, named, RAW if MARKER in tensors else COMFY_OLD)
    if "architecture" in metadata and any(key.startswith("latents_") for key in tensors):
        return _musubi(metadata, name)
    if "latent" in tensors and "latent_space_version" in metadata:
        version = str(metadata["latent_space_version"])
        space = AI_TOOLKIT_SPACES.get(version) or named
        return RecognisedFile(AI_TOOLKIT, space, None, True, "" if space else version)
    if "latent_image" in tensors:
        return RecognisedFile(ONETRAINER, named, RAW)
    if any(SD_SCRIPTS.first.fullmatch(key) for key in tensors) and (
        "arr_0" in tensors or any(key.startswith("original_size") for key in tensors)
    ):
        return _sd_scripts(name, named, asked)
    if any(PLAIN.latents.fullmatch(key) for key in tensors):
        return _plain(metadata, named, name)
    if any(SD_SCRIPTS.first.fullmatch(key) for key in tensors):
        return RecognisedFile(SD_SCRIPTS, named)
    have = ", ".join(map(repr, sorted(tensors)[:5])) or "nothing"
    raise LatentsError(f"{name} holds {have}, but no latents: name a file of latents")


def _musubi(metadata: dict[str, Any], name: str) -> RecognisedFile:
    architecture = str(metadata["architecture"])
    if architecture not in MUSUBI_SPACES:
        raise _unknown(name, architecture)
    is_scaled = architecture != "z_image"  # which is scaled in training alone
    return RecognisedFile(MUSUBI, MUSUBI_SPACES[architecture], None, is_scaled)


def _sd_scripts(name: str, named: LatentSpace | None, asked: LatentSpace | None) -> RecognisedFile:
    if other := OTHER_PROGRAMS.search(name):
        raise _unknown(name, other[1])
    end = PurePath(name).stem.rpartition("_")[2].lower()
    space = SD_SCRIPTS_SPACES.get(end) if name.lower().endswith(".npz") else None
    space = space or named
    return RecognisedFile(SD_SCRIPTS, space, None, (space or asked) is FLUX1)


def _plain(metadata: dict[str, Any], named: LatentSpace | None, name: str) -> RecognisedFile:
    space = SPACES.get(str(metadata.get("space"))) or named
    if "scale" not in metadata:
        return RecognisedFile(PLAIN, space)
    try:
        scale = float(metadata["scale"])
    except (ValueError, TypeError):
        return RecognisedFile(PLAIN, space)
    if scale == RAW.scale:
        return RecognisedFile(PLAIN, space, RAW)
    known = [each for each in SPACES.values() if each.scale == scale]
    if not known or (space and space not in known):
        raise LatentsError(
            f"{name} declares scale {scale}, which is not that of {(space or SD1).title} latents",
            hint="give --scale",
        )
    return RecognisedFile(PLAIN, space or known[0], None, True)


def _unknown(name: str, what: str) -> LatentsError:
    titles = ", ".join(space.title for space in SPACES.values())
    return LatentsError(f"{name}: latents of {what} are not supported (supported: {titles})")


def _space_named(metadata: dict[str, Any], name: str) -> LatentSpace | None:
    """The space of a model that the metadata, or the file's name, speak of."""
    mentions = [name] if re.search(r"_sd(xl|3)\.npz$", name, re.IGNORECASE) else []
    for key, text in metadata.items():
        if key in ("prompt", "workflow"):  # of ComfyUI: what users write may mention any model
            mentions += [match[1] for match in MODEL_FILE.finditer(str(text))]
        elif MODEL_KEY.search(key):  # captions and paths may mention any model, too
            mentions.append(str(text))
    spaces = (space for space in SPACES.values() for text in mentions if space.is_named_in(text))
    return next(spaces, None)
