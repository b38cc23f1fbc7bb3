"""Local files and fsspec URLs: list, read, write.

A regular file is written under a temporary name in its folder and renamed when it is complete (or
uploaded then), so whatever is killed, no half-written file stands under a final name. Devices,
FIFOs and descriptors such as `/dev/stdout` are written through. The temporary file is locked while
it is being written; the kernel drops the lock with the process, and the next run removes it.
"""

import errno
import functools
import glob
import io
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from dynenc.errors import (
    DiskFull,
    DynencError,
    ImageError,
    OutputError,
    OutputExists,
    TooLarge,
    UsageError,
)
from dynenc.io import names
from dynenc.io.names import STREAM, is_url

if sys.platform != "win32":
    import fcntl

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}  # show complete uploads only
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no other file could be written either
PARTIAL = re.compile(r"\.dynenc-(?P<kernel>.+)-[0-9a-f]{16}\.partial")
STALE = 24 * 3600  # s; a partial file whose lock cannot be tested is a dead run's after this
DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|(?P<pid>\d+)))/fd/(?P<number>\d+)")
STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40  # as Linux
CHUNK = 2**20  # bytes


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises: UsageError if it needs a package that is not installed, or the protocol is unknown.
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
        raise ImageError(f"{url} cannot be opened: {_reason(exc)}") from exc
    return found


