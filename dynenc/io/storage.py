"""Listing and reading local files and fsspec URLs; for writing see `writing`."""

import functools
import glob
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from dynenc.errors import (
    DynencError,
    ImageError,
    OutputError,
    TooLarge,
    UsageError,
    first_line,
)
from dynenc.io import names
from dynenc.io.names import STREAM, is_url

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
CHUNK = 2**20  # bytes


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises: UsageError if it needs a package that is not installed, or if the protocol is unknown.
    """
    import fsspec  # type: ignore[import-untyped]  # it ships no stubs

    try:
        found: tuple[Any, str] = fsspec.url_to_fs(url)
    except ImportError as exc:
        extra = EXTRAS.get(url.partition("://")[0].lower())
        cure = f"pip install 'dynenc[{extra}]'" if extra else str(exc)
        raise UsageError(f"{url} needs a package that is not installed: {cure}") from exc
    except ValueError as exc:
        raise UsageError(f"{url} cannot be opened: {exc}") from exc
    except Exception as exc:  # a chained URL opens the outer file here
        raise ImageError(f"{url} cannot be opened: {first_line(exc)}") from exc
    return found


@contextmanager
def raising(name: str, kind: type[ImageError] | type[OutputError]) -> Iterator[None]:
    """A context in which all that a remote file system raises becomes an error of this type."""
    try:
        yield
    except DynencError:
        raise
    except Exception as exc:  # every file system has its own errors
        what = "read" if kind is ImageError else "written"
        raise kind(f"{name} cannot be {what}: {first_line(exc)}") from exc


def is_folder(name: str) -> bool:
    """Whether a folder of that name exists; a web address is one if it ends with a slash."""
    if not is_url(name):
        return os.path.isdir(name)  # noqa: PTH112  # False, not an error, for impossible names
    if names.is_web(name):
        return name.endswith("/")
    fs, path = filesystem(name)
    with raising(name, ImageError):
        return bool(fs.isdir(path))


def exists(name: str) -> bool:
    """Whether anything has that name, even a dangling link."""
    if not is_url(name):
        return os.path.lexists(name)
    fs, path = filesystem(name)
    with raising(name, OutputError):
        return bool(fs.exists(path))


class Times(NamedTuple):
    """When a file was last modified and last changed, in seconds since 1970.

    A new name, owner or mode is also a change. In particular, a file that replaces another counts
    as changed, even if it was modified long before.
    """

    modified: float
    changed: float


def times(name: str) -> Times | None:
    """The times of a file; None if they are not available.

    Of a symbolic link, `changed` is the later time of the link and its file.
    """
    with suppress(OSError, ValueError, NotImplementedError, KeyError, AttributeError):
        if not is_url(name):
            status, link = os.stat(name), os.lstat(name)  # noqa: PTH116
            return Times(status.st_mtime, max(status.st_ctime, link.st_ctime))
        fs, path = filesystem(name)
        modified = float(fs.modified(path).timestamp())
        return Times(modified, modified)
    return None


def ignores_case(folder: str) -> bool:
    """Whether `a` and `A` are the same name in a local folder, which need not exist yet."""
    try:
        path = Path(folder or ".").absolute()
    except OSError:  # the current folder has been removed
        return False
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  # no error if too long
        path = path.parent
    for part in (path, *path.parents):
        other = part.with_name(part.name.swapcase()) if part.name else part
        if other.name != part.name:
            return other.exists() and other.samefile(part)
    return False


def real_names(*, folds: bool) -> Callable[[str], str]:
    """A function that maps all names of one file to the same name, but for links to the file.

    Names such as `./a`, `x/../a` and an absolute path are resolved, and links to folders followed.
    URLs stay as they are.

    Args:
        folds: names that differ only in case are those of one file; see `ignores_case`.
    """
    real_folder = functools.cache(os.path.realpath)

    @functools.cache  # targets are asked for more than once
    def real_name(name: str) -> str:
        if name != STREAM and not is_url(name):
            with suppress(OSError):  # the current folder has been removed
                name = os.path.join(real_folder(names.parent(name)), names.basename(name))  # noqa: PTH118
        return names.casefolded(name) if folds else name

    return real_name


class Walked(NamedTuple):
    """A file that `walk` found, or a sub-folder that it could not read."""

    path: str  # or URL
    relative: str  # path below the folder, with slashes
    error: OSError | None = None  # of a sub-folder


def walk(
    folder: str, recursive: bool, *, leave_out: str | None = None, everything: bool = False
) -> Iterator[Walked]:
    """The files of a folder, sorted, and the sub-folders that cannot be read.

    Links are followed, but each real folder is visited only once, so loops end.

    Args:
        leave_out: a sub-folder to skip.
        everything: do not skip hidden names, and what is neither file nor folder.
    Raises: ImageError if the folder itself cannot be read.
    """
    if is_url(folder):
        yield from _walk_url(folder, recursive)
        return
    avoid = os.path.realpath(leave_out) if leave_out else None
    seen: set[tuple[int, int]] = set()
    stack = [""]
    while stack:
        below = stack.pop()
        path = names.join(folder, below) if below else folder
        try:
            status = os.stat(path)  # noqa: PTH116
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            if not below:
                raise ImageError(f"{folder} cannot be read: {exc.strerror}") from exc
            yield Walked(path, below, exc)
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for entry in found:
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith(".") and not everything:
                continue
            kind = _kind(entry)
            if kind == "folder" and recursive and os.path.realpath(entry.path) != avoid:
                folders.append(relative)
            elif kind == "file" or (kind == "other" and everything):
                yield Walked(entry.path, relative)
        stack += reversed(folders)


def _kind(entry: os.DirEntry[str]) -> str:
    """Whether it is a "folder", "file" or "other"; a dangling link is a file, and fails later."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not Path(entry.path).exists() else "other"
    except OSError:  # a self-referencing link
        return "file"


