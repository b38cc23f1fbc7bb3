"""Archives of images: tar shards in the WebDataset layout, and zip files, which are only read.

The files of a sample share a key and are adjacent: `0001.png`, `0001.json`. A converted shard keeps
their order; only the images and their suffixes change. Members are read one at a time and no list
of them is kept, so memory use does not depend on their number or size.
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
from typing import Any, BinaryIO, Literal, cast

from dynenc.errors import ImageError, OutputError
from dynenc.io.names import basename
from dynenc.io.storage import Readable
from dynenc.latent_space import ceil_div

TAR = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
ZIP = re.compile(r"\.zip$", re.IGNORECASE)


def is_archive(name: str) -> bool:
    """Whether a name has the suffix of an archive whose members can be converted."""
    return is_tar(name) or ZIP.search(basename(name)) is not None


def is_tar(name: str) -> bool:
    """Whether a name has the suffix of a tar file, compressed or not."""
    return TAR.search(basename(name)) is not None


def with_tar_suffix(name: str) -> str:
    """The name of the tar file that is written for an archive of this name."""
    return ZIP.sub(".tar", TAR.sub(".tar", name))


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    name: str
    size: int  # bytes
    mtime: float  # s since 1970
    file: Readable  # must be read before the next member is requested


def members(file: BinaryIO, name: str, *, seek: bool = False) -> Iterator[Member]:
    """The files in an archive, in order; links, devices and folders are skipped.

    Args:
        seek: skip what is not read of an uncompressed tar, instead of reading on to the next
            member.
    Raises: ImageError if it is neither a tar nor a zip, damaged or truncated; reading a damaged or
    encrypted member raises it, too.
    """
    kind = "zip" if ZIP.search(basename(name)) else "tar"
    try:
        if kind == "zip":
            yield from _zip_members(file, name)
        else:
            yield from _tar_members(file, name, "r:" if seek and _is_plain(file) else "r|*")
    except DAMAGE as exc:
        raise ImageError(f"{name} cannot be read as a {kind}: {exc}") from exc


DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # zipfile: encrypted; its subclass NotImplementedError: unknown compression
)
MAGIC = slice(257, 262)  # of a header
ENDS = (tarfile.EOFHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]


class _Header(tarfile.TarInfo):
    """A header that raises if damaged; tarfile takes damage after the first header for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as exc:
            if tar.offset and not isinstance(exc, ENDS):
                raise tarfile.ReadError(f"a header is damaged: {exc}") from exc
            raise


class _Content:
    """The content of a member, opened on first read, so that a damaged one fails alone."""

    def __init__(self, name: str, opened: Callable[[], Readable | None]) -> None:
        self.name, self.opened = name, opened
        self.file: Readable | None = None

    def read(self, size: int = -1, /) -> bytes:
        """Read like any file; raises ImageError."""
        try:
            self.file = self.file or self.opened()
            return self.file.read(size) if self.file else b""
        except DAMAGE as exc:
            raise ImageError(f"{self.name} cannot be unpacked: {exc}") from exc


def open_tar(file: BinaryIO, mode: Literal["r:", "r|*"] = "r:") -> tarfile.TarFile:
    """A tar whose damage is not taken for its end.

    Args:
        mode: "r:" reads at random, if the tar is not compressed; "r|*" reads any from start to end.
    Raises: tarfile.TarError if it is none; later, where a header is damaged.
    """
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Header)


def _is_plain(file: BinaryIO) -> bool:
    """Whether a file is an uncompressed tar in which a reader can seek."""
    if not file.seekable():
        return False
    start = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    return start[MAGIC] == b"ustar"


def _tar_members(file: BinaryIO, name: str, mode: Literal["r:", "r|*"]) -> Iterator[Member]:
    with open_tar(file, mode) as tar:
        while (info := tar.next()) is not None:
            _forget(tar)
            if info.isreg():
                content = _Content(f"{name}/{info.name}", partial(tar.extractfile, info))
                yield Member(info.name, info.size, _time(info.mtime), content)


def _forget(tar: tarfile.TarFile) -> None:
    """Drop the list of headers that tarfile keeps of everything read or written."""
    cast(Any, tar).members.clear()


def _zip_members(file: BinaryIO, name: str) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                content = _Content(f"{name}/{info.filename}", partial(archive.open, info))
                yield Member(info.filename, info.file_size, _zip_time(info), content)


def _zip_time(info: zipfile.ZipInfo) -> float:
    """The modification time of a member, taken as UTC, as zip files do not store a time zone."""
    try:
        return datetime(*info.date_time, tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0


def _time(seconds: float) -> float:
    """The time, or 0 if a tar header cannot hold it, as with NaN."""
    return seconds if math.isfinite(seconds) and 0 <= seconds < 8**11 else 0


class Writer:
    """Adds files to a new tar; the same files give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)
        self.names: set[str] = set()

    def add(self, name: str, data: bytes, mtime: float) -> int:
        """Add a file; returns the offset of its content in the tar.

        Raises: OutputError if the name is taken or cannot be stored in a tar.
        """
        self.copy(Member(name, len(data), mtime, io.BytesIO(data)))
        whole = ceil_div(len(data), tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self.tar.offset - whole

    def copy(self, member: Member) -> None:
        """Add a member of another archive, in chunks; raises the same as `add`."""
        if member.name in self.names:
            raise OutputError(f"the shard already holds {member.name}: rename one of the two")
        info = tarfile.TarInfo(member.name)
        info.size = member.size
        info.mtime = _time(member.mtime)
        try:
            info.tobuf(tarfile.PAX_FORMAT, self.tar.encoding, self.tar.errors or "strict")
        except (ValueError, OverflowError) as exc:
            raise OutputError(f"{member.name!r} cannot be stored in a tar: {exc}") from exc
        self.names.add(member.name)
        self.tar.addfile(info, cast(BinaryIO, member.file))
        _forget(self.tar)

    def close(self) -> None:
        """Write the end of the tar; the file stays open."""
        self.tar.close()
