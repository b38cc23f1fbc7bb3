"""Existing outputs: which are finished, and which were made with other settings.

A file does not count as finished by its name alone: its header must parse, which is cheap to check.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import BinaryIO, Literal

from dynenc.batch.plan import Job, input_suffixes, member_name
from dynenc.batch.results import Result
from dynenc.batch.settings import ConversionSettings
from dynenc.batch.tasks import TASKS
from dynenc.coding import bitstream
from dynenc.errors import Corrupt, DynencError, OutputExists
from dynenc.imaging import formats
from dynenc.io import shards, storage
from dynenc.io.names import is_url, join, suffix_of
from dynenc.io.writing import is_stream

State = Literal["missing", "current", "older", "other_settings", "other_images", "not_ours"]
UPDATED: tuple[State, ...] = ("older", "other_settings", "other_images")  # with --update
CLOCK_STEP = 2.0  # s; resolution of modification times on the coarsest file systems


def split_finished(
    jobs: list[Job], output: str | None, settings: ConversionSettings
) -> tuple[list[Job], list[Result]]:
    """The jobs that remain, and the results of the others: skipped or failed.

    Raises: OutputExists if a packed shard holds other images and must not be updated; writing the
        later shards would leave images twice in the folder.
    """
    policy = settings.output.existing
    there = _listed(output)
    todo, results = [], []
    for job in jobs:
        if not job.target or (there is not None and job.target not in there):
            todo.append(job)
            continue
        if there is not None and not there[job.target]:
            state: State = "missing"
        elif policy == "skip" and there is not None and not job.members:
            state = "current"  # a request for each would take too long
        else:
            state = state_of(job, settings)
        if state == "missing" or (policy == "update" and state in UPDATED):
            # nothing is lost that is not made again; a file that appears from now on is kept
            todo.append(replace(job, overwrite=storage.exists(job.target)))
        elif state in ("other_images", "not_ours"):
            error = _in_the_way(job.target, state)
            if job.members and state == "other_images":
                raise error
            results.append(Result(job.name, job.target, "failed", error=error))
        else:
            outdated = state == "other_settings"
            results.append(Result(job.name, job.target, "skipped", outdated=outdated))
    return todo, results


def _in_the_way(target: str, state: State) -> OutputExists:
    """The error for an output that is not overwritten."""
    if state == "other_images":
        return OutputExists(
            f"{target} holds other images than those of this run",
            hint="write it again with --update, or choose another output with -o",
        )
    return OutputExists(
        f"{target} exists, and has no record of being made by this command",
        hint="move it away, or overwrite it with --force",
    )


def _listed(output: str | None) -> dict[str, int] | None:
    """The files below a remote folder and their sizes, in one listing instead of many requests."""
    if not (output and is_url(output) and storage.is_folder(output)):
        return None
    return {join(output, below): size for below, size in storage.sizes(output)}


def state_of(job: Job, settings: ConversionSettings) -> State:
    """The state of a job's output file.

    For a shard, the first converted member is checked, and the names of all: one that lacks some
    counts as missing. "older" and anything beyond the header are only checked with
    `existing="update"`.
    """
    if is_stream(job.target):
        return "missing"
    whole = settings.output.existing == "update"
    if not is_url(job.target):
        if os.path.isdir(job.target):  # noqa: PTH112
            return "not_ours"
        if not os.path.isfile(job.target) or os.path.getsize(job.target) == 0:  # noqa: PTH113, PTH202
            return "missing"
    try:
        with storage.reading(job.target) as file:
            state = (_shard_state if job.is_shard else _file_state)(file, job, settings, whole)
    except Corrupt:
        return "other_settings" if whole else "not_ours"
    except Exception:  # a foreign file can make its reader raise anything
        return "not_ours" if storage.exists(job.target) else "missing"
    return "older" if state == "current" and whole and _is_older(job, settings) else state


def _file_state(file: BinaryIO, job: Job, settings: ConversionSettings, whole: bool) -> State:
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    matches = TASKS[settings.task].matches(file, n_bytes, settings, whole=whole)
    return "current" if matches else "other_settings"


def _shard_state(file: BinaryIO, job: Job, settings: ConversionSettings, whole: bool) -> State:
    """The state of a shard; "other_images" if some members are not of the job's images."""
    made, others, matches = list[str](), list[str](), True
    for member in shards.members(file, job.target, seek=True):
        if suffix_of(member.name).lower() != settings.output.suffix.lower():
            others.append(member.name)
            continue
        if not made:
            matches = TASKS[settings.task].matches(member.file, member.size, settings, whole=whole)
        made.append(member.name)
    planned, found = Counter(_planned(job, settings, whole)), Counter(made + others)
    if planned and found - planned:
        is_ours = made and not (job.members and others)  # packed shards hold nothing else
        return "other_images" if is_ours else "not_ours"
    if planned - found:
        return "missing"
    return "current" if matches else "other_settings"


def _planned(job: Job, settings: ConversionSettings, whole: bool) -> list[str]:
    """The names that a shard should hold; none if they are not known."""
    if job.members:
        return [member.name for member in job.members]
    if is_url(job.source) and not whole:  # only to skip it, reading all of it takes too long
        return []
    output, suffixes = settings.output, input_suffixes(settings.task)
    try:
        with storage.reading(job.source) as file:
            names = [member.name for member in shards.members(file, job.source, seek=True)]
    except (DynencError, OSError):  # as with images, damage of what is finished does not matter
        return []
    return [member_name(name, suffixes, output.suffix, output.naming) for name in names]


def _is_older(job: Job, settings: ConversionSettings) -> bool:
    """Whether an input may have changed after the output was written, or is a different image now.

    An input replaced by an older file has an older modification time, but a newer change time
    (ctime), and often a different size. Standard input, and URLs that tell no time, may always have
    changed.
    """
    written = storage.times(job.target)
    for source in [member.source for member in job.members] or [job.source]:
        changed = None if is_stream(source) else storage.times(source)
        if written is None or changed is None:
            return True
        if changed.modified > written.modified or changed.changed > written.changed:
            return True
        is_other = abs(changed.modified - written.modified) > CLOCK_STEP
        if settings.output.keep_mtime and not job.members and is_other:
            return True
    return not job.is_shard and _sizes_differ(job, settings)


def _sizes_differ(job: Job, settings: ConversionSettings) -> bool:
    """Whether an image and its .lat file differ in size, in either orientation."""
    if settings.task != "encode" or not storage.is_regular(job.source):
        return False
    try:
        with storage.reading(job.source) as file, storage.reading(job.target) as lat:
            size = sorted(formats.open_file(file, job.source).size)
            header = bitstream.read_header(lat.read(bitstream.FIXED_BYTES))
    except Exception:  # the conversion will report what is wrong with the image
        return True
    return size != sorted(header.size)
