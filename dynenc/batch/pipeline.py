"""A conversion run: find inputs, plan outputs, skip finished ones, convert, report, count."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

from dynenc.batch import destination, local_engine
from dynenc.batch.find import Listing, find
from dynenc.batch.plan import Job, OutputRule, plan
from dynenc.batch.results import ConversionSummary, Result
from dynenc.batch.settings import ConversionSettings, OutputOptions
from dynenc.coding.rate_control import OnStep
from dynenc.errors import OutputExists, UnexpectedError, UsageError, with_name
from dynenc.io import names, storage
from dynenc.io.writing import make_folder, refuse_existing, remove_stale_partials

logger = logging.getLogger(__name__)

OnResult = Callable[[Result, ConversionSummary], None]


def run_conversion(
    settings: ConversionSettings,
    inputs: list[str],
    output: str | None,
    *,
    dry_run: bool = False,
    on_result: OnResult | None = None,
    on_step: OnStep | None = None,
) -> ConversionSummary:
    """Like `convert`, with checked options as objects."""
    prepared = _prepare(settings, inputs, output)
    summary = prepared.summary

    def report(results: Iterable[Result]) -> None:
        for result in results:
            summary.add(result)
            _log(result)
            if on_result:
                on_result(result, summary)

    report(prepared.results)
    if dry_run:
        report(Result(job.name, job.target, "planned") for job in prepared.todo)
    else:
        _execute(prepared, report, on_step)
    if summary.single and summary.failures and (error := summary.failures[0].error):
        raise with_name(error, names.display_name(summary.failures[0].source)) from error
    return summary


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A run before its first conversion."""

    settings: ConversionSettings
    todo: list[Job]
    results: list[Result]  # of the inputs that are not converted
    folders: set[str]  # to be made for the outputs
    summary: ConversionSummary


def _prepare(settings: ConversionSettings, inputs: list[str], output: str | None) -> _Prepared:
    """Find the inputs, plan their outputs, and check the existing ones."""
    listing = find(settings.task, inputs, output, settings.input)
    single = listing.is_single
    if settings.view.region and not single:
        raise UsageError("a region needs a single image", hint="give one .lat file")
    jobs, settings = _plan(listing, output, settings)
    existing = settings.output.existing or ("refuse" if single else "skip")
    settings = replace(
        settings,
        output=replace(settings.output, existing=existing),
        run=replace(settings.run, strict=single),
    )
    todo, results = _split_finished(jobs, output, settings)
    is_packed = settings.output.shard_size is not None
    is_folder = not single or is_packed or (output or "").endswith(("/", os.sep))
    return _Prepared(
        settings,
        todo,
        results=[*listing.unreadable, *listing.ignored_images, *results],
        folders={names.parent(job.target) for job in todo if job.target and is_folder},
        summary=ConversionSummary(
            jobs=len(todo),
            single=single,
            ignored=listing.n_ignored - len(listing.ignored_images),  # which are results
            stale=destination.stale_shards(jobs),
        ),
    )


def _plan(
    listing: Listing, output: str | None, settings: ConversionSettings
) -> tuple[list[Job], ConversionSettings]:
    """The jobs, and the settings with the output suffix filled in."""
    files = listing.files
    if output is None and settings.task == "roundtrip":
        _check_measuring(settings.output)
        output = ""
    is_file = destination.is_output_file(output, listing, settings)
    settings = destination.with_suffix(settings, output if is_file else None)
    ignores_case = not names.is_url(output or "") and storage.ignores_case(
        output or names.parent(files[0].path if files else "")
    )
    rule = OutputRule(
        output,
        settings.output.suffix,
        into_folder=not is_file,
        shard_size=settings.output.shard_size,
        naming=settings.output.naming,
        same_name=storage.real_names(folds=ignores_case),
    )
    return plan(files, rule), settings


def _check_measuring(options: OutputOptions) -> None:
    """Refuse output options for a roundtrip that writes no images."""
    given = {
        "a suffix": options.suffix,
        "a naming scheme": options.naming != "replace",
        "a shard size": options.shard_size,
        "keeping modification times": options.keep_mtime,
        "a policy for existing files": options.existing in ("skip", "update"),
    }
    if ignored := [name for name, is_given in given.items() if is_given]:
        raise UsageError(
            f"a roundtrip without an output writes no images, so {ignored[0]} has no effect",
            hint="choose an output with -o",
        )


def _split_finished(
    jobs: list[Job], output: str | None, settings: ConversionSettings
) -> tuple[list[Job], list[Result]]:
    """The jobs that remain, and the results of those that are finished or refused.

    Remaining outputs do not exist or may be overwritten, so an engine may safely redo a job after
    a crash.
    """
    if settings.output.existing == "refuse":
        return _refused(jobs)
    is_checked = settings.output.existing in ("skip", "update")
    is_remote = names.is_url(output or "")
    if not is_checked or not (is_remote or any(storage.exists(job.target) for job in jobs)):
        return jobs, []
    from dynenc.batch.existing import split_finished

    return split_finished(jobs, output, settings)


def _refused(jobs: list[Job]) -> tuple[list[Job], list[Result]]:
    """The jobs whose outputs do not exist, and failures for the others."""
    todo, failed = [], []
    for job in jobs:
        try:
            refuse_existing(job.target, overwrite=False)
            todo.append(job)
        except OutputExists as exc:
            failed.append(Result(job.name, job.target, "failed", error=exc))
    return todo, failed


def _execute(
    prepared: _Prepared, report: Callable[[Iterable[Result]], None], on_step: OnStep | None
) -> None:
    """Make the folders, convert, and report the results."""
    for folder in sorted(prepared.folders):
        make_folder(folder)
        remove_stale_partials(folder)
    with closing(_start(prepared.todo, prepared.settings, on_step)) as stream:
        for results in stream:
            prepared.summary.finished += 1
            report(results)
    for folder in prepared.folders:  # again: killed processes may have been writing at the start
        remove_stale_partials(folder)


def _start(
    jobs: list[Job], settings: ConversionSettings, on_step: OnStep | None
) -> Generator[list[Result], None, None]:
    if settings.run.engine == "ray" and jobs:
        from dynenc.batch import ray_engine

        yield from ray_engine.run(jobs, settings)
    elif jobs:
        # fsspec's memory:// is private to a process
        in_memory = any(name.startswith("memory://") for name in (jobs[0].source, jobs[0].target))
        yield from local_engine.run(jobs, settings, 1 if in_memory else settings.run.jobs, on_step)


def _log(result: Result) -> None:
    """Log what only --verbose shows."""
    if result.status == "ignored":
        logger.debug("%s ignored: %s", result.source, result.note)
    if isinstance(result.error, UnexpectedError):
        logger.debug("%s\n%s", result.reason, result.error.traceback.rstrip())
