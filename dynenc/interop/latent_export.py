"""Write latents in the file formats of other programs, as bytes.

| written as | tensor | scale | other contents |
|---|---|---|---|
| .safetensors | `latents` [C, h, w] | scaled | space, scale, width, height, encoder; step |
| .pt | `latents` [C, h, w] | scaled | the same, in the same dict |
| .npz, of sd-scripts | `latents` or `latents_{h}x{w}` | raw; FLUX.1: scaled | sizes and crop |
| .latent, of ComfyUI | `latent_tensor` [1, C, h, w] | raw | as .safetensors |

All are float32. Diffusion models take scaled latents, a VAE returns raw ones. The quantiser step
is left out if the .lat file has a detail layer, as the latents beneath it are not quantised. The
other contents of a trainer's cache, kept in a chunk of the .lat file (see `cache_chunk`), are
written again to a file for the same trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.lat_file import LatFile
from dynenc.errors import LatentsError
from dynenc.imaging import detail
from dynenc.interop import cache_chunk, containers, recognition
from dynenc.interop.cache_chunk import CacheContents
from dynenc.interop.containers import FLOATS, Container, RawTensor
from dynenc.interop.latent_formats import LATENT_FORMATS
from dynenc.interop.scaling import RAW, Scaling
from dynenc.latent_space import FLUX1, SD1, SDXL, LatentSpace
from dynenc.native.kernel import Floats


def write(format_name: str, file: LatFile, latents: Floats) -> tuple[bytes, str]:
    """A file of one of the LATENT_FORMATS, and a note on what it leaves out, or "".

    A .lat file that was imported from this format is restored to the imported file; only its
    latents differ, by the quantisation error.

    Args:
        latents: scaled, [C, h, w], of the whole image; see `whole_latents.full_image_latents`.
    Raises: LatentsError if the format is unknown, or can only be restored and the .lat file was
        not imported from it; BitstreamError if the `cach` chunk is damaged.
    """
    kept = cache_chunk.from_chunks(file.chunks)
    if format_name not in LATENT_FORMATS:
        raise LatentsError(
            f"unknown latent format {format_name!r}: choose one of {', '.join(LATENT_FORMATS)}"
        )
    if kept and kept.format_name == format_name:
        return CONTAINER_WRITERS[format_name](_restored(kept, file, latents)), ""
    if format_name not in NEW_CONTAINERS:
        raise LatentsError(
            f"only latents imported from {format_name} can be exported to it",
            hint="choose another --to",
        )
    size = file.size
    step_q = None if detail.has_layer(file) else file.header.step_q
    container = new_container(format_name, latents, size, file.model, step_q)
    note = ""
    if kept and (kept.tensors[1:] or kept.metadata.keys() - {"space", "scale"}):
        note = f"other data of the {kept.format_name} file is dropped"
    return CONTAINER_WRITERS[format_name](container), note


def new_container(
    format_name: str,
    latents: Floats,
    size: tuple[int, int],
    model: registry.Model,
    step_q: int | None,
) -> Container:
    """The file that is written if there was none before; `step_q` is None if not quantised."""
    container = NEW_CONTAINERS[format_name](latents, size, model.space)
    if format_name == "npz":
        return container
    metadata = {  # as text, because safetensors metadata are text
        "space": model.space.name,
        "scale": str(default_scaling(format_name, model.space).scale),
        "width": str(size[0]),
        "height": str(size[1]),
        "encoder": model.name,
    }
    if step_q is not None:
        metadata["step"] = str(step_q / quantize.STEP_UNIT)
    return replace(container, metadata=metadata)


def default_scaling(format_name: str, space: LatentSpace) -> Scaling:
    """Scale and shift of the latents in a file that is written if there was none before."""
    is_raw = format_name == "comfy" or (format_name == "npz" and space is not FLUX1)
    return RAW if is_raw else Scaling.of_space(space)


def _plain(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    return Container({"latents": RawTensor.from_array(latents)})


def _comfy(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    marker = RawTensor.from_array(np.empty(0, np.float32))
    raw = RawTensor.from_array(RAW.from_space(latents, space)[None])
    return Container({"latent_tensor": raw, recognition.MARKER: marker})


def _npz(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    """As sd-scripts' library/strategy_base.py reads them; plain keys in all its versions."""
    end = "" if space in (SD1, SDXL) else "_{}x{}".format(*latents.shape[1:])
    arrays = {
        "latents" + end: default_scaling("npz", space).from_space(latents, space),
        "original_size" + end: np.array(size),
        "crop_ltrb" + end: np.array([0, 0, *size]),
    }
    return Container({key: RawTensor.from_array(array) for key, array in arrays.items()})


NEW_CONTAINERS: dict[str, Callable[[Floats, tuple[int, int], LatentSpace], Container]] = {
    "safetensors": _plain,
    "npz": _npz,
    "comfy": _comfy,
    "pt": _plain,
}
CONTAINER_WRITERS: dict[str, Callable[[Container], bytes]] = {
    "npz": containers.to_npz,
    "pt": containers.to_pt,
    **dict.fromkeys(("safetensors", "comfy", "musubi", "ai-toolkit"), containers.to_safetensors),
}


def _restored(kept: CacheContents, file: LatFile, latents: Floats) -> Container:
    """The bytes of the file that was imported."""
    tensors = {}
    for part in kept.tensors:
        if part.kind == "data":
            tensors[part.key] = RawTensor(part.dtype, part.shape, part.data)
            continue
        values = latents if part.kind == "payload" else LatFile.parse(part.data).latents
        if values.size != math.prod(part.shape) or part.dtype not in FLOATS:
            raise LatentsError(f"the latents do not fit the {kept.format_name} file they came from")
        unscaled = kept.scaling.from_space(values, file.model.space)
        tensors[part.key] = RawTensor.from_array(unscaled.reshape(part.shape), part.dtype)
    return Container(tensors, kept.metadata)
