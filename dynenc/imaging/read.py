"""Reading image files: upright, in sRGB, with notes on everything that is lost."""

import io
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.errors import ImageError
from dynenc.imaging import boxes, exif, formats, jxl, metadata, png, signals, tiff
from dynenc.imaging.metadata import MAX_METADATA, SOURCE_PROFILE
from dynenc.imaging.notes import note
from dynenc.imaging.pixels import to_plain
from dynenc.imaging.samples import reduced

Transpose = Image.Transpose
TURNS = {  # EXIF orientation -> the operation that turns the image upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
UNDERSTOOD_SEGMENTS = (  # of JPEG: prefixes of those that are used or kept
    *(b"JFIF", b"JFXX", b"Exif", b"http://ns.adobe.com/xap/1.0/", b"ICC_PROFILE", b"MPF"),
    *(b"Photoshop 3.0", b"Adobe"),
)
HEAD = 2**16  # bytes in which boxes and segments that describe an image are looked for
BOXED = ("AVIF", "HEIF")  # formats
COLOUR_BOX = b"colrnclx"  # of AVIF and HEIF: type of the box and of its content
GAIN_MAPS = (b"hdrgm:", b"hdrgainmap", b"urn:iso:std:iso:ts:21496")
GAIN_MAP_ITEM = b"tmap"  # of AVIF and HEIF
DEEP = re.compile(  # of a tile: what it holds, or the largest sample of a PPM file
    r"(?:L|LA|RGB|RGBA|RGBX|RGBa|CMYK);16[BLN]"
    r"|'RGBA?', (?:25[6-9]|2[6-9]\d|[3-9]\d\d|\d{4,5})\b"
)
SIZ = b"\xff\x51"  # marker of JPEG 2000; 40 bytes from it stands the depth of the first channel


@dataclass(frozen=True, slots=True)
class _Options:
    """The options of `open_image`."""

    max_pixels: int
    keep_metadata: bool
    truncated: bool


def open_image(
    source: str | Path | bytes | BinaryIO,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    keep_metadata: bool = False,
    truncated: bool = False,
) -> Image.Image:
    """Read an image file, upright, as `to_plain` returns it. The only place that reads images.

    Args:
        source: path, content, or seekable file.
        name: of the file, for messages; without it the path.
        max_pixels: refuse images that declare more pixels.
        truncated: accept a truncated file: use the pixels that are present, with a note.
        keep_metadata: keep in `info` only what `metadata.from_image` can keep.
    Raises: ImageError if the file is missing, not of a supported format, damaged, or too large.
    """
    if isinstance(source, str | Path):
        name = name or str(source)
        try:
            with Path(source).open("rb") as file:
                return open_image(
                    file,
                    name=name,
                    max_pixels=max_pixels,
                    keep_metadata=keep_metadata,
                    truncated=truncated,
                )
        except FileNotFoundError as exc:
            raise ImageError(f"{name} does not exist") from exc
        except OSError as exc:
            raise ImageError(f"{name} cannot be read: {exc.strerror}") from exc
    name = name or "the input"
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        return _read(opened, name, _Options(max_pixels, keep_metadata, truncated))
    except ImageError as exc:
        if str(exc).startswith(name):
            raise
        raise ImageError(f"{name}: {exc}", hint=exc.hint) from exc
    except Exception as exc:  # a damaged file can make Pillow's plugins raise anything
        reason = str(exc) or type(exc).__name__
        raise ImageError(f"{name} cannot be read as an image: {reason}") from exc


def _read(file: BinaryIO, name: str, options: _Options) -> Image.Image:
    """Read an open file; a PNG file whose metadata Pillow refuses is read again without it."""
    try:
        return _decoded(file, name, options)
    except Exception as exc:
        is_final = isinstance(exc, ImageError) and not isinstance(exc, formats.UnknownFormat)
        if is_final or not png.is_png(file):
            raise
        plain_file, profile = png.without_metadata(file)
        image = _decoded(plain_file, name, options, profile)
        note("texts of the PNG file are dropped: they, or its profile, are too large or damaged")
        return image


def _decoded(file: BinaryIO, name: str, options: _Options, profile: bytes = b"") -> Image.Image:
    """The image for `open_image`; the file may be truncated if the options allow that."""
    head = _head(file)
    if formats.is_jxl(head):
        size = jxl.declared_size(head)
        if size is None:  # the plugin would decode all of it before it tells
            raise ImageError(f"{name} does not begin with its size: convert it to PNG first")
        _check_size(*size, name, options.max_pixels)
    with formats.open_file(file, name) as image:
        _check_size(*image.size, name, options.max_pixels)
        if image.format in BOXED:
            head = boxes.description(file) or head
        if isinstance(image, TiffImageFile):
            _prepare_tiff(image, file, name, options)
        else:
            _note_other_images(image, head)
        if _depth(image, head) > 8:
            note("more than 8 bits per channel are reduced to 8")
        _correct_png(image)
        is_turned = _load(image, options.truncated)
        if profile:
            image.info["icc_profile"] = profile
        if options.keep_metadata:
            _note_what_is_not_kept(image, file)
        is_signalled = _apply_signals(image, file, head)
        texts = metadata.texts(image.info)
        image.info = {key: value for key, value in image.info.items() if key not in texts}
        if image.format != "PNG":  # of others, these are Pillow's own descriptions
            texts = {}
        plain = to_plain(_upright(_narrowed(image), is_turned))
    if is_signalled:
        plain.info.pop(SOURCE_PROFILE, None)
    for keyword, text in texts.items():
        plain.info.setdefault(keyword, text)
    kept = metadata.Metadata()
    if options.keep_metadata:
        kept = metadata.from_image(plain, is_upright=True)
    plain.info = metadata.to_info(kept)
    return plain


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if (pixels := width * height) > max_pixels:
        raise ImageError(
            f"{name} declares {pixels} pixels, the limit is {max_pixels}",
            hint="raise --max-pixels if you trust it",
        )


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD)


