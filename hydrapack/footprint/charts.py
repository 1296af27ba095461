"""The report's charts, as SVG text; the same report gives the same text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from hydrapack.footprint.budgets import Judged
from hydrapack.footprint.report import Report
from hydrapack.support.plots import pyplot


def growth_by_tasks(report: Report) -> str:
    """Bytes as tasks grow (the HydraOpt paper's Fig. 12)."""
    counts = range(1, max(2 * report.tasks, 10) + 1)
    one = 2 * report.baseline_parameters / report.tasks
    common = report.baseline_bytes - 2 * report.baseline_parameters
    figure, axes = _figure()
    axes.plot(counts, [(common + n * one) / 1e6 for n in counts], label="adapters apart, fp16")
    grown = [(report.shared_bytes + n * report.head_bytes) / 1e6 for n in counts]
    axes.plot(counts, grown, label="a head for each task")
    fixed = [(report.shared_bytes + min(n, report.heads) * report.head_bytes) / 1e6 for n in counts]
    axes.plot(counts, fixed, label=f"at most {report.heads} heads", linestyle="--")
    axes.plot(report.tasks, report.bytes / 1e6, "ko", label=report.name)
    axes.set_xlabel("tasks")
    axes.set_ylabel("MB")
    axes.set_title("Bytes as tasks grow")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return _svg(figure)


def share_by_module(report: Report) -> str:
    """Bytes of each target module, all layers together."""
    figure, axes = _figure()
    names = list(report.modules)
    axes.bar(names, [report.modules[name] / 1e6 for name in names])
    axes.set_ylabel("MB")
    axes.set_title("Share by module")
    axes.grid(axis="y", alpha=0.3)
    return _svg(figure)


def budget_bars(judged: Sequence[Judged]) -> str:
    """Each size as a share of its limit."""
    figure, axes = _figure(1.2 + 0.5 * len(judged))
    for index, one in enumerate(reversed(judged)):
        color = "tab:green" if one.passed else "tab:red"
        axes.barh(index, 100 * one.size / one.limit, color="tab:orange" if one.warned else color)
    axes.set_yticks(range(len(judged)), [one.name for one in reversed(judged)])
    axes.axvline(100, color="black")
    axes.set_xlabel("% of the limit")
    axes.set_title("Budgets")
    return _svg(figure)


def _figure(height: float = 4.0) -> tuple[Any, Any]:
    return pyplot().subplots(figsize=(7.5, height))


def _svg(figure: Any) -> str:
    out = io.StringIO()
    # Without a date and with fixed ids, the same figure gives the same text.
    with pyplot().rc_context({"svg.hashsalt": "hydrapack", "svg.fonttype": "none"}):
        figure.tight_layout()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
