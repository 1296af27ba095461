"""Storage reports as rows of tables, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.report import Report
from hydrapack.support.sizes import megabytes

COLUMNS: tuple[str, ...] = (
    "name",
    "kind",
    "tasks",
    "heads",
    "rank",
    "bits",
    "parameters",
    "S %",
    "bytes",
    "% of fp16",
)
COLUMNS = (*COLUMNS, "bytes a task", "one head more", "PEFT fp16 bytes")


def rows(reports: Sequence[Report]) -> list[list[str]]:
    """A row of ``COLUMNS`` for each report."""
    return [
        [
            report.name,
            report.kind,
            str(report.tasks),
            str(report.heads),
            str(report.rank),
            report.bits,
            f"{report.parameters:,}",
            f"{report.s_percent:.1f}",
            f"{report.bytes:,}",
            f"{report.percent_of_fp16:.1f}",
            f"{report.bytes_per_task:,.0f}",
            f"{report.head_bytes:,}",
            f"{report.baseline_bytes:,}",
        ]
        for report in reports
    ]


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
    names: tuple[str, ...] = (
        "name",
        "kind",
        "tasks",
        "heads",
        "rank",
        "bits",
        "parameters",
        "s_percent",
        "bytes",
    )
    names = (
        *names,
        "percent_of_fp16",
        "bytes_per_task",
        "head_bytes",
        "baseline_parameters",
        "baseline_bytes",
    )
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for report in reports:
        writer.writerow([getattr(report, name) for name in names])
    return out.getvalue()
