"""Write the tables of the results pages, between their markers, from docs/results/*.json.

hydrapack eval examples/eval.yaml -o build/results/table1
cp build/results/table1/results.json docs/results/table1.json
python docs/make_results.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from hydrapack.evaluation.cases import Result
from hydrapack.evaluation.tables import by_group, markdown, nats_cell

HERE = Path(__file__).parent
BASELINES = ("task-arithmetic", "ties", "dare", "dare-ties")
METHODS: tuple[tuple[str, str | None], ...] = (
    ("hydraopt", None),
    ("hydraopt", "relative"),
    ("spectral", "absolute"),
    ("spectral", None),
    ("two-sided", None),
)
"""Methods and the objective they were asked for."""
TWO_HEADS = 28.0
"""S % of two heads for five tasks."""
DROP = 1.8
"""Largest drop of M = N from the adapters' own scores that the paper reports, in points."""


def results(name: str) -> list[Result]:
    """The rows of docs/results/NAME.json."""
    document = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return [
        Result(**{k: v for k, v in row.items() if k != "average"}) for row in document["results"]
    ]


def claims(rows: list[Result]) -> str:
    """The paper's claims, a column a method; two-sided's nearest size stands for M = 2."""
    own = next(r for r in rows if r.method == "own")
    plain = [r for r in rows if r.backend == "peft" and r.bits == 32]
    baselines = [r for r in plain if r.method in BASELINES]
    arithmetic = next(r for r in baselines if r.label == "task-arithmetic")
    smallest = min(b.s_percent for b in baselines)
    best = max((b for b in baselines if b.s_percent == smallest), key=lambda b: b.average)
    cells: dict[str, list[str]] = {
        f"largest size within {DROP} points of own ({own.average:.1f})": [],
        "above every baseline that stores more": [],
        f"M = 2 above task arithmetic ({arithmetic.average:.1f})": [],
        f"above the best baseline of one adapter's size, {best.label} ({best.average:.1f})": [],
    }
    full, more, second, first = cells.values()
    for method, objective in METHODS:
        mine = sorted(
            (r for r in plain if r.method == method and r.objective == objective),
            key=lambda r: r.s_percent,
        )
        full.append(_verdict(own.average - mine[-1].average <= DROP, f"{mine[-1].average:.1f}"))
        below = [r for r in mine if any(_more_and_better(b, r) for b in baselines)]
        points = "; ".join(f"{_point(r)}: {r.average:.1f}" for r in below)
        more.append(_verdict(not below, points))
        two = min(mine, key=lambda r: abs(r.s_percent - TWO_HEADS))
        second.append(_verdict(two.average > arithmetic.average, f"{two.average:.1f}"))
        above = [r for r in mine if r.average > best.average]
        first.append(f"from {_point(above[0])} ({above[0].average:.1f})" if above else "never")
    names = [f"{method} {objective or ''}".strip() for method, objective in METHODS]
    lines = [f"| claim | {' | '.join(names)} |", "|---" * (len(METHODS) + 1) + "|"]
    lines += [f"| {claim} | {' | '.join(row)} |" for claim, row in cells.items()]
    return "\n".join(lines) + "\n"


def _verdict(holds: bool, figures: str) -> str:
    return ("holds" if holds else "**fails**") + (f" ({figures})" if figures else "")


def _more_and_better(baseline: Result, result: Result) -> bool:
    return baseline.s_percent > result.s_percent + 0.5 and baseline.average > result.average


def _point(result: Result) -> str:
    label = result.label.removeprefix(result.method)
    return label.removesuffix(result.objective or "").strip()


def scores(rows: list[Result]) -> str:
    """The table without time and memory of the merges."""
    lines = markdown(rows).splitlines()
    return "\n".join("|".join(line.split("|")[:-3]) + "|" for line in lines) + "\n"


def averages(rows: list[Result]) -> str:
    """One row a method, one column a group: averages, with S % in brackets."""
    return _grid(rows, lambda r: f"{r.average:.1f} ({r.s_percent:.0f})")


def _grid(rows: list[Result], cell: Callable[[Result], str]) -> str:
    groups = by_group(rows)
    cells: dict[str, dict[str, str]] = {}
    for group, members in groups:
        for r in members:
            # M = N, whatever N is, is one row; of two tasks M = 2 is it.
            whole = r.heads == len(r.scores)
            if r.heads == 2 and whole:
                cells.setdefault(r.label, {})[group] = "as M=N"
            label = r.label.replace(f" M={r.heads}", " M=N") if whole else r.label
            cells.setdefault(label, {})[group] = cell(r)
    names = [group for group, _ in groups]
    lines = [f"| method | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    lines += [
        f"| {label} | {' | '.join(row.get(name, '') for name in names)} |"
        for label, row in cells.items()
    ]
    return "\n".join(lines) + "\n"


MAKERS = {
    "table": markdown,
    "scores": scores,
    "claims": claims,
    "averages": averages,
    "nats": lambda rows: _grid(rows, nats_cell),
}


def page(text: str) -> str:
    """The text with what stands between its markers made anew."""

    def make(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        made = MAKERS[kind](results(name))
        return f"<!-- {kind} {name} -->\n\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) (\w+) -->\n.*?<!-- end -->", make, text, flags=re.DOTALL)


PAGES = [HERE / "results.md", HERE / "results-qwen.md"]

if __name__ == "__main__":
    for target in PAGES:
        target.write_text(page(target.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
