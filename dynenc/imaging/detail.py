"""The detail layer: tiles of an image that latents cannot hold, as an AVIF or WebP image.

    Detl   form (1 byte) | quality (1) | length of the mask (4) | mask, packed | image

The mask has a bit for each tile of 16x16 px, row by row. The image holds the pixels of its
bounding box; what the mask leaves out of it is filled so that it costs few bytes. The layer lies
over the decoded image: its pixels fade in over the outermost FEATHER px of the mask, and those
outside the mask stay as they are. docs/format.md is the specification.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from dynenc import runtime
from dynenc.coding import rate_control
from dynenc.coding.bitstream import DETAIL, Chunk, find_chunk
from dynenc.coding.entropy import load_coder
from dynenc.coding.lat_file import LatFile
from dynenc.errors import Corrupt, MissingFormat, UnknownModel
from dynenc.imaging import avif, formats
from dynenc.imaging.fill import filled
from dynenc.imaging.graphics import Mask, dilated
from dynenc.imaging.packing import pack, unpack
from dynenc.latent_space import PATCH, ceil_div, latent_size
from dynenc.native.kernel import TILE, Bytes
from dynenc.registry import Model
from dynenc.view import WHOLE, Region, View

FORMS = {1: "AVIF", 2: "WEBP"}  # by their numbers in files, which never change
CHUNK_HEAD = struct.Struct("<BBI")
FEATHER = 4  # px at the mask's edges over which the layer fades in
KEPT_EDGE = 8  # px at the mask's edges that stay in the image beneath, for the decoder
STRIP_ROWS = 4 * TILE  # rows of px that are laid over at once, which bounds the memory
BLEND = FEATHER + 1  # weight of the layer farther inside
MAX_AVIF_SIDE, MAX_AVIF_AREA = 32_768, 2**28  # px, of the image: limits of libavif
MAX_WEBP_SIDE = 16_383  # px
AVIF_OPTIONS = {"speed": 6, "autotiling": False, "subsampling": "4:4:4"}  # 4:4:4: coloured type
WEBP_OPTIONS = {"method": 4}
QUALITY_AT_0, QUALITY_RATIO = 2.8, 25.0  # the layer's at quality 0, and its ratio at 100 to that


@dataclass(frozen=True, eq=False)
class Detail:
    """The layer of one image."""

    size: tuple[int, int]  # width and height of the image, px
    mask: Mask  # [rows, columns] of tiles; not empty
    image: Image.Image  # RGB, of the mask's bounding box
    form: str = "AVIF"  # one of FORMS
    quality: int = 50  # of the file, 0..100
    n_bytes: int = 0  # of the chunk's data

    @property
    def is_whole(self) -> bool:
        """Whether the layer covers the whole image."""
        return bool(self.mask.all())

    @cached_property
    def share(self) -> float:
        """The fraction of tiles in the layer."""
        return float(self.mask.mean())

    def summary(self) -> dict[str, int | float | str]:
        """The description that `info` shows."""
        return {
            "tiles": int(self.mask.sum()),
            "share": self.share,
            "n_bytes": self.n_bytes,
            "form": self.form,
            "quality": self.quality,
        }

    def highlighted(self, decoded: Image.Image) -> Image.Image:
        """The decoded image, darkened outside the layer."""
        inside = weights(self.mask, decoded.size, 0) > 0
        return Image.composite(decoded, decoded.point(lambda v: v // 4), Image.fromarray(inside))

    def composite_over(self, decoded: Image.Image, view: View = WHOLE) -> Image.Image:
        """Composite the layer over the decoded RGB image, in place, and return it."""
        box, seen = box_of(self.mask, self.size), view.covered(self.size).box
        left, right = max(box[0], seen[0]), min(box[2], seen[2])
        top, bottom = max(box[1], seen[1]), min(box[3], seen[3])
        divisor, corner = view.divisor, view.scaled(self.size)
        for y in range(top, bottom, STRIP_ROWS) if left < right else ():
            part = Region(left, y, right - left, min(STRIP_ROWS, bottom - y))
            weight = weights(self.mask, self.size, region=part)
            if not weight.any():
                continue
            above = self.image.crop(Region(left - box[0], y - box[1], *part[2:]).box)
            place = left // divisor - corner.left, y // divisor - corner.top
            if divisor > 1 or weight.min() < BLEND:
                below = decoded.crop(Region(*place, *view.reduced(above).size).box)
                above = _blend(weight, np.asarray(above), np.asarray(below), divisor)
            decoded.paste(above, place)
        return decoded


def _blend(weight: Bytes, above: Bytes, below: Bytes, divisor: int) -> Image.Image:
    """Pixels of the layer, of some weights, over those of an image of smaller sides."""
    rows, columns = (range(0, side, divisor) for side in weight.shape)

    def sums(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        if divisor == 1:
            return values
        by_row = np.add.reduceat(values, rows, 0, np.int32)
        found: npt.NDArray[np.int32] = np.add.reduceat(by_row, columns, 1)
        return found

    by_layer = sums(weight[..., None])
    of_all = sums(np.full_like(weight, BLEND)[..., None])
    total = sums(weight[..., None] * above.astype(np.uint16))
    total = total + (of_all - by_layer) * below.astype(np.uint16)
    return Image.fromarray(((total + of_all // 2) // of_all).astype(np.uint8))


def weights(
    mask: Mask, size: tuple[int, int], feather: int = FEATHER, region: Region | None = None
) -> Bytes:
    """The weight of the layer for each pixel of an image, [height, width], in 0..feather + 1.

    It is 0 outside the mask. Inside, it is the Chebyshev distance in px to the nearest pixel
    outside, at most feather + 1.

    Args:
        feather: less than TILE.
        region: of the image, the part to take; None is all of it.
    """
    region = region or Region(0, 0, *size)
    left, top, right, bottom = region.box
    rows, columns = max(0, top // TILE - 1), max(0, left // TILE - 1)  # one more on each side
    inside = mask[rows : ceil_div(bottom, TILE) + 1, columns : ceil_div(right, TILE) + 1]
    inside = inside.repeat(TILE, 0).repeat(TILE, 1)
    inside = inside[: size[1] - TILE * rows, : size[0] - TILE * columns]
    weight = inside.astype(np.uint8)
    for _ in range(feather):
        across = inside.copy()
        across[:, 1:] &= inside[:, :-1]
        across[:, :-1] &= inside[:, 1:]
        inside = across.copy()
        inside[1:] &= across[:-1]
        inside[:-1] &= across[1:]
        weight += inside
    weight = weight[top - TILE * rows :, left - TILE * columns :]
    return weight[: region.height, : region.width]


def box_of(mask: Mask, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The bounding box of a mask in an image of the given size: left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    right, bottom = (int(last[-1] + 1) * TILE for last in (columns, rows))
    return int(columns[0]) * TILE, int(rows[0]) * TILE, min(right, size[0]), min(bottom, size[1])


def base_image(image: Image.Image, mask: Mask) -> Image.Image:
    """The image to take latents of: a smooth fill replaces pixels well inside the mask.

    Args:
        image: RGB.
        mask: [rows, columns] of tiles.
    Returns: RGB of equal size; pixels more than KEPT_EDGE px inside the mask are filled.
    """
    outside = weights(mask, image.size, KEPT_EDGE) <= KEPT_EDGE
    if not outside.any():
        return Image.new("RGB", image.size, (128, 128, 128))
    return filled(image, Image.fromarray(outside))


def hidden_latents(mask: Mask, size: tuple[int, int]) -> Mask:
    """The latents of `base_image` that no visible pixel needs, [h, w]."""
    covered = weights(mask, size, KEPT_EDGE) > KEPT_EDGE
    missing = [(0, -side % PATCH) for side in covered.shape]
    covered = np.pad(covered, missing, mode="edge")
    height, width = covered.shape[0] // PATCH, covered.shape[1] // PATCH
    return np.asarray(covered.reshape(height, PATCH, width, PATCH).all((1, 3)), np.bool_)


def visible_region(file: LatFile) -> Region:
    """The part of a file's decoded image outside of which the layer hides it; raises Corrupt."""
    size, data = file.size, find_chunk(file.chunks, DETAIL)
    if data is None:
        return Region(0, 0, *size)
    mask = _split(data, size).mask
    if mask.all():
        return Region(0, 0, 0, 0)
    left, top, right, bottom = box_of(dilated(~mask), size)  # wider than the feather
    return Region(left, top, right - left, bottom - top)


