"""Rate-distortion curves measured by `benchmark`: tables, JSON, BD-rates and plots."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynenc.errors import UsageError
from dynenc.evaluation.measure import FIGURES, QUALITY_FIGURES
from dynenc.io.writing import writing

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
NEEDS_EXTRA = "pip install 'dynenc[eval]'"


@dataclass(slots=True)
class Curve:
    """Means over all images, one value per quality, structured like CompressAI's result files."""

    name: str
    description: str
    results: dict[str, list[float]] = field(default_factory=dict)  # by FIGURES, and "q": quality


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The curves of dynenc, and of the reference codecs for BD-rates."""

    curves: list[Curve]
    anchors: list[Curve]
    left_out: int  # images that could not be measured

    def bd_rates(self, curve: Curve) -> dict[str, dict[str, float]]:
        """The BD-rate for each metric and anchor; empty without `bjontegaard`."""
        if not self.anchors or find_spec("bjontegaard") is None:
            return {}
        return {
            metric: {anchor.name: bd_rate(curve, anchor, metric) for anchor in self.anchors}
            for metric in QUALITY_FIGURES
            if metric in curve.results
        }

    def as_json(self) -> str:
        """One object and line per codec, in CompressAI's format, with BD-rates in percent."""
        rows = [{**_row(one), "bd-rate": _or_null(self.bd_rates(one))} for one in self.curves]
        return "\n".join(json.dumps(row) for row in [*rows, *map(_row, self.anchors)])

    def as_tables(self) -> str:
        """Markdown: a table of all points and one of BD-rates."""
        curves = [*self.curves, *self.anchors]
        names = [name for name in FIGURES if name in curves[0].results]
        rows = [
            [curve.name, f"{quality:g}", *(_cell(name, curve.results[name][i]) for name in names)]
            for curve in curves
            for i, quality in enumerate(curve.results["q"])
        ]
        tables = [table(["codec", "quality", *(FIGURES[name].label for name in names)], rows)]
        if self.anchors and find_spec("bjontegaard") is None:
            tables.append(f"BD-rates need the package bjontegaard: {NEEDS_EXTRA}")
        elif self.anchors:
            rates = [
                [curve.name, FIGURES[metric].label, *map(percent, against.values())]
                for curve in self.curves
                for metric, against in self.bd_rates(curve).items()
            ]
            anchors = [f"against {anchor.name}" for anchor in self.anchors]
            tables.append(table(["BD-rate", "by", *anchors], rates))
        return "\n\n".join(tables)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also aligned as plain text: the first column left, others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), f"|{rule}|", *map(line, rows)])


def percent(rate: float) -> str:
    """A BD-rate for a table."""
    return "-" if math.isnan(rate) else f"{rate:+.1f} %"


def _cell(name: str, value: float) -> str:
    return f"{value:.{FIGURES[name].decimals}f}"


def _row(curve: Curve) -> dict[str, Any]:
    """A curve with None for the infinite PSNR of identical images."""
    results = {
        name: [value if math.isfinite(value) else None for value in values]
        for name, values in curve.results.items()
    }
    return {**asdict(curve), "results": results}


def _or_null(rates: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """The rates with None for NaN, which JSON does not have."""
    return {
        metric: {name: None if math.isnan(rate) else rate for name, rate in row.items()}
        for metric, row in rates.items()
    }


def bd_rate(curve: Curve, anchor: Curve, metric: str) -> float:
    """Percentage of bits that a curve needs more than an anchor at equal quality; < 0: fewer.

    The Bjontegaard delta rate with piecewise cubic interpolation, over the qualities that both
    curves reach; NaN if they share none. Needs the package `bjontegaard`.
    """
    import bjontegaard

    pairs = [_monotonic(one, metric) for one in (anchor, curve)]
    if min(len(bpp) for bpp, _ in pairs) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about little or no overlap of the curves
        rate = bjontegaard.bd_rate(
            *pairs[0], *pairs[1], method="pchip", require_matching_points=False, min_overlap=0
        )
    return float(rate)


def _monotonic(curve: Curve, metric: str) -> tuple[list[float], list[float]]:
    """bpp and quality (higher is better), without points no better than a cheaper one."""
    sign = 1 if FIGURES[metric].higher_is_better else -1
    bpp: list[float] = []
    values: list[float] = []
    points = zip(curve.results["bpp"], curve.results[metric], strict=True)
    for rate, value in sorted(points):
        if math.isfinite(value) and (not values or sign * value > values[-1]):
            bpp.append(rate)
            values.append(sign * value)
    return bpp, values


def plotter(path: Path) -> Callable[[Evaluation], None]:
    """A function that plots the curves, one panel per metric, and overwrites `path`.

    Raises: UsageError at once if matplotlib is not installed, or the suffix is unknown.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise UsageError(f"plots need matplotlib: {NEEDS_EXTRA}") from exc
    if path.suffix.lower() not in PLOT_SUFFIXES:
        suffixes = ", ".join(PLOT_SUFFIXES)
        raise UsageError(f"the name of the plot must end in one of {suffixes}, not {path}")

    def draw(evaluation: Evaluation) -> None:
        curves = [*evaluation.curves, *evaluation.anchors]
        shown = [name for name in QUALITY_FIGURES if name in curves[0].results]
        figure = Figure(figsize=(4.5 * len(shown), 4), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, metric in zip(panels, shown, strict=True):
            for one in curves:
                axes.plot(one.results["bpp"], one.results[metric], marker=".", label=one.name)
            axes.set_xlabel("bits per pixel")
            better = "" if FIGURES[metric].higher_is_better else ", lower is better"
            axes.set_title(FIGURES[metric].label + better)
            axes.grid(alpha=0.3)
        panels[-1].legend()
        with writing(str(path), overwrite=True) as file:
            figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)

    return draw
