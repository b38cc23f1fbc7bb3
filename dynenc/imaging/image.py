"""Pictures: file, Pillow image or array <-> tensor, and the padding to whole patches."""

import io
import math
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from dynenc.coding.bitstream import MAX_PIXELS, MAX_SIDE
from dynenc.errors import ImageError
from dynenc.imaging import exif, formats, jxl, metadata, png, signals, tiff
from dynenc.imaging.metadata import MAX_METADATA, SOURCE_PROFILE
from dynenc.imaging.notes import note
from dynenc.imaging.pixels import to_plain
from dynenc.imaging.samples import reduced
from dynenc.latent_space import SD1
from dynenc.networks.encoder import to_floats

Picture = Image.Image | npt.NDArray[np.uint8] | Tensor  # any mode; [H, W, 3]; [1, 3, H, W]

Transpose = Image.Transpose
TURNS = {  # EXIF orientation: what turns the image upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
UNDERSTOOD_SEGMENTS = (  # of JPEG: how those begin that are used or kept
    *(b"JFIF", b"JFXX", b"Exif", b"http://ns.adobe.com/xap/1.0/", b"ICC_PROFILE", b"MPF"),
    *(b"Photoshop 3.0", b"Adobe"),
)
ORIENTATION_IN_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([2-8])[\"'<]")
MAX_FLOAT = 2.0  # of tensors; decoders overshoot [-1, 1] by less
HEAD = 2**16  # bytes in which boxes and segments that describe an image are looked for
BOXED = ("AVIF", "HEIF")  # formats
COLOUR_BOX = b"colrnclx"  # of AVIF and HEIF: type of the box and of its content
GAIN_MAPS = (b"hdrgm:", b"hdrgainmap", b"urn:iso:std:iso:ts:21496")
GAIN_MAP_ITEM = b"tmap"  # of AVIF and HEIF
DEEP = re.compile(r"(?:L|LA|RGB|RGBA|RGBX|RGBa|CMYK);16[BLN]|'(?:RGB|RGBA)', 65535")


@dataclass(frozen=True, slots=True)
class _Options:
    """Those of `open_image`."""

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
    """Read an image file, upright, as `to_plain` gives it: the one way images are read.

    Args:
        source: path, content, or seekable file.
        name: of the file, for messages; without it the path.
        max_pixels: refuse images that declare more pixels.
        truncated: of a file that is cut short, take the pixels that are there, with a note.
        keep_metadata: keep in `info` what `metadata.of` can keep, and nothing else.
    Raises: ImageError if the file is missing, of no format that is opened, damaged, or too large.
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
    except Exception as exc:  # Pillow's plugins raise whatever a damaged file makes them trip over
        reason = str(exc) or type(exc).__name__
        raise ImageError(f"{name} cannot be read as an image: {reason}") from exc


def _read(file: BinaryIO, name: str, options: _Options) -> Image.Image:
    """Read an open file, a PNG file again without its metadata if that is what Pillow refuses."""
    try:
        return _decoded(file, name, options)
    except Exception as exc:
        is_final = isinstance(exc, ImageError) and not isinstance(exc, formats.UnknownFormat)
        if is_final or not png.is_png(file):
            raise
        plain_file, profile = png.without_metadata(file)
        image = _decoded(plain_file, name, options, profile)
        note("texts of the PNG file are left out: they, or its profile, are too large or damaged")
        return image


def _decoded(file: BinaryIO, name: str, options: _Options, profile: bytes = b"") -> Image.Image:
    """An image as `open_image` gives it; its file may be cut short if the options allow that."""
    head = _head(file)
    if size := jxl.declared_size(head):
        _check_size(*size, name, options.max_pixels)
    with formats.open_file(file, name) as picture:
        _check_size(*picture.size, name, options.max_pixels)
        if isinstance(picture, TiffImageFile):
            _prepare_tiff(picture, file, name, options)
        else:
            _note_other_images(picture, head)
        if DEEP.search(str(picture.tile)):
            note("more than 8 bits a channel are reduced to 8")
        _correct_png(picture)
        _load(picture, options.truncated)
        if profile:
            picture.info["icc_profile"] = profile
        if options.keep_metadata:
            _note_what_is_not_kept(picture, file)
        is_signalled = _apply_signals(picture, file, head)
        texts = metadata.texts(picture.info)
        picture.info = {key: value for key, value in picture.info.items() if key not in texts}
        plain = to_plain(_upright(_narrowed(picture)))
    if is_signalled:
        plain.info.pop(SOURCE_PROFILE, None)
    for keyword, text in texts.items():
        plain.info.setdefault(keyword, text)
    kept = metadata.of(plain, is_upright=True) if options.keep_metadata else metadata.Metadata()
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


def _load(picture: ImageFile, truncated: bool) -> None:
    """Decode the pixels; of a file that is cut short what is there, if that is wanted."""
    try:
        picture.load()
    except (OSError, SyntaxError, EOFError) as exc:
        if not truncated:
            raise
        picture.tile = []  # what was decoded before the end is there
        note(f"the file is cut short or damaged, and only a part of its pixels is there: {exc}")
        picture.load()


def _prepare_tiff(picture: TiffImageFile, file: BinaryIO, name: str, options: _Options) -> None:
    """Turn to the right page of a TIFF file, refuse what Pillow misreads, and read its EXIF."""
    reader = tiff.Tiff(file)
    tiff.choose_page(picture, reader)
    _check_size(*picture.size, name, options.max_pixels)
    tiff.refuse_unreadable(picture)
    with suppress(ValueError):
        picture.info["exif"], dropped = reader.exif(picture.tag_v2.offset, MAX_METADATA)
        for tag in dropped if options.keep_metadata else ():
            note(f"tag {metadata.tag_name(tag)} is left out: it is damaged or too large")


def _note_other_images(picture: ImageFile, head: bytes) -> None:
    """Note animations, further images and gain maps, of which only the main image is read."""
    marks = (*GAIN_MAPS, GAIN_MAP_ITEM) if picture.format in BOXED else GAIN_MAPS
    has_gain_map = any(mark in head for mark in marks)
    if has_gain_map:
        note("an HDR gain map is left out")
    if picture.format != "PSD" and getattr(picture, "is_animated", False):
        if picture.format == "MPO" and has_gain_map and getattr(picture, "n_frames", 0) == 2:
            return
        what = "further images" if picture.format in ("MPO", "HEIF", "DCX") else "frames"
        note(f"{what} are left out: all but the first")


def _note_what_is_not_kept(picture: ImageFile, file: BinaryIO) -> None:
    """Note parts of JPEG and PNG files that are neither pixels nor metadata that is kept."""
    unknown: dict[str, None] = {}
    if picture.format == "PNG":
        for kind, _, _ in png.chunks(file):
            if kind[:1].islower() and kind not in png.UNDERSTOOD:
                unknown[f"chunk {kind.decode('latin-1')}"] = None
    for marker, data in getattr(picture, "applist", ()):
        if marker != "COM" and not data.startswith(UNDERSTOOD_SEGMENTS):
            title = re.match(rb"[\x20-\x7e]*", data[:40])
            unknown[f"segment {marker} {title[0].decode() if title else ''}".rstrip()] = None
    for resource in picture.info.get("photoshop", ()):
        if resource != metadata.IPTC:
            unknown["Photoshop's resources"] = None
    if unknown:
        note(f"what cannot be kept is left out: {', '.join(unknown)}")


def _correct_png(picture: ImageFile) -> None:
    value = picture.info.get("transparency")
    if picture.format == "PNG" and picture.tile and not isinstance(value, str | bytes | None):
        rawmode = picture.tile[0][3]
        picture.info["transparency"] = png.transparent_value(value, str(rawmode))


def _apply_signals(picture: ImageFile, file: BinaryIO, head: bytes) -> bool:
    """Give an image the profile of colours that its file tells by numbers; whether it has one."""
    info, profile = picture.info, b""
    has_profile = isinstance(info.get("icc_profile"), bytes) and info["icc_profile"]
    if picture.format == "PNG":
        cicp = png.data_of(file, b"cICP")
        if len(cicp) >= 4:
            profile = signals.of_cicp(cicp[0], cicp[1])
            info.pop("icc_profile", None)
        elif not has_profile and not isinstance(info.get("srgb"), int):
            profile = signals.of_png(info.get("gamma"), info.get("chromaticity"))
    elif picture.format in BOXED and not has_profile:
        box = head.partition(COLOUR_BOX)[2]
        if len(box) >= 4:
            profile = signals.of_cicp(*struct.unpack(">HH", box[:4]))
    if profile:
        info["icc_profile"] = profile
    return bool(profile)


def _narrowed(picture: ImageFile) -> Image.Image:
    """An image of 8 bits a sample, as its file tells what the samples mean."""
    if isinstance(picture, TiffImageFile):
        return tiff.to_grey(picture)
    if picture.format in ("PPM", "JPEG2000") and picture.mode == "I":
        grey = reduced(np.asarray(picture), 65_535)
        grey.info = dict(picture.info)
        return grey
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    """The image turned as its EXIF or XMP says, whatever else they hold."""
    turn = exif.orientation(metadata.exif_of(picture.info))
    if turn == 1 and (found := ORIENTATION_IN_XMP.search(_xmp(picture.info))):
        turn = int(found[1])
    if turn not in TURNS:
        return picture
    turned = picture.transpose(TURNS[turn])
    turned.info = dict(picture.info)
    return turned


def _xmp(info: dict[Any, Any]) -> bytes:
    xmp = info.get("xmp", b"")
    return xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")


def to_tensor(picture: Image.Image | Tensor) -> Tensor:
    """RGB Pillow image, or uint8 tensor -> [1, 3, H, W] float32 in [-1, 1]; floats stay.

    What comes of a Pillow image has the channels last in memory.
    """
    if isinstance(picture, Image.Image):
        picture = _bytes_of(picture)
    return to_floats(picture)


def _bytes_of(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def checked(picture: Picture) -> Image.Image | Tensor:
    """The colours alone as Pillow RGB or [1, 3, H, W], uint8 or float32, not copied.

    Args:
        picture: array, tensor, or Pillow image as `to_plain` gives it.
    Raises: ImageError if it is of another shape or type, holds NaN or infinity, or a side is 0 or
        above 65,535 px.
    """
    if isinstance(picture, Image.Image):
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        width, height = picture.size
    else:
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        if not isinstance(picture, Tensor):
            raise ImageError(
                f"a {type(picture).__name__} is not a picture: give a path, a Pillow image, an "
                "array or a tensor"
            )
        if picture.dim() == 3:
            picture = picture[None]
        if picture.dim() != 4 or picture.shape[:2] != (1, 3):
            raise ImageError(
                f"a tensor of shape {list(picture.shape)} is not one RGB picture [1, 3, H, W]"
            )
        if picture.dtype != torch.uint8:
            picture = _checked_floats(picture)
        height, width = picture.shape[-2:]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f"the picture is {width}x{height} px; its sides must be 1 to {MAX_SIDE}")
    return picture


def _checked_floats(picture: Tensor) -> Tensor:
    """A tensor as float32; raises ImageError unless its values are finite floats in [-1, 1]."""
    if not picture.is_floating_point():
        raise ImageError(
            f"a tensor of {picture.dtype} is not a picture: give uint8 in 0..255 or float in -1..1"
        )
    picture = picture.float()
    low, high = (float(each) for each in picture.aminmax()) if picture.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the tensor holds pixels that are NaN or infinite")
    if max(-low, high) > MAX_FLOAT:
        raise ImageError(
            f"the tensor's values reach from {low:g} to {high:g}: give them in [-1, 1]"
        )
    return picture


def _from_array(array: npt.NDArray[np.uint8]) -> Tensor:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)} is not one RGB picture: "
            "give uint8 [H, W, 3]"
        )
    if not (array.flags.c_contiguous and array.flags.writeable):  # else torch cannot look at it
        array = array.copy()
    return torch.from_numpy(array).permute(2, 0, 1)


def size_of(picture: Image.Image | Tensor) -> tuple[int, int]:
    """Height and width of what `checked` gave, in px."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[-2], picture.shape[-1]


def part_of(picture: Image.Image | Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """A part of what `checked` gave, in px: [1, 3, h, w] uint8 or float32.

    What lies beyond the picture is left out, and its edge repeated up to whole patches. Channels
    are last in memory, unless a tensor of the user's has them elsewhere.
    """
    if isinstance(picture, Tensor):
        return pad(picture[..., top:bottom, left:right])
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    if box != (0, 0, picture.width, picture.height):
        picture = picture.crop(box)
    return pad(_bytes_of(picture))


def to_picture(image: Tensor) -> Image.Image:
    """[1, 3, H, W] float, about [-1, 1] -> RGB Pillow image, rounded and clamped."""
    pixels = image[0].float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def pad(image: Tensor) -> Tensor:
    """Repeat the last row and column until both sides are multiples of 8; any dtype.

    What is padded has the channels last in memory.
    """
    pixels = image.permute(0, 2, 3, 1)
    for side in (1, 2):
        if missing := -pixels.shape[side] % SD1.patch:
            last = pixels.narrow(side, pixels.shape[side] - 1, 1)
            pixels = torch.cat([pixels, last.repeat_interleave(missing, side)], side)
    return pixels.permute(0, 3, 1, 2)


def batch(images: list[Tensor]) -> Tensor:
    """Images [1, 3, H, W] of one size as [B, 3, H, W], channels last in memory; one as it is."""
    if len(images) == 1:
        return images[0]
    return torch.cat([image.permute(0, 2, 3, 1) for image in images]).permute(0, 3, 1, 2)