def layer_format(mask: Mask, size: tuple[int, int]) -> str:
    """The image format in which a layer can be written here: "AVIF", "WEBP" or ""."""
    left, top, right, bottom = box_of(mask, size)
    width, height = right - left, bottom - top
    if max(width, height) > MAX_AVIF_SIDE or width * height > MAX_AVIF_AREA:
        return ""
    if features.check("avif"):
        return "AVIF"
    return "WEBP" if features.check("webp") and max(width, height) <= MAX_WEBP_SIDE else ""


def layer_quality(quality: float) -> int:
    """The quality of the layer, as AVIF has it, for that of a file, which may be below 0."""
    exponent = min(quality, 100.0) / 100
    return round(QUALITY_AT_0 * math.pow(QUALITY_RATIO, exponent))


def to_chunk(image: Image.Image, mask: Mask, quality: float) -> Chunk:
    """The chunk that holds the layer of an RGB image.

    Args:
        mask: for which `layer_format` gives a form.
        quality: of the file, 0..100.
    """
    form = layer_format(mask, image.size)
    box = box_of(mask, image.size)
    inside = weights(mask, image.size, 0)[box[1] : box[3], box[0] : box[2]] > 0
    part = image.crop(box)
    part = part if inside.all() else filled(part, Image.fromarray(inside))
    options = _avif_options() if form == "AVIF" else WEBP_OPTIONS
    file = io.BytesIO()
    part.save(file, form, quality=layer_quality(quality), **options)
    packed = pack(np.packbits(mask).tobytes())
    [number] = [number for number, name in FORMS.items() if name == form]
    return with_quality(
        (DETAIL, CHUNK_HEAD.pack(number, 0, len(packed)) + packed + file.getvalue()), quality
    )


