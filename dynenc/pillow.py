"""A Pillow plugin: after `import dynenc.pillow`, Pillow opens and saves `.lat` files.

    Image.open("a.lat")                                 # size and mode at once, pixels at load()
    image.save("a.lat", quality=80, encoder="base")   # both may be left out

torch is imported only if decoding or encoding needs it.
"""

from __future__ import annotations

import io
import os
import sys
from functools import cache
from inspect import signature
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from dynenc import registry
from dynenc.arguments import checked_name
from dynenc.coding import bitstream
from dynenc.coding.encode_options import EncodeOptions
from dynenc.errors import BitstreamError, with_name
from dynenc.imaging import extras
from dynenc.io.storage import read_at_most
from dynenc.view import DIVISORS, WHOLE, View

if TYPE_CHECKING:
    from dynenc.codec import Codec

FORMAT, MIME = "LAT", "image/x-lat"
OPTIONS = tuple(signature(EncodeOptions.from_arguments).parameters)

decoder = "embedded"  # for Image.open, which takes no options: any name of `load_decoder`


class LatImageFile(ImageFile.ImageFile):
    """A .lat file that has been read and checked; its pixels are decoded at load()."""

    format = FORMAT
    format_description = "Stable Diffusion latents"

    _blob: bytes | None = None  # the file until it is decoded; a pickled image has its pixels
    _view = WHOLE

    def _open(self) -> None:
        """Read the size; raises UnidentifiedImageError, an OSError, if the file is damaged."""
        try:
            # at most the largest valid file is read
            blob = read_at_most(self.fp, bitstream.MAX_FILE_BYTES, self._name) if self.fp else b""
            # Pillow applies its own limit to the size
            header, _, chunks = bitstream.read(blob, sys.maxsize)
        except BitstreamError as exc:
            raise UnidentifiedImageError(str(with_name(exc, self._name))) from exc
        self._blob = blob
        self._size = header.size
        tags = {tag for tag, _ in chunks}
        self._mode = "L" if extras.GREY in tags else "RGB"
        if extras.ALPHA in tags:
            self._mode += "A"

    @property
    def _name(self) -> str:
        return os.fsdecode(self.filename) if self.filename else "the file"

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Decode at 1/2, 1/4 or 1/8 of the size, the smallest no smaller than `size`.

        `thumbnail` calls it. Returns: mode and the box of the image in the smaller one; None if
        nothing changes, or pixels have been decoded. The mode stays.
        """
        if self._blob is None or self._view != WHOLE or not size or min(size) < 1:
            return None
        width, height = self.size
        most = min(width // size[0], height // size[1])
        view = View(divisor=max(divisor for divisor in DIVISORS if divisor <= max(1, most)))
        if view == WHOLE:
            return None
        self._view, self._size = view, view.scaled(self.size)[2:]
        return self.mode, (0, 0, width / view.divisor, height / view.divisor)

    def getexif(self) -> Image.Exif:
        """The EXIF data of the file, which come with its pixels."""
        self.load()
        return super().getexif()

    def load(self) -> Any:
        """Decode; raises OSError if the payload is damaged, WeightsError like `load_decoder`."""
        if self._blob is not None:
            try:
                image = _codec(decoder=checked_name("a decoder", decoder)).decode(
                    self._blob, scale=1 / self._view.divisor, max_pixels=sys.maxsize
                )
            except BitstreamError as exc:
                raise OSError(str(with_name(exc, self._name))) from exc
            self._blob = None
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self._mode = image.mode  # a kept profile may have changed it
            self.info.update(image.info)
            self.fp = io.BytesIO(image.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *image.size), 0, self.mode)]
        return super().load()


def _save(image: Image.Image, file: IO[bytes], _: str | bytes) -> None:
    """Write an image of any mode; the options are those of `Codec` and its `encode`."""
    given = image.encoderinfo
    options = {key: given[key] for key in OPTIONS if key in given}
    encoder = checked_name("an encoder", given.get("encoder", registry.DEFAULT_ENCODER))
    file.write(_codec(encoder).encode(image, **options))


@cache
def _codec(encoder: str = registry.DEFAULT_ENCODER, decoder: str = "embedded") -> Codec:
    from dynenc.codec import Codec

    return Codec(encoder, decoder)


def _accept(start: bytes) -> bool:
    return start.startswith(bitstream.MAGIC)


Image.register_open(FORMAT, LatImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, bitstream.SUFFIX)
Image.register_mime(FORMAT, MIME)
