"""Process-wide settings, changed only in processes that dynenc owns.

The command and its workers enter `tuned_process`. Library calls never change these settings: in a
host program, threads and allocator are the host's choice. A program that only runs dynenc may enter
`tuned_process` too.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from dynenc.errors import DynencError

T = TypeVar("T")
R = TypeVar("R")

ONE_THREAD_PIXELS = 2**18  # images of at most this size are coded in one thread: see `threads_for`
SHARED_PIXELS = 2**17  # from this size on, the native kernel decodes in several threads
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of CUDA, ROCm and WSL
KEPT_BLOCK = 2**25 - 2**16  # bytes; just below the largest freed block that glibc can keep


class _Owner:
    """How often `tuned_process` was entered, and which one-time set-up has run since."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.pid: int | None = None  # of the process in which torch ran several threads
        self.prepared: set[str] = set()
        self.threads: int | None = None  # torch threads for large images


_owner = _Owner()


@contextmanager
def tuned_process(threads: int | None = None) -> Iterator[None]:
    """Tune this process for dynenc; at the end, restore what can be restored.

    - glibc keeps freed blocks of up to 32 MB for the next image, instead of returning them to the
      system and faulting them in again page by page.
    - torch uses a fixed number of threads, one for small images: see `threads_for`.

    torch is not imported here, but adjusted when the codec first needs it.

    Args:
        threads: for torch and for Pillow's AVIF encoder; None leaves their defaults.
    """
    with _owner.lock:
        _owner.count += 1
    try:
        with _fixed_threads(threads) if threads else nullcontext():
            yield
    finally:
        with _owner.lock:
            _owner.count -= 1
            if not _owner.count:
                _owner.prepared.clear()


def cores() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(
    function: Callable[[T], R], items: Sequence[T], threads: int | None = None
) -> list[R]:
    """Apply a function to each item in threads; return the results in order.

    Args:
        threads: limit; None means as many as the process may use.
    Useful for functions that spend their time in the native kernel, which releases the GIL.
    Raises: the exception of the first item that fails.
    """
    if len(items) == 1:
        return [function(items[0])]
    count = min(len(items), threads or _owner.threads or cores())
    if count < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, items))


@contextmanager
def threads_for(pixels: int) -> Iterator[None]:
    """A context in which torch has the threads of `tuned_process`, or one for a small image.

    Changes nothing in a host program.

    Raises: DynencError in a process forked after several threads have run.
    On an idle machine, threads save some milliseconds on a small image. On a busy one, each
    operation waits until the scheduler has run every thread: on two cores with ten runnable
    processes, decoding 256x128 px took 233 ms in one thread and 7.2 s in two.
    """
    import torch

    before = torch.get_num_threads()
    _check_fork(before)
    if not _owner.count:
        yield
        return
    _keep_memory()
    wanted = 1 if pixels <= ONE_THREAD_PIXELS else _owner.threads or before
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def native_threads(pixels: int) -> int:
    """How many threads the native kernel uses for an image: those of `tuned_process` if set.

    Otherwise the number set for torch or OpenMP, or the number of processors available.
    """
    if pixels < SHARED_PIXELS:
        return 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    if _owner.threads:
        return _owner.threads
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    if told.isdecimal() and int(told):
        return int(told)
    return cores()


def is_cpu(device: object) -> bool:
    """Whether a device as given by the user is the CPU: see `Codec`."""
    return str(device) in ("cpu", "cpu:0")


def uses_cpu(device: object) -> bool:
    """Whether networks run on the CPU for a device as given by the user."""
    return is_cpu(device) or (str(device) == "auto" and not has_gpu())


def has_gpu() -> bool:
    """Whether torch finds a GPU; imports torch only if there may be one."""
    may_have = sys.platform in ("darwin", "win32") or any(map(os.path.exists, GPU_DEVICES))
    if not may_have and "torch" not in sys.modules:
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _keep_memory() -> None:
    """Let glibc keep memory that torch frees; does nothing in a host program or if done before."""
    if _first("memory"):
        import torch

        torch.empty(KEPT_BLOCK, dtype=torch.uint8)  # freeing it raises glibc's threshold


def _first(what: str) -> bool:
    """Whether this is the first call for `what` in a process that dynenc owns."""
    with _owner.lock:
        if not _owner.count or what in _owner.prepared:
            return False
        _owner.prepared.add(what)
        return True


@contextmanager
def _fixed_threads(count: int) -> Iterator[None]:
    from PIL import AvifImagePlugin

    before = _owner.threads, AvifImagePlugin.DEFAULT_MAX_THREADS
    _owner.threads = AvifImagePlugin.DEFAULT_MAX_THREADS = count
    try:
        yield
    finally:
        _owner.threads, AvifImagePlugin.DEFAULT_MAX_THREADS = before


def _check_fork(threads: int) -> None:
    """Raise if GNU OpenMP would wait forever for threads that did not survive a fork."""
    if threads > 1 and sys.platform == "linux":
        if _owner.pid not in (None, os.getpid()):
            raise DynencError(
                "this process was forked after the codec had run with several threads, and would "
                "hang: start processes by spawn, or call torch.set_num_threads(1) in the child"
            )
        _owner.pid = os.getpid()