def _avif_options() -> dict[str, Any]:
    """Options of `Image.save` that make small files of text with every version of libaom.

    With two or more threads, the bytes do not depend on their number; one thread makes others.
    Before version 3.14, text was not found automatically: files were three times as large.
    """
    from PIL import AvifImagePlugin

    version = AvifImagePlugin.get_codec_version("aom") or ""
    finds_text = [int(part) for part in re.findall(r"\d+", version)] >= [3, 14]
    content = {} if finds_text else {"tune-content": "screen"}
    return AVIF_OPTIONS | {
        "max_threads": max(2, AvifImagePlugin.DEFAULT_MAX_THREADS or runtime.cores()),
        "advanced": {"tune": "ssim", **content},  # ssim: as legible at an eighth fewer bytes
    }


def with_quality(chunk: Chunk, quality: float) -> Chunk:
    """The same layer in a file of another quality that asks for the same one of the layer."""
    tag, data = chunk
    number, _, length = CHUNK_HEAD.unpack_from(data)
    head = CHUNK_HEAD.pack(number, round(min(max(quality, 0), 100)), length)
    return tag, head + data[CHUNK_HEAD.size :]


def from_chunks(chunks: Sequence[Chunk], size: tuple[int, int]) -> Detail | None:
    """The layer of a file of an image of this size in px, if it has one.

    Raises: Corrupt if the chunk is damaged, stands twice, or is not as `to_chunk` writes it;
        UnknownModel if its image has a form of a later dynenc; MissingFormat if Pillow lacks it.
    """
    data = find_chunk(chunks, DETAIL)
    if data is None:
        return None
    number, quality, mask, coded = _split(data, size)
    if number not in FORMS:
        raise UnknownModel(f"the detail layer has form {number}, unknown here: update dynenc")
    if quality > 100:
        raise Corrupt(f"chunk {DETAIL} has quality {quality}, which is not within 0..100")
    left, top, right, bottom = box_of(mask, size)
    image = _image(coded, FORMS[number], (right - left, bottom - top))
    return Detail(size, mask, image, FORMS[number], quality, len(data))


