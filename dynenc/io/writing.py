"""Writing files atomically: completely or not at all.

A regular file is written under a temporary name in its folder and, once complete, renamed (or
uploaded). So even after a kill, no half-written file has a final name. Devices, FIFOs and
descriptors such as `/dev/stdout` are written directly. The temporary file is locked while it is
being written; if the process dies, the kernel releases the lock, and the next run removes the file.
"""

import errno
import functools
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
from typing import BinaryIO, cast

from dynenc.errors import DiskFull, OutputError, OutputExists
from dynenc.io.names import STREAM, is_url
from dynenc.io.storage import CHUNK, exists, filesystem, mode_of, raising

if sys.platform != "win32":
    import fcntl

ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}  # hide partial uploads
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # every other file would fail too
PARTIAL = re.compile(r"\.dynenc-(?P<kernel>.+)-[0-9a-f]{16}\.partial")
STALE_S = 24 * 3600  # after which a partial file whose lock cannot be tested is abandoned
DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|(?P<pid>\d+)))/fd/(?P<number>\d+)")
STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40  # as in Linux


def is_stream(name: str) -> bool:
    """Whether writing there sends data on instead of replacing a file.

    True for `-`, `/dev/stdout`, `/dev/fd/3`, FIFOs, sockets and character devices.
    """
    if name == STREAM or (not is_url(name) and _descriptor(name) is not None):
        return True
    mode = mode_of(name)
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def refuse_existing(target: str, overwrite: bool) -> None:
    """Raise OutputExists if the target exists and must not be overwritten."""
    if target and not overwrite and not is_stream(target) and exists(target):
        raise OutputExists(
            f"{target} exists", hint="choose another output with -o, or overwrite it with --force"
        )


@contextmanager
def writing(target: str, overwrite: bool, *, mtime: float | None = None) -> Iterator[BinaryIO]:
    """A file that gets its final name if the block succeeds, and is removed otherwise.

    Links are followed. A file that is overwritten keeps its mode, its owner where permitted, and
    its other hard links. A stream (see `is_stream`) is written directly.

    Args:
        overwrite: replace an existing file.
        mtime: modification time to set, in seconds since 1970; local regular files only.
    Raises: OutputError if it cannot be written, DiskFull if every other file would fail too,
    OutputExists if it appeared meanwhile and must not be overwritten.
    """
    try:
        if is_url(target):
            writer = _writing_url(target, overwrite)
        elif is_stream(target) or (overwrite and stat.S_ISBLK(mode_of(target))):
            writer = _writing_through(target)
        else:
            writer = _writing_file(target, overwrite, mtime)
        with writer as file:
            yield file
    except FileExistsError as exc:
        raise OutputExists(f"{target} was created by another program meanwhile: kept") from exc
    except OSError as exc:
        what = "standard output" if target == STREAM else target
        raise _failure(f"{what} cannot be written", exc) from exc


def _failure(sentence: str, exc: OSError) -> OutputError:
    """The error of what failed, with the system's reason."""
    kind = DiskFull if exc.errno in NO_SPACE else OutputError
    return kind(f"{sentence}: {exc.strerror or exc}")


