"""Colour management: pixels in the space of an ICC profile <-> sRGB, by LittleCMS."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
LEAST_CONTRAST = 64  # minimum levels between black and white of a valid profile
MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an L, RGB or CMYK image from the space of an ICC profile to an RGB one in sRGB.

    Grey pixels may have an RGB profile. Pixels are unchanged if the profile is equivalent to sRGB.
    The rendering intent is perceptual.
    Raises: ValueError if the profile is damaged, or not for these pixels.
    """
    mode, transform = _srgb_transform(profile)
    if image.mode == "L" and mode == "RGB":
        image = image.convert("RGB")
    if image.mode != mode:
        raise ValueError(f"it is for {mode} pixels and these are {image.mode}")
    return _apply(image, transform) if transform else image.convert("RGB")


def is_srgb(profile: bytes) -> bool:
    """Whether a profile that `to_srgb` accepts is equivalent to sRGB."""
    mode, transform = _srgb_transform(profile)
    return mode == "RGB" and transform is None


@lru_cache(maxsize=8)  # images of one camera share theirs
def _srgb_transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of a profile's pixels and their conversion; None if they are already in sRGB."""
    opened, mode = _open(profile)
    transform = _transform(opened, SRGB, mode, "RGB")
    probe = _probe(mode)
    probed = np.asarray(_apply(probe, transform), np.int16)
    if probed[0, -1].mean() - probed[0, 0].mean() < LEAST_CONTRAST:
        raise ValueError("its white is not lighter than its black")
    same = mode != "CMYK" and abs(probed - np.asarray(probe.convert("RGB"), np.int16)).max() <= 1
    return mode, None if same else transform


def from_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Undo `to_srgb`, except for rounding and colours outside sRGB: L or RGB to the profile's mode.

    Readers refuse grey pixels with an RGB profile, so these become RGB.

    Raises: ValueError if the profile is damaged, for CMYK, or cannot convert from sRGB.
    """
    opened, mode = _open(profile)
    if mode == "CMYK" or (mode == "L" and image.mode == "RGB"):
        raise ValueError(f"it is for {mode} pixels and these are {image.mode}")
    probe = _probe("RGB")
    back = _transform(SRGB, opened, "RGB", mode)
    probed = np.asarray(_apply(probe, back).convert("RGB"), np.int16)
    if mode == "RGB" and abs(probed - np.asarray(probe, np.int16)).max() <= 1:
        return _in_mode(image, mode)
    converted = _apply(_in_mode(image, "RGB"), back)
    return _in_mode(_in_mode(converted, image.mode), mode)  # the channels of grey are equal


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert, but do not copy, which takes memory."""
    return image if image.mode == mode else image.convert(mode)


def _open(profile: bytes) -> tuple[ImageCms.ImageCmsProfile, str]:
    """A profile and the mode of its pixels."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
    except (OSError, ValueError, ImageCms.PyCMSError) as exc:
        raise ValueError("it is damaged") from exc
    if space not in MODES:
        raise ValueError(f"it is for {space} pixels")
    return opened, MODES[space]


def _transform(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, mode: str, target_mode: str
) -> ImageCms.ImageCmsTransform:
    try:
        return ImageCms.buildTransform(source, target, mode, target_mode)
    except ImageCms.PyCMSError as exc:
        raise ValueError("it lacks this conversion") from exc


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    try:
        converted = ImageCms.applyTransform(image, transform)
    except ImageCms.PyCMSError as exc:
        raise ValueError("its conversion fails") from exc
    assert converted is not None  # only None if asked to work in place
    return converted


def _probe(mode: str) -> Image.Image:
    """A row of colours that samples the space, from black to white."""
    if mode == "CMYK":
        return Image.fromarray(np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), "CMYK")
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    return Image.fromarray(cube.reshape(1, -1, 3))