def file_quality(file: LatFile) -> float:
    """The quality of a file: from its step, or from the layer if that covers the whole image."""
    if file.header.step_q == rate_control.COARSEST_STEP_Q:
        data = find_chunk(file.chunks, DETAIL)
        if data is not None and len(data) >= CHUNK_HEAD.size:
            return float(CHUNK_HEAD.unpack_from(data)[1])
    return file.quality


def without_latents(size: tuple[int, int], model: Model, chunks: Sequence[Chunk]) -> LatFile:
    """A file whose layer is all of its image: the latents are zeros, with the coarsest step."""
    symbols = np.zeros((model.space.channels, *latent_size(size[1], size[0])), np.int16)
    coder = load_coder(model.coder, has_trellis=False)
    return LatFile.from_symbols(symbols, coder, size, rate_control.COARSEST_STEP_Q, model, chunks)


def has_layer(file: LatFile) -> bool:
    """Whether a file has a layer."""
    return any(tag == DETAIL for tag, _ in file.chunks)


def is_whole(file: LatFile) -> bool:
    """Whether a file's layer covers the whole image; raises Corrupt."""
    data = find_chunk(file.chunks, DETAIL)
    return data is not None and bool(_split(data, file.size).mask.all())


class _Parts(NamedTuple):
    """The parts of a chunk."""

    form: int  # one of FORMS, if this dynenc knows it
    quality: int  # of the file
    mask: Mask
    coded: bytes  # the image of the layer


def _split(data: bytes, size: tuple[int, int]) -> _Parts:
    """The parts of a chunk of an image of this size in px; raises Corrupt."""
    if len(data) < CHUNK_HEAD.size:
        raise Corrupt(f"chunk {DETAIL} is cut short")
    number, quality, length = CHUNK_HEAD.unpack_from(data)
    rest = data[CHUNK_HEAD.size :]
    if length > len(rest):
        raise Corrupt(f"chunk {DETAIL} is cut short")
    shape = ceil_div(size[1], TILE), ceil_div(size[0], TILE)
    n_tiles = shape[0] * shape[1]
    bits = unpack(DETAIL, rest[:length], ceil_div(n_tiles, 8))
    if len(bits) < ceil_div(n_tiles, 8):
        raise Corrupt(f"the mask of chunk {DETAIL} has too few tiles")
    flags: npt.NDArray[np.uint8] = np.unpackbits(np.frombuffer(bits, np.uint8))
    if flags[n_tiles:].any() or not flags.any():
        raise Corrupt(f"the mask of chunk {DETAIL} is empty, or has more tiles than the image")
    return _Parts(number, quality, flags[:n_tiles].reshape(shape).astype(bool), rest[length:])


def _image(coded: bytes, form: str, size: tuple[int, int]) -> Image.Image:
    """The image of a layer, if it is one of that size, 8 bits, opaque and alone; raises Corrupt."""
    if not features.check(form.lower()):
        raise MissingFormat(
            f"the file's text and graphics are {form}, which this Pillow cannot read",
            hint=f"install a Pillow with {form}: pip install --upgrade 'pillow>=11.3'",
        )
    if form == "AVIF" and (fault := avif.fault(coded, size)):
        raise Corrupt(f"the image of chunk {DETAIL} {fault}")
    try:
        with formats.open_as(form, io.BytesIO(coded)) as opened:
            if opened.size != size:
                width, height = opened.size
                raise Corrupt(
                    f"the image of chunk {DETAIL} is {width}x{height} px, not {size[0]}x{size[1]}"
                )
            if opened.mode != "RGB" or getattr(opened, "n_frames", 1) != 1:
                raise Corrupt(f"the image of chunk {DETAIL} is not a single opaque RGB image")
            return opened.convert("RGB")
    except Corrupt:
        raise
    except Exception as exc:  # Pillow's plugins raise whatever damaged data make them trip over
        raise Corrupt(f"the image of chunk {DETAIL} cannot be read") from exc
