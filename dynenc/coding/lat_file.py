"""A .lat file as an object: read, quantised and coded, written. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from dynenc import registry
from dynenc.arguments import file_name, integer
from dynenc.coding import bitstream, quantize
from dynenc.coding.bitstream import Chunk, Header
from dynenc.coding.entropy import EntropyCoder, load_coder
from dynenc.coding.rate_control import FINEST
from dynenc.errors import BitstreamError, ImageError, UnknownModel, UsageError, with_name
from dynenc.io import storage
from dynenc.io.names import shown
from dynenc.latent_space import latent_size
from dynenc.native import kernel
from dynenc.native.kernel import Floats, Shorts, Symbols

FEW_BITS = 1.5  # a latent; below it the plain lattice may be cheaper, as constants repeat on it
BIT_COST = 0.09  # squared error, in squared steps, that a bit is worth when choosing a lattice
FLAT_ERROR = 0.08  # steps; where latents are flat, the RMS error of a position that is small enough
FLAT_STEPS = 5  # that are tried where latents are flat, each half of the one before


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

        Integers alone decide how the payload is read, so symbols and latents are the same on every
        machine.
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
            raise with_name(exc, shown(source)) from exc

    @classmethod
    def of(
        cls, file: bytes | str | Path | LatFile, *, max_pixels: int = bitstream.MAX_PIXELS
    ) -> LatFile:
        """Parse a file given as bytes, a path or already parsed; raises BitstreamError."""
        integer("max_pixels", max_pixels)
        if isinstance(file, LatFile):
            return file
        if isinstance(file, str | Path):
            return cls.open(file_name("a .lat file", file), max_pixels=max_pixels)
        if not isinstance(file, bytes | bytearray | memoryview):
            kind = type(file).__name__
            raise UsageError(f"a .lat file is given as bytes or a path, not {kind}")
        return cls.parse(bytes(file), max_pixels=max_pixels)

    @classmethod
    def of_symbols(
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

    @classmethod
    def of_latents(
        cls,
        latents: Floats,
        size: tuple[int, int],
        step_q: int,
        model: registry.Model,
        chunks: Sequence[Chunk] = (),
    ) -> LatFile:
        """Quantise latents [C, h, w] and code them; the other arguments are those of `of_symbols`.

        Where the latents are flat, an error shows as a colour cast: finer steps are tried as well,
        and the smallest file is taken whose error is below FLAT_ERROR. Where latents cost few bits,
        both lattices are tried, and the file of least error and bits is taken.
        """
        preferred = default_coder(model)

        def on(coder: EntropyCoder, step_q: int = step_q) -> LatFile:
            symbols = quantize.to_symbols(latents, step_q, coder)
            return cls.of_symbols(symbols, coder, size, step_q, model, chunks)

        file, is_flat = on(preferred), quantize.is_flat(latents)
        few_bits = 8 * len(file.payload) < FEW_BITS * latents.size
        if not is_flat and not (few_bits and preferred.has_trellis):
            return file
        plain = load_coder(model.coder, has_trellis=False)
        files = [file, on(plain)] if plain != preferred else [file]
        if not is_flat:
            return min(files, key=lambda file: _cost(file, latents))
        steps = [step_q >> halvings for halvings in range(1, FLAT_STEPS)]
        finer = [step for step in steps if step >= FINEST]
        files += [on(coder, step) for step in finer for coder in dict.fromkeys((preferred, plain))]
        largest = FLAT_ERROR * step_q / quantize.STEP_UNIT
        close = [file for file in files if file.rms_error(latents) <= largest]
        if close:
            return min(close, key=lambda file: len(file.payload))
        return min(files, key=lambda file: file.rms_error(latents))

    @classmethod
    def of_quantized(
        cls, latents: Floats, size: tuple[int, int], step_q: int, model: registry.Model
    ) -> LatFile:
        """Code latents [C, h, w] that were quantised with this step before, on either lattice.

        They keep their values: the lattice is the one they are on. Ties go to the model's default.
        """
        name = registry.full_coder(model).name
        full = (load_coder(name, has_trellis=which) for which in (True, False))
        choices = [
            (quantize.to_nearest(latents, step_q, coder), coder)
            for coder in dict.fromkeys((default_coder(model), *full))
        ]

        def error(choice: tuple[Symbols, EntropyCoder]) -> float:
            symbols, coder = choice
            return quantize.squared_error(latents, symbols, step_q, coder)

        return cls.of_symbols(*min(choices, key=error), size, step_q, model)

    @cached_property
    def latents(self) -> Floats:
        """The latents [C, h, w], scaled as the space's diffusion model takes them."""
        return quantize.from_symbols(self.symbols, self.header.step_q, coder_of(self.header))

    def integers(self) -> Shorts:
        """The latents [C, h, w] in 1/2048, saturated at 32767, as PixelDecoder takes them."""
        trellis = self.coder.has_trellis
        return kernel.integer_latents(self.symbols, self.header.step_q, has_trellis=trellis)

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

    def squared_error(self, latents: Floats) -> float:
        """Sum of the squared differences from latents [C, h, w], in squared steps."""
        return quantize.squared_error(latents, self.symbols, self.header.step_q, self.coder)

    def rms_error(self, latents: Floats) -> float:
        """RMS over positions of the distance to latents [C, h, w], in latent units."""
        in_steps = math.sqrt(self.squared_error(latents) / latents[0].size)
        return in_steps * self.header.step_q / quantize.STEP_UNIT

    def to_bytes(self) -> bytes:
        """The bytes of the .lat file."""
        return bitstream.write(self.header, self.payload, self.chunks)


