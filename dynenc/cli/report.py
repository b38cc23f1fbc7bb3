"""The output of a run: results on stdout, progress and failures on stderr, a report in a file."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING

from dynenc.batch.results import ConversionSummary, Result, RoundtripFigures
from dynenc.batch.settings import TaskName
from dynenc.cli import console
from dynenc.cli.report_file import ReportFile, json_of, row_of
from dynenc.imaging.notes import ILLEGIBLE
from dynenc.io.writing import is_stream

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERVAL = 10.0  # s between lines where stderr is not a terminal
ROW = "{:8.3f} bpp  {:6.2f} dB  {:>7}  1/{:<5.1f} {:7.1f} ms  {:7.1f} ms  {}"
HEAD = "       size      PSNR  MS-SSIM  of file   encode      decode  image"


class Reporter:
    """A context; pass its `add` to `convert` as on_result, and the summary to `finish`."""

    def __init__(
        self,
        task: TaskName,
        *,
        quiet: bool = False,
        as_json: bool = False,
        shows_quality: bool = False,
        report: ReportFile | None = None,
    ) -> None:
        """Set up.

        Args:
            as_json: print one JSON object per image instead of text.
            shows_quality: print the quality, because it was searched for.
            report: also write the results to this file.
        """
        self.task, self.quiet, self.as_json = task, quiet, as_json
        self.shows_quality = shows_quality
        self.stack = ExitStack()
        self.report = report
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.told = time.monotonic()
        self.rows: list[RoundtripFigures] = []
        self.illegible = 0  # images with text that is stored only as latents

    def __enter__(self) -> Reporter:
        if self.report:
            self.stack.enter_context(self.report)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
        self.stack.close()  # an interrupted run also leaves its report

    def add(self, result: Result, summary: ConversionSummary) -> None:
        """Show one result."""
        if self.report:
            self.report.add(result)
        if result.status == "failed" and not summary.single:
            hint = f": {result.error.hint}" if result.error and result.error.hint else ""
            console.print_message(f"dynenc: {result.reason}{hint}")
        if result.note and result.status == "done" and not self.quiet:
            self._tell_note(result, summary)
        if result.status in ("done", "planned"):
            self._print(result, summary)
        if result.preview and not self.quiet:
            from dynenc.cli import terminal  # imports rich

            terminal.show_image(result.preview)
        if not (self.quiet or summary.single or result.status == "planned"):
            self._progress(summary)

    def _tell_note(self, result: Result, summary: ConversionSummary) -> None:
        """Show a note; of those about illegible text only the first, and count the others."""
        if not summary.single and ILLEGIBLE in result.note:
            self.illegible += 1
            if self.illegible > 1:
                return
        name = f"{result.source}: " if not summary.single or ILLEGIBLE in result.note else ""
        console.print_message(f"dynenc: {name}{result.note}")

    def _print(self, result: Result, summary: ConversionSummary) -> None:
        to_stderr = is_stream(result.target)
        if self.as_json:
            row = asdict(result.figures) if result.figures else row_of(result)
            console.print_result(json_of(row), to_stderr=to_stderr)
        elif result.figures:
            if not self.quiet and summary.single:
                console.print_result(*_lines(result.figures))
            elif not self.quiet:
                console.print_result(
                    *([] if self.rows else [HEAD]), _row([result.figures], result.source)
                )
                self.rows.append(result.figures)
        elif not self.quiet:
            if result.status == "planned":
                line = f"{result.source} -> {result.target}" if result.target else result.source
            elif self.task in ("encode", "import"):
                line = f"{result.target}  {result.n_bytes_out} bytes  {result.bpp:.3f} bpp"
                if self.shows_quality and result.quality is not None:
                    line += f"  quality {result.quality:g}"
            else:
                line = result.target
            console.print_result(line, to_stderr=to_stderr)

    def _progress(self, summary: ConversionSummary) -> None:
        rest = summary.jobs - summary.finished
        left = rest * summary.seconds / max(1, summary.finished)
        self._move("files", _progress_text(summary), summary.finished, summary.jobs, left)

    def step(self, done: int, of: int) -> None:
        """Show the progress of an image's refinement."""
        if not self.quiet:
            self._move("steps", f"step {done} of {of}", done, of)

    def _move(self, task: str, text: str, done: int, of: int, left: float | None = None) -> None:
        """Advance a bar; if stderr is not a terminal, print a line from time to time."""
        if sys.stderr is not None and sys.stderr.isatty():
            self._show(task, text, done, of)
        elif time.monotonic() - self.told > INTERVAL:
            self.told = time.monotonic()
            console.print_message(f"dynenc: {text}" + (f", {left:.0f} s left" if left else ""))

    def _show(self, task: str, text: str, done: int, of: int) -> None:
        """Advance one of the bars."""
        if self.bar is None:
            from dynenc.cli import terminal

            self.bar = terminal.bars()
            self.bar.start()
        if task not in self.tasks:
            self.tasks[task] = self.bar.add_task(text, total=of)
        self.bar.update(self.tasks[task], completed=done, total=of, description=text)

    def finish(self, summary: ConversionSummary) -> None:
        """Show the means of roundtrips, and the counts of all files."""
        if self.quiet:
            return
        if len(self.rows) > 1:
            console.print_result(
                _row(self.rows, f"mean of {len(self.rows)} images, each counted once")
            )
        if self.bar:
            self.bar.stop()
        if self.illegible > 1:
            rest = self.illegible - 1
            console.print_message(
                "dynenc: text or graphics will not be legible in "
                + ("another image" if rest == 1 else f"{rest} more images")
            )
        if summary.stale:
            which = ", ".join(summary.stale)
            console.print_message(f"dynenc: left over from an earlier run: {which}")
        if not summary.single:
            console.print_message(f"dynenc: {_final(summary)}")
            if summary.outdated:
                which = f"{summary.outdated} of the skipped outputs were"
                if summary.outdated == summary.skipped == 1:
                    which = "the skipped output was"
                console.print_message(
                    f"dynenc: {which} made with other settings; --update rewrites them"
                )
        elif summary.skipped:
            hint = " (made with other settings; --update rewrites it)" if summary.outdated else ""
            console.print_message(f"dynenc: output exists, skipped{hint}")


