"""Caches of latents: tar shards of .lat files, each with an index beside it.

`latents-00000.tar` holds `key.lat`, and `key.flipped.lat` of the mirrored image, as WebDataset
expects them. `latents-00000.json` says how they were made, and of each image its key, the SHA-256
of its file, sizes, and the places of its latents in the tar. Both are complete or absent, and never
change: what replaces them gets a higher number, and of two entries of a key the later one counts.

While a shard is written or removed, its index is named `latents-00000.unfinished`. If the run is
killed, this tells that the tar beside it is left over. A tar with neither is not the cache's: it is
never replaced or removed.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from dynenc.coding import bitstream
from dynenc.errors import BitstreamError, Corrupt, ImageError, OutputError, OutputExists, UsageError
from dynenc.io import names, storage
from dynenc.io.shards import open_tar
from dynenc.io.writing import remove, rename, writing
from dynenc.latent_space import SPACES

VERSION = 1
FILE = re.compile(r"latents-(\d{5,9})\.(json|tar|unfinished)")
UNFINISHED = ".unfinished"
LAST = 10**9 - 1  # number of a shard
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
MAX_INDEX_BYTES = 2**30  # of an index
MAX_NUMBER = 2**53  # in an index: what JSON can hold everywhere


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The settings that the latents of a cache depend on."""

    space: str  # of latent_space.SPACES
    encoder: str  # name of a model of dynenc, or of a VAE
    weights: str  # SHA-256 of the encoder's or VAE's weight file
    resolution: int  # px; see `imaging.buckets`
    quality: float  # 0..100
    flips: bool  # whether there are latents of the mirrored images, too

    def differences(self, wanted: CacheSettings) -> str:
        """The differences from the wanted settings, for messages; "" if there are none."""
        every = (each.name for each in fields(self))
        differ = {name for name in every if getattr(self, name) != getattr(wanted, name)}
        if "encoder" in differ:
            differ.discard("weights")
        pairs = [(name, getattr(self, name), getattr(wanted, name)) for name in sorted(differ)]
        return ", ".join(f"{name} {was!s:.40} instead of {new!s:.40}" for name, was, new in pairs)