def _cost(file: LatFile, latents: Floats) -> float:
    """Rate-distortion cost of a file: squared error plus weighted bits, in squared steps."""
    return file.squared_error(latents) + BIT_COST * 8 * len(file.payload)


def default_coder(model: registry.Model) -> EntropyCoder:
    """The coder that new files of a model's latents are written with."""
    return load_coder(model.coder, has_trellis=model.has_trellis)


def coder_of(header: Header) -> EntropyCoder:
    """The entropy coder of a file; raises UnknownModel."""
    coder = registry.coder(header.coder_id, model_of(header).space)
    if coder is None or header.has_trellis > coder.has_trellis:
        which = f"{header.coder_id}{' with a trellis' if header.has_trellis else ''}"
        raise UnknownModel(
            f"the file was written with entropy coder {which}, unknown: update dynenc"
        )
    return load_coder(coder.name, has_trellis=header.has_trellis)


def model_of(header: Header) -> registry.Model:
    """The model that the latents of a file are of; raises UnknownModel."""
    model = registry.latent_model(header.model_id)
    if model is None:
        raise UnknownModel(
            f"the file was written by encoder {header.model_id}, unknown here: update dynenc"
        )
    return model


def has_quality(header: Header, quality: float, parse: Callable[[], LatFile]) -> bool:
    """Whether a file was encoded at a quality, judged by its quantiser step.

    Flat images may have a finer step than the quality asks for; see `LatFile.of_latents`.

    Args:
        parse: returns the whole file; called only if the header has such a finer step.
    Raises: UsageError if quality is not within 0..100; UnknownModel; what `parse` raises.
    """
    step_q = quantize.quality_to_step(quality, has_trellis=model_of(header).has_trellis)
    finer = [step_q >> halvings for halvings in range(1, FLAT_STEPS)]
    if header.step_q in finer:
        return quantize.is_flat(parse().latents, header.step_q)
    return header.step_q == step_q


@contextmanager
def reading(source: str) -> Iterator[BinaryIO]:
    """A file or URL to read .lat data from; what fails is a BitstreamError that names it."""
    try:
        with storage.reading(source) as file:
            yield file
    except OSError as exc:
        raise BitstreamError(f"{source} cannot be read: {exc.strerror}") from exc
    except ImageError as exc:  # of a URL
        raise BitstreamError(str(exc), hint=exc.hint) from exc


def read_bytes(source: str) -> bytes:
    """The bytes of a .lat file, of a URL, or of stdin for '-'; raises BitstreamError.

    Of a file that does not begin like one, however long, only the beginning.
    """
    with reading(source) as file:
        start = file.read(len(bitstream.MAGIC))
        if start != bitstream.MAGIC:
            return start
        return start + storage.read_at_most(file, bitstream.MAX_BYTES - len(start), source)
