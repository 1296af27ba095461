"""Storage reports as rows of tables, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.report import Report
from hydrapack.support.sizes import megabytes

_FIGURES = (
    ("name", "name", ""),
    ("kind", "kind", ""),
    ("tasks", "tasks", ""),
    ("heads", "heads", ""),
    ("rank", "rank", ""),
    ("bits", "bits", ""),
    ("parameters", "parameters", ","),
    ("s_percent", "S %", ".1f"),
    ("bytes", "bytes", ","),
    ("percent_of_fp16", "% of fp16", ".1f"),
    ("bytes_per_task", "bytes a task", ",.0f"),
    ("head_bytes", "one head more", ","),
    ("baseline_parameters", "", ""),
    ("baseline_bytes", "PEFT fp16 bytes", ","),
)
"""Of a report: attribute and column of the CSV, heading of the tables (none: left out), format."""
_SHOWN = [figure for figure in _FIGURES if figure[1]]
COLUMNS = tuple(heading for _, heading, _ in _SHOWN)


def rows(reports: Sequence[Report]) -> list[list[str]]:
    """A row of ``COLUMNS`` for each report."""
    return [[format(getattr(one, name), how) for name, _, how in _SHOWN] for one in reports]


def warnings(reports: Sequence[Report]) -> list[str]:
    """A sentence for each report with lost tasks."""
    return [
        f"{report.name}: next to nothing is left of "
        + ", ".join(f"{task} (relative error {report.task_errors[task]:.2f})" for task in lost)
        for report in reports
        if (lost := report.lost_tasks)
    ]


def baseline_rows(reports: Sequence[Report]) -> list[list[str]]:
    """Report, baseline, parameters, bytes, and how many times the report's bytes those are."""
    return [
        [report.name, b.name, f"{b.parameters:,}", f"{b.bytes:,}", f"{b.bytes / report.bytes:.1f}"]
        for report in reports
        for b in report.baselines
    ]


BASELINE_COLUMNS: tuple[str, ...] = ("report", "stored as", "parameters", "bytes", "times")
BUDGET_COLUMNS: tuple[str, ...] = ("budget", "measure", "size", "limit", "passed")


def budget_rows(judged: Sequence[Judged]) -> list[list[str]]:
    """A row of ``BUDGET_COLUMNS`` for each budget."""
    return [
        [
            one.name,
            one.measure,
            megabytes(one.size),
            megabytes(one.limit),
            ("yes, above warning" if one.warned else "yes") if one.passed else "NO",
        ]
        for one in judged
    ]


def comma_separated(reports: Sequence[Report]) -> str:
    """CSV with raw numbers, a line a report."""
    out = io.StringIO()
    names = [name for name, _, _ in _FIGURES]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for report in reports:
        writer.writerow([getattr(report, name) for name in names])
    return out.getvalue()
