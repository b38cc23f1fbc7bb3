"""Full checks of .lat files, without decoding pixels."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dynenc.coding import bitstream
from dynenc.coding.lat_file import LatFile, read_bytes, reading
from dynenc.errors import BitstreamError, Corrupt, ImageError, with_name
from dynenc.imaging import extras
from dynenc.imaging.detail import Detail
from dynenc.interop import cache_chunk
from dynenc.io import shards
from dynenc.io.names import shown, suffix_of
from dynenc.io.shards import is_tar


def info_file(source: str, *, max_pixels: int) -> tuple[LatFile, Detail | None, int]:
    """Parse and fully check a .lat file; return it, its detail layer and its size in bytes.

    Raises: BitstreamError.
    """
    try:
        return _info(read_bytes(source), max_pixels)
    except BitstreamError as exc:
        raise with_name(exc, shown(source)) from exc


def _info(blob: bytes, max_pixels: int) -> tuple[LatFile, Detail | None, int]:
    file = LatFile.parse(blob, max_pixels=max_pixels)
    found = extras.from_chunks(file.chunks, file.header.width, file.header.height)
    cache_chunk.from_chunks(file.chunks)
    return file, found.detail, len(blob)


def verify(paths: list[str], *, max_pixels: int) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check .lat files, and those in tars, in folders and in their sub-folders.

    Yields: each file and its fault, or None. A folder or tar that cannot be read or holds no .lat
        file is also a fault: what was not checked must not pass.
    """
    for path in paths:
        if not Path(path).is_dir():
            yield from _file(path, max_pixels)
            continue
        unread: list[OSError] = []
        files = sorted(_walk(path, unread.append))
        for error in unread:
            yield error.filename, BitstreamError(f"cannot be read: {error.strerror}")
        found = [
            each for each in files if each.suffix.lower() == bitstream.SUFFIX or is_tar(str(each))
        ]
        for file in found:
            if file.is_file():
                yield from _file(str(file), max_pixels)
            else:
                yield str(file), BitstreamError("is not a file")
        if not found and not unread:
            yield path, BitstreamError("holds no .lat file")


def _walk(path: str, onerror: Callable[[OSError], None]) -> Iterator[Path]:
    """All files of a folder; links are followed, but each real folder is visited only once."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, onerror=onerror, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in names)


def _file(path: str, max_pixels: int) -> Iterator[tuple[str, BitstreamError | None]]:
    """Check a .lat file, or those in a tar."""
    if not is_tar(path):
        yield path, _fault(partial(info_file, path, max_pixels=max_pixels))
        return
    try:
        with reading(path) as file:
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
                blob = member.file.read(bitstream.MAX_BYTES + 1)
                yield f"{path}/{member.name}", _fault(partial(_info, blob, max_pixels))
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
