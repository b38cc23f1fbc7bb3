"""Existing outputs: which are finished, and which were made with other settings.

A file does not count as finished by its name alone: its header must parse, which is cheap to check.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import BinaryIO, Literal

from dynenc.batch.plan import Job
from dynenc.batch.records import Result, Settings
from dynenc.batch.tasks import TASKS
from dynenc.coding import bitstream
from dynenc.errors import Corrupt, OutputExists
from dynenc.imaging import formats
from dynenc.io import shards, storage
from dynenc.io.names import is_url, join, suffix_of
from dynenc.io.writing import is_stream

State = Literal["missing", "current", "older", "different", "foreign"]
CLOCK_STEP = 2.0  # s; resolution of modification times on the coarsest file systems


def sort(jobs: list[Job], output: str | None, settings: Settings) -> tuple[list[Job], list[Result]]:
    """The jobs that remain, and the results of the others: skipped or failed."""
    policy = settings.output.existing
    there = _listed(output)
    todo, results = [], []
    for job in jobs:
        if not job.target or (there is not None and job.target not in there):
            todo.append(job)
            continue
        if policy == "skip" and there is not None:  # a request for each would take too long
            state: State = "current" if there[job.target] else "missing"
        else:
            state = state_of(job, settings)
        name = job.source or job.target
        if state == "missing" or (policy == "update" and state in ("older", "different")):
            # an empty file holds nothing to lose; a file that appears from now on is kept
            todo.append(replace(job, overwrite=storage.exists(job.target)))
        elif state == "foreign":
            error = OutputExists(
                f"{job.target} exists, but was not written by this command",
                hint="move it away, or overwrite it with --force",
            )
            results.append(Result(name, job.target, "failed", error=error))
        else:
            outdated = state == "different"
            results.append(Result(name, job.target, "skipped", outdated=outdated))
    return todo, results


def _listed(output: str | None) -> dict[str, int] | None:
    """The files below a remote folder and their sizes, in one listing instead of many requests."""
    if not (output and is_url(output) and storage.is_folder(output)):
        return None
    return {join(output, below): size for below, size in storage.sizes(output)}


def state_of(job: Job, settings: Settings) -> State:
    """The state of a job's output file.

    For a shard, the first converted member is checked. "older" and anything beyond the header are
    only checked with `existing="update"`.
    """
    if is_stream(job.target):
        return "missing"
    whole = settings.output.existing == "update"
    if not is_url(job.target):
        if os.path.isdir(job.target):  # noqa: PTH112
            return "foreign"
        if not os.path.isfile(job.target) or os.path.getsize(job.target) == 0:  # noqa: PTH113, PTH202
            return "missing"
    try:
        with storage.reading(job.target) as file:
            is_so = _matches(file, job, settings, whole)
    except Corrupt:
        return "different" if whole else "foreign"
    except Exception:  # a foreign file can make its reader raise anything
        return "foreign" if storage.exists(job.target) else "missing"
    if not is_so:
        return "different"
    return "older" if whole and _is_older(job, settings) else "current"


def _matches(file: BinaryIO, job: Job, settings: Settings, whole: bool) -> bool:
    check = TASKS[settings.task].matches
    if not job.is_shard:
        n_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        return check(file, n_bytes, settings, whole=whole)
    for member in shards.members(file, job.target):
        if suffix_of(member.name).lower() == settings.output.suffix.lower():
            return check(member.file, member.size, settings, whole=whole)
    return True


def _is_older(job: Job, settings: Settings) -> bool:
    """Whether an input changed after the output was written, or is a different image now.

    An input replaced by an older file has an older modification time, but a newer change time
    (ctime), and often a different size.
    """
    written = storage.times(job.target)
    if written is None:
        return False
    for source in [source for source, _ in job.members] or [job.source]:
        changed = storage.times(source)
        if changed is None:
            continue
        if changed.modified > written.modified or changed.changed > written.changed:
            return True
        is_other = abs(changed.modified - written.modified) > CLOCK_STEP
        if settings.output.keep_mtime and not job.members and is_other:
            return True
    return not job.is_shard and _sizes_differ(job, settings)


def _sizes_differ(job: Job, settings: Settings) -> bool:
    """Whether an image and its .lat file differ in size, in either orientation."""
    if settings.task != "encode" or not storage.is_regular(job.source):
        return False
    try:
        with storage.reading(job.source) as file, storage.reading(job.target) as lat:
            size = sorted(formats.open_file(file, job.source).size)
            header = bitstream.read_header(lat.read(bitstream.FIXED))
    except Exception:  # the conversion will report what is wrong with the image
        return True
    return size != sorted((header.width, header.height))
