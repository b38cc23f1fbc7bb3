"""Decoded images as the bytes of image files, with metadata and the name of the decoder."""

import io
import struct
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dynenc.errors import OutputError
from dynenc.imaging import exif, formats, ifd, metadata, pixels
from dynenc.imaging.extras import Extras, restore
from dynenc.imaging.ifd import Node
from dynenc.imaging.metadata import IPTC, NAMES, Metadata
from dynenc.imaging.notes import note
from dynenc.io.names import STREAM
from dynenc.view import WHOLE, View

SOFTWARE = exif.SOFTWARE  # names the decoder of an image
LOSSY = ("JPEG", "WEBP", "AVIF", "HEIF", "JXL")
LOSSY_QUALITY = 95  # Pillow's defaults lose too much
WEB = ("exif", "xmp", "profile")
STORABLE_METADATA = {  # format -> fields of Metadata that it can store
    "JPEG": (*WEB, "iptc", "comment", "resolution"),
    "PNG": (*WEB, "comment", "text", "resolution"),
    "TIFF": (*WEB, "iptc", "resolution"),
    "WEBP": WEB,
    "AVIF": WEB,
    "HEIF": WEB,
    "JXL": WEB,
    "GIF": ("comment",),
    "BMP": ("resolution",),
}
MOST_BYTES = {  # of a segment, without its header
    "JPEG": {"exif": 65_400, "xmp": 65_504, "iptc": 65_000, "comment": 65_533},
    "GIF": {"comment": 65_000},
}
WITH_ALPHA = ("PNG", "WEBP", "AVIF", "TIFF", "HEIF", "JXL", "JPEG2000", "TGA", "QOI", "ICO", "DDS")
ICO_SIDE = 256  # px, at most
XMP_OF_PNG = "XML:com.adobe.xmp"  # keyword of a text


def image_format(target: str) -> str:
    """Pillow's name of the format for the suffix of a file; PNG for stdout.

    Raises: OutputError if it is not the suffix of an image format that can be written.
    """
    if target == STREAM:
        return "PNG"
    suffix = PurePosixPath(target.rpartition("/")[2]).suffix.lower()
    form = formats.writer_of(suffix)
    if form is None:
        raise OutputError(
            f"{target} does not end in the suffix of an image format that can be written",
            hint="use .png, .jpg, .webp or .avif, for example",
        )
    return form


def image_bytes(
    image: Image.Image, extras: Extras, name: str, decoder_name: str, view: View = WHOLE
) -> bytes:
    """A decoded RGB image, or a view of one, with its extras as a file of the name's format.

    Notes what the format cannot store. Raises: OutputError if it cannot be written.
    """
    form = image_format(name)
    storable = STORABLE_METADATA.get(form, ())
    unsupported = [kind for kind in extras.metadata.kinds if kind not in storable]
    if unsupported:
        kinds = ", ".join(NAMES[kind] for kind in unsupported)
        note(f"{form} cannot store this metadata, which is dropped: {kinds}")
        empty = Metadata()
        left = replace(extras.metadata, **{kind: getattr(empty, kind) for kind in unsupported})
        extras = replace(extras, metadata=left)
    image = restore(image, extras, view)
    if image.mode in ("LA", "RGBA") and form not in WITH_ALPHA:
        note(f"{form} has no alpha: transparent pixels become white")
        info = image.info
        image = pixels.over_white(image)
        image.info = info
    if form == "QOI" and image.mode in ("L", "LA"):  # which has colours alone
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    if form == "ICO" and max(image.size) > ICO_SIDE:
        raise OutputError(f"{name} cannot be written as ICO: a side exceeds {ICO_SIDE} px")
    try:
        return save(image, form, software(decoder_name, view))
    except (OSError, ValueError) as exc:
        raise OutputError(f"{name} cannot be written as {form}: {exc}") from exc


def software(decoder_name: str, view: View = WHOLE) -> str:
    """The EXIF "Software" of an image that this decoder made; of a path only the last part."""
    return ", ".join(filter(None, ("dynenc", f"decoder {Path(decoder_name).name}", str(view))))


