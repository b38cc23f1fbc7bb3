"""Convert files, folders, shards: find them, plan, leave out what is finished, run, count."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import get_args

from dynenc.arguments import file_name, function, number, patterns, whole
from dynenc.batch import destination, local_engine
from dynenc.batch.find import Listing, find
from dynenc.batch.plan import Job, plan
from dynenc.batch.records import (
    DecodeOptions,
    EncodeOptions,
    Engine,
    Existing,
    InputOptions,
    Naming,
    OutputOptions,
    Result,
    RunOptions,
    Settings,
    Summary,
    Task,
)
from dynenc.coding import rate_control
from dynenc.coding.bitstream import MAX_PIXELS
from dynenc.coding.rate_control import DETAIL_MODES, DetailMode
from dynenc.errors import UnexpectedError, UsageError, named
from dynenc.io import names, storage
from dynenc.io.writing import make_folder, sweep
from dynenc.view import WHOLE, View

logger = logging.getLogger(__name__)

Name = str | os.PathLike[str]
OnResult = Callable[[Result, Summary], None]
OnStep = Callable[[int, int], None]


def convert(
    task: Task,
    inputs: Name | Iterable[Name],
    output: Name | None = None,
    *,
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    suffix: str | None = None,
    naming: Naming = "replace",
    shard_size: int | None = None,
    existing: Existing | None = None,
    keep_mtime: bool = False,
    dry_run: bool = False,
    encoder: str = "light",
    decoder: str = "auto",
    quality: float | None = None,
    target_bpp: float | None = None,
    target_size: int | str | None = None,
    target_psnr: float | None = None,
    strict: bool = False,
    effort: int = 0,
    detail: DetailMode = "auto",
    tune_for: str = "embedded",
    keep_metadata: bool = False,
    scale: float | None = None,
    view: View = WHOLE,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    truncated: bool = False,
    jobs: int | None = None,
    batch_size: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    preview: int = 0,
    on_result: OnResult | None = None,
    on_step: OnStep | None = None,
) -> Summary:
    """Encode, decode, measure, export or import files, folders, archives, patterns and URLs.

    The commands of these names do the same. One bad file does not stop the others: it is counted
    in the summary and named in its `failures`. Only if a single file is named and nothing else, its
    error is raised.

    Args:
        task: "encode", "decode", "roundtrip", "export" or "import". A roundtrip encodes and decodes
            in memory, and writes images only if there is an output.
        inputs: one or several. A name that exists is taken as it is, even if it looks like a
            pattern.
        output: folder, or URL of one, to write below; of a single file also the file itself. None
            is beside each input.
        recursive: take sub-folders too, and keep them.
        include, exclude: patterns of names, or of paths below the folder if they have a slash.
        suffix: of the outputs, and decides the format. None is that of an output file, else ".lat"
            when encoding or importing, ".png" or ".safetensors". For the formats of latents see
            `interop.latent_files`.
        naming: "replace" the suffix of the input, or "keep" it: a.jpg becomes a.jpg.lat.
        shard_size: pack the outputs into tar shards of this many images.
        existing: what to do about an output that exists: "skip" it, "update" it if the input has
            changed since or it was made with other settings, "force" writes it again, "refuse"
            fails. None is "refuse" for a single file, else "skip".
        keep_mtime: give outputs the input's time of modification.
        dry_run: only tell what would be done.
        encoder, quality, target_bpp, target_size, target_psnr, strict, effort, detail,
            keep_metadata: as of `Codec` and `Codec.encode`. Latents to import take a quality only;
            without one those that were rounded before stay as they are, and others get 80.
        decoder: as of `Codec`.
        tune_for: decoder that `effort` and `target_psnr` are for when encoding; a roundtrip tunes
            for `decoder`.
        scale: what latents to import were multiplied with: 0.18215, or 1 for those that a VAE gave.
            None is what each file says.
        view: part and size of the images to decode, of `View.of`; a region is that of one file.
        device: "auto", "cpu", "cuda" or "mps".
        max_pixels: refuse files that declare more.
        truncated: of image files that are cut short, take the pixels that are there, with a note.
        jobs: worker processes, with Ray actors; None chooses.
        batch_size: images of equal size in one pass of the network; None chooses.
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
    _check(task, existing=existing, naming=naming, engine=engine, detail=detail)
    goal = rate_control.goal(
        quality,
        target_bpp=target_bpp,
        target_size=target_size,
        target_psnr=target_psnr,
        strict=strict,
    )
    if task == "import" and quality is None and goal.kind == "quality":
        goal = rate_control.Goal(value=rate_control.IMPORT_QUALITY)
    settings = Settings(
        task=task,
        encode=EncodeOptions(
            encoder=file_name("an encoder", encoder),
            goal=goal,
            effort=whole("effort", effort, 0, rate_control.MAX_EFFORT),
            detail=detail,
            tune_for=file_name("a decoder", tune_for),
            keep_metadata=keep_metadata,
            scale=scale,
            keep_step=quality is None,
        ),
        decode=DecodeOptions(decoder=file_name("a decoder", decoder), view=view),
        input=InputOptions(
            recursive=recursive,
            include=patterns("include", include),
            exclude=patterns("exclude", exclude),
            max_pixels=whole("max_pixels", max_pixels),
            truncated=truncated,
        ),
        output=OutputOptions(
            suffix=_suffix(suffix),
            naming=naming,
            shard_size=None if shard_size is None else whole("shard_size", shard_size, 1),
            existing=existing,
            keep_mtime=keep_mtime,
        ),
        run=RunOptions(
            device=device,
            engine=engine,
            address=address,
            jobs=None if jobs is None else whole("jobs", jobs, 1),
            batch_size=None if batch_size is None else whole("batch_size", batch_size, 1),
            preview=whole("preview", preview),
        ),
    )
    if isinstance(inputs, bytes) or not isinstance(inputs, Iterable | os.PathLike):
        raise UsageError(f"{inputs!r} is no name of an input, nor a list of them")
    named = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    return run(
        settings,
        [names.plain(file_name("an input", name)) for name in named],
        None if output is None else names.plain(file_name("an output", output)),
        dry_run=dry_run,
        on_result=function("on_result", on_result),
        on_step=function("on_step", on_step),
    )


