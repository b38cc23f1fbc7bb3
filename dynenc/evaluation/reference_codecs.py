"""The codecs that dynenc is compared with: those of Pillow."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import PIL
from PIL import Image

from dynenc.errors import UsageError
from dynenc.imaging import formats


@dataclass(frozen=True, slots=True)
class ReferenceCodec:
    """A codec of Pillow, at the strongest setting in common use."""

    name: str  # on the command line
    label: str  # in tables and messages
    format: str  # Pillow's name
    qualities: Sequence[int]  # that give about 0.05 to 0.4 bpp on photographs
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """Implementation and settings."""
        settings = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"Pillow {PIL.__version__}, {settings or 'its defaults'}"

    def is_installed(self) -> bool:
        """Whether Pillow, with its plugins, can write the format."""
        return formats.can_write(self.format)

    def encode(self, image: Image.Image, quality: float, **options: object) -> bytes:
        """Compress an RGB image; further Pillow options override those of the codec."""
        buffer = io.BytesIO()
        settings = {**self.options, "quality": round(quality), **options}
        image.save(buffer, self.format, **settings)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """Undo `encode`: an RGB image."""
        with formats.open_file(io.BytesIO(data)) as image:
            return image.convert("RGB")


REFERENCE_CODECS = {
    codec.name: codec
    for codec in (
        ReferenceCodec("jpeg", "JPEG", "JPEG", (2, 5, 10, 15, 20, 30), {"optimize": True}),
        ReferenceCodec("webp", "WebP", "WEBP", (0, 5, 10, 20, 30, 50), {"method": 6}),
        ReferenceCodec("avif", "AVIF", "AVIF", (5, 12, 20, 28, 36, 44), {"speed": 6}),
        ReferenceCodec("jxl", "JPEG XL", "JXL", (0, 5, 10, 20, 30, 40)),
    )
}


def installed() -> list[ReferenceCodec]:
    """The codecs of this Pillow."""
    return [codec for codec in REFERENCE_CODECS.values() if codec.is_installed()]


def parse(text: str) -> tuple[ReferenceCodec, int]:
    """Parse a codec with a quality, such as "avif:40".

    Raises: UsageError if the codec is unknown, if Pillow lacks it, or if the quality is not an
    integer from 0 to 100.
    """
    name, _, quality = text.partition(":")
    if name not in REFERENCE_CODECS:
        raise UsageError(
            f"unknown codec {name!r}: choose one of {', '.join(REFERENCE_CODECS)}, as in jpeg:75"
        )
    if not quality.isdecimal() or int(quality) > 100:
        raise UsageError(f"{text} needs a quality from 0 to 100, as in {name}:75")
    if not REFERENCE_CODECS[name].is_installed():
        plugin = (
            "pillow-jxl-plugin"
            if name == "jxl"
            else f"a Pillow with {REFERENCE_CODECS[name].label}"
        )
        raise UsageError(
            f"this Pillow cannot write {REFERENCE_CODECS[name].label}: install {plugin}"
        )
    return REFERENCE_CODECS[name], int(quality)
