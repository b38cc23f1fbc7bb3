"""Read latents from the files of other programs, and keep their other contents.

Diffusion models take scaled latents, a VAE returns raw ones; `recognition` tells which a file
holds. All other contents of a trainer's cache are kept in a chunk of the .lat file; see
`cache_chunk`. Works on bytes, not on paths.
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
from dynenc.errors import Corrupt, LatentsError, UsageError
from dynenc.interop import cache_chunk, containers, likely_space, recognition
from dynenc.interop.cache_chunk import CacheContents, CacheTensor
from dynenc.interop.containers import FLOATS, Container, RawTensor
from dynenc.interop.latent_export import NEW_CONTAINERS, default_scaling, new_container
from dynenc.interop.recognition import Layout, RecognisedFile
from dynenc.interop.scaling import RAW, Scaling
from dynenc.latent_space import PATCH, SD1, SPACES, LatentSpace, ceil_div, latent_size
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
    layout: Layout = recognition.PLAIN
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
        other = (
            None if is_ours else likely_space.better_fitting_space(self.latents, self.model.space)
        )
        if other is None:
            return ""
        return (
            f"the latents look like those of {other.title}, not of {self.model.space.title}: if "
            f"they are, give --space {other.name}"
        )

    def chunks(self, to_lat: Callable[[Floats], bytes]) -> list[Chunk]:
        """The `cach` chunk of the other contents of the file.

        No chunk if `latent_export.write` would produce the same file anyway.

        Args:
            to_lat: encodes other latents of the file as a .lat file.
        Raises: LatentsError if the chunk cannot hold it.
        """
        format_name = self.layout.format_name or self.container.format_name
        if format_name in NEW_CONTAINERS and self._is_as_written(format_name):
            return []
        space, metadata = self.model.space, self.container.metadata
        kept = []
        for key, tensor in self.container.tensors.items():
            if key == self.key:
                kept.append(CacheTensor(key, tensor.dtype, tensor.shape, "payload"))
            elif self.layout.latents.fullmatch(key):
                latents = self.scaling.to_space(_checked(tensor, space, key), space)
                kept.append(CacheTensor(key, tensor.dtype, tensor.shape, "lat", to_lat(latents)))
            else:
                kept.append(CacheTensor(key, tensor.dtype, tensor.shape, "data", tensor.data))
        if format_name != "pt":  # other containers hold texts alone
            metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        chunk = cache_chunk.to_chunk(
            CacheContents(format_name, self.scaling, metadata, tuple(kept))
        )
        try:
            cache_chunk.from_chunks([chunk])
        except Corrupt as exc:
            raise LatentsError(
                f"the other contents of the file cannot be kept: {exc}",
                hint="save the latents alone",
            ) from exc
        return [chunk]

    def _is_as_written(self, format_name: str) -> bool:
        """Whether `write` makes the same file of these latents alone; it may add its metadata."""
        size = self.width, self.height
        ours = new_container(format_name, self.latents, size, self.model, self.step_q or 0)
        same_tensors = self._without_latents(ours) == self._without_latents(self.container)
        same_scaling = self.scaling == default_scaling(format_name, self.model.space)
        return same_tensors and same_scaling and self.container.metadata in ({}, ours.metadata)

    def _without_latents(self, container: Container) -> dict[str, RawTensor]:
        """The tensors of a container, without the values of the latents."""
        tensors = container.tensors.items()
        return {key: replace(t, data=b"") if key == self.key else t for key, t in tensors}


def read(
    data: bytes, name: str, scale: float | None = None, space: LatentSpace | None = None
) -> ImportedLatents:
    """The latents of a file of the LATENT_FORMATS, or of a cache of OneTrainer or SimpleTuner.

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
    known = recognition.recognise(container, name, space)
    key = _main_latents_key(container, known.layout, name)
    chosen = _space(container.tensors[key], known, name, space)
    latents = _checked(container.tensors[key], chosen, name)
    _check_masks(container, known.layout, name)
    scaling = _scaling(known, name, scale, chosen)
    height, width = (min(PATCH * side, MAX_SIDE) for side in latents.shape[1:])
    found = ImportedLatents(
        scaling.to_space(latents, chosen),
        width,
        height,
        registry.IMPORTED_MODELS[chosen.name],
        layout=known.layout,
        scaling=scaling,
        key=key,
        container=container,
    )
    return _with_declared_metadata(found)


def _main_latents_key(container: Container, layout: Layout, name: str) -> str:
    """The name of the tensor that is the image's latents, the first of several sizes."""
    keys = [key for key in container.tensors if layout.first.fullmatch(key)]
    if not keys:
        have = ", ".join(map(repr, sorted(container.tensors)[:5]))
        raise LatentsError(f"{name} holds {have}, but no latents of the image itself")
    return keys[0]


def _space(
    tensor: RawTensor, known: RecognisedFile, name: str, asked: LatentSpace | None
) -> LatentSpace:
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
            f"{name}: the latent space of {known.unknown} is unknown",
            hint=f"give --space if its latents are those of {titles}",
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


def _checked(tensor: RawTensor, space: LatentSpace, name: str) -> Floats:
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
    if len(shape) != 3 or not 0 < min(shape) <= max(shape) <= ceil_div(MAX_SIDE, PATCH):
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


def _scaling(known: RecognisedFile, name: str, scale: float | None, space: LatentSpace) -> Scaling:
    """Scale and shift of a file's latents: as asked for, as it says, or as its program has them."""
    scaled = Scaling.of_space(space)
    if scale is not None:
        if scale not in (RAW.scale, space.scale):
            raise UsageError(
                f"{space.title} latents cannot have scale {scale}",
                hint=f"give --scale 1 or {space.scale}",
            )
        chosen = RAW if scale == RAW.scale else scaled
        said = known.scaling or (scaled if known.is_scaled else None)
        if known.layout is recognition.PLAIN and said and said != chosen:
            raise LatentsError(
                f"{name} declares scale {said.scale:g}, but {scale:g} was given",
                hint="leave out --scale",
            )
        return chosen
    if known.scaling:
        return known.scaling
    if known.is_scaled is None:
        raise LatentsError(
            f"the scale of the latents in {name} is unknown",
            hint=f"give --scale 1 for raw latents of a VAE, --scale {space.scale} for scaled ones",
        )
    return scaled if known.is_scaled else RAW


def _with_declared_metadata(read: ImportedLatents) -> ImportedLatents:
    """Latents with the size, encoder and step that the file tells, where those are consistent."""
    metadata, tensors, space = read.container.metadata, read.container.tensors, read.model.space
    sides = tensors.get(read.key.replace("latents", "original_size"))
    is_npz = sides is not None and read.layout is recognition.SD_SCRIPTS
    try:
        given = (
            sides.array.tolist() if is_npz and sides else (metadata["width"], metadata["height"])
        )
        wide, high = (int(side) for side in given)
        if latent_size(high, wide) == read.latents.shape[-2:]:
            read = replace(read, width=wide, height=high)
        [model] = [
            each
            for each in registry.LATENT_MODELS
            if each.name == metadata["encoder"] and each.space is space
        ]
        step = round(float(metadata["step"]) * quantize.STEP_UNIT)
        return replace(read, model=model, step_q=step if 0 < step < 2**16 else None)
    except (KeyError, ValueError, TypeError, OverflowError):
        return read  # written by another program, without this metadata
