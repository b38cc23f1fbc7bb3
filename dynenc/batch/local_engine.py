"""The local engine: worker processes that read, convert and write, with a few files queued each.

A worker holds the networks and handles a file from start to end, so that no pixels travel between
processes. It is given at most two windows of files, which bounds memory use. If it dies (a crash in
an image library, the out-of-memory killer) another takes its place; a file that two workers died on
is given up. If no worker can be started, this process does the work.
"""

import contextlib
import logging
import pickle
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from dynenc.batch import worker
from dynenc.batch.forking import Process, WorkerFactory
from dynenc.batch.plan import Job
from dynenc.batch.results import Result
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.worker import PREFETCH, WorkerReady
from dynenc.coding.rate_control import OnStep
from dynenc.errors import DynencError
from dynenc.io.names import parent
from dynenc.io.writing import remove_stale_partials
from dynenc.runtime import cores

logger = logging.getLogger(__name__)

SERIAL_LIMIT = 8  # images for which starting processes does not pay
GPU_WORKERS = 4  # enough to keep a GPU busy; each takes some 0.5 GB of its memory
SIGKILL = 9  # which the module signal lacks on Windows
SHUTDOWN_S = 1.0  # in which files in progress may finish after Ctrl-C


def run(
    jobs: Sequence[Job],
    settings: ConversionSettings,
    workers: int | None,
    on_step: OnStep | None = None,
) -> Iterator[list[Result]]:
    """Convert on this machine; yield the results of each job as it ends, in any order.

    Args:
        workers: number of processes; 1 uses this process; None chooses.
        on_step: see `convert`.
    Raises: WeightsError, DeviceError, UsageError or DiskFull if every other file would fail too.
    """
    few = len(jobs) == 1 or (len(jobs) <= SERIAL_LIMIT and not any(job.is_shard for job in jobs))
    if workers == 1 or len(jobs) == 1 or (workers is None and (few or cores() == 1)):
        yield from _run_here(jobs, settings, on_step)
        return
    pool = _Pool(jobs, settings, workers)
    try:
        yield from pool.run()
    except _NoWorkers as exc:
        logger.debug("cannot start worker processes, so this process does the work: %s", exc)
        yield from pool.fail_retries()
        yield from _run_here(pool.rest, settings, on_step)
    finally:
        pool.close()


def _run_here(
    jobs: Iterable[Job], settings: ConversionSettings, on_step: OnStep | None
) -> Iterator[list[Result]]:
    from dynenc.batch.converter import Converter

    converter = Converter(settings, on_step)
    rest = iter(jobs)
    while window := list(islice(rest, max(PREFETCH, converter.window))):
        for _, results in converter.run(window):
            yield results


class _NoWorkers(Exception):
    """No worker process can be started."""


@dataclass(eq=False)
class _Worker:
    process: Process
    listener: threading.Thread | None = None
    ready: WorkerReady | None = None
    pending: dict[Job, None] = field(default_factory=dict)  # sent and not answered, in order

    def send(self, message: Any) -> None:
        """Send it a message; if it is dead, the listener notices."""
        assert self.process.stdin
        with contextlib.suppress(OSError, ValueError):
            worker.send(self.process.stdin, message)

    def stop(self) -> None:
        """Let it end after its current job."""
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def join(self, seconds: float | None = None) -> int:
        """Wait for it to end; returns its exit code. Raises: subprocess.TimeoutExpired."""
        code = self.process.wait(seconds)
        self.stop()
        assert self.listener
        assert self.process.stdout
        self.listener.join()
        self.process.stdout.close()
        return code


