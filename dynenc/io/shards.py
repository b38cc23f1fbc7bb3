"""Archives of pictures: tar shards as WebDataset has them, and zip files, which are read only.

The files of one sample share a key and stand together: `0001.png`, `0001.json`. A converted shard
keeps their order; only the pictures change, and their suffix. Members are read one at a time, and
no list of them is kept, so neither their number nor their size costs memory.
"""

from __future__ import annotations

import io
import lzma
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any, BinaryIO, cast

from dynenc.errors import ImageError, OutputError
from dynenc.io.names import base
from dynenc.io.storage import Readable

TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
ZIP = re.compile(r"\.zip$", re.IGNORECASE)


def is_archive(name: str) -> bool:
    """Whether a name has the suffix of an archive whose members can be converted."""
    return is_tar(name) or ZIP.search(base(name)) is not None


def is_tar(name: str) -> bool:
    """Whether a name has the suffix of a tar, compressed or not."""
    return TAR.search(base(name)) is not None


def with_tar_suffix(name: str) -> str:
    """The name of the tar that is written for an archive of this name."""
    return ZIP.sub(".tar", TAR.sub(".tar", name))


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str
    size: int  # bytes
    mtime: float  # s since 1970
    file: Readable  # to be read before the next member is asked for


def members(file: BinaryIO, name: str) -> Iterator[Member]:
    """The files in an archive, in their order; links, devices and folders are left out.

    Raises: ImageError if it is neither a tar nor a zip, damaged or cut short; so does reading from
    a member that is damaged or encrypted.
    """
    kind = "zip" if ZIP.search(base(name)) else "tar"
    try:
        yield from (_zip_members if kind == "zip" else _tar_members)(file, name)
    except DAMAGE as exc:
        raise ImageError(f"{name} cannot be read as a {kind}: {exc}") from exc


DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # zipfile: encrypted; NotImplementedError: compressed in an unknown way
)
ENDS = (tarfile.EOFHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]


class _Header(tarfile.TarInfo):
    """A header whose damage is an error; tarfile takes damage behind the first for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as exc:
            if tar.offset and not isinstance(exc, ENDS):
                raise tarfile.ReadError(f"a header is damaged: {exc}") from exc
            raise


class _Content:
    """What a member holds, opened when first read, so that a damaged one fails by itself."""

    def __init__(self, name: str, opened: Callable[[], Readable | None]) -> None:
        self.name, self.opened = name, opened
        self.file: Readable | None = None

    def read(self, size: int = -1, /) -> bytes:
        """As of any file; raises ImageError."""
        try:
            self.file = self.file or self.opened()
            return self.file.read(size) if self.file else b""
        except DAMAGE as exc:
            raise ImageError(f"{self.name} cannot be unpacked: {exc}") from exc


def _tar_members(file: BinaryIO, name: str) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as tar:
        while (info := tar.next()) is not None:
            _forget(tar)
            if info.isreg():
                content = _Content(f"{name}/{info.name}", partial(tar.extractfile, info))
                yield Member(info.name, info.size, _time(info.mtime), content)


def _forget(tar: tarfile.TarFile) -> None:
    """Drop the headers that a tar has read or written, of which tarfile keeps a list."""
    cast(Any, tar).members.clear()


def _zip_members(file: BinaryIO, name: str) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                content = _Content(f"{name}/{info.filename}", partial(archive.open, info))
                yield Member(info.filename, info.file_size, _zip_time(info), content)


def _zip_time(info: zipfile.ZipInfo) -> float:
    """When a member was changed, as if its clock, whose time zone is unknown, showed UTC."""
    try:
        return datetime(*info.date_time, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0


def _time(seconds: float) -> float:
    """A time that a tar header can hold; 0 for one that it cannot, such as NaN."""
    return seconds if math.isfinite(seconds) and 0 <= seconds < 8**11 else 0


class Writer:
    """Adds files to a new tar; the same files give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self.names: set[str] = set()

    def add(self, name: str, data: bytes, mtime: float) -> None:
        """Add a file; raises OutputError if the name is taken or cannot stand in a tar."""
        self.copy(Member(name, len(data), mtime, io.BytesIO(data)))

    def copy(self, member: Member) -> None:
        """Add a member of another archive, in chunks; raises as `add`."""
        if member.name in self.names:
            raise OutputError(f"the shard holds a {member.name} already: rename one of the two")
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        info.mtime = _time(member.mtime)
        try:
            info.tobuf(tarfile.PAX_FORMAT, self.tar.encoding, self.tar.errors or "strict")
        except (ValueError, OverflowError) as exc:
            raise OutputError(f"{member.name!r} cannot stand in a tar: {exc}") from exc
        self.names.add(member.name)
        self.tar.addfile(info, cast(BinaryIO, member.file))
        _forget(self.tar)

    def close(self) -> None:
        """Write the end of the tar; the file stays open."""
        self.tar.close()
