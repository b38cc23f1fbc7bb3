"""The extras of an image (alpha, metadata, detail layer), and their chunks in a .lat file.

    grey   no data: the image is grey
    alph   opacity, one byte per pixel, row by row, packed
    exif   EXIF as a TIFF structure, packed
    xmpp   the XMP packet, packed
    iccp   the ICC profile of the pixels before their conversion to sRGB, packed
    iptc   IPTC as IIM records, packed
    cmnt   the comment of a JPEG or GIF file, in its encoding, packed
    text   text entries of a PNG file, UTF-8: keyword, NUL, text, NUL for each; packed
    resl   pixels per metre, across and down: two unsigned integers of 4 bytes, little-endian

For "packed" see `packing`; for the chunk of the detail layer see `detail`. An opaque RGB image
without metadata or text has no chunks.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dynenc.coding.bitstream import Chunk
from dynenc.errors import Corrupt
from dynenc.imaging import colour, detail, metadata
from dynenc.imaging.detail import Detail
from dynenc.imaging.metadata import MAX_METADATA, Metadata
from dynenc.imaging.notes import note
from dynenc.imaging.packing import pack, unpack
from dynenc.view import WHOLE, View

GREY, ALPHA, TEXT, RESOLUTION = "grey", "alph", "text", "resl"
PACKED = {"exif": "exif", "xmp": "xmpp", "profile": "iccp", "iptc": "iptc", "comment": "cmnt"}
CACHE = "cach"  # of a trainer; see `interop.cache_chunk`
KNOWN = {GREY, ALPHA, TEXT, RESOLUTION, CACHE, *PACKED.values()}
MAX_TEXT = 4 * MAX_METADATA  # bytes of all texts in UTF-8
PER_METRE = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Extras:
    """Alpha, metadata and detail layer of an image."""

    is_grey: bool = False
    alpha: Image.Image | None = None  # mode L, 255 is opaque; None: the image is opaque
    metadata: Metadata = Metadata()  # noqa: RUF009  # frozen
    detail: Detail | None = None  # layer of text and graphics; ignored by `to_chunks`


def from_image(image: Image.Image, *, keep_metadata: bool) -> Extras:
    """The extras of an image from `pixels.to_plain`; metadata only with `keep_metadata`."""
    return Extras(
        is_grey=image.mode in ("L", "LA"),
        alpha=image.getchannel("A") if image.mode in ("LA", "RGBA") else None,
        metadata=metadata.from_image(image) if keep_metadata else Metadata(),
    )


def restore(image: Image.Image, extras: Extras, view: View = WHOLE) -> Image.Image:
    """The decoded RGB image with its extras: L, LA, RGB or RGBA, metadata in `info`.

    The detail layer is laid over the decoded image. `view` says which part and scale `image` is.

    As in Pillow, `info` has `exif`, `xmp`, texts by keyword, `comment`, `dpi`, `photoshop` (IPTC)
    and the `icc_profile` of the returned pixels, which have its mode.
    """
    if extras.detail:
        image = extras.detail.composite_over(image, view)
    if extras.is_grey:
        image = image.convert("L")
    info = metadata.to_info(extras.metadata)
    if profile := info.pop(metadata.SOURCE_PROFILE, b""):
        try:
            image = colour.from_srgb(image, profile)
            info["icc_profile"] = profile
        except ValueError as exc:
            note(f"the colour profile is dropped, and the pixels stay in sRGB: {exc}")
    if extras.alpha:
        image.putalpha(view.cut(extras.alpha))
    image.info |= info
    return image


def to_chunks(extras: Extras) -> list[Chunk]:
    """The chunks that hold the extras; none for an opaque RGB image without metadata."""
    chunks = [(GREY, b"")] if extras.is_grey else []
    if extras.alpha:
        chunks.append((ALPHA, pack(extras.alpha.tobytes())))
    for name, tag in PACKED.items():
        if data := getattr(extras.metadata, name):
            chunks.append((tag, pack(data)))
    if extras.metadata.text:
        chunks.append((TEXT, pack(_joined(extras.metadata.text))))
    if extras.metadata.resolution:
        chunks.append((RESOLUTION, PER_METRE.pack(*extras.metadata.resolution)))
    return chunks


def from_chunks(chunks: Sequence[Chunk], size: tuple[int, int]) -> Extras:
    """Undo `to_chunks` for an image of this size in px; unknown chunks are skipped.

    Raises: Corrupt if a chunk is damaged, stands twice, or unpacks to another size than it may;
        what `detail.from_chunks` raises.
    """
    found: dict[str, bytes] = {}
    for tag, data in chunks:
        if tag in found and tag in KNOWN:
            raise Corrupt(f"chunk {tag} occurs twice in the file")
        found[tag] = data
    if found.get(GREY):
        raise Corrupt(f"chunk {GREY} holds data")
    kept: dict[str, Any] = {
        name: unpack(tag, found[tag], MAX_METADATA) for name, tag in PACKED.items() if tag in found
    }
    if TEXT in found:
        kept["text"] = _split(unpack(TEXT, found[TEXT], MAX_TEXT))
    if RESOLUTION in found:
        if len(found[RESOLUTION]) != PER_METRE.size:
            raise Corrupt(f"chunk {RESOLUTION} is not {PER_METRE.size} bytes long")
        kept["resolution"] = PER_METRE.unpack(found[RESOLUTION])
        if 0 in kept["resolution"]:
            raise Corrupt(f"chunk {RESOLUTION} holds a zero")
    alpha = None
    if ALPHA in found:
        n_pixels = size[0] * size[1]
        opacity = unpack(ALPHA, found[ALPHA], n_pixels)
        if len(opacity) < n_pixels:
            raise Corrupt(f"chunk {ALPHA} holds fewer pixels than the image")
        alpha = Image.frombytes("L", size, opacity)
    layer = detail.from_chunks(chunks, size)
    return Extras(GREY in found, alpha, Metadata(**kept), layer)


def _joined(texts: Mapping[str, str]) -> bytes:
    parts = (part for pair in texts.items() for part in pair)
    return b"".join(part.encode("utf-8", "replace") + b"\0" for part in parts)


def _split(data: bytes) -> dict[str, str]:
    """Undo `_joined`; raises Corrupt."""
    *parts, rest = data.split(b"\0")
    if rest or len(parts) % 2:
        raise Corrupt(f"chunk {TEXT} does not hold pairs of keyword and text")
    try:
        texts = [part.decode() for part in parts]
    except UnicodeDecodeError as exc:
        raise Corrupt(f"chunk {TEXT} is not UTF-8") from exc
    return dict(zip(texts[::2], texts[1::2], strict=True))