def _depth(image: ImageFile, head: bytes) -> int:
    """Bits per sample in the file, if Pillow silently reduces them to 8; else 8."""
    if image.format in BOXED:
        return boxes.depth(head)
    if image.format == "JXL":
        return jxl.depth(head)
    if image.format == "JPEG2000":
        siz = head[head.find(SIZ) :]
        return 1 + (siz[40] & 0x7F) if siz.startswith(SIZ) and len(siz) > 40 else 8
    return 16 if DEEP.search(str(image.tile)) else 8


def _load(image: ImageFile, truncated: bool) -> bool:
    """Decode the pixels; with `truncated`, those that are present in a truncated file.

    Returns: whether Pillow has turned them as EXIF says, which it does for TIFF files.
    """
    block = image.info.get("exif")
    try:
        image.load()
    except (OSError, SyntaxError, EOFError) as exc:
        if not truncated:
            raise
        image.tile = []  # keep the pixels decoded so far
        note(f"the file is truncated or damaged, and has only a part of its pixels: {exc}")
        image.load()
    is_turned = isinstance(image, TiffImageFile) and image.info.get("exif") != block
    if is_turned:
        image.info["exif"] = block  # Pillow has written it anew
    return is_turned


def _prepare_tiff(image: TiffImageFile, file: BinaryIO, name: str, options: _Options) -> None:
    """Select the page of a TIFF file, refuse what Pillow misreads, and read its EXIF."""
    reader = tiff.Tiff(file)
    tiff.choose_page(image, reader)
    _check_size(*image.size, name, options.max_pixels)
    tiff.refuse_unreadable(image)
    with suppress(ValueError):
        image.info["exif"], dropped = reader.exif(image.tag_v2.offset, MAX_METADATA)
        for tag in dropped if options.keep_metadata else ():
            note(f"tag {metadata.tag_name(tag)} is dropped: it is damaged or too large")


