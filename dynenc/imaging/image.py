"""Pictures: file, Pillow image or array <-> tensor, and the padding to whole patches."""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from dynenc.coding.bitstream import MAX_PIXELS, MAX_SIDE
from dynenc.errors import ImageError
from dynenc.imaging import colour, exif, formats, metadata
from dynenc.imaging.ifd import Structure
from dynenc.imaging.metadata import MAX_METADATA, SOURCE_PROFILE
from dynenc.imaging.notes import note
from dynenc.latent_space import SD1
from dynenc.networks.encoder import to_floats

Picture = Image.Image | npt.NDArray[np.uint8] | Tensor  # any mode; [H, W, 3]; [1, 3, H, W]

WIDE_MODES = {"I;16", "I;16B", "I;16L", "I", "F"}  # of more than 8 bits; only grey ones exist
Array = npt.NDArray[Any]
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
ORIENTATION_IN_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([2-8])[\"'<]")
GREY_MODES = WIDE_MODES | {"1", "L", "LA", "La"}


def open_image(
    source: str | Path | bytes | BinaryIO,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    keep_metadata: bool = False,
) -> Image.Image:
    """Read an image file, upright, as `to_plain` gives it: the one way images are read.

    Args:
        source: path, content, or seekable file.
        name: of the file, for messages; without it the path.
        max_pixels: refuse images that declare more pixels.
        keep_metadata: keep in `info` what `metadata.metadata` can keep, and nothing else.
    Raises: ImageError if the file is missing, of no format that is opened, damaged, or too large.
    """
    if isinstance(source, str | Path):
        name = name or str(source)
        try:
            with Path(source).open("rb") as file:
                return open_image(
                    file, name=name, max_pixels=max_pixels, keep_metadata=keep_metadata
                )
        except FileNotFoundError as exc:
            raise ImageError(f"{name} does not exist") from exc
        except OSError as exc:
            raise ImageError(f"{name} cannot be read: {exc.strerror}") from exc
    name = name or "the input"
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        return _read(opened, name, max_pixels, keep_metadata)
    except ImageError:
        raise
    except Exception as exc:  # Pillow's plugins raise whatever a damaged file makes them trip over
        reason = str(exc) or type(exc).__name__
        raise ImageError(f"{name} cannot be read as an image: {reason}") from exc


def _read(file: BinaryIO, name: str, max_pixels: int, keep_metadata: bool) -> Image.Image:
    with formats.open_file(file, name) as picture:
        if (pixels := picture.width * picture.height) > max_pixels:
            raise ImageError(
                f"{name} declares {pixels} pixels, the limit is {max_pixels}",
                hint="raise --max-pixels if you trust it",
            )
        if ";16" in str(picture.tile) and picture.mode not in WIDE_MODES:
            note("more than 8 bits a channel are reduced to 8")
        if isinstance(picture, TiffImageFile):
            picture.info["exif"], dropped = _tiff_exif(file, picture.tag_v2.offset)
            for tag in dropped if keep_metadata else ():
                note(f"tag {metadata.tag_name(tag)} is left out: it is damaged or too large")
        picture.load()
        texts = metadata.texts(picture.info)
        picture.info = {key: value for key, value in picture.info.items() if key not in texts}
        upright = _upright(picture)
        plain = to_plain(upright)
    for keyword, text in texts.items():
        plain.info.setdefault(keyword, text)
    plain.info = metadata.to_info(metadata.of(plain, is_upright=True)) if keep_metadata else {}
    return plain


def _tiff_exif(file: BinaryIO, start: int) -> tuple[bytes, list[int]]:
    """The EXIF of a directory of a TIFF file, where it is all over the file, and dropped tags."""

    def read_at(offset: int, n_bytes: int) -> bytes:
        file.seek(min(offset, 2**62))
        return file.read(n_bytes)

    try:
        return exif.of_tiff(Structure.of(read_at(0, 16)), read_at, start, MAX_METADATA)
    except ValueError:
        return b"", []


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


