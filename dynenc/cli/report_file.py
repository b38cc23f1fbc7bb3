"""The report of a run: one row per image in a .csv or .jsonl file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from types import TracebackType
from typing import Any, TextIO

from dynenc.batch.results import Result, RoundtripFigures
from dynenc.batch.settings import TaskName
from dynenc.errors import OutputExists, UsageError
from dynenc.io import storage
from dynenc.io.names import parent, suffix_of
from dynenc.io.writing import is_stream, remove_stale_partials, writing

COLUMNS = ("source", "target", "status", "reason", "note")
COUNTS = ("n_bytes_in", "n_bytes_out", "width", "height", "bpp", "quality")
FIGURES = tuple(f.name for f in fields(RoundtripFigures) if f.name not in ("image", *COUNTS))
SUFFIXES = (".csv", ".jsonl")
Row = dict[str, Any]


def row_of(result: Result) -> Row:
    """A result as a row; measurements only for images that were converted."""
    row: Row = {name: getattr(result, name) for name in (*COLUMNS, *COUNTS)}
    if result.status != "done":  # nothing was measured
        row |= dict.fromkeys(COUNTS)
    if result.figures:
        row |= {name: getattr(result.figures, name) for name in FIGURES}
    return row


def json_of(row: Row) -> str:
    """A row as JSON, which has no infinity (the PSNR of identical images): that becomes null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False)


class ReportFile:
    """A context that writes a report.

    An existing report is continued: rows of images that are skipped, or that are not in this run,
    are kept.

    Args:
        overwrite: start a new report.
    Raises: UsageError if the name has another suffix; OutputExists, on entry, if the file exists
        and is not a report of this task; OutputError, where it cannot be written: the existing
        file then stays as it was.
    """

    def __init__(self, path: str, task: TaskName, *, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self.suffix = suffix_of(path).lower()
        if self.suffix not in SUFFIXES:
            raise UsageError(f"the name of the report must end in .csv or .jsonl, not {path}")
        self.columns = [*COLUMNS, *COUNTS, *(FIGURES if task == "roundtrip" else ())]
        self.earlier: dict[tuple[str, str], Row] = {}
        self.stack = ExitStack()
        self.write: Callable[[Row], object] | None = None

    def __enter__(self) -> ReportFile:
        if not self.overwrite and not is_stream(self.path) and storage.exists(self.path):
            self.earlier = {(row["source"], row["target"]): row for row in self._read()}
        if not is_stream(self.path):
            remove_stale_partials(parent(self.path))
        raw = self.stack.enter_context(writing(self.path, overwrite=True))
        file = io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="")
        self.stack.callback(file.detach)
        self.write = self._writer(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        for row in self.earlier.values():
            self._write(row)
        self.stack.close()  # without the error: an interrupted run also leaves its report

    def _writer(self, file: TextIO) -> Callable[[Row], object]:
        if self.suffix == ".csv":
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            return writer.writerow
        return lambda row: file.write(json_of(row) + "\n")

    def _read(self) -> Sequence[Row]:
        try:
            with storage.reading(self.path) as raw:
                text = raw.read().decode("utf-8", "surrogateescape")
            if self.suffix == ".jsonl":
                rows = [json.loads(line) for line in text.split("\n") if line]
                known = all(self._is_row(row) for row in rows)
            else:
                reader = csv.DictReader(io.StringIO(text, newline=""))  # names may have line breaks
                rows = list(reader)
                known = reader.fieldnames in (None, self.columns)
                known = known and not any(None in row for row in rows)  # more fields than columns
        except (ValueError, AttributeError, csv.Error):
            known = False
        if not known:
            raise OutputExists(
                f"{self.path} exists, but is not a report of this command",
                hint="choose another with --report, or overwrite it with --force",
            )
        return rows

    def add(self, result: Result) -> None:
        """Write the row of a result."""
        earlier = self.earlier.pop((result.source, result.target), None)
        self._write(earlier if earlier and result.status == "skipped" else row_of(result))

    def _write(self, row: Row) -> None:
        if not self.write:
            return
        try:
            self.write(row)
        except OSError as exc:  # closed with the error, so that no incomplete report is left
            self.write = None
            self.stack.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def _is_row(self, row: Any) -> bool:
        """Whether it is a row of this task's report; images that failed have no figures."""
        least = {*COLUMNS, *COUNTS}
        return (
            isinstance(row, dict)
            and least <= row.keys() <= set(self.columns)
            and isinstance(row["source"], str)
            and isinstance(row["target"], str)
        )
