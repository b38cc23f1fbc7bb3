"""Read and write latents in the file formats of other programs. Works on bytes, not on paths.

| written as | tensor | scale | beside it |
|---|---|---|---|
| .safetensors | `latents` [C, h, w] | scaled | space, scale, width, height, encoder, step |
| .pt | `latents` [C, h, w] | scaled | the same, in the dict beside it |
| .npz, of sd-scripts | `latents` or `latents_{h}x{w}` | raw; FLUX.1: scaled | sizes and crop |
| .latent, of ComfyUI | `latent_tensor` [1, C, h, w] | raw | as .safetensors |

All are float32. Diffusion models take scaled latents, a VAE returns raw ones; `caches` tells which
a file that is read holds. What the cache of a trainer holds beside the latents is kept in a chunk
of the .lat file (see `beside`), and the file that is written for the same trainer has it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dynenc import registry
from dynenc.coding import quantize
from dynenc.coding.bitstream import MAX_SIDE, Chunk
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, LatentsError, UsageError
from dynenc.interop import beside, caches, containers, likely_space
from dynenc.interop.beside import Beside, Part
from dynenc.interop.caches import RAW, Layout, Recognised, Scaling
from dynenc.interop.containers import FLOATS, Container, Tensor
from dynenc.interop.forms import LATENT_FORMS
from dynenc.latent_space import FLUX1, PATCH, SD1, SDXL, SPACES, LatentSpace, latent_size
from dynenc.native.kernel import Floats

USUAL_RMS = {"sd1": (0.4, 2.3), "sdxl": (0.3, 2.3), "flux1": (0.3, 2.5), "sd3": (0.5, 2.5)}


@dataclass(frozen=True, slots=True)
class ImportedLatents:
    """Latents read from a file, and its other contents."""

    latents: Floats  # [C, h, w], scaled
    width: int  # px
    height: int  # px
    model: registry.Model = registry.IMPORTED
    step_q: int | None = None  # in 1/1024; None: never quantised, as far as the file says
    layout: Layout = caches.PLAIN
    scaling: Scaling = RAW  # of the file's latents
    key: str = ""  # of the latents among the tensors
    container: Container = Container({})  # noqa: RUF009  # the whole file

    @property
    def note(self) -> str:
        """A warning for the user if they do not look like those of their space, else ""."""
        rms = math.sqrt(np.square(self.latents, dtype=np.float64).mean())
        least, most = USUAL_RMS[self.model.space.name]
        if not least <= rms <= most:
            return (
                f"the latents' root mean square is {rms:.2f}, outside the usual {least} to {most} "
                f"of {self.model.space.title}: their scale may be another"
            )
        is_ours = self.step_q is not None
        other = None if is_ours else likely_space.likelier(self.latents, self.model.space)
        if other is None:
            return ""
        return (
            f"the latents look like those of {other.title}, not of {self.model.space.title}: if "
            f"they are, give --space {other.name}"
        )

    def chunks(self, to_lat: Callable[[Floats], bytes]) -> list[Chunk]:
        """The chunk of what the file holds beside these latents; none if it is as `write` makes it.

        Args:
            to_lat: encodes other latents of the file as a .lat file.
        Raises: LatentsError if the chunk cannot hold it.
        """
        form = self.layout.form or self.container.form
        if form in CANONICAL and self._is_as_written(form):
            return []
        space, facts = self.model.space, self.container.facts
        parts = []
        for key, tensor in self.container.tensors.items():
            if key == self.key:
                parts.append(Part(key, tensor.dtype, tensor.shape, "payload"))
            elif self.layout.latents.fullmatch(key):
                latents = _scaled(_checked(tensor, space, key), self.scaling, space)
                parts.append(Part(key, tensor.dtype, tensor.shape, "lat", to_lat(latents)))
            else:
                parts.append(Part(key, tensor.dtype, tensor.shape, "data", tensor.data))
        if form != "pt":  # other containers hold texts alone
            facts = {key: f if isinstance(f, str) else json.dumps(f) for key, f in facts.items()}
        chunk = beside.to_chunk(Beside(form, self.scaling, facts, tuple(parts)))
        try:
            beside.of_chunks([chunk])
        except Corrupt as exc:
            raise LatentsError(
                f"what it holds beside the latents cannot be kept: {exc}", hint="save them alone"
            ) from exc
        return [chunk]

    def _is_as_written(self, form: str) -> bool:
        """Whether `write` makes the same file of these latents alone; it may add its facts."""
        size = self.width, self.height
        ours = _canonical(form, self.latents, size, self.model, self.step_q or 0)
        same_tensors = self._blanked(ours) == self._blanked(self.container)
        same_scaling = self.scaling == _own_scaling(form, self.model.space)
        return same_tensors and same_scaling and self.container.facts in ({}, ours.facts)

    def _blanked(self, container: Container) -> dict[str, Tensor]:
        """The tensors of a container, without the values of the latents."""
        tensors = container.tensors.items()
        return {key: replace(t, data=b"") if key == self.key else t for key, t in tensors}


def write(form: str, file: LatFile, latents: Floats) -> tuple[bytes, str]:
    """A file of one of the LATENT_FORMS, and a note on what it leaves out, or "".

    A .lat file that was imported from this form is restored to the imported file; only its latents
    differ, by the quantisation error.

    Args:
        latents: scaled, [C, h, w], of the whole image; see `whole_latents.of`.
    Raises: LatentsError if the form is unknown, or can only be restored and the .lat file was not
        imported from it; BitstreamError if the `cach` chunk is damaged.
    """
    kept = beside.of_chunks(file.chunks)
    if form not in LATENT_FORMS:
        raise LatentsError(f"there is no form {form!r} of latents: use {', '.join(LATENT_FORMS)}")
    if kept and kept.form == form:
        return WRITERS[form](_restored(kept, file, latents)), ""
    if form not in CANONICAL:
        raise LatentsError(
            f"latents that were not imported from {form} lack what its cache holds beside them",
            hint="choose another --to",
        )
    size = file.header.width, file.header.height
    container = _canonical(form, latents, size, file.model, file.header.step_q)
    note = ""
    if kept and (kept.parts[1:] or kept.facts.keys() - {"space", "scale"}):
        note = f"what the {kept.form} file held beside the latents is left out"
    return WRITERS[form](container), note


def _canonical(
    form: str, latents: Floats, size: tuple[int, int], model: registry.Model, step_q: int
) -> Container:
    """The file that is written if there was none before."""
    container = CANONICAL[form](latents, size, model.space)
    if form == "npz":
        return container
    facts = {  # as text, because safetensors metadata are text
        "space": model.space.name,
        "scale": str(_own_scaling(form, model.space)[0]),
        "width": str(size[0]),
        "height": str(size[1]),
        "encoder": model.name,
        "step": str(step_q / quantize.STEP_UNIT),
    }
    return replace(container, facts=facts)


def _own_scaling(form: str, space: LatentSpace) -> Scaling:
    """Scale and shift of the latents in a file that is written if there was none before."""
    is_raw = form == "comfy" or (form == "npz" and space is not FLUX1)
    return RAW if is_raw else (space.scale, space.shift)


def _plain(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    return Container({"latents": Tensor.of(latents)})


def _comfy(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    marker = Tensor.of(np.empty(0, np.float32))
    raw = Tensor.of(_unscaled(latents, RAW, space)[None])
    return Container({"latent_tensor": raw, caches.MARKER: marker})


def _npz(latents: Floats, size: tuple[int, int], space: LatentSpace) -> Container:
    """As sd-scripts' library/strategy_base.py reads them; plain keys in all its versions."""
    end = "" if space in (SD1, SDXL) else "_{}x{}".format(*latents.shape[1:])
    arrays = {
        "latents" + end: _unscaled(latents, _own_scaling("npz", space), space),
        "original_size" + end: np.array(size),
        "crop_ltrb" + end: np.array([0, 0, *size]),
    }
    return Container({key: Tensor.of(array) for key, array in arrays.items()})


