"""The local engine: worker processes that read, convert and write, each a few files ahead.

A worker does all of a file's way, so that no pixels travel between processes, and holds the
networks. It is given at most two windows of files, which bounds what is under way. If it dies (a
crash in a decoder of pictures, the kernel out of memory) another takes its place; the file that
killed two is given up.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import ModuleType

from dynenc.batch.plan import Job
from dynenc.batch.records import Result, Settings
from dynenc.errors import DynencError
from dynenc.io.storage import parent, sweep

logger = logging.getLogger(__name__)

FEW = 8  # pictures for which starting processes does not pay
GPU_WORKERS = 4  # enough to keep one busy; each takes some 0.5 GB of its memory
AHEAD = 8  # files that a worker is given at once, so that it writes while it converts
PATIENCE = 1.0  # s; how long files under way may take to finish after Ctrl-C
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    jobs: Sequence[Job],
    settings: Settings,
    workers: int | None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[list[Result]]:
    """Convert on this machine; yield the results of each job as it ends, in any order.

    Args:
        workers: how many processes; 1 is this very process; None chooses.
        on_step: as of `folders.convert`.
    Raises: WeightsError, DeviceError, UsageError or DiskFull once all other files would fail too.
    """
    few = len(jobs) == 1 or (len(jobs) <= FEW and not any(job.is_shard for job in jobs))
    if workers == 1 or (workers is None and (few or cores() == 1)):
        yield from _run_here(jobs, settings, on_step)
    else:
        pool = _Pool(jobs, settings, workers)
        try:
            yield from pool.run()
        finally:
            pool.close()


def _run_here(
    jobs: Sequence[Job], settings: Settings, on_step: Callable[[int, int], None] | None
) -> Iterator[list[Result]]:
    from dynenc.batch.converter import Converter  # imports torch

    converter = Converter(settings, on_step)
    rest = iter(jobs)
    while window := list(islice(rest, max(AHEAD, converter.window))):
        for _, results in converter.run(window):
            yield results


def _serve(pipe: Connection, settings: Settings, halt: Event) -> None:
    """The life of a worker: say what it is, then answer each job with its results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    from dynenc.batch.converter import Converter

    with suppress(EOFError, OSError):  # the parent has closed the pipe, or died
        try:
            converter = Converter(settings)
            window = max(AHEAD, converter.window)
            pipe.send((converter.codec.device.type, window, converter.note))
            while True:
                jobs = [pipe.recv()]
                while len(jobs) < window and pipe.poll():
                    jobs.append(pipe.recv())
                for answer in converter.run(jobs):
                    pipe.send(answer)
                    if halt.is_set():
                        return
        except DynencError as exc:
            pipe.send(exc)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    window: int = 0  # 0 until it has said hello
    pending: dict[Job, None] = field(default_factory=dict)  # given and not answered, in order


class _Pool:
    """Worker processes, and which job is where."""

    def __init__(self, jobs: Sequence[Job], settings: Settings, count: int | None) -> None:
        self.rest: Iterator[Job] = iter(jobs)
        self.n_jobs = self.n_left = len(jobs)
        self.settings, self.count = settings, count
        self.suspects: deque[Job] = deque()  # a worker died over them: they go alone
        self.deaths: dict[Job, str] = {}
        self.workers: list[_Worker] = []
        self.context = _context()
        self.halt = self.context.Event()

    def run(self) -> Iterator[list[Result]]:
        """Yield the results of each job."""
        self._start()
        while any(worker.pending or not worker.window for worker in self.workers):
            ready = wait([worker.pipe for worker in self.workers])
            for worker in [w for w in self.workers if w.pipe in ready]:
                yield from self._listen(worker)

    def _listen(self, worker: _Worker) -> Iterator[list[Result]]:
        """Take one message of a worker, and give it more to do."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            yield from self._bury(worker)
            return
        if isinstance(message, DynencError):
            raise message
        if worker.window:
            job, results = message
            del worker.pending[job]
            yield results
        else:
            device, worker.window, note = message
            if note and len(self.workers) == 1:  # workers have no log that anybody sees
                logger.info(note)
            if self.count is None:
                self.count = cores() if device == "cpu" else min(GPU_WORKERS, cores())
            while len(self.workers) < min(self.count, self.n_jobs):
                self._start()
        self._feed(worker)

    def _feed(self, worker: _Worker) -> None:
        """Give a worker files to have ahead; fewer when few are left, for all to end together."""
        alone = any(job in self.deaths for job in worker.pending)
        share = max(1, min(2 * worker.window, self.n_left // (2 * (self.count or 1))))
        while not alone and len(worker.pending) < share:
            if self.suspects:
                if worker.pending:
                    return  # until it is idle
                job, alone = self.suspects.popleft(), True
            elif (following := next(self.rest, None)) is not None:
                job = following
                self.n_left -= 1
            else:
                return
            worker.pending[job] = None
            with suppress(OSError):  # a dead worker is noticed when it is listened to
                worker.pipe.send(job)

    def _bury(self, worker: _Worker) -> Iterator[list[Result]]:
        """Replace a worker that died; its files are tried once more, each alone."""
        self.workers.remove(worker)
        worker.process.join()
        how = _cause(worker.process.exitcode or 0)
        if not worker.window:
            raise DynencError(f"a worker process ended while it was starting, {how}: try --jobs 1")
        _sweep([worker])
        for number, job in enumerate(worker.pending):
            if job in self.deaths:
                error = DynencError(f"two worker processes ended over it, {how}: leave it out")
                yield [Result(job.source or job.target, job.target, "failed", error=error)]
            elif number < worker.window:
                self.deaths[job] = how
                self.suspects.append(job)
            else:
                self.rest = chain([job], self.rest)
                self.n_left += 1
        self._start()

    def _start(self) -> None:
        ours, theirs = self.context.Pipe()
        threads = max(1, cores() // (self.count or cores()))
        arguments = (theirs, replace(self.settings, threads=threads), self.halt)
        process = self.context.Process(target=_serve, args=arguments, daemon=True)
        with _bare():
            process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours))

    def close(self) -> None:
        """End all workers; what they are at is finished within PATIENCE or removed."""
        self.halt.set()
        deadline = time.monotonic() + PATIENCE
        for worker in self.workers:
            if not worker.pending:
                worker.pipe.close()
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        _sweep(self.workers)


def _sweep(workers: Sequence[_Worker]) -> None:
    """Remove what dead workers were writing."""
    pids = {worker.process.pid for worker in workers if worker.process.pid}
    for folder in {parent(job.target) for worker in workers for job in worker.pending}:
        sweep(folder, pids)


def _cause(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "killed, perhaps for lack of memory"
    if exitcode < 0:
        return f"by signal {-exitcode}"
    return f"with exit code {exitcode}"


def _context() -> ForkServerContext | SpawnContext:
    """How processes are started: forked from one that has imported torch, where that is possible.

    Not forked from this one, whose threads would be lost in the middle of what they do.
    """
    if os.name == "nt":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dynenc.batch.converter"])
    return context


@contextmanager
def _bare() -> Iterator[None]:
    """Start a process with one thread for each library, and without the caller's script.

    multiprocessing would run the script again in every worker, which needs nothing of it.
    """
    script = sys.modules["__main__"]
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
