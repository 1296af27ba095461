"""What a release meeting asks of a package, in words: the headline, quality, bytes, budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.growth import Growth, Release
from hydrapack.footprint.report import Report
from hydrapack.support.schema import read_model
from hydrapack.support.sizes import readable


@dataclass(frozen=True)
class Scores:
    """Of an evaluation, of 100, by task."""

    label: str
    """The row of its table."""
    merged: dict[str, float]
    own: dict[str, float]
    """Of the adapters themselves; empty where it has no such row."""


class Point(BaseModel):
    """One way of storing the tasks, of ``hydrapack tradeoff``."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)

    bytes: int = Field(ge=1)
    relative_error: float = Field(ge=0)


class _Curve(BaseModel):
    points: list[Point] = Field(min_length=1)


def read_points(path: Path) -> list[Point]:
    """The points of a tradeoff.json.

    Raises:
        HydrapackError: it is none.
    """
    return read_model(path, _Curve).points


@dataclass(frozen=True)
class Summary:
    """A report with what was judged, compared and measured beside it."""

    report: Report
    judged: Sequence[Judged] = ()
    releases: Sequence[Release] = ()
    """Earlier ones, the oldest first."""
    scores: Scores | None = None
    points: Sequence[Point] = ()

    @property
    def verdict(self) -> str:
        """Of the budgets: ``pass``, ``warn`` or ``fail``; empty without any."""
        levels = {one.level for one in self.judged}
        return next((level for level in ("fail", "warn", "pass") if level in levels), "")

    @property
    def growth(self) -> Growth | None:
        """Since the last release."""
        return Growth(self.releases[-1], self.report) if self.releases else None

    @property
    def headline(self) -> str:
        """Tasks and bytes."""
        tasks = "1 task" if self.report.tasks == 1 else f"{self.report.tasks} tasks"
        return f"{tasks} in {readable(self.report.bytes)}"

    @property
    def saving(self) -> str:
        """How many times less than the adapters apart."""
        apart, report = self.report.baseline_bytes, self.report
        times = apart / report.bytes
        factor = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
        less = f"{factor} times less than" if times >= 1 else "more than"
        return f"{less} the adapters apart ({readable(apart)} in half precision)"

    @property
    def error(self) -> float | None:
        """Root mean square of the tasks' relative errors, as packed; None of a plan."""
        errors = self.report.task_errors.values()
        return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else None

    @property
    def quality(self) -> str:
        """What it costs, in a sentence; empty of a plan."""
        errors, parts = self.report.task_errors, []
        if errors:
            worst = max(errors, key=errors.__getitem__)
            parts.append(
                f"relative errors from {min(errors.values()):.2f} to {errors[worst]:.2f} ({worst})"
            )
        if self.scores:
            mean = _mean(self.scores.merged)
            parts.append(f"scores {mean:.1f} on average")
            own = _mean(self.scores.own) if self.scores.own else 0.0
            if own:
                parts[-1] += f", the adapters' own {own:.1f} ({100 * mean / own:.1f} % of them)"
        return "; ".join(parts)

    @property
    def download(self) -> str:
        """Compressed sizes; empty where they are not known."""
        report = self.report
        sizes = [("zip", report.zip_bytes), ("zstd", report.zstd_bytes)]
        return ", ".join(f"{readable(size)} as {name}" for name, size in sizes if size is not None)


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def markdown(summary: Summary) -> str:
    """Ten lines for a pull request."""
    report, lines = summary.report, []
    status = f" — budgets: **{summary.verdict.upper()}**" if summary.judged else ""
    lines += [f"### Storage: {summary.headline}{status}", ""]
    lines.append(f"- **{summary.saving}**; {summary.quality}".rstrip("; "))
    if report.task_errors:
        lines.append(f"- error as packed (merged): {_by_task(summary)}")
    if summary.scores:
        scores, own = summary.scores.merged, summary.scores.own
        each = (
            f"{task} {score:.1f}" + (f" ({own[task]:.1f})" if task in own else "")
            for task, score in scores.items()
        )
        suffix = " (own adapter)" if own else ""
        lines.append(f"- score{suffix}, {summary.scores.label}: {', '.join(each)}")
    lines.append(
        f"- a task takes {readable(report.bytes_per_task)}, one head more "
        f"{readable(report.head_bytes)}" + (f"; {summary.download}" if summary.download else "")
    )
    where = [f"{name} {readable(size)}" for name, size in report.parts.items()]
    lines.append(f"- bytes: {', '.join(where)}")
    for level in ("fail", "warn", "pass"):
        found = [one.words for one in summary.judged if one.level == level]
        if found:
            lines.append(f"- budgets, {level}: {'; '.join(found)}".replace("|", "\\|"))
    if summary.growth:
        lines.append(f"- since {summary.releases[-1].name}: {summary.growth.line}")
    if report.lost_tasks:
        lines.append(f"- **lost**: next to nothing is left of {', '.join(report.lost_tasks)}")
    return "\n".join([*lines, ""])


def _by_task(summary: Summary) -> str:
    merged = summary.report.merge_errors
    return ", ".join(
        f"{task} {error:.2f}" + (f" ({merged[task]:.2f})" if task in merged else "")
        for task, error in summary.report.task_errors.items()
    )