def _reason(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__


@contextmanager
def translated(name: str, kind: type[ImageError] | type[OutputError]) -> Iterator[None]:
    """Turn whatever a remote file system raises into an error of this kind."""
    try:
        yield
    except DynencError:
        raise
    except Exception as exc:  # every file system has errors of its own
        what = "read" if kind is ImageError else "written"
        raise kind(f"{name} cannot be {what}: {_reason(exc)}") from exc


def is_folder(name: str) -> bool:
    """Whether a folder of that name exists; of web addresses, those that end with a slash."""
    if not is_url(name):
        return os.path.isdir(name)  # noqa: PTH112  # False, not an error, for impossible names
    if names.is_web(name):
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
    folder once, so loops end. A sub-folder that cannot be read is yielded with a trailing slash.
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
    """Whether it is a "folder", a "file" or "other"; dangling links are files, and fail later."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or not Path(entry.path).exists() else "other"
    except OSError:  # a link to itself
        return "file"


def _walk_url(folder: str, recursive: bool) -> Iterator[tuple[str, str]]:
    fs, path = filesystem(folder)
    with translated(folder, ImageError):
        found = fs.find(path, maxdepth=None if recursive else 1)
        root = path.rstrip("/") + "/" if path.strip("/") else ""
        for name in sorted(found):
            relative = name[name.find(root) + len(root) :].lstrip("/")
            if not any(part.startswith(".") for part in relative.split("/")):
                yield _full_name(folder, fs, name), relative


def _full_name(url: str, fs: Any, path: str) -> str:
    """The URL of a path that the file system of another URL has listed."""
    if names.is_chained(url):
        return names.with_path(url, path.lstrip("/"))
    return str(fs.unstrip_protocol(path))


def expand(pattern: str) -> list[str]:
    """The files and folders that match a pattern of `*`, `?`, `[` and `**`, sorted.

    Leading components that exist literally are taken literally: `[b]/*.png` lists the folder `[b]`
    if there is one. A pattern that exists as a whole is that one file.
    """
    if exists(pattern):
        return [pattern]
    if is_url(pattern):
        fs, path = filesystem(pattern)
        with translated(pattern, ImageError):
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
    """What can be read from start to end."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes, or all that are left."""


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file, a URL's content or stdin, open for reading; OSError of local files is passed on."""
    if name == STREAM:
        if sys.stdin is None:
            raise UsageError("standard input is closed: name a file")
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


def is_sequential(name: str) -> bool:
    """Whether a file can only be read from start to end: stdin, a URL, a FIFO, a device."""
    mode = _mode(name)
    return name == STREAM or is_url(name) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def read_at_most(
    file: Readable, limit: int, name: str, error: type[DynencError] = TooLarge
) -> bytes:
    """The rest of a file, unless it is longer than `limit` bytes.

    At most that many are read of an endless stream, and none of a seekable file that is longer.
    Raises: `error`.
    """
    too_long = error(f"{name} is longer than {limit} bytes, the most that is read")
    if isinstance(file, io.IOBase) and file.seekable():
        position = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(position)
        if end - position > limit:
            raise too_long
    buffer = io.BytesIO()
    while chunk := file.read(min(CHUNK, limit + 1 - buffer.tell())):
        buffer.write(chunk)
        if buffer.tell() > limit:
            raise too_long
    return buffer.getvalue()


# Writing


def is_stream(name: str) -> bool:
    """Whether what is written there passes through, replacing nothing.

    So it is with `-`, `/dev/stdout`, `/dev/fd/3`, FIFOs, sockets and character devices.
    """
    if name == STREAM or (not is_url(name) and _descriptor(name) is not None):
        return True
    mode = _mode(name)
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def refuse_existing(target: str, overwrite: bool) -> None:
    """Raise OutputExists if writing the target would replace something and may not."""
    if target and not overwrite and not is_stream(target) and exists(target):
        raise OutputExists(
            f"{target} exists", hint="name another output with -o, or overwrite it with --force"
        )


@contextmanager
def writing(target: str, overwrite: bool, *, mtime: float | None = None) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when the block ends without an error, else it vanishes.

    Links are followed. A file that is overwritten keeps its mode, its owner where that is allowed,
    and its other hard links. What `is_stream` is written through.

    Args:
        overwrite: replace a file of that name.
        mtime: time of modification to set, in seconds since 1970; of local regular files only.
    Raises: OutputError if it cannot be written, DiskFull if no other file could either,
    OutputExists if it appeared meanwhile and may not be overwritten.
    """
    try:
        if is_url(target):
            writer = _writing_url(target, overwrite)
        elif is_stream(target) or (overwrite and stat.S_ISBLK(_mode(target))):
            writer = _writing_through(target)
        else:
            writer = _writing_file(target, overwrite, mtime)
        with writer as file:
            yield file
    except FileExistsError as exc:
        raise OutputExists(f"{target} appeared while it was being made: it is kept") from exc
    except OSError as exc:
        kind = DiskFull if exc.errno in NO_SPACE else OutputError
        what = "standard output" if target == STREAM else target
        raise kind(f"{what} cannot be written: {exc.strerror or exc}") from exc


def _mode(name: str) -> int:
    """The mode of a local file, links followed; 0 if there is none."""
    if name == STREAM or is_url(name):
        return 0
    try:
        return os.stat(name).st_mode  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a null character
        return 0


def _descriptor(name: str) -> int | None:
    """The open file of this process that a path such as /dev/stdout or /dev/fd/3 stands for.

    It is duplicated rather than opened again, which would truncate a file that the shell appends
    to. Symbolic links are followed one by one, as /proc's lead to the file itself.
    """
    path = os.path.abspath(name)  # noqa: PTH100
    for _ in range(MAX_LINKS):
        if path in STANDARD:
            return STANDARD[path]
        match = DESCRIPTOR.fullmatch(path)
        if match and match["pid"] in (None, str(os.getpid())):
            return int(match["number"])
        try:
            link = os.readlink(path)  # noqa: PTH115
        except (OSError, ValueError):
            return None
        path = os.path.normpath(os.path.join(os.path.dirname(path), link))  # noqa: PTH118, PTH120
    return None


@contextmanager
def _writing_through(target: str) -> Iterator[BinaryIO]:
    if target == STREAM:
        if sys.stdout is None:
            raise OutputError("standard output is closed", hint="name a file with -o")
        sys.stdout.flush()
        try:
            number: int | None = sys.stdout.fileno()
        except (OSError, ValueError):  # replaced by an object in memory
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
    else:
        number = _descriptor(target)
    # a descriptor of our own, unbuffered text apart, leaves nothing to be flushed after a failure
    descriptor = os.open(target, os.O_WRONLY) if number is None else os.dup(number)
    with os.fdopen(descriptor, "wb") as file:
        yield file


@contextmanager
def _writing_file(target: str, overwrite: bool, mtime: float | None) -> Iterator[BinaryIO]:
    before = None
    with suppress(FileNotFoundError):
        before = os.stat(target) if overwrite else None  # noqa: PTH116
    final = Path(os.path.realpath(target) if overwrite else target)
    partial, file = _create_partial(final.parent, private=before is not None)
    try:
        with file:
            yield file
            file.flush()
            if before is not None:
                _keep_owner_and_mode(file.fileno(), before)
            if mtime is not None and os.utime in os.supports_fd:
                os.utime(file.fileno(), (mtime, mtime))
            os.fsync(file.fileno())
            if os.name != "nt":  # keep the lock until it has its name
                _publish(partial, final, overwrite, before)
        if os.name == "nt":  # where open files cannot be renamed
            _publish(partial, final, overwrite, before)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _create_partial(folder: Path, *, private: bool) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked; `private` if only its owner may read it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        partial = folder / partial_name()
        descriptor = os.open(partial, flags, 0o600 if private else 0o666)
        if _lock(descriptor) is False or not partial.exists():  # another run's `sweep` was faster
            os.close(descriptor)
            continue
        return partial, cast(BinaryIO, os.fdopen(descriptor, "wb"))


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process holds the lock, None if there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _keep_owner_and_mode(descriptor: int, before: os.stat_result) -> None:
    """Give a new file the owner, as far as permitted, and the mode of the one it replaces."""
    if os.name == "nt":
        return
    mode = stat.S_IMODE(before.st_mode)
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except OSError:
            mode &= 0o777  # no set-user-id for another user
            with suppress(OSError):
                os.fchown(descriptor, -1, before.st_gid)
    os.fchmod(descriptor, mode)


def _publish(partial: Path, final: Path, overwrite: bool, before: os.stat_result | None) -> None:
    """Give a finished file its name; raises FileExistsError rather than overwrite unasked."""
    if not overwrite:
        try:
            os.link(partial, final)  # unlike a rename, fails if the target exists
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(final):
                raise FileExistsError(final) from None
        else:
            return
    elif before is not None and stat.S_ISREG(before.st_mode) and before.st_nlink > 1:
        _rewrite(partial, final)
        return
    try:
        partial.replace(final)
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # a file that is mounted by itself, as containers do
            raise
        _rewrite(partial, final)


def _rewrite(partial: Path, final: Path) -> None:
    """Copy a finished file into an existing one, which stays the same file under all its names."""
    size = partial.stat().st_size
    with partial.open("rb") as source, final.open("r+b") as target:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(target.fileno(), 0, size)  # a full disk is told before any damage
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(target, fcntl.LOCK_EX)  # one writer at a time
        shutil.copyfileobj(source, target, CHUNK)
        target.truncate()
        target.flush()
        os.fsync(target.fileno())
        modified_at = partial.stat().st_mtime_ns
        if os.utime in os.supports_fd:
            os.utime(target.fileno(), ns=(modified_at, modified_at))


@contextmanager
def _writing_url(target: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Write to a temporary file, and upload it when it is complete."""
    with tempfile.TemporaryDirectory(prefix="dynenc-") as folder:
        partial = Path(folder) / "upload"
        with partial.open("xb") as file:
            yield cast(BinaryIO, file)
        _upload(partial, target, overwrite)


def _upload(partial: Path, target: str, overwrite: bool) -> None:
    """Copy a finished file to a URL; object stores show it when all of it is there."""
    fs, path = filesystem(target)
    with translated(target, OutputError):
        if not overwrite and fs.exists(path):
            raise OutputExists(f"{target} appeared while it was being made: it is kept")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & ATOMIC:
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
        kind = DiskFull if exc.errno in NO_SPACE else OutputError
        raise kind(f"{name} cannot be made a folder: {exc.strerror}") from exc


# Temporary files that killed runs leave


def partial_name() -> str:
    """A new name for a file that is being written; tells which kernel holds its lock."""
    return f".dynenc-{_kernel()}-{secrets.token_hex(8)}.partial"


@functools.cache
def _kernel() -> str:
    """What processes share that see each other's locks.

    A host name will not do: containers of one machine have several, and containers of several
    machines may have the same.
    """
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def sweep(folder: str) -> None:
    """Remove the temporary files that killed runs left in a local folder.

    A file is left over if nobody holds its lock, or where the lock cannot be tested (it belongs to
    another machine, or the file system has no locks), if it was not touched for a day.
    """
    if is_url(folder):
        return
    with suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if match := PARTIAL.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_abandoned(Path(entry.path), match["kernel"] == _kernel())


def _remove_abandoned(path: Path, is_ours: bool) -> None:
    if os.name == "nt" and is_ours:
        path.unlink()  # fails while it is open
        return
    is_old = time.time() - path.stat().st_mtime > STALE
    if not is_ours:
        if is_old:
            path.unlink()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        unlocked = _lock(descriptor)
        if unlocked or (unlocked is None and is_old):
            path.unlink()
    finally:
        os.close(descriptor)
