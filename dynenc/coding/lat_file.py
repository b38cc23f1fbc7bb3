"""A .lat file as an object: read, coded from symbols, written. Never imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dynenc import registry
from dynenc.arguments import StrPath, checked_integer, checked_name
from dynenc.coding import bitstream, quantize
from dynenc.coding.bitstream import Chunk, Header
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.errors import BitstreamError, UnknownModel, UsageError, with_name
from dynenc.io import storage
from dynenc.io.names import display_name
from dynenc.latent_space import latent_size
from dynenc.native import kernel
from dynenc.native.kernel import Floats, Shorts, Symbols


@dataclass(frozen=True, eq=False)
class LatFile:
    """A valid .lat file: what its bytes say, and the symbols of its payload."""

    header: Header
    symbols: Symbols  # [C, h, w], int16 as `parse` reads them
    payload: bytes  # the symbols, coded
    chunks: Sequence[Chunk] = ()

    @classmethod
    def parse(cls, blob: bytes, *, max_pixels: int = bitstream.MAX_PIXELS) -> LatFile:
        """Read a whole file.

        Only integer arithmetic is used, so symbols and latents are identical on every machine.

        Raises: BitstreamError and nothing else, whatever the bytes.
        """
        header, payload, chunks = bitstream.read(blob, max_pixels)
        size = latent_size(header.height, header.width)
        symbols = coder_of(header).decode(payload, *size, header.step_q)
        return cls(header, symbols, payload, chunks)

    @classmethod
    def open(cls, source: str, *, max_pixels: int = bitstream.MAX_PIXELS) -> LatFile:
        """Read the file at a path or URL, or on stdin for '-'; raises BitstreamError."""
        try:
            return cls.parse(read_bytes(source), max_pixels=max_pixels)
        except BitstreamError as exc:
            raise with_name(exc, display_name(source)) from exc

    @classmethod
    def load(
        cls, file: bytes | StrPath | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS
    ) -> LatFile:
        """Parse a file given as bytes, a path or already parsed; raises BitstreamError."""
        checked_integer("max_pixels", max_pixels)
        if isinstance(file, LatFile):
            return file
        if isinstance(file, str | os.PathLike):
            return cls.open(checked_name("a .lat file", file), max_pixels=max_pixels)
        if not isinstance(file, bytes | bytearray | memoryview):
            kind = type(file).__name__
            raise UsageError(f"a .lat file is given as bytes or a path, not {kind}")
        return cls.parse(bytes(file), max_pixels=max_pixels)

    @classmethod
    def from_symbols(
        cls,
        symbols: Symbols,
        coder: EntropyCoder,
        size: tuple[int, int],
        step_q: int,
        model: registry.Model,
        chunks: Sequence[Chunk] = (),
    ) -> LatFile:
        """The file of symbols [C, h, w], coded.

        Args:
            coder: one of `load_coder`.
            size: width and height of the image, px, 1..65535.
            step_q: quantiser step in 1/1024 of a latent unit, 1..65535.
            model: one of `registry.LATENT_MODELS`.
            chunks: as `extras.to_chunks` returns them.
        """
        flags = bitstream.HAS_TRELLIS if coder.has_trellis else 0
        header = Header(*size, step_q, model.number, coder.coder_id, flags)
        return cls(header, symbols, coder.encode(symbols, step_q), chunks)

    @cached_property
    def latents(self) -> Floats:
        """The latents [C, h, w], scaled as the space's diffusion model takes them."""
        return quantize.from_symbols(self.symbols, self.header.step_q, coder_of(self.header))

    @property
    def step(self) -> float:
        """The quantiser step, in latent units."""
        return self.header.step_q / quantize.STEP_UNIT

    def fixed_point_latents(self) -> Shorts:
        """The latents [C, h, w] in 1/2048, saturated at 32767, as PixelDecoder takes them."""
        trellis = self.coder.has_trellis
        return kernel.integer_latents(self.symbols, self.header.step_q, has_trellis=trellis)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image in px."""
        return self.header.size

    @property
    def model(self) -> registry.Model:
        """The model that the latents are of."""
        return model_of(self.header)

    @property
    def coder(self) -> EntropyCoder:
        """The entropy coder of the payload."""
        return coder_of(self.header)

    @property
    def quality(self) -> float:
        """The quality of the file's quantiser step; see `quantize.step_to_quality`."""
        return quantize.step_to_quality(self.header.step_q, has_trellis=self.model.has_trellis)

    def to_bytes(self) -> bytes:
        """The bytes of the .lat file."""
        return bitstream.write(self.header, self.payload, self.chunks)


def coder_of(header: Header) -> EntropyCoder:
    """The entropy coder of a file; raises UnknownModel."""
    coder = registry.coder(header.coder_id, model_of(header).space)
    if coder is None or header.has_trellis > coder.has_trellis:
        which = f"{header.coder_id}{' with a trellis' if header.has_trellis else ''}"
        raise UnknownModel(f"the file needs entropy coder {which}, unknown here: update dynenc")
    return load_coder(coder.name, has_trellis=header.has_trellis)


def model_of(header: Header) -> registry.Model:
    """The model that the latents of a file are of; raises UnknownModel."""
    model = registry.latent_model(header.model_id)
    if model is None:
        raise UnknownModel(f"the file needs model {header.model_id}, unknown here: update dynenc")
    return model


def read_bytes(source: str) -> bytes:
    """The bytes of a .lat file, of a URL, or of stdin for '-'; raises BitstreamError.

    If it does not start with the magic bytes of a .lat file, only its first bytes are returned.
    """
    with storage.reading_as(source, BitstreamError) as file:
        start = file.read(len(bitstream.MAGIC))
        if start != bitstream.MAGIC:
            return start
        return start + storage.read_at_most(file, bitstream.MAX_FILE_BYTES - len(start), source)
