"""Pixels of any Pillow mode -> 8-bit sRGB, grey or RGB, with alpha if needed."""

from contextlib import suppress

from PIL import Image, ImageChops

from dynenc.errors import DynencError, ImageError
from dynenc.imaging import colour, samples
from dynenc.imaging.fill import filled
from dynenc.imaging.metadata import SOURCE_PROFILE
from dynenc.imaging.notes import note

GREY_MODES = {"1", "L", "LA", "La"}
COLOUR_MODES = {"P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"}
KEYED_MODES = {"1", "L", "P", "RGB"}  # may have a transparent colour
PROBES = 16  # pixels to check before checking all


def to_plain(picture: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to sRGB, in mode L, LA, RGB or RGBA.

    An image with equal channels becomes grey. Alpha is kept only if a pixel is not opaque;
    transparent pixels get the colours around them. More than 8 bits are scaled to 8, with a note.
    Pixels with an ICC profile are converted to sRGB, and the profile is moved from
    `info["icc_profile"]` to `info[SOURCE_PROFILE]`, unless it is sRGB. If it is damaged or does not
    fit the pixels, they are taken as sRGB, with a note.

    Raises: ImageError if the image has no pixels, its file is damaged, the mode is unknown, or the
        range of the samples is unclear.
    """
    _load(picture)
    given, info = picture, dict(picture.info)
    if picture.mode in samples.MODES:
        picture = samples.to_grey(picture)
    elif picture.mode not in GREY_MODES | COLOUR_MODES:
        raise ImageError(f"images of mode {picture.mode} cannot be read: convert it to RGB")
    elif "transparency" in info:
        picture = _with_valid_transparency(picture)
    mode = "L" if picture.mode in GREY_MODES else "RGB"
    alpha = None
    if picture.has_transparency_data:
        picture = _unpremultiplied(picture).convert("RGBA")
        alpha = picture.getchannel("A")
        picture = picture.convert("RGB").convert(mode)
    profile = info.get("icc_profile") if picture.mode != "LAB" else None  # LAB needs none
    if picture.mode == "RGB" and _is_grey(picture, alpha):
        picture, mode = picture.getchannel("R"), "L"
    if isinstance(profile, bytes) and profile:
        picture, profile = _managed(picture, profile)
    if picture.mode != mode:
        picture = picture.convert("RGB")
        if mode == "RGB" and alpha is None and _is_grey(picture, alpha):
            mode = "L"
        picture = picture.convert(mode)
    if alpha and alpha.getextrema() != (255, 255):
        picture = filled(picture, alpha)
        picture.putalpha(alpha)
    if profile:
        info[SOURCE_PROFILE] = profile
    if picture is not given:
        picture.info = {k: info[k] for k in info if k not in ("icc_profile", "transparency")}
    return picture


def _load(picture: Image.Image) -> None:
    """Read the pixels of an image from `Image.open`, which may change its mode and `info`."""
    if 0 in picture.size:
        raise ImageError(f"the picture is {picture.width}x{picture.height} px: it has no pixels")
    try:
        picture.load()
    except DynencError:
        raise
    except Exception as exc:  # a damaged file can make Pillow's plugins raise anything
        reason = str(exc) or type(exc).__name__
        raise ImageError(
            f"the picture cannot be read, as its file is damaged or was closed before: {reason}"
        ) from exc


def _with_valid_transparency(picture: Image.Image) -> Image.Image:
    """The image without the transparent colour in its `info` if its pixels cannot have it."""
    if picture.mode in KEYED_MODES:
        with suppress(TypeError, ValueError, OverflowError):
            picture.crop((0, 0, 1, 1)).convert("RGBA")
            return picture
    picture = picture.copy()
    if not isinstance(picture.info.pop("transparency"), str):  # a text of a PNG file
        note("the transparent colour is dropped: it is not one of these pixels")
    return picture


def _unpremultiplied(picture: Image.Image) -> Image.Image:
    """The image with colours that are not premultiplied by alpha."""
    if picture.mode == "La":  # Pillow converts it only band by band
        colours = Image.merge("RGBa", [picture.getchannel("L")] * 3 + [picture.getchannel("a")])
        return colours.convert("RGBA")
    return picture


def _is_grey(picture: Image.Image, alpha: Image.Image | None) -> bool:
    """Whether all channels of an RGB image are equal where it is not transparent."""
    if alpha is None:
        steps = (max(1, side // PROBES) for side in picture.size)
        across, down = (
            range(0, side, step) for side, step in zip(picture.size, steps, strict=True)
        )
        for place in zip(across, down, strict=False):
            red, green, blue = picture.getpixel(place)  # type: ignore[misc]
            if not red == green == blue:
                return False
    else:
        hidden = alpha.point(lambda value: 255 if value == 0 else 0)
        picture = picture.copy()
        picture.paste((0, 0, 0), mask=hidden)
    red, green, blue = picture.split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def _managed(picture: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """An image in sRGB and the profile to keep, b"" if it is sRGB's.

    The image is returned unchanged if its profile is invalid.
    """
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("RGB")
    try:
        return colour.to_srgb(picture, profile), b"" if colour.is_srgb(profile) else profile
    except ValueError as exc:
        note(f"the colour profile is invalid, and the pixels are taken as sRGB: {exc}")
        return picture, b""


def to_rgb(picture: Image.Image) -> Image.Image:
    """A Pillow image of any mode in sRGB, mode RGB, over white where it is transparent.

    An image that already is in this form is returned without a copy.
    """
    picture = over_white(to_plain(picture))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def over_white(picture: Image.Image) -> Image.Image:
    """An image from `to_plain`, over white where it is transparent: L or RGB."""
    if picture.mode not in ("LA", "RGBA"):
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert(picture.mode[:-1])