def _descriptor(name: str) -> int | None:
    """The open descriptor that a path such as /dev/stdout or /dev/fd/3 refers to.

    It is duplicated rather than reopened, which would truncate a file that the shell appends to.
    Symbolic links are followed one by one, because those in /proc lead to the file itself.
    """
    try:
        path = os.path.abspath(name)  # noqa: PTH100
    except OSError:  # the current folder has been removed
        return None
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
            raise OutputError("standard output is closed", hint="choose a file with -o")
        sys.stdout.flush()
        try:
            number: int | None = sys.stdout.fileno()
        except (OSError, ValueError):  # replaced by an object in memory
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
    else:
        number = _descriptor(target)
    # a duplicate descriptor, so that sys.stdout has nothing to flush after a failure
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
            if os.name != "nt":  # keep the lock until it is renamed
                _publish(partial, final, overwrite, before)
        if os.name == "nt":  # open files cannot be renamed
            _publish(partial, final, overwrite, before)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _create_partial(folder: Path, *, private: bool) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked; with `private`, readable by its owner only."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        partial = folder / partial_name()
        descriptor = os.open(partial, flags, 0o600 if private else 0o666)
        if _lock(descriptor) is False or not partial.exists():  # another run has removed it
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
    """Give a new file the mode of the one it replaces, and its owner where permitted."""
    if os.name == "nt":
        return
    mode = stat.S_IMODE(before.st_mode)
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except OSError:
            mode &= 0o777  # never set-user-id for a different owner
            with suppress(OSError):
                os.fchown(descriptor, -1, before.st_gid)
    os.fchmod(descriptor, mode)


def _publish(partial: Path, final: Path, overwrite: bool, before: os.stat_result | None) -> None:
    """Rename a finished file; raises FileExistsError if the name exists and not `overwrite`."""
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
        if exc.errno != errno.EBUSY:  # a bind-mounted file, as in containers
            raise
        _rewrite(partial, final)


def _rewrite(partial: Path, final: Path) -> None:
    """Copy a finished file into an existing one, which keeps its inode and all its hard links."""
    size = partial.stat().st_size
    with partial.open("rb") as source, final.open("r+b") as target:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(target.fileno(), 0, size)  # a full disk shows before any damage
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
    """Copy a finished file to a URL; object stores show it once the upload is complete."""
    fs, path = filesystem(target)
    with raising(target, OutputError):
        if not overwrite and fs.exists(path):
            raise OutputExists(f"{target} was created by another program meanwhile: kept")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & ATOMIC:
            fs.put_file(str(partial), path)
            return
        remote = f"{path}.{secrets.token_hex(4)}.partial"
        fs.put_file(str(partial), remote)
        fs.mv(remote, path)


def make_folder(name: str) -> None:
    """Create a folder and its parents; raises OutputError."""
    if not name or is_url(name):
        return  # object stores have no folders, and fsspec creates the others on writing
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _failure(f"the folder {name} cannot be created", exc) from exc


def remove(name: str) -> None:
    """Remove a local file; raises OutputError."""
    try:
        Path(name).unlink()
    except OSError as exc:
        raise _failure(f"{name} cannot be removed", exc) from exc


def rename(name: str, other: str) -> None:
    """Give a local file another name, in the place of what has it; raises OutputError."""
    try:
        Path(name).replace(other)
    except OSError as exc:
        raise _failure(f"{name} cannot be renamed", exc) from exc


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Lock a local folder against other processes.

    The folder itself is locked, so nothing is written, and what is killed leaves no lock behind.
    Does nothing where the file system has no locks.
    Raises: OutputError if another run is at work in the folder.
    """
    descriptor = None
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
    if descriptor is None:
        yield
        return
    try:
        if _lock(descriptor) is False:
            raise OutputError(
                f"another run is at work in {folder}", hint="run this again when it has ended"
            )
        yield
    finally:
        os.close(descriptor)


# Temporary files of killed runs


def partial_name() -> str:
    """A new temporary name, which says which kernel holds the lock of the file."""
    return f".dynenc-{_kernel()}-{secrets.token_hex(8)}.partial"


@functools.cache
def _kernel() -> str:
    """An identifier shared by all processes that see each other's locks.

    Not the host name: containers on one machine have several, and containers on several machines
    may share one.
    """
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def remove_stale_partials(folder: str) -> None:
    """Remove the temporary files that killed runs left in a local folder.

    A file is abandoned if nobody holds its lock or, where the lock cannot be tested (it belongs to
    another machine, or the file system has no locks), if it has not been touched for a day.
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
    is_old = time.time() - path.stat().st_mtime > STALE_S
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
