"""What a picture has beside its colours, and the chunks of a .lat file that keep it.

    grey   no data: the picture is grey
    alph   opacity, one byte a pixel, row by row, packed
    exif   EXIF as a TIFF structure, packed
    xmpp   the XMP packet, packed
    iccp   the ICC profile that the pixels had before they became sRGB, packed

"Packed" is a raw LZMA stream with the settings below. An opaque RGB picture has no chunk at all.
"""

import lzma
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

from dynenc.coding.bitstream import Chunk
from dynenc.errors import Corrupt
from dynenc.imaging import colour
from dynenc.imaging.notes import note

GREY, ALPHA = "grey", "alph"
METADATA = {"exif": "exif", "xmp": "xmpp", "profile": "iccp"}  # field of Extras: tag
MAX_METADATA = 2**20  # bytes of each kind, unpacked
SOURCE_PROFILE = "source_icc_profile"  # of Image.info: `icc_profile` would be that of the pixels
LZMA = {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}
EFFORT = {"preset": 9, "nice_len": 273, "depth": 8}  # deeper: 2% smaller, half as fast
EXIF_PREFIX = b"Exif\0\0"
SUB_DIRECTORIES = {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}
DESCRIPTIVE = {  # tags of the first directory; the others tell how the pixels lie in their file
    *(0x010E, 0x010F, 0x0110, 0x0112),  # description, make, model, orientation
    *(0x011A, 0x011B, 0x0128, 0x0131),  # resolution and its unit, software
    *(0x0132, 0x013B, 0x8298),  # date, artist, copyright
    *SUB_DIRECTORIES,
}


@dataclass(frozen=True, slots=True)
class Extras:
    """What a picture has beside its colours."""

    is_grey: bool = False
    alpha: Image.Image | None = None  # mode L, 255 is opaque; None: all of it is opaque
    exif: bytes = b""  # without the prefix "Exif\0\0"
    xmp: bytes = b""
    profile: bytes = b""  # ICC; of the pixels before they became sRGB


def of(picture: Image.Image, *, keep_metadata: bool) -> Extras:
    """The extras of an image that `image.to_plain` gave; its metadata only if asked for."""
    found = metadata(picture) if keep_metadata else {}
    return Extras(
        is_grey=picture.mode in ("L", "LA"),
        alpha=picture.getchannel("A") if picture.mode in ("LA", "RGBA") else None,
        exif=found.get("exif", b""),
        xmp=found.get("xmp", b""),
        profile=found.get(SOURCE_PROFILE, b""),
    )


def metadata(picture: Image.Image) -> dict[str, bytes]:
    """Of the `info` of a picture in sRGB what is to be kept: EXIF, XMP, the profile it had before.

    Warns of what is too large, cannot be read, or has no way back from sRGB, and leaves it out.
    """
    kept: dict[str, bytes] = {}
    for kind, name in (("exif", "EXIF"), ("xmp", "XMP"), (SOURCE_PROFILE, "colour profile")):
        data = picture.info.get(kind, b"")
        data = data.encode() if isinstance(data, str) else bytes(data)
        try:
            if len(data) > MAX_METADATA:
                raise ValueError(f"its {len(data)} bytes are more than {MAX_METADATA}")
            if data and kind == "exif":
                data = read_exif(data).tobytes().removeprefix(EXIF_PREFIX)
            elif data and kind == SOURCE_PROFILE:
                colour.from_srgb(Image.new(picture.mode.removesuffix("A"), (1, 1)), data)
        except ValueError as exc:
            note(f"the {name} is left out: {exc}")
        else:
            kept |= {kind: data} if data else {}
    return kept


def read_exif(data: bytes) -> Image.Exif:
    """EXIF without its thumbnail and without tags about the file that it was in.

    Raises: ValueError if it is damaged.
    """
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd entries
            exif.load(data)
            return describing(exif)
    except Exception as exc:  # damage trips Pillow's reader in many ways
        raise ValueError("it is damaged") from exc


def describing(exif: Image.Exif) -> Image.Exif:
    """The entries that describe the picture and not its file."""
    kept = Image.Exif()
    for tag in DESCRIPTIVE & set(exif):
        kept[tag] = exif.get_ifd(tag) if tag in SUB_DIRECTORIES else exif[tag]
    kept.tobytes()  # fails if an entry cannot be written
    return kept


def restore(picture: Image.Image, extras: Extras) -> Image.Image:
    """The decoded RGB picture with its extras: L, LA, RGB or RGBA, metadata in `info`.

    As Pillow has it, `info` holds `exif`, `xmp` and the `icc_profile` of the very pixels.
    """
    if extras.is_grey:
        picture = picture.convert("L")
    if extras.profile:
        try:
            picture = colour.from_srgb(picture, extras.profile)
            picture.info["icc_profile"] = extras.profile
        except ValueError as exc:
            note(f"the colour profile is left out, and the pixels stay sRGB: {exc}")
    if extras.alpha:
        picture.putalpha(extras.alpha)
    if extras.exif:
        picture.info["exif"] = EXIF_PREFIX + extras.exif
    if extras.xmp:
        picture.info["xmp"] = extras.xmp
    return picture


def to_chunks(extras: Extras) -> list[Chunk]:
    """The chunks that keep the extras; none for an opaque RGB picture without metadata."""
    chunks = [(GREY, b"")] if extras.is_grey else []
    if extras.alpha:
        chunks.append((ALPHA, _pack(extras.alpha.tobytes())))
    for field, tag in METADATA.items():
        if data := getattr(extras, field):
            chunks.append((tag, _pack(data)))
    return chunks


def from_chunks(chunks: Sequence[Chunk], width: int, height: int) -> Extras:
    """Undo `to_chunks` for a picture of width x height px; unknown chunks are skipped.

    Raises: Corrupt if a chunk is damaged, stands twice, or unpacks to another size than it may.
    """
    found: dict[str, bytes] = {}
    for tag, data in chunks:
        if tag in found and tag in (GREY, ALPHA, *METADATA.values()):
            raise Corrupt(f"chunk {tag} stands twice in the file")
        found[tag] = data
    if found.get(GREY):
        raise Corrupt(f"chunk {GREY} holds data")
    fields: dict[str, Any] = {
        field: _unpack(tag, found[tag], MAX_METADATA)
        for field, tag in METADATA.items()
        if tag in found
    }
    if ALPHA in found:
        opacity = _unpack(ALPHA, found[ALPHA], width * height)
        if len(opacity) < width * height:
            raise Corrupt(f"chunk {ALPHA} holds fewer pixels than the picture")
        fields["alpha"] = Image.frombytes("L", (width, height), opacity)
    return Extras(is_grey=GREY in found, **fields)


def _pack(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[LZMA | EFFORT])


def _unpack(tag: str, data: bytes, most: int) -> bytes:
    """At most so many bytes; memory grows with what comes out, and no further than that."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[LZMA])
    try:
        unpacked = unpacker.decompress(data, most + 1)
    except (lzma.LZMAError, EOFError) as exc:
        raise Corrupt(f"chunk {tag} cannot be unpacked") from exc
    if len(unpacked) > most:
        raise Corrupt(f"chunk {tag} unpacks to more than its {most} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise Corrupt(f"chunk {tag} is cut short, or longer than what it holds")
    return unpacked