CANONICAL: dict[str, Callable[[Floats, tuple[int, int], LatentSpace], Container]] = {
    "safetensors": _plain,
    "npz": _npz,
    "comfy": _comfy,
    "pt": _plain,
}
WRITERS: dict[str, Callable[[Container], bytes]] = {
    "npz": containers.to_npz,
    "pt": containers.to_pt,
    **dict.fromkeys(("safetensors", "comfy", "musubi", "ai-toolkit"), containers.to_safetensors),
}


def _restored(kept: Beside, file: LatFile, latents: Floats) -> Container:
    """The bytes of the file that was imported."""
    tensors = {}
    for part in kept.parts:
        if part.what == "data":
            tensors[part.key] = Tensor(part.dtype, part.shape, part.data)
            continue
        values = latents if part.what == "payload" else LatFile.parse(part.data).latents
        if values.size != math.prod(part.shape) or part.dtype not in FLOATS:
            raise LatentsError(f"the latents do not fit the {kept.form} file they came from")
        unscaled = _unscaled(values, kept.scaling, file.model.space)
        tensors[part.key] = Tensor.of(unscaled.reshape(part.shape), part.dtype)
    return Container(tensors, kept.facts)


def _scaled(latents: Floats, scaling: Scaling, space: LatentSpace) -> Floats:
    """Latents of a file, scaled for the space's diffusion model."""
    if scaling == (space.scale, space.shift):
        return latents
    factor = np.float32(space.scale / scaling[0])
    return latents * factor + np.float32((scaling[1] - space.shift) * space.scale)