def save(image: Image.Image, form: str, made_by: str) -> bytes:
    """An image as a file of that format, with the metadata in its `info` and its software.

    Notes metadata that does not fit. Raises: OSError or ValueError if it cannot be written.
    """
    kept = {kind: data for kind in STORABLE_METADATA.get(form, ()) if (data := _data(image, kind))}
    for kind, most in MOST_BYTES.get(form, {}).items():
        if len(kept.get(kind, b"")) > most:
            note(f"the {NAMES[kind]} is dropped: {form} cannot store {len(kept[kind])} bytes")
            del kept[kind]
    try:
        return _save(image, form, made_by, kept)
    except (OSError, ValueError, TypeError, struct.error) as exc:
        needed = {kind: kept[kind] for kind in kept if kind == "profile"}  # the pixels depend on it
        if kept == needed:
            raise
        kinds = ", ".join(NAMES[kind] for kind in kept.keys() - needed.keys())
        note(f"metadata that {form} does not accept is dropped ({exc}): {kinds}")
        return _save(image, form, made_by, needed)


def _data(image: Image.Image, kind: str) -> Any:
    """The metadata of a kind (a field of `Metadata`) in the `info` of an image."""
    info = image.info
    if kind == "text":
        return metadata.texts(info)
    if kind == "iptc":
        return info.get("photoshop", {}).get(IPTC)
    data = info.get({"resolution": "dpi", "profile": "icc_profile"}.get(kind, kind))
    if isinstance(data, str):  # a text of that name
        return None
    return data.removeprefix(exif.PREFIX) if kind == "exif" and data else data


def _save(image: Image.Image, form: str, made_by: str, kept: dict[str, Any]) -> bytes:
    options: dict[str, Any] = {"quality": LOSSY_QUALITY} if form in LOSSY else {}
    options["icc_profile"] = kept.get("profile")
    if form == "ICO":
        options["sizes"] = [image.size]  # not those of icons
    if "resolution" in kept:
        options["dpi"] = kept["resolution"]
    if form == "TIFF":
        return _tiff(image, options, kept, made_by)
    if "exif" in STORABLE_METADATA.get(form, ()):
        options["exif"] = exif.PREFIX + exif.with_software(kept.get("exif", b""), made_by)
    if form == "PNG":
        options["pnginfo"] = _png_texts(kept)
    else:
        options |= {kind: kept[kind] for kind in ("xmp", "comment") if kind in kept}
    if "iptc" in kept:
        options["extra"] = _app13(kept["iptc"])
    return _written(image, form, options)


def _written(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    """An image as a file; metadata in its `info` are not stored, as Pillow's writers would."""
    info, image.info = image.info, {}
    try:
        image.save(buffer := io.BytesIO(), form, **options)
    finally:
        image.info = info
    return buffer.getvalue()


def _png_texts(kept: dict[str, Any]) -> PngInfo:
    """Texts, XMP and the comment as chunks of a PNG file."""
    chunks = PngInfo()
    if "xmp" in kept:
        chunks.add_itxt(XMP_OF_PNG, kept["xmp"].decode("utf-8", "replace"))
    texts = dict(kept.get("text", {}))
    if "comment" in kept:
        texts.setdefault("Comment", kept["comment"].decode("utf-8", "replace"))
    for keyword, text in texts.items():
        chunks.add_text(keyword, text)
    return chunks


def _app13(iptc: bytes) -> bytes:
    """A JPEG segment of Photoshop's resources that holds IPTC."""
    resource = b"8BIM" + struct.pack(">HxxI", IPTC, len(iptc)) + iptc + bytes(len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body


def _tiff(image: Image.Image, options: dict[str, Any], kept: dict[str, Any], made_by: str) -> bytes:
    """A TIFF file, with the EXIF entries unchanged in its directory."""
    plain = _written(image, "TIFF", options)
    nodes = [
        Node(tag, ifd.BYTE, len(kept[kind]), kept[kind])
        for kind, tag in (("xmp", exif.XMP), ("iptc", exif.IPTC))
        if kind in kept
    ]
    block = exif.with_software(kept.get("exif", b""), made_by)
    return exif.into_tiff(plain, block, nodes)
