"""Convert files, folders, shards: find them, plan, leave out what is finished, run, count."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from dynenc.batch import local_engine
from dynenc.batch.plan import Found, Job, input_suffixes, plan, select
from dynenc.batch.records import Existing, Result, Settings, Summary, Task
from dynenc.coding import rate_control
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.errors import (
    BitstreamError,
    DynencError,
    ImageError,
    LatentsError,
    OutputError,
    UsageError,
)
from dynenc.io import names, storage
from dynenc.io.names import STREAM
from dynenc.io.shards import is_archive, is_tar

Name = str | os.PathLike[str]
Engine = Literal["local", "ray"]
SUFFIXES: dict[Task, str] = {
    "encode": ".lat",
    "decode": ".png",
    "roundtrip": ".png",
    "export": ".safetensors",
    "import": ".lat",
}


def convert(
    task: Task,
    inputs: Name | Iterable[Name],
    output: Name | None = None,
    *,
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffix: str | None = None,
    shard_size: int | None = None,
    existing: Existing | None = None,
    dry_run: bool = False,
    encoder: str = "light",
    decoder: str = "auto",
    quality: float | None = None,
    target_bpp: float | None = None,
    target_size: int | str | None = None,
    target_psnr: float | None = None,
    effort: int = 0,
    tune_for: str = "embedded",
    keep_metadata: bool = False,
    scale: float | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    jobs: int | None = None,
    batch_size: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    preview: int = 0,
    on_result: Callable[[Result, Summary], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Summary:
    """Encode, decode, measure, export or import files, folders, tar shards, patterns and URLs.

    What the commands of these names do.

    One bad file does not stop the others: it is counted in the summary and named in its `failures`.
    Only if a single file is named and nothing else, its error is raised.

    Args:
        task: "roundtrip" encodes and decodes in memory, and writes pictures only if there is an
            output.
        output: folder, or URL of one, to write below; of a single file also the file itself. None
            is beside each input.
        recursive: take sub-folders too, and keep them.
        include, exclude: patterns of names, or of paths below the folder if they have a slash.
        suffix: of the outputs, and decides the format; ".lat" when encoding or importing, else
            ".png" or ".safetensors". For the formats of latents see `interchange`.
        shard_size: pack the outputs into tar shards of this many pictures.
        keep_metadata: keep EXIF, XMP and ICC profile of the pictures that are encoded.
        existing: what to do about an output that is there: "skip" it, "update" it if it is older
            than the input or made with other settings, "force" writes it again, "refuse" fails.
            None is "refuse" for a single file, else "skip".
        dry_run: only tell what would be done.
        quality, target_bpp, target_size, target_psnr, effort: as of `Codec.encode`. Latents to
            import take a quality only; without one those that were rounded before stay as they are,
            and others get 80.
        tune_for: decoder that `effort` and `target_psnr` are for when encoding; a roundtrip tunes
            for `decoder`.
        scale: what latents to import were multiplied with: 0.18215, or 1 for those that a VAE gave.
            None is what each file says.
        jobs: worker processes, with Ray actors; None chooses.
        batch_size: pictures of equal size in one pass of the network; None chooses.
        engine: "local", or "ray" for a cluster at `address`; see `ray_engine`.
        preview: add to each roundtrip's result a small image of both, for so many columns.
        on_result: called with each result, in the order they end, and the count so far.
        on_step: called, where no other processes work, with the number of each step of an effort
            and of all.
    Returns: the count of all.
    Raises: UsageError if the plan makes no sense, ImageError, BitstreamError or LatentsError if
        there is nothing to convert, and what would make every file fail: WeightsError,
        DeviceError, EngineError, OutputError if a folder cannot be written, DiskFull. What is
        finished stays.
    """
    _check(task, existing, engine)
    goal = rate_control.goal(
        quality, target_bpp=target_bpp, target_size=target_size, target_psnr=target_psnr
    )
    if task == "import" and goal.kind != "quality":
        raise UsageError("latents are imported with a quality, not with a target")
    if task == "import" and quality is None:
        goal = rate_control.Goal(value=rate_control.IMPORT_QUALITY)
    if goal.kind == "quality" and not 0 <= goal.value <= 100:
        raise UsageError(f"quality {quality} is not within 0..100")
    if not 0 <= effort <= 9:
        raise UsageError(f"effort {effort} is not within 0..9")
    suffix = SUFFIXES[task] if suffix is None else "." + suffix.removeprefix(".")
    target = None if output is None else names.plain(output)
    named = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    found = _find(task, [names.plain(name) for name in named], target, recursive)
    taken, ignored = _select(task, found, include, exclude)
    single = len(found.files) == 1 and found.files[0].named and not _is_archive(found.files[0])
    planned = _plan(task, taken, target, suffix, shard_size, single)
    existing = existing or ("refuse" if single else "skip")
    settings = Settings(
        task,
        encoder,
        tune_for if task == "encode" else decoder,
        goal,
        effort,
        quality is None,
        scale,
        device,
        keep_metadata,
        max_pixels,
        suffix,
        batch_size,
        existing,
        preview=preview,
        strict=single,
    )
    todo, finished = _unfinished(planned, target, settings)
    summary = Summary(jobs=len(todo), single=single, ignored=ignored)

    def tell(results: Iterable[Result]) -> None:
        for result in results:
            summary.add(result)
            if on_result:
                on_result(result, summary)

    tell(found.unreadable)
    tell(Result(job.source or job.target, job.target, "skipped") for job in finished)
    if dry_run:
        tell(Result(job.source or job.target, job.target, "planned") for job in todo)
        return summary
    is_folder = not single or (target or "").endswith(("/", os.sep))
    folders = {names.parent(job.target) for job in todo if job.target and is_folder}
    for folder in sorted(folders):
        storage.make_folder(folder)
        storage.sweep(folder)
    with closing(_start(todo, settings, jobs, engine, address, on_step)) as stream:
        for results in stream:
            summary.finished += 1
            tell(results)
    for folder in folders:  # of killed processes that had not quite ended when the run began
        storage.sweep(folder)
    if single and summary.failures and (error := summary.failures[0].error):
        raise error
    return summary


def _check(task: str, existing: str | None, engine: str) -> None:
    if task not in SUFFIXES:
        raise UsageError(f"there is no task {task!r}: choose one of {', '.join(SUFFIXES)}")
    if existing not in (None, "refuse", "skip", "update", "force"):
        raise UsageError(f"existing cannot be {existing!r}: choose refuse, skip, update or force")
    if engine not in ("local", "ray"):
        raise UsageError(f"there is no engine {engine!r}: choose local or ray")


@dataclass(slots=True)
class _Listing:
    files: list[Found] = field(default_factory=list)
    unreadable: list[Result] = field(default_factory=list)  # sub-folders
    folders: list[str] = field(default_factory=list)  # named, or found by a pattern


def _find(task: Task, inputs: list[str], output: str | None, recursive: bool) -> _Listing:
    """The files that inputs stand for: themselves, or what folders and patterns hold."""
    if STREAM in inputs and len(inputs) > 1:
        raise UsageError("'-' cannot be combined with other inputs", hint="convert it by itself")
    listing = _Listing()
    for name in inputs:
        if storage.is_folder(name):
            _list(listing, name, output, recursive)
            continue
        is_pattern = any(c in name for c in "*?[") and not names.is_web(name)
        expanded = storage.expand(name) if is_pattern else []
        if expanded in ([], [name]):
            listing.files.append(Found(name, names.base(name), named=True))
            continue
        for one in expanded:
            if storage.is_folder(one):
                _list(listing, one, output, recursive)
            else:  # a pattern such as *.zip asks for archives
                listing.files.append(Found(one, names.base(one), named=is_archive(name)))
    if not listing.files and not listing.unreadable:
        where = ", ".join(listing.folders) or "the list of inputs"
        raise _nothing(task, f"{where} is empty", "" if recursive else "-r takes sub-folders too")
    return listing


def _list(listing: _Listing, folder: str, output: str | None, recursive: bool) -> None:
    listing.folders.append(folder)
    for path, relative in storage.walk(folder, recursive, leave_out=output):
        if relative.endswith("/"):
            error = ImageError(f"{path} cannot be read: check its permissions")
            listing.unreadable.append(Result(path, "", "failed", error=error))
        else:
            listing.files.append(Found(path, relative))


def _select(
    task: Task, found: _Listing, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[Found], int]:
    taken, ignored = select(found.files, input_suffixes(task), include, exclude)
    if not taken and not found.unreadable:
        what = {"import": "latents", "decode": ".lat files", "export": ".lat files"}.get(
            task, "pictures"
        )
        raise _nothing(
            task, f"none of the {ignored} files are {what} to {task}", "see --include, -r"
        )
    return taken, ignored


def _nothing(task: Task, message: str, hint: str) -> DynencError:
    errors: dict[Task, type[DynencError]] = {
        "import": LatentsError,
        "decode": BitstreamError,
        "export": BitstreamError,
    }
    return errors.get(task, ImageError)(message, hint=hint)


def _is_archive(file: Found) -> bool:
    return is_archive(file.path)


def _plan(
    task: Task,
    taken: list[Found],
    output: str | None,
    suffix: str,
    shard_size: int | None,
    single: bool,
) -> list[Job]:
    """The jobs; of one file named by itself the output may be a file, else it is a folder."""
    if output is None and task == "roundtrip":
        output = ""
    one_archive = len(taken) == 1 and taken[0].named and _is_archive(taken[0])
    names_file = output is not None and (single or (one_archive and is_tar(output)))
    if output and names_file:
        names_file = not (output.endswith(("/", os.sep)) or storage.is_folder(output))
    if output and not names_file:
        if output == STREAM:
            raise UsageError(
                "only a single file can go to standard output", hint="name a folder with -o"
            )
        if not names.is_url(output) and os.path.isfile(output):  # noqa: PTH113
            raise OutputError(
                f"{output} is a file, not a folder for several outputs", hint="name one with -o"
            )
    ignores_case = not names.is_url(output or "") and storage.ignores_case(
        output or names.parent(taken[0].path if taken else "")
    )
    return plan(
        taken,
        output,
        suffix,
        into_folder=not names_file,
        shard_size=shard_size,
        same_name=names.folded if ignores_case else str,
    )


def _unfinished(
    jobs: list[Job], output: str | None, settings: Settings
) -> tuple[list[Job], list[Job]]:
    """Which jobs are to be done, and which are left out because their outputs are there."""
    if settings.existing not in ("skip", "update"):
        return jobs, []
    if output and names.is_url(output) and storage.is_folder(output):  # one listing, not many
        there = {names.join(output, relative) for _, relative in storage.walk(output, True)}
        finished = {job for job in jobs if job.target in there}
    else:
        finished = {job for job in jobs if job.target and storage.exists(job.target)}
    if settings.existing == "update" and finished:
        from dynenc.batch.converter import is_current

        finished = {job for job in finished if is_current(job, settings)}
    return [job for job in jobs if job not in finished], [job for job in jobs if job in finished]


def _start(
    jobs: list[Job],
    settings: Settings,
    workers: int | None,
    engine: Engine,
    address: str | None,
    on_step: Callable[[int, int], None] | None,
) -> Generator[list[Result], None, None]:
    if engine == "ray" and jobs:
        from dynenc.batch import ray_engine

        yield from ray_engine.run(jobs, settings, workers, address)
    elif jobs:
        # other processes have a memory of their own
        in_memory = any(name.startswith("memory://") for name in (jobs[0].source, jobs[0].target))
        yield from local_engine.run(jobs, settings, 1 if in_memory else workers, on_step)
