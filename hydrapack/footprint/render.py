"""Storage reports as Markdown, CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.report import Report
from hydrapack.support.extras import need
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


@dataclass(frozen=True)
class Growth:
    """A release against the one before."""

    old: Report
    new: Report

    def as_json(self) -> dict[str, object]:
        """JSON form."""
        old, new = self.old, self.new
        return {
            "added_tasks": sorted(set(new.task_names) - set(old.task_names)),
            "bytes": new.bytes - old.bytes,
            "bytes_per_task": new.bytes_per_task - old.bytes_per_task,
            "head_bytes": new.head_bytes - old.head_bytes,
            "old_bytes": old.bytes,
            "percent": 100.0 * (new.bytes - old.bytes) / old.bytes,
            "removed_tasks": sorted(set(old.task_names) - set(new.task_names)),
        }

    def lines(self) -> list[str]:
        """What changed, in words."""
        old, new, facts = self.old, self.new, self.as_json()
        lines = [
            f"package: {old.bytes:,} -> {new.bytes:,} bytes ({facts['percent']:+.1f} %)",
            f"bytes a task: {old.bytes_per_task:,.0f} -> {new.bytes_per_task:,.0f}",
            f"one head: {old.head_bytes:,} -> {new.head_bytes:,} bytes",
        ]
        for label in ("added_tasks", "removed_tasks"):
            names = facts[label]
            if isinstance(names, list) and names:
                lines.append(f"{label.replace('_', ' ')}: {', '.join(names)}")
        return lines


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


def markdown(reports: Sequence[Report], judged: Sequence[Judged], growth: Growth | None) -> str:
    """Tables for a pull-request comment."""
    parts = ["### Storage", "", _table(COLUMNS, rows(reports))]
    parts += [line for warning in warnings(reports) for line in ("", f"**Lost**: {warning}")]
    if judged:
        parts += ["", "### Budgets", "", _table(BUDGET_COLUMNS, budget_rows(judged))]
    if growth:
        parts += ["", "### Since the last release", "", *(f"- {x}" for x in growth.lines())]
    parts += ["", "### In place of", "", _table(BASELINE_COLUMNS, baseline_rows(reports)), ""]
    return "\n".join(parts)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def comma_separated(reports: Sequence[Report]) -> str:
    """CSV with raw numbers, a line a report."""
    out = io.StringIO()
    names = [name for name, _, _ in _FIGURES]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for report in reports:
        writer.writerow([getattr(report, name) for name in names])
    return out.getvalue()


def html(reports: Sequence[Report], judged: Sequence[Judged], growth: Growth | None) -> str:
    """One page with its charts in it; nothing is loaded from elsewhere.

    Raises:
        HydrapackError: jinja2 or matplotlib is not installed.
    """
    jinja2 = need("jinja2")
    from hydrapack.footprint import charts

    drawn = [charts.growth_by_tasks(reports[0])]
    if reports[0].modules:
        drawn.append(charts.share_by_module(reports[0]))
    if judged:
        drawn.append(charts.budget_bars(judged))
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    return str(
        page.render(
            columns=COLUMNS,
            rows=rows(reports),
            warnings=warnings(reports),
            budget_columns=BUDGET_COLUMNS,
            budgets=budget_rows(judged),
            growth=growth.lines() if growth else [],
            baseline_columns=BASELINE_COLUMNS,
            baselines=baseline_rows(reports),
            charts=drawn,
        )
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Storage report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .7rem }
th, td { text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
</style>
<h1>Storage report</h1>
{% macro table(head, body) %}
<table><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in body %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endmacro %}
{{ table(columns, rows) }}
{% for line in warnings %}<p><strong>Lost</strong>: {{ line }}</p>{% endfor %}
{% if budgets %}<h2>Budgets</h2>{{ table(budget_columns, budgets) }}{% endif %}
{% if growth %}<h2>Since the last release</h2>
<ul>{% for line in growth %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<h2>In place of</h2>
{{ table(baseline_columns, baselines) }}
{% for chart in charts %}{{ chart | safe }}
{% endfor %}
</html>
"""
