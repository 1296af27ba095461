"""The rows of the table: each method of the configuration for each of its M."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydrapack.evaluation.spec import MethodConfig
from hydrapack.merging.hydraopt import HydraOpt
from hydrapack.merging.two_sided import TwoSided


@dataclass(frozen=True)
class Case:
    """One way of serving the tasks of a group."""

    group: str
    method: MethodConfig
    heads: int | None
    label: str

    @property
    def planned(self) -> bool:
        """Whether a byte budget plans the bits of each module."""
        return self.method.budget is not None and self.method.bits == 32


@dataclass
class Result:
    """One row of the table."""

    group: str
    label: str
    method: str
    backend: str
    heads: int | None
    bits: int | str
    """A value; ``planned`` where a byte budget plans them by module."""
    s_percent: float
    """Values stored over values of all adapters apart."""
    stored_bytes: int = 0
    """The same values at their bits, scales included, the program around them left out."""
    relative_errors: dict[str, float] = field(default_factory=dict)
    """By task, before rounding: norm of (update - merged) over norm of the update."""
    scores: dict[str, float] = field(default_factory=dict)
    nats: dict[str, float] = field(default_factory=dict)
    """By task: of a token of the right answers, given the prompt; empty where not measured."""
    merge_seconds: float = 0.0
    merge_peak_bytes: int = 0
    """Resident memory above what was there before the merge, at its peak."""
    objective: str | None = None
    """As asked for; None for the method's own."""
    answer_seconds: float = 0.0
    """Of all tasks' answers, when they were made."""

    @property
    def average(self) -> float:
        """Mean over the tasks."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def average_nats(self) -> float | None:
        """Mean over the tasks; None where it was not measured."""
        return sum(self.nats.values()) / len(self.nats) if self.nats else None

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "average": self.average}


def cases(group: str, tasks: int, method: MethodConfig) -> list[Case]:
    """The method's rows in a group of so many tasks."""
    counts = [tasks if heads == "N" else heads for heads in method.heads or []]
    fitting = sorted({count for count in counts if count <= tasks})
    if not counts:
        return [Case(group, method, None, _label(method, None))]
    return [Case(group, method, heads, _label(method, heads)) for heads in fitting]


def _label(method: MethodConfig, heads: int | None) -> str:
    own = method.own
    label = method.method + own.note
    label += f" M={heads}" if heads else ""
    label += f" {method.budget}" if method.budget else ""
    if isinstance(own, TwoSided) and own.output_rank:
        label += f" Q={own.output_rank}"
    label += f" R={method.rank}" if method.rank else ""
    label += f" {method.objective}" if method.objective else ""
    if isinstance(own, HydraOpt):
        label += f" {own.distance}" if own.distance != "mae" else ""
        label += f" from {own.init}" if own.init != "adapters" else ""
        label += f" t={own.temperature:g}" if own.temperature != 1.0 else ""
    if method.bits != 32:
        label += f", {method.bits} bits"
    elif method.budget:
        label += ", planned bits"
    if method.backend == "executorch":
        label += f", ExecuTorch {method.program or ''}".rstrip()
    return label


def unanswered(cases: list[Case], groups: dict[str, list[str]]) -> list[Result]:
    """The table before it is made, every score 0: whether gates can judge it is seen at once."""
    return [
        Result(
            group=case.group,
            label=case.label,
            method=case.method.method,
            backend=case.method.backend,
            heads=case.heads,
            bits=case.method.bits,
            s_percent=0.0,
            scores=dict.fromkeys(groups[case.group], 0.0),
        )
        for case in cases
    ]