@dataclass(frozen=True, slots=True)
class Entry:
    """An image in a shard."""

    key: str  # path below its folder, without the suffix
    sha256: str  # of the image file
    original: tuple[int, int]  # width and height of the image, px
    size: tuple[int, int]  # width and height of what the latents show, px
    crop: tuple[int, int]  # px cut off at the left and top, after resizing
    place: tuple[int, int]  # offset and length of the .lat file in the tar, bytes
    flipped: tuple[int, int] | None = None  # the same of the mirrored image

    @property
    def places(self) -> list[tuple[str, tuple[int, int]]]:
        """The name below its tar, and the place, of each .lat file."""
        found = [(f"{self.key}.lat", self.place)]
        return found + ([(f"{self.key}.flipped.lat", self.flipped)] if self.flipped else [])


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of latents and its index."""

    tar: str  # path or URL
    settings: CacheSettings
    entries: tuple[Entry, ...]

    @property
    def index(self) -> str:
        """Path or URL of the index."""
        return names.with_suffix(self.tar, ".json")

    @property
    def unfinished(self) -> str:
        """Path of the index while the shard is written or removed."""
        return names.with_suffix(self.tar, UNFINISHED)

    def write_index(self) -> None:
        """Write the index, within `publishing`.

        Bytes of a file name that are not UTF-8 are surrogates in its key, and escaped.
        """
        entries = [asdict(entry) for entry in self.entries]
        content = {"version": VERSION, "settings": asdict(self.settings), "images": entries}
        with writing(self.unfinished, overwrite=True) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"))

    def remove(self) -> None:
        """Remove the index and the tar; neither is a shard without the other."""
        rename(self.index, self.unfinished)
        _remove_unfinished(self.unfinished)

    def is_whole(self) -> bool:
        """Whether a reader of tars finds the .lat files in their places, and the end of the tar.

        Raises: ImageError if it cannot be read.
        """
        expected = {(name, *place) for entry in self.entries for name, place in entry.places}
        try:
            with storage.reading(self.tar) as file, open_tar(file) as tar:
                found = {(info.name, info.offset_data, info.size) for info in tar}
                file.seek(tar.offset)
                return expected <= found and file.read(len(END_OF_TAR)) == END_OF_TAR
        except (FileNotFoundError, tarfile.TarError):
            return False
        except OSError as exc:
            raise ImageError(f"{self.tar} cannot be read: {exc.strerror}") from exc

    def members(self) -> Iterator[tuple[Entry, list[bytes]]]:
        """The entries whose .lat files are in the tar and not damaged, with these files.

        There are none if there is no such tar.
        Raises: ImageError if there is one, and it cannot be read.
        """
        try:
            with storage.reading(self.tar) as file:
                for entry in self.entries:
                    try:
                        yield entry, [_lat(file, place, entry.size) for _, place in entry.places]
                    except BitstreamError:
                        continue
        except FileNotFoundError:
            return
        except OSError as exc:
            raise ImageError(f"{self.tar} cannot be read: {exc.strerror}") from exc


def _lat(file: BinaryIO, place: tuple[int, int], size: tuple[int, int]) -> bytes:
    """A .lat file in a tar; raises BitstreamError if it is damaged, or not of that size."""
    start, n_bytes = place
    file.seek(start)
    blob = file.read(min(n_bytes, bitstream.MAX_FILE_BYTES))
    header = bitstream.read(blob, sys.maxsize).header
    if header.size != size:
        raise Corrupt(f"the file is of {header.width}x{header.height} px")
    return blob


def shards(folder: str) -> list[Shard]:
    """The shards of a cache, oldest first; none of a folder that is no cache.

    Raises: UsageError if an index is damaged; ImageError if the folder cannot be read.
    """
    return [_read(path) for _, path in sorted(_files(folder, "json"))]


@contextmanager
def publishing(tar: str) -> Iterator[None]:
    """A context that writes a tar and its index; at its end, they are a shard of the cache."""
    unfinished = names.with_suffix(tar, UNFINISHED)
    try:
        yield
    except (OutputError, OutputExists):  # perhaps another program wrote such a tar, not this run
        with suppress(OSError):
            Path(unfinished).unlink()
        raise
    rename(unfinished, names.with_suffix(tar, ".json"))


def remove_unfinished_shards(folder: str) -> None:
    """Remove the shards that killed runs left over in a cache."""
    for _, path in _files(folder, "unfinished"):
        _remove_unfinished(path)


def _remove_unfinished(path: str) -> None:
    tar = names.with_suffix(path, ".tar")
    if storage.exists(tar):
        remove(tar)
    remove(path)


def unindexed_tars(folder: str) -> list[str]:
    """The tars in a cache that have no index, and so are none of its shards."""
    known = {number for number, _ in _files(folder, "json")}
    return [path for number, path in _files(folder, "tar") if number not in known]


def free_names(folder: str) -> Iterator[str]:
    """Paths for the tars of new shards, whose numbers are above those of all shards.

    Raises: UsageError if there is none left.
    """
    following = 1 + max((number for number, _ in _files(folder, "json")), default=-1)
    taken = {number for number, _ in _files(folder, "tar")}
    for number in range(following, LAST + 1):
        if number not in taken:
            yield names.join(folder, f"latents-{number:05}.tar")
    raise UsageError(f"{folder} has a shard of the last number, {LAST}: make another cache")


def tars(folder: str) -> list[str]:
    """All tars of a cache."""
    return [path for _, path in _files(folder, "tar")]


def _files(folder: str, suffix: str) -> list[tuple[int, str]]:
    return [
        (int(match[1]), found.path)
        for found in storage.walk(folder, recursive=False)
        if (match := FILE.fullmatch(found.relative)) and match[2] == suffix
    ]


def current(found: list[Shard]) -> Iterator[tuple[Shard, Entry]]:
    """The entries that count, one for each key, in the order of the shards."""
    last = {entry.key: shard.tar for shard in found for entry in shard.entries}
    return ((s, e) for s in found for e in s.entries if last[e.key] == s.tar)


def _read(path: str) -> Shard:
    try:
        with storage.reading(path) as file:
            content = json.loads(storage.read_at_most(file, MAX_INDEX_BYTES, path, ImageError))
        if type(content["version"]) is int and content["version"] > VERSION:
            raise UsageError(f"{path} is of a newer dynenc: update this one")
        entries = tuple(_entry(fields) for fields in content["images"])
        if content["version"] != VERSION or len({entry.key for entry in entries}) < len(entries):
            raise ValueError("not of this version, or a key occurs twice")
        settings = _settings(content["settings"])
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        if isinstance(exc, UsageError | ImageError):
            raise
        raise UsageError(
            f"{path} is not the index of a cache of latents: restore it, or move it and its tar "
            "away and make the cache again"
        ) from exc
    return Shard(names.with_suffix(path, ".tar"), settings, entries)


def _settings(values: dict[str, object]) -> CacheSettings:
    """Settings as JSON holds them; raises ValueError or TypeError."""
    found = CacheSettings(**values)  # type: ignore[arg-type]
    kinds = (str, str, str, int, int | float, bool)
    if found.space not in SPACES or not all(
        isinstance(getattr(found, field.name), kind)
        for field, kind in zip(fields(found), kinds, strict=True)
    ):
        raise ValueError("not settings")
    return found


def _entry(fields: dict[str, object]) -> Entry:
    """An entry as JSON holds it; raises ValueError, TypeError or KeyError."""
    key, sha256 = fields["key"], fields["sha256"]
    if not isinstance(key, str) or not key or not isinstance(sha256, str):
        raise ValueError("no key")
    pairs = ("original", "size", "crop", "place", "flipped")
    numbers = {name: fields[name] for name in pairs if fields.get(name) is not None}
    return Entry(key, sha256, **{name: _pair(value) for name, value in numbers.items()})


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("not a pair")
    if not all(type(number) is int and 0 <= number < MAX_NUMBER for number in value):
        raise ValueError("not whole numbers")
    return value[0], value[1]
