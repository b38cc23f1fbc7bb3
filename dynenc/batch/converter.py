"""The converter: runs files, or members of archives, through a task.

Read, convert (files of equal size together), write. The task defines how a file is converted.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO, TypeVar

from dynenc.batch.inputs import MAX_IMAGE_BYTES
from dynenc.batch.plan import Job, input_suffixes, member_name
from dynenc.batch.results import Result
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks import TASKS
from dynenc.batch.tasks.base import Item, LoadedItem, Output
from dynenc.coding import bitstream
from dynenc.coding.rate_control import OnStep
from dynenc.errors import (
    DeviceError,
    DiskFull,
    DynencError,
    ImageError,
    OutputError,
    OutputExists,
    UnexpectedError,
    UsageError,
    WeightsError,
)
from dynenc.io import shards, storage
from dynenc.io.names import suffix_of
from dynenc.io.writing import refuse_existing, writing

FATAL = (WeightsError, DeviceError, UsageError, DiskFull)  # every other file would fail too
GPU_BATCH = 16  # images in one pass; on a CPU one at a time is as fast and needs less memory
WRITERS = 4  # writer threads; most of the time they wait for the disk
BATCH_PIXELS = 64_000_000  # in one pass
SMALL = 2**20  # bytes; larger archive members that are only copied are copied in chunks

T = TypeVar("T")
Outcome = Output | DynencError


class Converter:
    """Converts files; networks are loaded once, on first use.

    Raises: WeightsError, DeviceError, UsageError or DiskFull at any time if all files would fail;
    the errors of one file become its result.
    """

    def __init__(self, settings: ConversionSettings, on_step: OnStep | None = None) -> None:
        self.settings = settings
        self.task = TASKS[settings.task](settings, on_step)
        self.device = self.task.device
        self.batch_size = settings.run.batch_size or (1 if self.device == "cpu" else GPU_BATCH)
        self.window = 2 * self.batch_size if self.batch_size > 1 else 1  # files read at a time

    @property
    def note(self) -> str:
        """A message of the task for the user, or ""."""
        return self.task.note

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, list[Result]]]:
        """Convert; yield each job with one result per image."""
        jobs = list(jobs)
        job_of = {self._item(job): job for job in jobs if not job.is_shard}
        being_written: deque[tuple[Item, Future[Outcome]]] = deque()
        with ThreadPoolExecutor(WRITERS) as writers:  # on any exit, each file is whole or absent
            for item, outcome in self._outcomes(job_of):
                future = writers.submit(self._attempt, self._write, item, outcome)
                being_written.append((item, future))
                if len(being_written) > WRITERS:
                    item, future = being_written.popleft()
                    yield job_of[item], [self._result(item, future.result())]
            while being_written:
                item, future = being_written.popleft()
                yield job_of[item], [self._result(item, future.result())]
        for job in jobs:
            if job.is_shard:
                results = self._attempt(self._convert_shard, job)
                if isinstance(results, DynencError):
                    results = [self._result(Item(job.name, job.target), results)]
                yield job, results

    def _item(self, job: Job) -> Item:
        return Item(
            job.source,
            job.target,
            mtime=self._mtime(job.source),
            overwrite=job.overwrite or self.settings.output.overwrite,
        )

    def _mtime(self, source: str) -> float | None:
        """The modification time to give the output, or None for the current time."""
        found = storage.times(source) if self.settings.output.keep_mtime else None
        return found.modified if found else None

    def _outcomes(self, items: Iterable[Item]) -> Iterator[tuple[Item, Outcome]]:
        """Read, convert in groups of equal shape, and yield in input order."""
        rest = iter(items)
        while window := list(islice(rest, self.window)):
            outcomes: dict[int, Outcome] = {}
            groups: dict[tuple[int, ...], list[tuple[int, LoadedItem[Any]]]] = {}
            for i, item in enumerate(window):
                if not item.convert:
                    outcomes[i] = Output(item.data or b"")
                    continue
                loaded = self._attempt(self.task.load, item)
                if isinstance(loaded, DynencError):
                    outcomes[i] = loaded
                else:
                    groups.setdefault(loaded.shape, []).append((i, loaded))
            for shape, group in groups.items():
                size = max(1, min(self.batch_size, BATCH_PIXELS // (shape[0] * shape[1])))
                for start in range(0, len(group), size):
                    part = group[start : start + size]
                    made = self._make([window[i] for i, _ in part], [one for _, one in part])
                    outcomes.update(zip([i for i, _ in part], made, strict=True))
            yield from ((item, outcomes[i]) for i, item in enumerate(window))

    def _make(self, items: list[Item], group: list[LoadedItem[Any]]) -> Sequence[Outcome]:
        """The outputs for files of equal shape; if the batch fails, each is tried alone."""
        made = self._attempt(self.task.make, items, group)
        if not isinstance(made, DynencError):
            return made
        if len(group) == 1:
            return [made]
        return [self._make([item], [one])[0] for item, one in zip(items, group, strict=True)]

    def _write(self, item: Item, outcome: Outcome) -> Outcome:
        if isinstance(outcome, DynencError) or not item.target:
            return outcome
        with writing(item.target, item.overwrite, mtime=item.mtime) as file:
            file.write(outcome.data)
        return outcome

    # archives

    def _convert_shard(self, job: Job) -> list[Result]:
        """Convert the members of an archive, or pack images into a tar; copy other members."""
        results: list[Result] = []
        target, overwrite = job.target, job.overwrite or self.settings.output.overwrite
        refuse_existing(target, overwrite)
        mtime = None if job.members else self._mtime(job.source)
        with writing(target, overwrite, mtime=mtime) if target else nullcontext() as file:
            writer = shards.Writer(file) if file else None
            if job.members:
                outcomes = self._packed_outcomes(job)
            else:
                outcomes = self._archive_outcomes(job, writer)
            for item, outcome in outcomes:
                if isinstance(outcome, Output) and writer:
                    try:
                        writer.add(item.member, outcome.data, item.mtime or 0)
                    except OutputError as exc:  # this member only; an OSError ends the shard
                        outcome = exc
                elif writer and overwrite:
                    self._copy_previous(writer, target, item.member)
                if item.convert or isinstance(outcome, DynencError):
                    where = f"{target}/{item.member}" if target else ""
                    results.append(self._result(Item(item.source, where), outcome))
            if writer:
                writer.close()
        return results

    def _copy_previous(self, writer: shards.Writer, target: str, name: str) -> None:
        """Copy the previous version of a failed member from the shard that is being replaced."""
        previous: tuple[bytes, float] | None = None
        with suppress(DynencError, OSError), storage.reading(target) as file:
            for member in shards.members(file, target, seek=True):
                if member.name == name:
                    previous = member.file.read(member.size), member.mtime
                    break
        if previous is not None:
            with suppress(OutputError):  # the name is taken, nothing was written
                writer.add(name, *previous)

    def _packed_outcomes(self, job: Job) -> Iterator[tuple[Item, Outcome]]:
        """The outcome for each image of a new shard."""
        return self._outcomes(
            Item(file.source, job.target, member=file.name, mtime=self._mtime(file.source))
            for file in job.members
        )

    def _archive_outcomes(
        self, job: Job, writer: shards.Writer | None
    ) -> Iterator[tuple[Item, Outcome]]:
        """The outcome for each archive member, in order; large non-images are copied here."""
        suffixes, output = input_suffixes(self.settings.task), self.settings.output
        window: list[Item] = []
        with _source(job.source) as file:
            for member in shards.members(file, job.source):
                convert = suffix_of(member.name).lower() in suffixes
                name = member_name(member.name, suffixes, output.suffix, output.naming)
                source = f"{job.source}/{member.name}"
                item = Item(source, job.target, None, name, member.mtime, convert)
                is_large = not convert and member.size > SMALL
                outcome: Outcome | None = None
                if not is_large:
                    limit = MAX_IMAGE_BYTES
                    data = self._attempt(
                        storage.read_at_most, member.file, limit, source, ImageError
                    )
                    if isinstance(data, DynencError):
                        outcome = data
                    else:
                        window.append(replace(item, data=data))
                if is_large or outcome or len(window) >= self.window:
                    yield from self._outcomes(window)  # the members before it
                    window.clear()
                if is_large and writer:
                    try:
                        writer.copy(member)
                    except OutputError as exc:  # the name is taken, nothing was written
                        outcome = exc
                if outcome:
                    yield item, outcome
            yield from self._outcomes(window)

    # outcomes

    def _result(self, item: Item, outcome: Outcome) -> Result:
        if isinstance(outcome, OutputExists) and self.settings.output.existing == "skip":
            return Result(item.source, item.target, "skipped", error=outcome)
        if isinstance(outcome, DynencError):
            return Result(item.source, item.target, "failed", error=outcome)
        return Result(
            item.source,
            item.target,
            "done",
            n_bytes_in=outcome.n_bytes_in,
            n_bytes_out=len(outcome.data),
            width=outcome.size[0],
            height=outcome.size[1],
            bpp=bitstream.bpp(outcome.n_bytes_lat, *(outcome.coded_size or outcome.size)),
            quality=outcome.quality,
            figures=outcome.figures,
            note=outcome.note,
            preview=outcome.preview,
        )

    def _attempt(self, function: Callable[..., T], *arguments: Any) -> T | DynencError:
        """Call; return the error that concerns one file only, and raise any other."""
        try:
            return function(*arguments)
        except FATAL:
            raise
        except DynencError as exc:
            return exc
        except Exception as exc:
            if self.settings.run.strict:
                raise
            message = f"unexpected {type(exc).__name__}: {exc}"
            return UnexpectedError(message, traceback=traceback.format_exc())


@contextmanager
def _source(name: str) -> Iterator[BinaryIO]:
    """An archive to read; raises ImageError if it cannot be opened."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(storage.reading(name))
        except OSError as exc:
            raise ImageError(f"{name} cannot be read: {exc.strerror}") from exc
        yield file
