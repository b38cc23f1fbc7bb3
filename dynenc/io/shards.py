"""Tar shards as WebDataset has them: read member by member, written in the order they come.

The files of one sample have one key and stand together: `0001.png`, `0001.json`. A shard that is
converted keeps all of that; only the pictures change, and their suffix.
"""

import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from dynenc.errors import ImageError, OutputError

Info = tarfile.TarInfo


def members(file: BinaryIO, name: str) -> Iterator[tuple[Info, bytes]]:
    """The files in a tar, compressed or not, in their order; links and devices are left out.

    Raises: ImageError if it is not a tar, damaged or cut short.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                content = tar.extractfile(info) if info.isreg() else None
                if content is not None:
                    yield info, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
        raise ImageError(f"{name} cannot be read as a tar: {exc}") from exc


class Writer:
    """Adds files to a new tar; the same files give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self.names: set[str] = set()

    def add(self, name: str, data: bytes, mtime: float) -> None:
        """Add a file; raises OutputError if the name is taken."""
        if name in self.names:
            raise OutputError(f"the shard holds a {name} already: rename one of the two")
        self.names.add(name)
        info = Info(name)
        info.size = len(data)
        info.mtime = mtime
        self.tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        """Write the end of the tar; the file stays open."""
        self.tar.close()
