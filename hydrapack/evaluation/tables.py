"""The tables as Markdown, and stored bytes against the average as a plot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hydrapack.evaluation.cases import Result
from hydrapack.support.plots import pyplot, save_png


def by_group(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The results of each group of tasks, in their order."""
    return [(group, list(rows)) for group, rows in groupby(results, key=lambda r: r.group)]


def markdown(results: Sequence[Result]) -> str:
    """A table for each group, under its name where it has one."""
    parts = []
    for group, rows in by_group(results):
        parts.append((f"### {group}\n\n" if group else "") + _table(rows))
    return "\n".join(parts)


def _table(results: Sequence[Result]) -> str:
    # nats: a token of the right answers, and error: of the merge, both means over the tasks; peak
    # MB: of memory while merging.
    tasks = list(results[0].scores)
    # Results of before it was measured have no such column.
    told = ["nats"] if any(r.nats for r in results) else []
    head = ["method", "S %", "stored MB", *tasks, "average", *told, "error", "merge s", "peak MB"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for r in results:
        scores = " | ".join(f"{r.scores[task]:.1f}" for task in tasks)
        cost = " | | "
        if r.relative_errors:
            error = sum(r.relative_errors.values()) / len(r.relative_errors)
            cost = f"{error:.2f} | {r.merge_seconds:.1f} | {r.merge_peak_bytes / 1e6:.0f}"
        stored = f"{r.s_percent:.1f} | {r.stored_bytes / 1e6:.2f}"
        nats = f"{nats_cell(r)} | " if told else ""
        lines.append(f"| {r.label} | {stored} | {scores} | {r.average:.1f} | {nats}{cost} |")
    return "\n".join(lines) + "\n"


def nats_cell(result: Result) -> str:
    """Nats a token of the right answers, mean over the tasks; empty where not measured."""
    return "" if result.average_nats is None else f"{result.average_nats:.3f}"


def plot(results: Sequence[Result], target: Path) -> None:
    """MB against the average, a panel a group (the HydraOpt paper has S % in Fig. 1 and 4)."""
    groups = by_group(results)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    size = (10.0, 5.0) if len(groups) == 1 else (4.0 * columns + 2.5, 3.5 * rows)
    figure, panels = pyplot().subplots(
        rows, columns, figsize=size, dpi=120, squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(groups) :]:
        panel.remove()
    # A line has its colour and marker in every panel.
    colours = pyplot().get_cmap("tab20").colors
    styles: dict[str, dict[str, Any]] = {}
    for r in results:
        k = len(styles)
        styles.setdefault(
            _line(r), {"color": colours[k % len(colours)], "marker": _MARKERS[k % len(_MARKERS)]}
        )
    legend: dict[str, Any] = {}
    for panel, (group, members) in zip(panels.flat, groups, strict=False):
        for name, points in _lines(members).items():
            x, y = [r.stored_bytes / 1e6 for r in points], [r.average for r in points]
            if not any(x):
                legend[name] = panel.axhline(y[0], linestyle=":", color=styles[name]["color"])
                continue
            (legend[name],) = panel.plot(x, y, label=name, **styles[name])
        panel.set_title(group)
        panel.set_xscale("log")
        panel.set_xlabel("MB stored (values at their bits)")
        panel.set_ylabel("average score")
        panel.grid(alpha=0.3)
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", fontsize="small")
    save_png(figure, target)


_MARKERS = "osD^v<>PX*"


def _line(result: Result) -> str:
    # A method's rows for several M, Q, R or budgets are one line.
    return re.sub(r" ([MQR]=\d+|[\d.]+[KMG]?B)", "", result.label)


def _lines(results: Sequence[Result]) -> dict[str, list[Result]]:
    lines: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: r.stored_bytes):
        lines.setdefault(_line(r), []).append(r)
    return lines
