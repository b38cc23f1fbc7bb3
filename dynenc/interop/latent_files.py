"""Latents in the files of other programs, read and written. Bytes only: no paths here.

| written as | tensor | scale | metadata |
|---|---|---|---|
| .safetensors | `latents` [4, h, w] | SD | metadata: scale, width, height, encoder, step |
| .pt | `latents` [4, h, w] | SD | the same, in the dict beside it |
| .npz, of sd-scripts | `latents_{h}x{w}` [4, h, w] | raw | `original_size_*`, `crop_ltrb_*` |
| .latent, of ComfyUI | `latent_tensor` [1, 4, h, w] | raw | as .safetensors |

All are float32. The U-Net takes latents in SD scale, the VAE returns raw ones: SD scale is raw
times 0.18215. A file is recognised by its content, not its name. As ComfyUI's loader does
(`nodes.py`, LoadLatent), files without `latent_format_version_0` are taken to be in SD scale. Older
versions of sd-scripts wrote `latents` without the size.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.bitstream import MAX_SIDE, Header
from dynenc.errors import LatentsError, UsageError
from dynenc.interop.forms import LATENT_FORMS
from dynenc.latent_space import SD1, SDXL, SDXL_NAME
from dynenc.native.kernel import Floats

Array = npt.NDArray[Any]

RAW = 1.0  # scale of latents as the VAE returns them
MAX_BYTES = 2**28  # of a file of one image's latents; those of the largest image take 45 MB
USUAL_RMS = (0.4, 2.3)  # in SD scale; flat images have 0.5 to 1.9
COMFY, MARKER = "latent_tensor", "latent_format_version_0"
LATENTS = re.compile(r"latents(_\d+x\d+)?|latent_tensor")  # names of tensors
NEEDED = re.compile(rf"{LATENTS.pattern}|original_size(_\d+x\d+)?|{MARKER}")
DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}  # of safetensors
MODEL_FILE = re.compile(r'"([^"\n]*)\.(safetensors|ckpt|pt|sft)"')  # in ComfyUI's workflows
SCALE_HINT = "give --scale 0.18215 if a U-Net takes them as they are, 1 if a VAE returned them"


@dataclass(frozen=True, slots=True)
class ImportedLatents:
    """Latents read from a file, and its metadata."""

    latents: Floats  # [4, h, w] in SD scale
    width: int  # px
    height: int  # px
    model: registry.Model = registry.IMPORTED
    step_q: int | None = None  # in 1/1024; None: never quantised, as far as the file says

    @property
    def note(self) -> str:
        """A warning for the user if their magnitude is unusual, else ""."""
        rms = math.sqrt(np.square(self.latents, dtype=np.float64).mean())
        if USUAL_RMS[0] <= rms <= USUAL_RMS[1]:
            return ""
        return (
            f"the latents' root mean square is {rms:.2f}, outside the usual {USUAL_RMS[0]} to "
            f"{USUAL_RMS[1]}: their scale may be another"
        )


def write(suffix: str, header: Header, latents: Floats) -> bytes:
    """The bytes of a file of one of the LATENT_FORMS.

    Args:
        latents: [C, h, w], those of the header's file.
    Raises: LatentsError if no form has this suffix.
    """
    writer = WRITERS.get(suffix.lower())
    if writer is None:
        raise LatentsError(f"no file of latents ends in {suffix!r}: use {', '.join(WRITERS)}")
    return writer(header, np.ascontiguousarray(latents))


def _write_safetensors(header: Header, latents: Floats) -> bytes:
    return safetensors.numpy.save({"latents": latents}, _facts(header, SD1.scale))


def _write_comfy(header: Header, latents: Floats) -> bytes:
    arrays = {COMFY: _raw(latents)[None], MARKER: np.empty(0, np.float32)}
    return safetensors.numpy.save(arrays, _facts(header, RAW))


def _write_pt(header: Header, latents: Floats) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save({"latents": torch.from_numpy(latents), **_facts(header, SD1.scale)}, file)
    return file.getvalue()


def _write_npz(header: Header, latents: Floats) -> bytes:
    """As `save_latents_to_disk` of sd-scripts' library/strategy_base.py writes them."""
    file = io.BytesIO()
    size = "_{}x{}".format(*latents.shape[1:])
    arrays: dict[str, Array] = {
        "latents" + size: _raw(latents),
        "original_size" + size: np.array([header.width, header.height]),
        "crop_ltrb" + size: np.array([0, 0, header.width, header.height]),
    }
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