def _row(rows: list[RoundtripFigures], name: str) -> str:
    """The means over some images as one line of the table."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    similar = [row.ms_ssim for row in rows if row.ms_ssim is not None]
    return ROW.format(
        mean([row.bpp for row in rows]),
        mean([row.psnr_db for row in rows]),
        f"{mean(similar):.4f}" if similar else "-",
        mean([row.ratio_file for row in rows]),
        1e3 * mean([row.encode_s for row in rows]),
        1e3 * mean([row.decode_s for row in rows]),
        name,
    )


def _lines(figures: RoundtripFigures) -> list[str]:
    similarity = "-" if figures.ms_ssim is None else f"{figures.ms_ssim:.4f}"
    return [
        f"{figures.image}  {figures.width}x{figures.height}  "
        f"{figures.encoder} -> {figures.decoder}",
        f"PSNR      {figures.psnr_db:.2f} dB",
        f"MS-SSIM   {similarity}",
        f"size      {figures.n_bytes} bytes, {figures.bpp:.3f} bpp, 1/{figures.ratio_raw:.0f} of "
        f"the raw pixels, 1/{figures.ratio_file:.1f} of the input file",
        f"time      {1e3 * figures.encode_s:.1f} ms to encode, {1e3 * figures.decode_s:.1f} ms to"
        " decode",
    ]


def _progress_text(summary: ConversionSummary) -> str:
    return f"{summary.finished}/{summary.jobs}, {_speed(summary)}, {_volume(summary)}"


def _speed(summary: ConversionSummary) -> str:
    """Images per second, or seconds per image for slow runs."""
    speed = summary.per_second
    return f"{1 / speed:.1f} s/image" if 0 < speed < 1 else f"{speed:.1f} images/s"


def _volume(summary: ConversionSummary) -> str:
    return f"{_size(summary.n_bytes_in)} in, {_size(summary.n_bytes_out)} out"


def _size(n_bytes: int) -> str:
    """A number of bytes in the largest decimal unit that it reaches."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} bytes"


def _final(summary: ConversionSummary) -> str:
    if summary.planned:
        return f"{summary.planned} to do, {summary.skipped} skipped, {summary.ignored} ignored"
    return (
        f"{summary.done} done, {summary.failed} failed, {summary.skipped} skipped, "
        f"{summary.ignored} ignored; {_volume(summary)}; {summary.seconds:.1f} s, {_speed(summary)}"
    )
