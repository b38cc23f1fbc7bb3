"""Where files lie: local paths and fsspec URLs; how to list, read and write them whole.

A name is a str: a local path, '-' for a standard stream, or a URL such as `s3://bucket/key`. A file
is written under another name first and then renamed (or uploaded once it is complete), so that at
no moment, whatever is killed, half a file stands under a final name.
"""

import errno
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from dynenc.errors import DiskFull, ImageError, OutputError, OutputExists, UsageError

STREAM = "-"  # stdin or stdout
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}  # uploads show when complete
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no later file could be written either
PARTIAL = re.compile(r"\.dynenc-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
STALE = 24 * 3600  # s; a partial file of another machine is taken for a dead run's after this


def is_url(name: str) -> bool:
    """Whether a name is a URL rather than a local path; `file://` is told apart by `plain`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


def plain(name: str | os.PathLike[str]) -> str:
    """A name as a str, `file://` URLs as local paths."""
    return os.fspath(name).removeprefix("file://")


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises: UsageError if it needs a package that is not installed, or nobody knows the protocol.
    """
    import fsspec  # type: ignore[import-untyped]  # it ships no stubs

    protocol = url.partition("://")[0].lower()
    try:
        found: tuple[Any, str] = fsspec.url_to_fs(url)
    except ImportError as exc:
        extra = EXTRAS.get(protocol)
        cure = f"pip install 'dynenc[{extra}]'" if extra else str(exc)
        raise UsageError(f"{url} needs a package that is not installed: {cure}") from exc
    except ValueError as exc:
        raise UsageError(f"{url} cannot be opened: {exc}") from exc
    return found


def join(folder: str, relative: str) -> str:
    """The name of a file below a folder; `relative` has slashes on every system."""
    if is_url(folder):
        return f"{folder.rstrip('/')}/{relative}"
    return os.path.join(folder, *relative.split("/"))  # noqa: PTH118  # names may be URLs


def parent(name: str) -> str:
    """The folder of a file."""
    return name.rpartition("/")[0] if is_url(name) else os.path.dirname(name)  # noqa: PTH120


def base(name: str) -> str:
    """The last part of a name, without a URL's query."""
    path = urlsplit(name).path if name.startswith("http") and is_url(name) else name
    return path.rstrip("/").rpartition("/")[2] if is_url(name) else Path(name).name


def is_folder(name: str) -> bool:
    """Whether a folder of that name exists; of web addresses, those that end with a slash."""
    if not is_url(name):
        return os.path.isdir(name)  # noqa: PTH112  # False, not an error, for impossible names
    if name.startswith("http"):
        return name.endswith("/")
    fs, path = filesystem(name)
    with translated(name, ImageError):
        return bool(fs.isdir(path))


def exists(name: str) -> bool:
    """Whether anything stands under that name, a dangling link included."""
    if not is_url(name):
        return os.path.lexists(name)
    fs, path = filesystem(name)
    with translated(name, OutputError):
        return bool(fs.exists(path))


def modified(name: str) -> float | None:
    """When a file was last written, in seconds since 1970; None if that cannot be known."""
    with suppress(OSError, NotImplementedError, KeyError, AttributeError):
        if not is_url(name):
            return os.stat(name).st_mtime  # noqa: PTH116
        fs, path = filesystem(name)
        return float(fs.modified(path).timestamp())
    return None


def ignores_case(folder: str) -> bool:
    """Whether `a` and `A` are one name in a local folder, which need not exist yet."""
    path = Path(folder or ".").absolute()
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  # no error if too long
        path = path.parent
    for part in (path, *path.parents):
        other = part.with_name(part.name.swapcase()) if part.name else part
        if other.name != part.name:
            return other.exists() and other.samefile(part)
    return False


def walk(folder: str, recursive: bool, leave_out: str | None = None) -> Iterator[tuple[str, str]]:
    """The files of a folder, sorted: (name, path below the folder with slashes).

    Hidden files are left out, and so is the folder `leave_out`. Links are followed, each real
    folder once, so loops end. Of a sub-folder that cannot be read the name is given, with a slash.
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
        path = join(folder, below) if below else folder
        try:
            status = os.stat(path)  # noqa: PTH116
            with os.scandir(path) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            if not below:
                raise ImageError(f"{folder} cannot be read: {exc.strerror}") from exc
            yield path, f"{below}/"
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        folders = []
        for entry in found:
            relative = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            if kind == "folder" and recursive and os.path.realpath(entry.path) != avoid:
                folders.append(relative)
            elif kind == "file":
                yield entry.path, relative
        stack += reversed(folders)


def _kind(entry: os.DirEntry[str]) -> str:
    """Whether it is a folder, a file (or a link that leads nowhere, which fails later), or else."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not Path(entry.path).exists() else "other"
    except OSError:  # a link to itself
        return "file"


def _walk_url(folder: str, recursive: bool) -> Iterator[tuple[str, str]]:
    fs, path = filesystem(folder)
    with translated(folder, ImageError):
        names = fs.find(path, maxdepth=None if recursive else 1)
        root = path.rstrip("/") + "/"
        for name in sorted(names):
            relative = name[name.find(root) + len(root) :]
            if not any(part.startswith(".") for part in relative.split("/")):
                yield fs.unstrip_protocol(name), relative


def expand(pattern: str) -> list[str]:
    """The files and folders that a pattern with `*`, `?` or `[` stands for, sorted."""
    if is_url(pattern):
        fs, path = filesystem(pattern)
        with translated(pattern, ImageError):
            return sorted(fs.unstrip_protocol(name) for name in fs.glob(path))
    import glob

    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  # keeps names as written


@contextmanager
def translated(name: str, kind: type[ImageError] | type[OutputError]) -> Iterator[None]:
    """Turn whatever a remote file system raises into an error of this kind."""
    try:
        yield
    except (UsageError, ImageError, OutputError, OutputExists):
        raise
    except Exception as exc:  # every file system has errors of its own
        what = "read" if kind is ImageError else "written"
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise kind(f"{name} cannot be {what}: {reason}") from exc


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file, a URL's content or stdin, open for reading; OSError of local files is passed on."""
    if name == STREAM:
        yield sys.stdin.buffer
    elif is_url(name):
        fs, path = filesystem(name)
        with translated(name, ImageError):
            file = fs.open(path, "rb")
        with file:
            yield file
    else:
        with Path(name).open("rb") as local:
            yield local


@contextmanager
def writing(target: str, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when the block ends without an error, else it vanishes.

    Raises: OutputError if it cannot be written, DiskFull if no other file could either,
    OutputExists if it appeared meanwhile and may not be overwritten.
    """
    if target == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = Path(tempfile.gettempdir() if is_url(target) else parent(target)) / partial_name()
    try:
        with partial.open("xb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        if is_url(target):
            _upload(partial, target, overwrite)
        else:
            publish(partial, Path(target), overwrite)
    except FileExistsError as exc:
        raise OutputExists(f"{target} appeared while it was being made: it is kept") from exc
    except OSError as exc:
        kind = DiskFull if exc.errno in FULL else OutputError
        raise kind(f"{target} cannot be written: {exc.strerror or exc}") from exc
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give a finished file its name; raises FileExistsError rather than overwrite unasked."""
    if not overwrite:
        try:
            os.link(partial, target)  # unlike a rename, fails if the target exists
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                raise FileExistsError(target) from None
        else:
            return
    partial.replace(target)


def _upload(partial: Path, target: str, overwrite: bool) -> None:
    """Copy a finished file to a URL; object stores show it when all of it is there."""
    fs, path = filesystem(target)
    with translated(target, OutputError):
        if not overwrite and fs.exists(path):
            raise OutputExists(f"{target} appeared while it was being made: it is kept")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & WHOLE:
            fs.put_file(str(partial), path)
            return
        beside = f"{path}.{secrets.token_hex(4)}.partial"
        fs.put_file(str(partial), beside)
        fs.mv(beside, path)


def make_folder(name: str) -> None:
    """Make a folder and those above it; raises OutputError."""
    if not name or is_url(name):
        return  # object stores have none, and fsspec makes the others when it writes
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        kind = DiskFull if exc.errno in FULL else OutputError
        raise kind(f"{name} cannot be made a folder: {exc.strerror}") from exc


def partial_name(pid: int | None = None) -> str:
    """A new name for a file that is being written; says by which process."""
    return f".dynenc-{socket.gethostname()}-{pid or os.getpid()}-{secrets.token_hex(4)}.partial"


def sweep(folder: str, pids: set[int] | None = None) -> None:
    """Remove the partial files that killed runs left in a local folder.

    Those of the processes `pids`, or else of this machine's dead processes, and of any old one.
    """
    if is_url(folder):
        return
    with suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            match = PARTIAL.fullmatch(entry.name)
            if match and _is_left_over(entry, match["host"], int(match["pid"]), pids):
                with suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108


def _is_left_over(entry: os.DirEntry[str], host: str, pid: int, pids: set[int] | None) -> bool:
    if host != socket.gethostname():
        return time.time() - entry.stat().st_mtime > STALE
    if pids is not None:
        return pid in pids
    if os.name == "nt":  # where signal 0 would end the process
        return time.time() - entry.stat().st_mtime > STALE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
