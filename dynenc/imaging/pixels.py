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


def to_plain(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to sRGB, in mode L, LA, RGB or RGBA.

    An image with equal channels becomes grey. Alpha is kept only if a pixel is not opaque;
    transparent pixels get the colours around them. More than 8 bits are scaled to 8, with a note.
    Pixels with an ICC profile are converted to sRGB, and the profile is moved from
    `info["icc_profile"]` to `info[SOURCE_PROFILE]`, unless it is sRGB. If it is damaged or does not
    fit the pixels, they are taken as sRGB, with a note.

    Raises: ImageError if the image has no pixels, its file is damaged, the mode is unknown, or the
        range of the samples is unclear.
    """
    _load(image)
    given, info = image, dict(image.info)
    if image.mode in samples.MODES:
        image = samples.to_grey(image)
    elif image.mode not in GREY_MODES | COLOUR_MODES:
        raise ImageError(f"images of mode {image.mode} cannot be read: convert it to RGB")
    elif "transparency" in info:
        image = _with_valid_transparency(image)
    mode = "L" if image.mode in GREY_MODES else "RGB"
    alpha = None
    if image.has_transparency_data:
        image = _unpremultiplied(image).convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB").convert(mode)
    profile = info.get("icc_profile") if image.mode != "LAB" else None  # LAB needs none
    if image.mode == "RGB" and _is_grey(image, alpha):
        image, mode = image.getchannel("R"), "L"
    if isinstance(profile, bytes) and profile:
        image, profile = _managed(image, profile)
    if image.mode != mode:
        image = image.convert("RGB")
        if mode == "RGB" and alpha is None and _is_grey(image, alpha):
            mode = "L"
        image = image.convert(mode)
    if alpha and alpha.getextrema() != (255, 255):
        image = filled(image, alpha)
        image.putalpha(alpha)
    if profile:
        info[SOURCE_PROFILE] = profile
    if image is not given:
        image.info = {k: info[k] for k in info if k not in ("icc_profile", "transparency")}
    return image


def _load(image: Image.Image) -> None:
    """Read the pixels of an image from `Image.open`, which may change its mode and `info`."""
    if 0 in image.size:
        raise ImageError(f"the image is {image.width}x{image.height} px: it has no pixels")
    try:
        image.load()
    except DynencError:
        raise
    except Exception as exc:  # a damaged file can make Pillow's plugins raise anything
        reason = str(exc) or type(exc).__name__
        raise ImageError(
            f"the image cannot be read, as its file is damaged or was closed before: {reason}"
        ) from exc


def _with_valid_transparency(image: Image.Image) -> Image.Image:
    """The image without the transparent colour in its `info` if its pixels cannot have it."""
    if image.mode in KEYED_MODES:
        with suppress(TypeError, ValueError, OverflowError):
            image.crop((0, 0, 1, 1)).convert("RGBA")
            return image
    image = image.copy()
    if not isinstance(image.info.pop("transparency"), str):  # a text of a PNG file
        note("the transparent colour is dropped: it is not one of these pixels")
    return image


def _unpremultiplied(image: Image.Image) -> Image.Image:
    """The image with colours that are not premultiplied by alpha."""
    if image.mode == "La":  # Pillow converts it only band by band
        colours = Image.merge("RGBa", [image.getchannel("L")] * 3 + [image.getchannel("a")])
        return colours.convert("RGBA")
    return image


def _is_grey(image: Image.Image, alpha: Image.Image | None) -> bool:
    """Whether all channels of an RGB image are equal where it is not transparent."""
    if alpha is None:
        steps = (max(1, side // PROBES) for side in image.size)
        across, down = (range(0, side, step) for side, step in zip(image.size, steps, strict=True))
        for place in zip(across, down, strict=False):
            red, green, blue = image.getpixel(place)  # type: ignore[misc]
            if not red == green == blue:
                return False
    else:
        hidden = alpha.point(lambda value: 255 if value == 0 else 0)
        image = image.copy()
        image.paste((0, 0, 0), mask=hidden)
    red, green, blue = image.split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def _managed(image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """An image in sRGB and the profile to keep, b"" if it is sRGB's.

    The image is returned unchanged if its profile is invalid.
    """
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    try:
        return colour.to_srgb(image, profile), b"" if colour.is_srgb(profile) else profile
    except ValueError as exc:
        note(f"the colour profile is invalid, and the pixels are taken as sRGB: {exc}")
        return image, b""


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode in sRGB, mode RGB, over white where it is transparent.

    An image that already is in this form is returned without a copy.
    """
    image = over_white(to_plain(image))
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """An image from `to_plain`, over white where it is transparent: L or RGB."""
    if image.mode not in ("LA", "RGBA"):
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert(image.mode[:-1])
