"""The task interface: load an input, make its output, check an existing output.

The converter schedules: it calls `load` for every file and `make` for files of equal shape, and
writes the outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from dynenc.batch.results import RoundtripFigures
from dynenc.batch.settings import ConversionSettings
from dynenc.coding.rate_control import OnStep
from dynenc.io.storage import Readable
from dynenc.io.writing import refuse_existing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
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
class LoadedItem(Generic[T]):
    """An input, read and parsed."""

    value: T
    n_bytes: int  # of the input
    shape: tuple[int, ...]  # height and width in px first; equal shapes may share a pass
    note: str = ""  # what is lost of the image


@dataclass(frozen=True, slots=True)
class Output:
    """An output that has not been written yet."""

    data: bytes
    size: tuple[int, int] = (0, 0)  # width and height, px
    n_bytes_in: int = 0
    n_bytes_lat: int = 0  # bytes of the .lat file
    coded_size: tuple[int, int] | None = None  # of the .lat file's image, px; None: `size`
    quality: float | None = None  # of a .lat file that was encoded
    figures: RoundtripFigures | None = None
    note: str = ""  # for the user
    preview: Image.Image | None = None


class Task(ABC, Generic[T]):
    """What is done with every file of a run."""

    note = ""  # for the user, once

    def __init__(self, settings: ConversionSettings, on_step: OnStep | None = None) -> None:
        self.settings, self.on_step = settings, on_step

    @property
    def device(self) -> str:
        """Type of the torch device used."""
        return "cpu"

    def prepare(self, item: Item) -> None:
        """Raise early if the output could not be written."""
        if not item.member:
            refuse_existing(item.target, item.overwrite)

    @abstractmethod
    def load(self, item: Item) -> LoadedItem[T]:
        """Read and parse an input; raises DynencError."""

    @abstractmethod
    def make(self, items: Sequence[Item], group: Sequence[LoadedItem[T]]) -> list[Output]:
        """The outputs for inputs of equal shape."""

    @staticmethod
    @abstractmethod
    def matches(file: Readable, n_bytes: int, settings: ConversionSettings, *, whole: bool) -> bool:
        """Whether an existing output was made with these settings, as far as can be told.

        Args:
            file: the output, open at its start.
            n_bytes: its size.
            whole: check the whole file instead of only the header.
        Raises: any exception if this task cannot have written the file.
        """
