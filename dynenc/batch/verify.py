"""Full checks of .lat files, without decoding pixels."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dynenc.coding import bitstream
from dynenc.coding.lat_file import LatFile, read_bytes
from dynenc.errors import BitstreamError, Corrupt, ImageError, with_name
from dynenc.imaging import extras
from dynenc.imaging.detail import Detail
from dynenc.interop import cache_chunk
from dynenc.io import shards, storage
from dynenc.io.names import display_name, suffix_of
from dynenc.io.shards import is_tar


class Inspected(NamedTuple):
    """A .lat file that was fully checked."""

    file: LatFile
    layer: Detail | None
    n_bytes: int


def info_file(source: str, *, max_pixels: int) -> Inspected:
    """Parse and fully check a .lat file. Raises: BitstreamError."""
    try:
        return _inspect(read_bytes(source), max_pixels)
    except BitstreamError as exc:
        raise with_name(exc, display_name(source)) from exc


def _inspect(blob: bytes, max_pixels: int) -> Inspected:
    file = LatFile.parse(blob, max_pixels=max_pixels)
    found = extras.from_chunks(file.chunks, file.size)
    cache_chunk.from_chunks(file.chunks)
    return Inspected(file, found.detail, len(blob))


def verify(paths: list[str], *, max_pixels: int) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check .lat files, and those in tars, in folders and in their sub-folders.

    Args:
        max_pixels: files that declare more are faults.
    Yields: each file and its fault, or None. A folder or tar that cannot be read or holds no .lat
        file is also a fault: what was not checked must not pass.
    """
    for path in paths:
        check = _folder if Path(path).is_dir() else _file
        yield from check(path, max_pixels)


def _folder(path: str, max_pixels: int) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check the .lat files in a folder, also hidden ones, and below it."""
    try:
        found = list(storage.walk(path, recursive=True, everything=True))
    except ImageError as exc:
        yield path, BitstreamError(str(exc))
        return
    unread = [(each.path, each.error) for each in found if each.error]
    for name, error in unread:
        yield name, BitstreamError(f"cannot be read: {error.strerror}")
    files = [Path(each.path) for each in found if not each.error and _is_checked(each.path)]
    for file in sorted(files):
        if file.is_file():
            yield from _file(str(file), max_pixels)
        else:
            yield str(file), BitstreamError("is not a file")
    if not files and not unread:
        yield path, BitstreamError("holds no .lat file")


def _is_checked(name: str) -> bool:
    return suffix_of(name).lower() == bitstream.SUFFIX or is_tar(name)


def _file(path: str, max_pixels: int) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check a .lat file, or those in a tar."""
    if not is_tar(path):
        yield path, _fault(partial(info_file, path, max_pixels=max_pixels))
        return
    try:
        with storage.reading_as(path, BitstreamError) as file:
            yield from _members(file, path, max_pixels)
    except BitstreamError as exc:
        yield path, exc


def _members(
    file: BinaryIO, path: str, max_pixels: int
) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check the .lat files in a tar; raises BitstreamError if it holds none, or is damaged."""
    is_empty = True
    try:
        for member in shards.members(file, path):
            if suffix_of(member.name).lower() == bitstream.SUFFIX:
                is_empty = False
                blob = member.file.read(bitstream.MAX_FILE_BYTES + 1)
                yield f"{path}/{member.name}", _fault(partial(_inspect, blob, max_pixels))
    except ImageError as exc:
        raise Corrupt(str(exc)) from exc
    if is_empty:
        raise BitstreamError("holds no .lat file")


def _fault(check: Callable[[], object]) -> BitstreamError | None:
    try:
        check()
    except BitstreamError as exc:
        return exc
    return None