def _note_other_images(image: ImageFile, head: bytes) -> None:
    """Note animations, further images and gain maps, of which only the main image is read."""
    marks = (*GAIN_MAPS, GAIN_MAP_ITEM) if image.format in BOXED else GAIN_MAPS
    has_gain_map = any(mark in head for mark in marks)
    if has_gain_map:
        note("an HDR gain map is dropped")
    if image.format != "PSD" and getattr(image, "is_animated", False):
        if image.format == "MPO" and has_gain_map and getattr(image, "n_frames", 0) == 2:
            return
        what = "further images" if image.format in ("MPO", "HEIF", "DCX") else "frames"
        note(f"{what} after the first are dropped")


def _note_what_is_not_kept(image: ImageFile, file: BinaryIO) -> None:
    """Note parts of JPEG and PNG files that are neither pixels nor kept metadata."""
    unknown: dict[str, None] = {}
    if image.format == "PNG":
        for kind, _, _ in png.chunks(file):
            if kind[:1].islower() and kind not in png.UNDERSTOOD:
                unknown[f"chunk {kind.decode('latin-1')}"] = None
    for marker, data in getattr(image, "applist", ()):
        if marker != "COM" and not data.startswith(UNDERSTOOD_SEGMENTS):
            title = re.match(rb"[\x20-\x7e]*", data[:40])
            unknown[f"segment {marker} {title[0].decode() if title else ''}".rstrip()] = None
    for resource in image.info.get("photoshop", ()):
        if resource != metadata.IPTC:
            unknown["Photoshop's resources"] = None
    if unknown:
        note(f"dropped, as it cannot be kept: {', '.join(unknown)}")


def _correct_png(image: ImageFile) -> None:
    value = image.info.get("transparency")
    if image.format == "PNG" and image.tile and not isinstance(value, str | bytes | None):
        rawmode = image.tile[0][3]
        image.info["transparency"] = png.transparent_value(value, str(rawmode))


def _apply_signals(image: ImageFile, file: BinaryIO, head: bytes) -> bool:
    """Attach a profile for colours that the file describes by numbers; return whether it does."""
    info, profile = image.info, b""
    has_profile = isinstance(info.get("icc_profile"), bytes) and info["icc_profile"]
    if image.format == "PNG":
        cicp = png.data_of(file, b"cICP")
        if len(cicp) >= 4:
            profile = signals.of_cicp(cicp[0], cicp[1])
            info.pop("icc_profile", None)
        elif not has_profile and not isinstance(info.get("srgb"), int):
            profile = signals.of_png(info.get("gamma"), info.get("chromaticity"))
    elif image.format in BOXED and not has_profile:
        box = head.partition(COLOUR_BOX)[2]
        if len(box) >= 4:
            profile = signals.of_cicp(*struct.unpack(">HH", box[:4]))
    if profile:
        info["icc_profile"] = profile
    return bool(profile)


def _narrowed(image: ImageFile) -> Image.Image:
    """The image with 8 bits per sample, interpreted as its file says."""
    if isinstance(image, TiffImageFile):
        return tiff.to_grey(image)
    if image.format in ("PPM", "JPEG2000") and image.mode == "I":
        grey = reduced(np.asarray(image), 65_535)
        grey.info = dict(image.info)
        return grey
    return image


def _upright(image: Image.Image, is_turned: bool) -> Image.Image:
    """The image turned upright as its EXIF or XMP says, even if these are damaged otherwise.

    Args:
        is_turned: the orientation in EXIF has been applied.
    """
    turn = exif.orientation(metadata.exif_of(image.info))
    if turn is None and (found := metadata.ORIENTATION_IN_XMP.search(metadata.xmp_of(image.info))):
        turn = int(found[2])
    if turn not in TURNS:
        return image
    turned = image if is_turned else image.transpose(TURNS[turn])
    turned.info = dict(image.info)
    dpi = turned.info.get("dpi")
    if turn in exif.SIDEWAYS and isinstance(dpi, tuple):
        turned.info["dpi"] = dpi[::-1]
    return turned