WRITERS: dict[str, Callable[[Header, Floats], bytes]] = {
    LATENT_FORMS["safetensors"]: _write_safetensors,
    LATENT_FORMS["npz"]: _write_npz,
    LATENT_FORMS["comfy"]: _write_comfy,
    LATENT_FORMS["pt"]: _write_pt,
}


def _raw(latents: Floats) -> Floats:
    """Latents in SD scale as the VAE returns them."""
    return latents / np.float32(SD1.scale)


def _facts(header: Header, scale: float) -> dict[str, str]:
    """What a file says beside the latents; text, because safetensors' metadata is."""
    model = registry.latent_model(header.model_id) or registry.IMPORTED
    return {
        "scale": str(scale),
        "width": str(header.width),
        "height": str(header.height),
        "encoder": model.name,
        "step": str(header.step_q / quantize.STEP_UNIT),
    }


def read(data: bytes, name: str, scale: float | None = None) -> ImportedLatents:
    """The latents of a file in any of the LATENT_FORMS. Nothing is ever unpickled.

    Args:
        data: the whole file.
        name: of the file, for messages; `_sdxl.npz` is how sd-scripts marks SDXL's.
        scale: what the VAE's latents were multiplied with: 1 for raw ones, 0.18215 for SD scale.
            None takes what the file says.
    Raises: LatentsError if it is no such file, holds several pictures' latents, or none, or those
        of another space (SDXL, SD 3, FLUX), or NaN, or if their scale is not known; UsageError if
        there is no such scale.
    """
    if scale not in (None, RAW, SD1.scale):
        raise UsageError(
            f"latents of SD 1.x are never times {scale}", hint="give --scale 1 or 0.18215"
        )
    try:
        arrays, facts = _open(data, name)
    except LatentsError:
        raise
    except Exception as exc:  # these libraries raise whatever a damaged file makes them trip over
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise LatentsError(f"{name} cannot be read as latents: {reason}") from exc
    key = next(key for key in arrays if LATENTS.fullmatch(key))
    latents = _checked(arrays[key], name)
    _refuse_sdxl(facts, name)
    if scale is None:
        scale = _scale(key, arrays, facts, name)
    latents = latents * np.float32(SD1.scale / scale)
    sides = arrays.get(key.replace("latents", "original_size")) if key != COMFY else None
    return _described(latents, facts, sides)


