"""Decoded pictures as the bytes of picture files, with their metadata and what decoded them."""

import io
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dynenc.errors import OutputError
from dynenc.imaging import formats, image, metadata
from dynenc.imaging.metadata import Extras
from dynenc.imaging.notes import note
from dynenc.io.names import STREAM

SOFTWARE = 0x0131  # EXIF tag: which decoder made a picture
LOSSY, LOSSY_QUALITY = ("JPEG", "WEBP", "AVIF"), 95  # Pillow's default loses too much again
WITH_METADATA = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")  # formats; of them all but JPEG have alpha
WITH_ALPHA = (*WITH_METADATA[1:], "JPEG2000", "TGA", "QOI")
XMP_OF_PNG, XMP_OF_TIFF = "XML:com.adobe.xmp", 0x02BC  # name of a text, tag


def picture_format(target: str) -> str:
    """Pillow's name of the format that a file's suffix stands for; PNG for stdout.

    Raises: OutputError if the suffix is of no picture format that can be written.
    """
    if target == STREAM:
        return "PNG"
    suffix = PurePosixPath(target.rpartition("/")[2]).suffix.lower()
    form = formats.writer_of(suffix)
    if form is None:
        raise OutputError(f"{target} has no suffix of a picture format that can be written")
    return form


def picture_bytes(picture: Image.Image, extras: Extras, name: str, decoder_name: str) -> bytes:
    """A decoded RGB picture with its extras as the bytes of a file of the name's format.

    Notes what the format has no place for. Raises: OutputError if it cannot be written.
    """
    form = picture_format(name)
    if form not in WITH_METADATA and (extras.exif or extras.xmp or extras.profile):
        note(f"{form} has no place for metadata: it is left out")
        extras = replace(extras, exif=b"", xmp=b"", profile=b"")
    picture = metadata.restore(picture, extras)
    if picture.mode in ("LA", "RGBA") and form not in WITH_ALPHA:
        note(f"{form} has no alpha: what is transparent became white")
        picture = image.to_rgb(picture)
    try:
        return save(picture, form, software(decoder_name))
    except (OSError, ValueError) as exc:
        raise OutputError(f"{name} cannot be written as {form}: {exc}") from exc


def software(decoder_name: str) -> str:
    """The EXIF "Software" of a picture that this decoder made; of a path only the last part."""
    return f"dynenc, decoder {Path(decoder_name).name}"


def save(picture: Image.Image, form: str, made_by: str) -> bytes:
    """A picture as a file of that format, with the metadata in its `info` and what made it.

    Notes metadata that does not fit in. Raises: OSError or ValueError if it cannot be written.
    """
    info = picture.info
    try:
        return _save(picture, form, made_by, info.get("exif", b""), info.get("xmp", b""))
    except (OSError, ValueError) as exc:
        if not ("exif" in info or "xmp" in info):
            raise
        note(f"EXIF and XMP are left out: {exc}")
        return _save(picture, form, made_by)


def _save(
    picture: Image.Image, form: str, made_by: str, exif: bytes = b"", xmp: bytes = b""
) -> bytes:
    entries = metadata.read_exif(exif) if exif else Image.Exif()
    entries[SOFTWARE] = made_by
    options: dict[str, Any] = {"quality": LOSSY_QUALITY} if form in LOSSY else {}
    if xmp and form == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(XMP_OF_PNG, xmp.decode())
    elif xmp and form == "TIFF":
        entries[XMP_OF_TIFF] = xmp
    elif xmp:
        options["xmp"] = xmp
    buffer = io.BytesIO()
    profile = picture.info.get("icc_profile")
    picture.save(buffer, form, exif=entries, icc_profile=profile, **options)
    return buffer.getvalue()