def _unscaled(latents: Floats, scaling: Scaling, space: LatentSpace) -> Floats:
    """Undo `_scaled`."""
    if scaling == (space.scale, space.shift):
        return latents
    raw = latents / np.float32(space.scale) + np.float32(space.shift)
    return (raw - np.float32(scaling[1])) * np.float32(scaling[0])


def read(
    data: bytes, name: str, scale: float | None = None, space: LatentSpace | None = None
) -> ImportedLatents:
    """The latents of a file of the LATENT_FORMS, or of a cache of OneTrainer or SimpleTuner.

    Nothing is ever unpickled.

    Args:
        data: the whole file.
        name: of the file, for messages, and for the space of caches that do not say it within.
        scale: what the VAE's latents were multiplied with: 1 for raw ones, the scale of the space
            for those that a diffusion model takes. None takes what the file says.
        space: of the latents. None takes what the file says, else SD 1.x if they have 4 channels.
    Raises: LatentsError if the format is unknown, if the file does not hold the finite latents of
        exactly one image in a known space, or if their space or scale cannot be determined;
        UsageError if the space has no such scale.
    """
    container = containers.read(data, name)
    known = caches.recognise(container, name, space)
    key = _first(container, known.layout, name)
    chosen = _space(container.tensors[key], known, name, space)
    latents = _checked(container.tensors[key], chosen, name)
    _check_masks(container, known.layout, name)
    scaling = _scaling(known, name, scale, chosen)
    height, width = (min(PATCH * side, MAX_SIDE) for side in latents.shape[1:])
    found = ImportedLatents(
        _scaled(latents, scaling, chosen),
        width,
        height,
        registry.FOREIGN[chosen.name],
        layout=known.layout,
        scaling=scaling,
        key=key,
        container=container,
    )
    return _described(found)


def _first(container: Container, layout: Layout, name: str) -> str:
    """The name of the tensor that is the image's latents, the first of several sizes."""
    keys = [key for key in container.tensors if layout.first.fullmatch(key)]
    if not keys:
        have = ", ".join(sorted(container.tensors)[:5])
        raise LatentsError(f"{name} holds {have} but no latents of the image itself")
    return keys[0]


def _space(tensor: Tensor, known: Recognised, name: str, asked: LatentSpace | None) -> LatentSpace:
    """The space of the latents of a file."""
    if known.space and asked and known.space is not asked:
        raise LatentsError(
            f"{name} holds latents of {known.space.title}, but {asked.title} was given",
            hint="leave out --space",
        )
    if found := known.space or asked:
        return found
    if known.unknown:
        titles = ", ".join(each.title for each in SPACES.values())
        raise LatentsError(
            f"{name} is of {known.unknown}, and nothing says whether its latents are of {titles}",
            hint="give --space if they are",
        )
    channels = [side for side in tensor.shape if side != 1][:1]
    if channels != [SD1.channels] and channels and channels[0] in _CHANNELS:
        titles = " or ".join(s.title for s in SPACES.values() if s.channels == channels[0])
        raise LatentsError(
            f"{name} holds latents of {channels[0]} channels and does not say whether they are of "
            f"{titles}",
            hint="give --space",
        )
    return SD1