def _suffix(suffix: str | None) -> str:
    """A suffix as given, with its dot; "" for None."""
    if suffix is None:
        return ""
    bare = suffix.removeprefix(".") if isinstance(suffix, str) else ""
    if not bare or {"/", os.sep, "\0"} & set(bare):
        raise UsageError(f"{suffix!r} is not a suffix of file names")
    return "." + bare


def _check(task: str, **choices: str | None) -> None:
    if task not in get_args(Task):
        raise UsageError(f"there is no task {task!r}: choose one of {', '.join(get_args(Task))}")
    allowed = {"existing": (None, *get_args(Existing)), "naming": get_args(Naming)}
    allowed |= {"engine": get_args(Engine), "detail": DETAIL_MODES}
    for name, value in choices.items():
        if value not in allowed[name]:
            known = ", ".join(filter(None, allowed[name]))
            raise UsageError(f"there is no {name} {value!r}: choose one of {known}")


def run(
    settings: Settings,
    inputs: list[str],
    output: str | None,
    *,
    dry_run: bool = False,
    on_result: OnResult | None = None,
    on_step: OnStep | None = None,
) -> Summary:
    """Do what `convert` says, with the options as objects."""
    _check_encoding(settings)
    if settings.run.address is not None and settings.run.engine != "ray":
        raise UsageError(
            "an address is that of a Ray cluster, but the engine is local", hint="add --engine ray"
        )
    listing = find(settings.task, inputs, output, settings.input)
    single = listing.is_single
    if settings.decode.view.region and not single:
        raise UsageError("a region is that of one image", hint="name a single .lat file")
    jobs, settings = _plan(listing, output, settings)
    if settings.output.existing is None:
        policy: Existing = "refuse" if single else "skip"
        settings = replace(settings, output=replace(settings.output, existing=policy))
    settings = replace(settings, run=replace(settings.run, strict=single))
    todo, results = _sort(jobs, output, settings)
    n_others = listing.n_ignored - len(listing.ignored_images)
    summary = Summary(jobs=len(todo), single=single, ignored=n_others)

    def tell(results: Iterable[Result]) -> None:
        for result in results:
            summary.add(result)
            if result.status == "ignored":
                logger.debug("%s is ignored: %s", result.source, result.note)
            if isinstance(result.error, UnexpectedError):
                logger.debug("%s\n%s", result.reason, result.error.traceback.rstrip())
            if on_result:
                on_result(result, summary)

    tell(listing.unreadable)
    tell(listing.ignored_images)
    tell(results)
    if dry_run:
        tell(Result(job.source or job.target, job.target, "planned") for job in todo)
        return summary
    is_packed = settings.output.shard_size is not None
    is_folder = not single or is_packed or (output or "").endswith(("/", os.sep))
    folders = {names.parent(job.target) for job in todo if job.target and is_folder}
    for folder in sorted(folders):
        make_folder(folder)
        sweep(folder)
    with closing(_start(todo, settings, on_step)) as stream:
        for results in stream:
            summary.finished += 1
            tell(results)
    for folder in folders:  # of killed processes that had not quite ended when the run began
        sweep(folder)
    if single and summary.failures and (error := summary.failures[0].error):
        raise named(error, names.shown(summary.failures[0].source)) from error
    return summary


