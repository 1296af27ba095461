"""``gates.toml``: the least scores of a release, and how far below the last one they may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hydrapack.support.errors import Invalid
from hydrapack.support.junit import Check
from hydrapack.support.schema import Strict, read_model, read_toml

UNMERGED = ("zero-shot", "own")


class Gate(Strict):
    """What one task is held to; ``min_score``, ``max_drop`` or both are given."""

    task: str = Field(min_length=1)
    min_score: float | None = Field(default=None, ge=0, le=100)
    """Of 100, as the table has it."""
    max_drop: float | None = Field(default=None, ge=0, le=100)
    """Points below the same row of the baseline."""
    row: str | None = None
    """Label of the table's row; by default the only one of a merge."""


class Gates(Strict):
    """The content of gates.toml: ``[[gate]]`` tables."""

    gate: list[Gate] = Field(min_length=1)


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Row(_Read):
    """What is judged of a row of results.json."""

    label: str
    method: str
    scores: dict[str, float]


class Scores(_Read):
    """What is judged of results.json."""

    metrics: dict[str, str]
    rows: dict[str, int]
    results: list[Row]

    def row(self, task: str, label: str | None, where: Path) -> Row:
        """The row of a task by its label; without one the only row of a merge.

        Raises:
            Invalid: none, or several, which are named; ``where`` asked for it.
        """
        scored = [row for row in self.results if task in row.scores]
        if label is None:
            found = [row for row in scored if row.method not in UNMERGED]
        else:
            found = [row for row in scored if row.label == label]
        if len(found) != 1:
            labels = ", ".join(repr(row.label) for row in scored) or "none"
            raise Invalid(
                f"{where}: task {task!r}: {len(found)} rows fit; set `row` to one of: {labels}"
            )
        return found[0]

    def own(self, task: str) -> list[Row]:
        """The row of the task's own adapter, if it was scored."""
        return [row for row in self.results if row.method == "own" and task in row.scores][:1]


def read_gates(path: Path) -> list[Gate]:
    """The gates of a TOML file.

    Raises:
        HydrapackError: unreadable, no TOML, unknown keys, or a gate that asks for nothing.
    """
    gates = read_toml(path, Gates).gate
    for gate in gates:
        if gate.min_score is None and gate.max_drop is None:
            raise Invalid(f"{path}: gate {gate.task!r}: give min_score or max_drop, or both")
    return gates


def read_scores(path: Path) -> Scores:
    """The scores in the results.json of an earlier evaluation.

    Raises:
        HydrapackError: unreadable, or no results.json.
    """
    return read_model(path, Scores)


def judge(
    gates: Sequence[Gate],
    document: dict[str, Any],
    where: Path,
    baseline: Scores | None = None,
    baseline_path: Path | None = None,
) -> list[Check]:
    """Every gate against the content of results.json.

    Args:
        where: the gates' file, and ``baseline_path`` the baseline's: for messages.

    Raises:
        Invalid: a gate that cannot be judged: no such row, no baseline, or one that was scored by
            another metric or on another number of rows.
    """
    scores = Scores.model_validate(document)
    checks = []
    for gate in gates:
        score = scores.row(gate.task, gate.row, where).scores[gate.task]
        if gate.min_score is not None:
            least = gate.min_score
            checks.append(
                Check(
                    f"{gate.task} score",
                    score >= least,
                    f"{score:.2f}, at least {least:g}",
                    {"limit": least, "score": score},
                )
            )
        if gate.max_drop is not None:
            if baseline is None or baseline_path is None:
                raise Invalid(
                    f"{where}: gate {gate.task!r}: max_drop needs a baseline: give `against` the "
                    "results.json of the last release"
                )
            _check_alike(scores, baseline, gate.task, baseline_path)
            before = baseline.row(gate.task, gate.row, baseline_path).scores[gate.task]
            checks.append(
                Check(
                    f"{gate.task} drop",
                    before - score <= gate.max_drop,
                    f"{before:.2f} -> {score:.2f}, at most {gate.max_drop:g} lower",
                    {"baseline": before, "limit": gate.max_drop, "score": score},
                )
            )
    return checks


def _check_alike(scores: Scores, baseline: Scores, task: str, where: Path) -> None:
    for what, here, there in (
        ("metric", scores.metrics.get(task), baseline.metrics.get(task)),
        ("number of rows", scores.rows.get(task), baseline.rows.get(task)),
    ):
        if here != there:
            raise Invalid(
                f"{where}: task {task!r}: another {what} ({there}, here {here}): its scores are no "
                "baseline for these; evaluate the last release anew"
            )