_CHANNELS = {space.channels for space in SPACES.values()}


def _checked(tensor: Tensor, space: LatentSpace, name: str) -> Floats:
    """Latents as [C, h, w]; raises LatentsError if they cannot be those of one image."""
    shape = list(tensor.shape)
    if len(shape) == 4 and shape[0] != 1:
        raise LatentsError(f"{name} holds latents {shape}, of {shape[0]} images: split it")
    if len(shape) == 4:
        shape = shape[1:]
    if len(shape) == 3 and shape[0] != space.channels:
        raise LatentsError(
            f"{name} holds latents of {shape[0]} channels: those of {space.title} have "
            f"{space.channels}"
        )
    if len(shape) != 3 or not 0 < min(shape) <= max(shape) <= -(-MAX_SIDE // PATCH):
        raise LatentsError(f"{name} holds a tensor {shape}, not latents [{space.channels}, h, w]")
    if tensor.dtype not in FLOATS:
        kind = tensor.array.dtype
        raise LatentsError(f"{name} holds {kind} instead of floating-point latents")
    latents = tensor.floats.reshape(shape)
    if bad := int((~np.isfinite(latents)).sum()):
        raise LatentsError(
            f"{name} holds {bad} latents that are infinite or NaN: encode its image again, with "
            "a VAE in float32"
        )
    return latents


def _check_masks(container: Container, layout: Layout, name: str) -> None:
    """Raise LatentsError if a mask is not of the size of its latents, or of their pixels."""
    for key, tensor in container.tensors.items():
        if layout.mask is None or not key.startswith(layout.mask):
            continue
        end = key.removeprefix(layout.mask)
        latents = container.tensors.get("latents" + end) or container.tensors.get("latent_image")
        size = latents.shape[-2:] if latents else ()
        pixels = tuple(PATCH * side for side in size)
        if tensor.shape[-2:] not in (size, pixels):
            raise LatentsError(
                f"{name} holds a mask {list(tensor.shape)} that does not fit its latents, "
                f"{list(size)}: make the cache again"
            )


def _scaling(known: Recognised, name: str, scale: float | None, space: LatentSpace) -> Scaling:
    """Scale and shift of a file's latents: as asked for, as it says, or as its program has them."""
    scaled = space.scale, space.shift
    if scale is not None:
        if scale not in (RAW[0], space.scale):
            raise UsageError(
                f"{space.title} latents cannot have scale {scale}",
                hint=f"give --scale 1 or {space.scale}",
            )
        chosen = RAW if scale == RAW[0] else scaled
        said = known.scaling or (scaled if known.is_scaled else None)
        if known.layout is caches.PLAIN and said and said != chosen:
            raise LatentsError(
                f"{name} declares scale {said[0]:g}, but {scale:g} was given",
                hint="leave out --scale",
            )
        return chosen
    if known.scaling:
        return known.scaling
    if known.is_scaled is None:
        raise LatentsError(
            f"{name} does not declare the scale of its latents",
            hint=f"give --scale {space.scale} if a diffusion model takes them as they are, 1 if a "
            "VAE returned them",
        )
    return scaled if known.is_scaled else RAW


def _described(read: ImportedLatents) -> ImportedLatents:
    """Latents with the size, encoder and step that the file tells, where those are consistent."""
    facts, tensors, space = read.container.facts, read.container.tensors, read.model.space
    sides = tensors.get(read.key.replace("latents", "original_size"))
    is_npz = sides is not None and read.layout is caches.SD_SCRIPTS
    try:
        given = sides.array.tolist() if is_npz and sides else (facts["width"], facts["height"])
        wide, high = (int(side) for side in given)
        if latent_size(high, wide) == read.latents.shape[-2:]:
            read = replace(read, width=wide, height=high)
        [model] = [
            each
            for each in registry.LATENT_MODELS
            if each.name == facts["encoder"] and each.space is space
        ]
        step = round(float(facts["step"]) * quantize.STEP_UNIT)
        return replace(read, model=model, step_q=step if 0 < step < 2**16 else None)
    except (KeyError, ValueError, TypeError, OverflowError):
        return read  # written by another program, without this metadata