def _check_encoding(settings: Settings) -> None:
    options = settings.encode
    if settings.task == "import" and options.goal.kind != "quality":
        raise UsageError("latents are imported with a quality, not with a target")
    if options.scale is not None and not 0 < number("scale", options.scale) < math.inf:
        raise UsageError(f"scale {options.scale:g} is not possible")


def _plan(listing: Listing, output: str | None, settings: Settings) -> tuple[list[Job], Settings]:
    """The jobs, and the settings with the suffix of their outputs."""
    files = listing.files
    if output is None and settings.task == "roundtrip":
        _check_measuring(settings.output)
        output = ""
    is_file = destination.names_file(output, listing, settings)
    settings = destination.with_suffix(settings, output if is_file else None)
    ignores_case = not names.is_url(output or "") and storage.ignores_case(
        output or names.parent(files[0].path if files else "")
    )
    jobs = plan(
        files,
        output,
        settings.output.suffix,
        into_folder=not is_file,
        shard_size=settings.output.shard_size,
        naming=settings.output.naming,
        same_name=names.folded if ignores_case else str,
    )
    return jobs, settings


def _check_measuring(options: OutputOptions) -> None:
    """Refuse options of outputs for a roundtrip that only measures."""
    given = {
        "a suffix": options.suffix,
        "a way of naming": options.naming != "replace",
        "a shard size": options.shard_size,
        "keeping times": options.keep_mtime,
        "what to do with existing files": options.existing in ("skip", "update"),
    }
    if ignored := [name for name, is_given in given.items() if is_given]:
        raise UsageError(
            f"a roundtrip without an output writes no images, so {ignored[0]} has no effect",
            hint="name a place with -o",
        )


def _sort(
    jobs: list[Job], output: str | None, settings: Settings
) -> tuple[list[Job], list[Result]]:
    """The jobs to do, and what became of those whose outputs are finished."""
    is_checked = settings.output.existing in ("skip", "update")
    is_remote = names.is_url(output or "")
    if not is_checked or not (is_remote or any(storage.exists(job.target) for job in jobs)):
        return jobs, []
    from dynenc.batch.existing import sort

    return sort(jobs, output, settings)


def _start(
    jobs: list[Job], settings: Settings, on_step: OnStep | None
) -> Generator[list[Result], None, None]:
    if settings.run.engine == "ray" and jobs:
        from dynenc.batch import ray_engine

        yield from ray_engine.run(jobs, settings)
    elif jobs:
        # other processes have a memory of their own
        in_memory = any(name.startswith("memory://") for name in (jobs[0].source, jobs[0].target))
        yield from local_engine.run(jobs, settings, 1 if in_memory else settings.run.jobs, on_step)