def _walk_url(folder: str, recursive: bool) -> Iterator[Walked]:
    fs, path = filesystem(folder)
    with raising(folder, ImageError):
        found = fs.find(path, maxdepth=None if recursive else 1)
        root = path.rstrip("/") + "/" if path.strip("/") else ""
        for name in sorted(found):
            relative = name[name.find(root) + len(root) :].lstrip("/")
            if not any(part.startswith(".") for part in relative.split("/")):
                yield Walked(_full_name(folder, fs, name), relative)


def sizes(folder: str) -> Iterator[tuple[str, int]]:
    """The files below the folder of a URL, in one request: (path below it, bytes)."""
    fs, path = filesystem(folder)
    with raising(folder, ImageError):
        root = path.rstrip("/") + "/"
        for name, facts in fs.find(path, detail=True).items():
            yield name[name.find(root) + len(root) :].lstrip("/"), facts.get("size") or 0


def _full_name(url: str, fs: Any, path: str) -> str:
    """The URL of a path listed by the file system of another URL."""
    if names.is_chained(url):
        return names.with_path(url, path.lstrip("/"))
    return str(fs.unstrip_protocol(path))


def expand(pattern: str) -> list[str]:
    """The files and folders that match a pattern of `*`, `?`, `[` and `**`, sorted.

    Leading components that exist are taken literally: `[b]/*.png` lists the folder `[b]` if there
    is one. A pattern that is the name of an existing file is that file.
    """
    if exists(pattern):
        return [pattern]
    if is_url(pattern):
        fs, path = filesystem(pattern)
        with raising(pattern, ImageError):
            return sorted(_full_name(pattern, fs, name) for name in fs.glob(path))
    separators = rf"[/{re.escape(os.sep)}]"
    literal = 0
    for match in re.finditer(separators, pattern):
        if match.start() and not os.path.lexists(pattern[: match.start()]):
            break
        literal = match.end()
    pattern = glob.escape(pattern[:literal]) + pattern[literal:]
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # keeps names as written


# Reading


class Readable(Protocol):
    """A file that can be read sequentially."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, or all that are left."""


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file, URL or stdin, open for reading; an OSError of a local file is not translated."""
    if name == STREAM:
        if sys.stdin is None:
            raise UsageError("standard input is closed: name a file")
        yield sys.stdin.buffer
    elif is_url(name):
        fs, path = filesystem(name)
        with raising(name, ImageError):
            file = fs.open(path, "rb")
        with file:
            yield file
    else:
        with open(name, "rb") as local:  # noqa: PTH123  # a cache opens thousands a second
            yield local


@contextmanager
def reading_as(name: str, error: type[DynencError]) -> Iterator[BinaryIO]:
    """As `reading`, but whatever fails becomes an error of this type that names the file."""
    try:
        with reading(name) as file:
            yield file
    except OSError as exc:
        raise error(f"{name} cannot be read: {exc.strerror or exc}") from exc
    except ImageError as exc:  # of a URL
        raise error(str(exc), hint=exc.hint) from exc


def read_all(name: str, limit: int, error: type[DynencError]) -> bytes:
    """The content of a file, URL or stdin. Raises: `error` if it is longer or cannot be read."""
    with reading_as(name, error) as file:
        return read_at_most(file, limit, name, error)


def mode_of(name: str) -> int:
    """The mode of a local file, following links; 0 if it does not exist."""
    if name == STREAM or is_url(name):
        return 0
    try:
        return os.stat(name).st_mode  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a null character
        return 0


def is_regular(name: str) -> bool:
    """Whether it is a local regular file."""
    return stat.S_ISREG(mode_of(name))


def is_sequential(name: str) -> bool:
    """Whether a file is not seekable: stdin, a URL, a FIFO, a device."""
    mode = mode_of(name)
    return name == STREAM or is_url(name) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def read_at_most(
    file: Readable, limit: int, name: str, error: type[DynencError] = TooLarge
) -> bytes:
    """The rest of a file of at most `limit` bytes.

    No more than that is read of an endless stream, and at most `CHUNK` of a longer seekable one.
    Raises: `error` if it is longer.
    """
    first = file.read(min(CHUNK, limit + 1))
    if len(first) < min(CHUNK, limit + 1) and isinstance(file, io.BufferedReader):
        return first
    too_long = error(f"{names.display_name(name)} is longer than the limit of {limit} bytes")
    if len(first) > limit:
        raise too_long
    if isinstance(file, io.IOBase) and file.seekable():
        position = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(position)
        if end - position > limit - len(first):
            raise too_long
    buffer = io.BytesIO()
    buffer.write(first)
    while chunk := file.read(min(CHUNK, limit + 1 - buffer.tell())):
        buffer.write(chunk)
        if buffer.tell() > limit:
            raise too_long
    return buffer.getvalue()