def to_plain(picture: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to one in sRGB of mode L, LA, RGB or RGBA.

    Grey stays grey, and alpha is there if a pixel is not opaque; pixels that cannot be seen get the
    colours around them. More than 8 bits are scaled to 8, with a warning. The pixels of an ICC
    profile become sRGB, and it goes from `info["icc_profile"]` to `info[SOURCE_PROFILE]`; of one
    that is damaged or lies about the pixels a warning says that they are taken as sRGB.
    """
    mode = "L" if picture.mode in GREY_MODES else "RGB"
    given, info = picture, dict(picture.info)
    if picture.mode in WIDE_MODES:
        note("more than 8 bits a channel are reduced to 8")
        grey = np.asarray(picture, np.float64)
        if picture.mode != "F":
            grey = grey / 257  # 65535 -> 255
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB").convert(mode)
    profile = info.get("icc_profile") if picture.mode != "LAB" else None  # which needs none
    if isinstance(profile, bytes) and profile:
        picture, profile = _managed(picture, profile)
    if picture.mode != mode:
        picture = picture.convert("RGB").convert(mode)
    if alpha and alpha.getextrema() != (255, 255):
        picture = _filled(picture, alpha)
        picture.putalpha(alpha)
    if profile:
        info[SOURCE_PROFILE] = profile
    if picture is not given:
        picture.info = {k: info[k] for k in info if k not in ("icc_profile", "transparency")}
    return picture


def _managed(picture: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """An image in sRGB and the profile to keep, b"" if it is sRGB's.

    The image comes back as it is if its profile is of no use.
    """
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("RGB")
    try:
        return colour.to_srgb(picture, profile), b"" if colour.is_srgb(profile) else profile
    except ValueError as exc:
        note(f"the colour profile is of no use, and the pixels are taken as sRGB: {exc}")
        return picture, b""


def _filled(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """An L or RGB image that goes on smoothly where it is transparent, which costs fewest bits."""
    seen = np.asarray(alpha) > 0
    colours = np.asarray(picture.convert("RGB"))
    coarse = _spread(*_reduced(colours * seen[..., None], seen, SD1.patch))
    background = Image.fromarray(coarse.round().astype(np.uint8))
    background = background.resize(picture.size, Image.Resampling.BILINEAR).convert(picture.mode)
    return Image.composite(picture, background, Image.fromarray(seen))


def _spread(colours: Array, seen: Array) -> Array:
    """Fill what is not seen with the mean colour of what is near, from coarse to fine.

    [h, w, 3] float, 0 where not seen, and [h, w] bool -> [h, w, 3] (the push-pull of Gortler et
    al., The Lumigraph, 1996).
    """
    if seen.all() or seen.size == 1:
        return colours
    coarse = _spread(*_reduced(colours, seen, 2))
    height, width = seen.shape
    near = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(seen[..., None], colours, near)


def _reduced(colours: Array, seen: Array, by: int) -> tuple[Array, Array]:
    """The mean of what is seen in every square of by x by pixels, and whether there is any."""

    def total(values: Array) -> Array:
        for axis in (0, 1):
            starts = np.arange(0, values.shape[axis], by)
            values = np.add.reduceat(values, starts, axis, dtype=np.float64)
        return values

    count = total(seen)
    return total(colours) / np.maximum(count, 1)[..., None], count > 0


def to_rgb(picture: Image.Image) -> Image.Image:
    """A Pillow image of any mode in sRGB, mode RGB, over white where it is transparent.

    One that is that already comes back as it is, not copied.
    """
    picture = over_white(to_plain(picture))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def over_white(picture: Image.Image) -> Image.Image:
    """An image as `to_plain` gives it, over white where it is transparent: L or RGB."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert(picture.mode[:-1])


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
    Raises: ImageError if it is of another shape or type, or a side is 0 or above 65,535 px.
    """
    if isinstance(picture, Image.Image):
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        width, height = picture.size
    else:
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        if picture.dim() == 3:
            picture = picture[None]
        if picture.dim() != 4 or picture.shape[:2] != (1, 3):
            raise ImageError(
                f"a tensor of shape {list(picture.shape)} is not one RGB picture [1, 3, H, W]"
            )
        if picture.dtype != torch.uint8:
            picture = picture.float()
        height, width = picture.shape[-2:]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ImageError(f"the picture is {width}x{height} px; its sides must be 1 to {MAX_SIDE}")
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
