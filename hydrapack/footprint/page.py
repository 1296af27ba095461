"""The page of a release meeting: one HTML file, light and dark, for phones too.

Bars are HTML, the one curve is SVG, so that text keeps its size on a narrow screen. Nothing is
loaded from elsewhere, and the same report gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from hydrapack.footprint import render
from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.report import Report
from hydrapack.footprint.summary import Point, Summary
from hydrapack.support.extras import need
from hydrapack.support.sizes import readable

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 34, 28, 12, 40


@dataclass(frozen=True)
class Bar:
    """One line of a chart: what it says, and how much of the width it takes."""

    label: str
    text: str
    percent: float
    level: str = ""
    """``pass``, ``warn`` or ``fail``; empty for a plain bar."""
    note: str = ""


def html(summary: Summary, others: Sequence[Report] = ()) -> str:
    """The page of the first report; ``others`` are beside it in the table of all numbers.

    Raises:
        HydrapackError: jinja2 is not installed.
    """
    jinja2 = need("jinja2")
    text = files("hydrapack.footprint").joinpath("page.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(text)
    report, reports = summary.report, [summary.report, *others]
    return str(
        page.render(
            summary=summary,
            report=report,
            readable=readable,
            budgets=[_budget(one) for one in summary.judged],
            releases=_releases(summary),
            places=_bars(report.parts, report),
            modules=_bars(report.modules, report),
            baselines=_baselines(report),
            curve=_curve(summary),
            left=LEFT,
            right=WIDTH - RIGHT,
            warnings=render.warnings(reports),
            columns=render.COLUMNS,
            rows=render.rows(reports),
        )
    )


def _budget(one: Judged) -> Bar:
    note = "" if one.measure == one.name else one.measure
    return Bar(one.name, one.share, min(100.0, one.percent), one.level, note)


def _bars(sizes: dict[str, int], report: Report) -> list[Bar]:
    most = max(sizes.values(), default=1)
    return [
        Bar(name, readable(size), 100 * size / most, note=f"{100 * size / report.bytes:.0f} %")
        for name, size in sizes.items()
    ]


def _releases(summary: Summary) -> list[Bar]:
    if not summary.releases:
        return []
    report = summary.report
    each = [(one.name, one.bytes, one.tasks) for one in summary.releases]
    each.append(("this one", report.bytes, report.tasks))
    most = max(size for _, size, _ in each)
    bars, before = [], 0
    for name, size, tasks in each:
        change = f", {100 * (size - before) / before:+.1f} %" if before else ""
        count = "1 task" if tasks == 1 else f"{tasks} tasks"
        bars.append(Bar(name, readable(size), 100 * size / most, note=f"{count}{change}"))
        before = size
    return bars


def _baselines(report: Report) -> list[Bar]:
    each = [("this package" if report.kind == "package" else report.name, report.bytes)]
    each += [(b.name, b.bytes) for b in report.baselines]
    most = max(size for _, size in each)
    return [
        Bar(
            name,
            readable(size),
            100 * size / most,
            note="" if size == report.bytes else _times(size / report.bytes),
        )
        for name, size in each
    ]


def _times(factor: float) -> str:
    return f"{factor:.0f} ×" if factor >= 10 else f"{factor:.1f} ×"


@dataclass(frozen=True)
class Curve:
    """The trade-off as a chart of ``WIDTH`` by ``HEIGHT``: places in it, and what it says."""

    dots: list[tuple[float, float]]
    front: list[tuple[float, float]]
    here: tuple[float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    words: str


def _curve(summary: Summary) -> Curve | None:
    """Bytes (a scale of powers) against error, with the package on it; None without points."""
    error = summary.error
    if not summary.points or error is None:
        return None
    here = summary.report.bytes
    sizes = [math.log10(size) for size in (here, *(point.bytes for point in summary.points))]
    low, high = min(sizes) - 0.05, max(sizes) + 0.05
    most = max(error, *(point.relative_error for point in summary.points))
    top = max(0.1, math.ceil(10 * most) / 10)

    def x(size: float) -> float:
        share = (math.log10(size) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM), 1)

    def place(point: Point) -> tuple[float, float]:
        return x(point.bytes), y(point.relative_error)

    best = sorted(
        (point for point in summary.points if not _beaten(point, summary.points)),
        key=lambda point: point.bytes,
    )
    better = [p for p in best if p.bytes <= here and p.relative_error < error]
    words = "no merge of the curve has less error in as few bytes"
    if better:
        least = better[-1]
        words = f"the curve has {least.relative_error:.2f} in {readable(least.bytes)}"
    ticks = [
        size
        for power in range(3, 13)
        for size in (10**power, 2 * 10**power, 5 * 10**power)
        if low <= math.log10(size) <= high
    ]
    return Curve(
        dots=[place(point) for point in summary.points],
        front=[place(point) for point in best],
        here=(x(here), y(error)),
        x_ticks=[(x(size), readable(size)) for size in ticks[:: max(1, math.ceil(len(ticks) / 4))]],
        y_ticks=[(y(top * i / 4), f"{top * i / 4:.2g}") for i in range(5)],
        words=f"This package: error {error:.2f} in {readable(here)}; {words}.",
    )


def _beaten(point: Point, points: Sequence[Point]) -> bool:
    return any(
        other.bytes <= point.bytes
        and other.relative_error <= point.relative_error
        and other != point
        for other in points
    )