class _Pool:
    """The worker processes and their jobs."""

    def __init__(
        self, jobs: Sequence[Job], settings: ConversionSettings, count: int | None
    ) -> None:
        from dynenc.batch.tasks.torch_use import needs_torch

        self.rest: Iterator[Job] = iter(jobs)
        self.n_jobs = self.n_left = len(jobs)
        self.settings, self.count = settings, count
        self.retries: deque[Job] = deque()  # a worker died on them: they are retried alone
        self.crash_causes: dict[Job, str] = {}
        self.workers: list[_Worker] = []
        self.factory = WorkerFactory(needs_torch=needs_torch(settings))
        self.inbox: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()

    def run(self) -> Iterator[list[Result]]:
        """Yield the results of each job; raises _NoWorkers if no worker can be started."""
        self._start_up_to(self.count or min(GPU_WORKERS, cores()))
        while any(each.pending or not each.ready for each in self.workers):
            yield from self._handle(*self.inbox.get())

    def fail_retries(self) -> Iterator[list[Result]]:
        """Fail the jobs that a worker died on, as no other process can try them."""
        for job in self.retries:
            yield _failure(job, f"a worker process died on it, {self.crash_causes[job]}")

    def _handle(self, sender: _Worker, message: Any) -> Iterator[list[Result]]:
        """Handle a message from a worker (None if it has ended), and send it more jobs."""
        if message is None:
            yield from self._replace(sender)
            return
        if isinstance(message, DynencError):
            raise message
        if isinstance(message, WorkerReady):
            self._on_ready(sender, message)
        else:
            job, results = message
            del sender.pending[job]
            yield results
        self._feed(sender)

    def _on_ready(self, sender: _Worker, ready: WorkerReady) -> None:
        if ready.note and not any(each.ready for each in self.workers):  # once
            logger.debug(ready.note)
        sender.ready = ready
        if self.count is None:  # it depends on the device, which is known only now
            self.count = cores() if ready.device == "cpu" else min(GPU_WORKERS, cores())
            self._start_up_to(self.count)

    def _feed(self, to: _Worker) -> None:
        """Send a worker jobs to queue; fewer when few are left, so that all end together."""
        assert to.ready
        alone = any(job in self.crash_causes for job in to.pending)
        share = max(1, min(2 * to.ready.window, self.n_left // (2 * (self.count or 1))))
        while not alone and len(to.pending) < share:
            if self.retries:
                if to.pending:
                    return  # until it is idle
                job, alone = self.retries.popleft(), True
            elif (following := next(self.rest, None)) is not None:
                job = following
                self.n_left -= 1
            else:
                return
            to.pending[job] = None
            to.send(job)

    def _replace(self, dead: _Worker) -> Iterator[list[Result]]:
        """Replace a worker that died; its files are retried once, each alone."""
        self.workers.remove(dead)
        how = _cause(dead.join())
        if not dead.ready:
            logger.debug("a worker process died while starting, %s", how)
            if not self.workers:
                raise _NoWorkers(f"it died while starting, {how}")
            return
        _sweep([dead])
        for number, job in enumerate(dead.pending):
            if job in self.crash_causes:
                yield _failure(job, f"two worker processes died on it, {how}")
            elif number < dead.ready.window:
                job = replace(job, overwrite=True)  # it may have been written before the answer
                self.crash_causes[job] = how
                self.retries.append(job)
            else:
                self.rest = chain([job], self.rest)
                self.n_left += 1
        self._start_up_to(len(self.workers) + 1)

    def _start_up_to(self, count: int) -> None:
        """Start workers until there are `count`; raises _NoWorkers if none can be started."""
        while len(self.workers) < min(count, self.n_jobs):
            try:
                started = _Worker(self.factory.start())
            except OSError as exc:
                logger.debug("cannot start a worker process: %s", exc)
                if not self.workers:
                    raise _NoWorkers(str(exc)) from exc
                return
            self.workers.append(started)
            started.listener = threading.Thread(target=self._listen, args=(started,), daemon=True)
            started.listener.start()
            threads = max(1, cores() // (self.count or cores()))
            started.send(self._settings(threads))

    def _settings(self, threads: int) -> ConversionSettings:
        return replace(self.settings, run=replace(self.settings.run, threads=threads))

    def _listen(self, to: _Worker) -> None:
        """Forward the messages of a worker, in a thread of its own; None when it has ended."""
        assert to.process.stdout
        try:
            while True:
                self.inbox.put((to, pickle.load(to.process.stdout)))
        except Exception:  # it ended; a truncated pickle can raise anything
            self.inbox.put((to, None))

    def close(self) -> None:
        """Stop all workers; files in progress are finished within SHUTDOWN_S or removed."""
        deadline = time.monotonic() + SHUTDOWN_S
        for each in self.workers:
            each.stop()
        for each in self.workers:
            try:
                each.join(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.join()
        self.factory.close()
        _sweep(self.workers)


def _failure(job: Job, why: str) -> list[Result]:
    error = DynencError(f"{why}: exclude it")
    return [Result(job.name, job.target, "failed", error=error)]


def _sweep(workers: Sequence[_Worker]) -> None:
    """Remove the temporary files of dead workers."""
    for folder in {parent(job.target) for each in workers for job in each.pending}:
        remove_stale_partials(folder)


def _cause(exitcode: int) -> str:
    if exitcode == -SIGKILL:
        return "killed, perhaps for lack of memory"
    if exitcode < 0:
        return f"by signal {-exitcode}"
    return f"with exit code {exitcode}"