def _open(data: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a file that are needed, one of latents among them, and the text beside them."""
    if data[:4] != b"PK\x03\x04":
        if data[8:9] != b"{":
            raise LatentsError(
                f"{name} is neither safetensors nor a .npz or .pt of latents; old .pt files are "
                "pickles, which can run any code: save it again with torch.save"
            )
        return _open_safetensors(data, name)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise LatentsError(f"{name} unpacks to more than any latents: it is not read")
        if any(member.filename.endswith("/data.pkl") for member in members):
            return _open_pt(data, name)
        found = {member.filename.removesuffix(".npy"): member.filename for member in members}
        needed = _needed(found, name)
        return {key: _array(archive.read(found[key]), found[key]) for key in needed}, {}


def _needed(keys: Iterable[str], name: str) -> list[str]:
    """Those of a file's tensors that are needed; raises LatentsError unless one is latents."""
    keys = list(keys)
    found = [key for key in keys if LATENTS.fullmatch(key)]
    if not found:
        have = ", ".join(sorted(keys)[:5]) or "nothing"
        raise LatentsError(f"{name} holds {have} but no latents: name a file of latents")
    if len(found) > 1:
        raise LatentsError(f"{name} holds {len(found)} pictures, {', '.join(found)}: split it")
    return [key for key in keys if NEEDED.fullmatch(key)]


def _open_safetensors(data: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays of a safetensors file; numpy has no bfloat16, so that becomes float32."""
    tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    length = int.from_bytes(data[:8], "little")
    facts = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    arrays = {}
    for key in _needed(tensors, name):
        tensor = tensors[key]
        kind, content = tensor["dtype"], tensor["data"]
        if kind == "BF16":
            array = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in DTYPES:
            array = np.frombuffer(content, DTYPES[kind])
        else:
            raise LatentsError(f"{name} holds {key} of type {kind}: save it as float32")
        arrays[key] = array.reshape(tensor["shape"])
    return arrays, facts


def _array(data: bytes, name: str) -> Array:
    """The array of a .npy file. numpy would allocate what its header claims, so that is checked."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, _, dtype = header[version[0]](file)
    if dtype.hasobject:
        raise LatentsError(f"{name} is a pickle, which can run any code: it is not read")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise LatentsError(f"{name} is cut short, or claims to be larger than it is")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _open_pt(data: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of a .pt file, and its numbers and texts; nothing else in it is loaded."""
    import torch

    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        content = {"latents": content}
    if not isinstance(content, dict):
        raise LatentsError(f"{name} holds a {type(content).__name__} and no latents")
    tensors = {str(k): v.detach() for k, v in content.items() if isinstance(v, torch.Tensor)}
    facts = {str(k): str(v) for k, v in content.items() if str(k) not in tensors}
    arrays: dict[str, Array] = {}
    for key in _needed(tensors, name):
        tensor = tensors[key]
        if tensor.is_sparse or tensor.is_quantized:
            raise LatentsError(f"{name} holds {key} of another layout: save it as float32")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise LatentsError(f"{name} claims to hold more latents than it does")
        is_float = tensor.is_floating_point()  # numpy does not have all of torch's types
        arrays[key] = (tensor.float() if is_float else tensor).numpy()
    return arrays, facts


def _checked(latents: Array, name: str) -> Floats:
    """Latents as [4, h, w]; raises LatentsError if they cannot be those of one SD 1.x picture."""
    if latents.ndim == 4 and len(latents) == 1:
        latents = latents[0]
    shape = list(latents.shape)
    if len(shape) == 4:
        raise LatentsError(f"{name} holds latents {shape}, of {shape[0]} pictures: split it")
    if len(shape) == 3 and shape[0] != SD1.channels:
        which = ", as SD 3's and FLUX's" if shape[0] == 16 else ""
        raise LatentsError(
            f"{name} holds latents of {shape[0]} channels{which}: "
            f"those of {SD1.title} have {SD1.channels}"
        )
    if len(shape) != 3 or not 0 < min(shape) <= max(shape) <= -(-MAX_SIDE // SD1.patch):
        raise LatentsError(f"{name} holds a tensor {shape}, not latents [{SD1.channels}, h, w]")
    if latents.dtype.kind != "f":
        raise LatentsError(f"{name} holds {latents.dtype} instead of floating-point latents")
    with np.errstate(over="ignore"):
        latents = latents.astype(np.float32)
    if bad := int((~np.isfinite(latents)).sum()):
        raise LatentsError(
            f"{name} holds {bad} latents that are infinite or NaN: encode its picture again, with "
            "a VAE in float32"
        )
    return latents


def _refuse_sdxl(facts: dict[str, str], name: str) -> None:
    """Raise LatentsError if the name or metadata of a file name SDXL, whose latents look alike."""
    mentions = [name] if name.lower().endswith("_sdxl.npz") else []
    for key, text in facts.items():
        if key in ("prompt", "workflow"):  # of ComfyUI: what users write may mention any model
            mentions += [match[1] for match in MODEL_FILE.finditer(text)]
        else:
            mentions.append(text)
    if facts.get("scale") == str(SDXL.scale) or any(SDXL_NAME.search(text) for text in mentions):
        raise LatentsError(
            f"{name} is for SDXL, whose latents are of another space: SD 1.x's are needed"
        )


def _scale(key: str, arrays: dict[str, Array], facts: dict[str, str], name: str) -> float:
    """The factor that raw latents were multiplied by: from the metadata, or fixed by the format."""
    if key == COMFY:
        return RAW if MARKER in arrays else SD1.scale
    if key.replace("latents", "original_size") in arrays:  # of sd-scripts
        return RAW
    try:
        scale = float(facts["scale"])
    except (KeyError, ValueError):
        raise LatentsError(
            f"{name} does not say in which scale its latents are", hint=SCALE_HINT
        ) from None
    if scale not in (RAW, SD1.scale):
        raise LatentsError(
            f"{name} says that its latents are times {scale}, which is not SD 1.x's",
            hint=SCALE_HINT,
        )
    return scale


def _described(latents: Floats, facts: dict[str, str], sides: Array | None) -> ImportedLatents:
    """Latents with the size, encoder and step of the metadata, where those are consistent."""
    height, width = (min(SD1.patch * side, MAX_SIDE) for side in latents.shape[-2:])
    model, step_q = registry.IMPORTED, None
    try:
        given = sides.tolist() if sides is not None else (facts["width"], facts["height"])
        wide, high = (int(side) for side in given)
        if SD1.size(high, wide) == latents.shape[-2:]:
            width, height = wide, high
        [model] = [
            each
            for each in registry.LATENT_MODELS
            if each.name == facts["encoder"] and each.space is SD1
        ]
        step = round(float(facts["step"]) * quantize.STEP_UNIT)
        step_q = step if 0 < step < 2**16 else None
    except (KeyError, ValueError, TypeError, OverflowError):
        pass  # written by another program, without this metadata
    return ImportedLatents(latents, width, height, model, step_q)
