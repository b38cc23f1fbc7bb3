"""Metadata of an image: Pillow's `info` -> the kept fields, and back."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import ExifTags, Image

from dynenc.imaging import colour, exif
from dynenc.imaging.notes import note

MAX_METADATA = 2**20  # bytes of each kind, unpacked
# in Image.info: the profile before conversion; `icc_profile` would claim to describe the pixels
SOURCE_PROFILE = "source_icc_profile"
IPTC = 0x0404  # the Photoshop resource that holds it
INCH = 0.0254  # m
UNKNOWN_DPI = (1, 1)  # what Pillow says of a TIFF file without a resolution
NO_TEXT = {  # keys of `info` that have another meaning
    *("xmp", "XML:com.adobe.xmp", "compression", "version", "transparency"),
    *(SOURCE_PROFILE, "icc_profile_type"),  # of pillow-heif
}
ORIENTATION_IN_XMP = re.compile(rb"(tiff:Orientation(?:=[\"']|>))([2-8])([\"'<])")
RAW_EXIF = ("Raw profile type exif", "Raw profile type APP1")  # PNG texts of ImageMagick
NAMES = {  # field of Metadata: what users call it
    "exif": "EXIF",
    "xmp": "XMP",
    "profile": "colour profile",
    "iptc": "IPTC",
    "comment": "comment",
    "text": "text",
    "resolution": "resolution",
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of an image; an empty field is absent."""

    exif: bytes = b""  # a TIFF structure, without the prefix "Exif\\0\\0"
    xmp: bytes = b""
    profile: bytes = b""  # ICC, of the pixels before their conversion to sRGB
    iptc: bytes = b""  # IIM records
    comment: bytes = b""  # of JPEG or GIF, in no known encoding
    text: Mapping[str, str] = field(default_factory=dict)  # of PNG: keyword -> text
    resolution: tuple[int, int] | tuple[()] = ()  # pixels per metre, across and down

    @property
    def kinds(self) -> list[str]:
        """The names of the fields that are not empty."""
        return [each.name for each in fields(self) if getattr(self, each.name)]


def from_image(image: Image.Image, *, is_upright: bool = False) -> Metadata:
    """The metadata to keep from the `info` of an image in sRGB; notes what cannot be kept and why.

    Args:
        is_upright: the EXIF orientation has been applied, and is not kept.
    """
    info = image.info
    found: dict[str, Callable[[], Any]] = {
        "exif": lambda: _exif(info, *image.size, is_upright),
        "xmp": lambda: _upright_xmp(info) if is_upright else xmp_of(info),
        "profile": lambda: _profile(info.get(SOURCE_PROFILE), image.mode),
        "iptc": lambda: _iptc(info.get("photoshop")),
        "comment": lambda: _bytes(info.get("comment")),
        "text": lambda: texts(info),
        "resolution": lambda: _resolution(info.get("dpi")),
    }
    kept: dict[str, Any] = {}
    for kind, find in found.items():
        try:
            value = find()
            parts = [*value.keys(), *value.values()] if kind == "text" else [value]
            size = sum(map(len, parts))
            if size > MAX_METADATA:
                count = f" in {len(parts) // 2} entries" if kind == "text" else ""
                raise ValueError(f"its {size} bytes{count} are more than {MAX_METADATA}")
        except ValueError as exc:
            note(f"the {NAMES[kind]} is dropped: {exc}")
        else:
            kept[kind] = value
    return Metadata(**kept)


def to_info(metadata: Metadata) -> dict[Any, Any]:
    """The `info` that Pillow would have for an sRGB image with that metadata."""
    info: dict[Any, Any] = {k: metadata.text[k] for k in metadata.text if k not in NO_TEXT}
    if metadata.exif:
        info["exif"] = exif.PREFIX + metadata.exif
    if metadata.xmp:
        info["xmp"] = metadata.xmp
    if metadata.profile:
        info[SOURCE_PROFILE] = metadata.profile
    if metadata.iptc:
        info["photoshop"] = {IPTC: metadata.iptc}
    if metadata.comment:
        info["comment"] = metadata.comment
    if metadata.resolution:
        info["dpi"] = tuple(map(_dpi, metadata.resolution))
    return info


def _bytes(value: Any) -> bytes:
    """The value if it is bytes; a text of a PNG file can have any name."""
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""


def xmp_of(info: Mapping[Any, Any]) -> bytes:
    """The XMP packet in an `info`, b"" if there is none."""
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp")
    return xmp.encode("utf-8", "replace") if isinstance(xmp, str) else _bytes(xmp)


def _upright_xmp(info: Mapping[Any, Any]) -> bytes:
    return ORIENTATION_IN_XMP.sub(rb"\g<1>1\3", xmp_of(info))


def _exif(info: Mapping[Any, Any], width: int, height: int, is_upright: bool) -> bytes:
    block = exif_of(info)
    if not block:
        return b""
    if len(block) > MAX_METADATA + 2**16:  # removing a thumbnail may make it fit
        raise ValueError(f"its {len(block)} bytes are more than {MAX_METADATA}")
    cleaned, damaged = exif.cleaned(block, width, height, is_upright=is_upright)
    for tag in dict.fromkeys(damaged):
        note(f"EXIF tag {tag_name(tag)} is dropped: it is damaged")
    return cleaned


def exif_of(info: Mapping[Any, Any]) -> bytes:
    """The block of EXIF in an `info`, b"" if there is none."""
    block = info.get("exif")
    if isinstance(block, Image.Exif):
        block = block.tobytes()
    if not block:
        for key in RAW_EXIF:
            if isinstance(text := info.get(key), str):
                try:
                    block = bytes.fromhex("".join(text.split("\n")[3:]))
                except ValueError:
                    continue
    return _bytes(block).removeprefix(exif.PREFIX)


def tag_name(tag: int) -> str:
    """The usual name of an EXIF tag."""
    return ExifTags.TAGS.get(tag, f"0x{tag:04x}")


def _profile(profile: Any, mode: str) -> bytes:
    if not isinstance(profile, bytes):
        return b""
    if len(profile) > MAX_METADATA:
        raise ValueError(f"its {len(profile)} bytes are more than {MAX_METADATA}")
    colour.from_srgb(Image.new(mode.removesuffix("A"), (1, 1)), profile)
    return profile


def _iptc(photoshop: Any) -> bytes:
    return _bytes(photoshop.get(IPTC)) if isinstance(photoshop, dict) else b""


def texts(info: Mapping[Any, Any]) -> dict[str, str]:
    """The texts of a PNG file in an `info`, by keyword."""
    return {
        key: str(value).replace("\0", "")
        for key, value in info.items()
        if isinstance(key, str)
        and isinstance(value, str)
        and key not in NO_TEXT
        and key not in RAW_EXIF
        and "\0" not in key
    }


def _resolution(dpi: Any) -> tuple[int, int] | tuple[()]:
    if not isinstance(dpi, tuple) or dpi == UNKNOWN_DPI:
        return ()
    try:
        across, down = (float(value) / INCH for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return ()
    if not all(math.isfinite(each) and 0.5 <= each < 2**32 - 1 for each in (across, down)):
        return ()
    return round(across), round(down)


def _dpi(per_metre: int) -> float:
    """Dots per inch, a whole number where that rounds to as many pixels per metre."""
    dpi = per_metre * INCH
    return float(round(dpi)) if round(round(dpi) / INCH) == per_metre else dpi
