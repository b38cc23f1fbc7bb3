"""The task interface: load an input, make its output, check an existing output.

The converter schedules: it calls `load` for every file and `make` for files of equal shape, and
writes the outputs. The tasks themselves are in `tasks`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

from PIL import Image

from dynenc import registry
from dynenc.batch import inputs
from dynenc.batch.records import Roundtrip, Settings
from dynenc.codec import Codec
from dynenc.coding import bitstream, entropy, rate_control
from dynenc.coding.bitstream import Header
from dynenc.coding.lat_file import LatFile, has_quality, read_bytes
from dynenc.coding.rate_control import DetailMode, Goal, OnStep
from dynenc.imaging import detail, extras, notes
from dynenc.imaging.extras import Extras
from dynenc.imaging.read import open_image
from dynenc.interop.forms import LATENT_FORMS
from dynenc.io import names, storage
from dynenc.io.storage import Readable
from dynenc.io.writing import refuse_existing
from dynenc.latent_space import PATCH
from dynenc.native import encoder
from dynenc.networks import decoder_names, integer_decoder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Input:
    """A file to convert, or to copy unchanged."""

    source: str
    target: str  # "" if nothing is written
    data: bytes | None = None  # None: read it from `source`
    member: str = ""  # name of the output in a shard
    mtime: float | None = None  # to give the output, s since 1970
    convert: bool = True
    overwrite: bool = False

    @property
    def name(self) -> str:
        """The name whose suffix decides the format of the output."""
        return self.member or self.target


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """An input, read and parsed."""

    value: T
    n_bytes: int  # of the input
    shape: tuple[int, ...]  # height and width in px first; equal shapes may share a pass
    note: str = ""  # what is lost of the image


@dataclass(frozen=True, slots=True)
class Made:
    """An output that has not been written yet."""

    data: bytes
    width: int = 0  # px
    height: int = 0  # px
    n_bytes_in: int = 0
    n_bytes_lat: int = 0  # bytes of the .lat file
    coded_size: tuple[int, int] | None = None  # of the .lat file's image, px; None: the same
    quality: float | None = None  # of a .lat file that was encoded
    figures: Roundtrip | None = None
    note: str = ""  # for the user
    preview: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class ParsedLat:
    """A .lat file and the alpha, metadata and detail of its image."""

    file: LatFile
    extras: Extras


class Task(ABC, Generic[T]):
    """What is done with every file of a run."""

    note = ""  # for the user, once

    def __init__(self, settings: Settings, on_step: OnStep | None = None) -> None:
        self.settings, self.on_step = settings, on_step

    @property
    def device(self) -> str:
        """Type of the torch device used."""
        return "cpu"

    def prepare(self, item: Input) -> None:
        """Raise early if the output could not be written."""
        if not item.member:
            refuse_existing(item.target, item.overwrite)

    @abstractmethod
    def load(self, item: Input) -> Loaded[T]:
        """Read and parse an input; raises DynencError."""

    @abstractmethod
    def make(self, items: Sequence[Input], group: Sequence[Loaded[T]]) -> list[Made]:
        """The outputs for inputs of equal shape."""

    @staticmethod
    @abstractmethod
    def matches(file: Readable, n_bytes: int, settings: Settings, *, whole: bool) -> bool:
        """Whether an existing output was made with these settings, as far as can be told.

        Args:
            whole: check the whole file instead of only the header.
        Raises: any exception if this task cannot have written the file.
        """


def needs_networks(settings: Settings) -> bool:
    """Whether a run needs torch, as far as is known before any file is read."""
    encode, task, device = settings.encode, settings.task, settings.run.device
    if task == "encode":
        model = registry.encoder_model(encode.encoder)
        decodes = encode.effort or encode.goal.kind == "dB"
        return bool(decodes) or not encoder.runs_natively(model, device)
    if task == "export":
        return settings.output.suffix.lower() == LATENT_FORMS["pt"]
    if task == "decode":  # most files are of SD 1.x, whose decoder is not always the embedded one
        decoder = decoder_names.resolve(settings.decode.decoder, device).name
        return not integer_decoder.uses_integers(registry.IMPORTED, decoder, device)
    return task != "import"


class CodecTask(Task[T]):
    """A task that encodes or decodes images."""

    def __init__(self, settings: Settings, on_step: OnStep | None = None) -> None:
        super().__init__(settings, on_step)
        encode, decode = settings.encode, settings.decode
        decoder = encode.tune_for if settings.task == "encode" else decode.decoder
        self.codec = Codec(encode.encoder, decoder, settings.run.device)

    @property
    def device(self) -> str:
        """See `Task`."""
        return self.codec.device.type if needs_networks(self.settings) else "cpu"


def load_lat(item: Input, settings: Settings) -> Loaded[ParsedLat]:
    blob = read_bytes(item.source) if item.data is None else item.data
    file = LatFile.parse(blob, max_pixels=settings.input.max_pixels)
    height, width = file.symbols.shape[-2:]
    shape = PATCH * height, PATCH * width, file.header.model_id
    found = extras.from_chunks(file.chunks, file.header.width, file.header.height)
    return Loaded(ParsedLat(file, found), len(blob), shape)


def load_image(item: Input, settings: Settings) -> Loaded[Image.Image]:
    blob = item.data
    if blob is None and storage.is_sequential(item.source):
        blob = inputs.read_image(item.source)
    with notes.collected() as lost:
        image = open_image(
            item.source if blob is None else blob,
            name=names.shown(item.source),
            max_pixels=settings.input.max_pixels,
            keep_metadata=settings.encode.keep_metadata,
            truncated=settings.input.truncated,
        )
    width, height = (-(-side // PATCH) * PATCH for side in image.size)
    n_bytes = inputs.size_of(item.source) if blob is None else len(blob)
    return Loaded(image, n_bytes, (height, width), note=notes.joined(*lost))


@dataclass(frozen=True, slots=True)
class ExistingLat:
    """An existing .lat file; no more of it is read than needed."""

    header: Header
    n_bytes: int
    parse: Callable[[], LatFile]  # reads the rest

    @classmethod
    def open(cls, file: Readable, n_bytes: int, *, whole: bool) -> ExistingLat:
        """Read the header, and with `whole` check the rest. Raises: BitstreamError."""
        most = bitstream.MAX_BYTES if whole else bitstream.FIXED
        start = storage.read_at_most(file, most, "the output") if whole else file.read(most)
        header = (
            bitstream.read(start, sys.maxsize).header if whole else bitstream.read_header(start)
        )

        @cache
        def parse() -> LatFile:
            rest = b"" if whole else storage.read_at_most(file, bitstream.MAX_BYTES, "the output")
            return LatFile.parse(start + rest, max_pixels=sys.maxsize)

        return cls(header, n_bytes, parse)

    def meets(self, goal: Goal) -> bool:
        """Whether it meets the goal, as far as can be told: PSNR would need decoding."""
        header, n_bytes = self.header, self.n_bytes
        if goal.kind == "quality" and header.step_q == rate_control.COARSEST:
            return detail.file_quality(self.parse()) == round(goal.value)
        if goal.kind == "quality":
            return has_quality(header, goal.value, self.parse)
        if goal.kind == "dB":
            return False
        bpp = bitstream.bpp(n_bytes, header.width, header.height)
        reached = bpp if goal.kind == "bpp" else n_bytes
        miss = rate_control.LAYER_MISS if self._is_all_layer else rate_control.MISS
        if not goal.is_missed(reached, miss):
            return True
        return not goal.strict and self._is_nearest(goal, reached)

    @property
    def _is_all_layer(self) -> bool:
        return self.header.step_q == rate_control.COARSEST and detail.is_whole(self.parse())

    def _is_nearest(self, goal: Goal, reached: float) -> bool:
        """Whether no other step comes nearer to a target of size, which none may exceed."""
        if reached < goal.value:
            is_close = goal.value - reached < entropy.WORD * reached / self.n_bytes
            if self._is_all_layer:
                return is_close or detail.file_quality(self.parse()) == 100
            return is_close or self.header.step_q == rate_control.FINEST
        file = self.parse()
        return not file.symbols.any() and not detail.has_layer(file)

    def may_have(self, mode: DetailMode) -> bool:
        """Whether the detail mode could have written it: "off" writes no detail layer."""
        has_chunks = bool(self.header.flags & bitstream.HAS_CHUNKS)
        return mode != "off" or not (has_chunks and detail.has_layer(self.parse()))
