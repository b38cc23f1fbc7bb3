"""Full checks of .lat files, without decoding pixels."""

import os
from collections.abc import Iterator
from pathlib import Path

from dynenc.coding.lat_file import LatFile, read_bytes
from dynenc.errors import BitstreamError, with_name
from dynenc.imaging import extras
from dynenc.imaging.detail import Detail
from dynenc.io.names import shown


def info_file(source: str, *, max_pixels: int) -> tuple[LatFile, Detail | None, int]:
    """Parse and fully check a .lat file; return it, its detail layer and its size in bytes.

    Raises: BitstreamError.
    """
    try:
        blob = read_bytes(source)
        file = LatFile.parse(blob, max_pixels=max_pixels)
        found = extras.from_chunks(file.chunks, file.header.width, file.header.height)
    except BitstreamError as exc:
        raise with_name(exc, shown(source)) from exc
    return file, found.detail, len(blob)


def verify(paths: list[str], *, max_pixels: int) -> Iterator[tuple[str, str]]:
    """Check .lat files, and those in folders and their sub-folders.

    Yields: each file and its fault, "" if there is none. A folder that cannot be read or holds no
        .lat file is also a fault: what was not checked must not pass.
    """
    for path in paths:
        if not Path(path).is_dir():
            yield path, _fault(path, max_pixels)
            continue
        unread: list[OSError] = []
        walk = list(os.walk(path, onerror=unread.append))
        yield from ((e.filename, f"cannot be read: {e.strerror}") for e in unread)
        files = (Path(folder, name) for folder, _, names in walk for name in names)
        for file in (found := sorted(each for each in files if each.suffix.lower() == ".lat")):
            fault = _fault(str(file), max_pixels) if file.is_file() else "is not a file"
            yield str(file), fault
        if not found and not unread:
            yield path, "holds no .lat file"


def _fault(source: str, max_pixels: int) -> str:
    try:
        info_file(source, max_pixels=max_pixels)
    except BitstreamError as exc:
        return exc.sentence.removeprefix(source).removeprefix(":").lstrip()
    return ""
