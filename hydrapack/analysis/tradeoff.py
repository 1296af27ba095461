"""Bytes, error and decode cost of every M, rank and bit width, from one factorization a module.

For a given assignment the best A of rank R is the first R of one set of eigenvectors, so one
eigenproblem for each M serves all ranks: the squared error is the sum of the eigenvalues left out.
Rounding is measured, not modelled: A and heads are quantized as the packer does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import Update, difference_norm
from hydrapack.analysis.findings import Point
from hydrapack.analysis.plots import plot_tradeoff
from hydrapack.bundle.merged import Merged, MergedModule, stored_values
from hydrapack.bundle.stored import store
from hydrapack.merging.assignment import assign
from hydrapack.merging.method import MergeOptions, divided, with_sizes
from hydrapack.merging.modules import module_names, module_seed, module_updates
from hydrapack.merging.objective import task_sizes
from hydrapack.merging.span import core_of
from hydrapack.merging.spectral import fit
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.merging.uniform import merge_adapters
from hydrapack.program.quantized import Precision, check_bits
from hydrapack.support.atomic import new_directory
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.schema import write_json
from hydrapack.support.threads import one_thread

BASELINES: tuple[tuple[str, bool], ...] = (
    ("task-arithmetic", False),
    ("ties", False),
    ("dare", False),
    ("dare-ties", False),
    ("task-arithmetic", True),
)

OUTPUT_RANKS = (1, 2, 3, 4)
"""two-sided's Q, in adapters' ranks; below the adapters' own R the first two only."""


@dataclass
class _Sum:
    parameters: int
    bytes: int
    squared: list[float]
    """By task."""


@dataclass(frozen=True)
class _Apart:
    """The adapters as they are."""

    sizes: list[float]
    """Squared norm of each task's updates."""
    parameters: int
    values_per_rank: int
    """Sum of d_in + d_out over the modules."""


@dataclass(frozen=True)
class Tradeoff:
    """Ways of storing some adapters' tasks."""

    tasks: tuple[str, ...]
    rank: int
    """The adapters' own, the largest of them."""
    points: list[Point]

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        return {"adapters": list(self.tasks), "points": [asdict(p) for p in self.points]}

    def save(self, target: str | Path) -> None:
        """Write the directory, whole or not at all: tradeoff.json and a plot, tradeoff.png.

        Raises:
            HydrapackError: matplotlib is not installed, or the target cannot be written.
        """
        bits = min(p.bits for p in self.points if p.method == "spectral")
        with new_directory(Path(target)) as partial:
            write_json(partial / "tradeoff.json", self.as_json())
            plot_tradeoff(self.points, self.rank, bits, partial / "tradeoff.png")


@one_thread()
def tradeoff(
    adapters: Sequence[Adapter | str | Path],
    ranks: Sequence[int] | None = None,
    bits: Sequence[int] = (4, 8, 16),
    *,
    objective: str = "relative",
    seed: int = 0,
    allow_base_mismatch: bool = False,
    progress: Progress = quietly,
) -> Tradeoff:
    """Bytes and error of the spectral merge for M = 1..N, every rank and bit width.

    Beside them: two-sided merges, the baselines, and the adapters apart.

    Args:
        adapters: PEFT folders, as ``DIR`` or ``NAME=DIR``, or adapters that were read.
        ranks: R; from a quarter to twice the adapters' own by default. With M < N the tasks are
            assigned to heads once, at the adapters' rank.
        bits: 4, 8, 16 or 32 a value.
        objective: relative or absolute.
        seed: of the starts where heads are shared.
        allow_base_mismatch: take adapters of different base models.
        progress: called with modules done, modules in all, and a note.

    Raises:
        HydrapackError: unreadable adapters or VeRA's, a rank or a bit width out of range, or
            another objective.

    >>> made = hydrapack.tradeoff(["adapters/grammar", "adapters/qa"], ranks=[4], bits=[8])
    >>> [(p.heads, p.bits) for p in made.points if p.method == "spectral"]
    [(1, 8), (2, 8)]
    """
    adapters = read_adapters(adapters, allow_base_mismatch)
    if not bits:
        raise Invalid("no bit widths given: choose of 4, 8, 16 and 32")
    own = max(a.rank for a in adapters)
    ranks = sorted(set(ranks or [max(1, own * i // 4) for i in (1, 2, 3, 4, 6, 8)]))
    if min(ranks) < 1:
        raise Invalid(f"`ranks` {min(ranks)}: must be 1 or more")
    for width in bits:
        check_bits("bits", width)
    if adapters[0].kind != "LORA":
        raise Invalid("the trade-off is of LoRA adapters; VeRA's is merge's S for each `heads`")
    if objective not in ("relative", "absolute"):
        raise Invalid(f"`objective` {objective}: choose relative or absolute")
    names = module_names(adapters)
    sums: dict[tuple[str, int, int, int, int], _Sum] = {}
    count, norms = len(adapters), task_sizes(adapters)
    sizes = norms if objective == "relative" else None
    values = 0
    for done, name in enumerate(names):
        progress(done, len(names), "")
        updates = module_updates(adapters, name)
        values += sum(updates[0].shape)
        sized = divided(updates, sizes)
        problem = core_of(sized, max(own, *ranks))
        for head_count in range(1, count + 1):
            options = MergeOptions(head_count, own, module_seed(seed, name))
            assignment = assign([problem], options)
            A, found = fit(problem, sized, assignment, replace(options, rank=max(ranks)))
            for rank in ranks:
                heads = found[:, :, :rank].clone()  # with_sizes writes on them
                part = MergedModule(A[:rank].float(), heads, assignment)
                stored = with_sizes(part, updates, sizes)
                _add_points(sums, "spectral", (head_count, rank, 0), updates, stored, bits)
        for rank in sorted({own, *(r for r in ranks if r < own)}):
            factors = OUTPUT_RANKS if rank == own else OUTPUT_RANKS[:2]
            for width in sorted({min(f, count) * rank for f in factors}):
                basis = merge_two_sided(sized, MergeOptions(count, rank), width)
                merged = with_sizes(basis, updates, sizes)
                _add_points(sums, "two-sided", (count, rank, width), updates, merged, bits)
    progress(len(names), len(names), "")
    whole = _Apart([norm**2 for norm in norms], sum(a.parameters for a in adapters), values)
    points = [_point(method, key, total, whole) for (method, *key), total in sorted(sums.items())]
    apart = _Sum(whole.parameters, 2 * whole.parameters, [0.0] * count)
    points += _baselines(adapters, seed, own, whole)
    points.append(_point("adapters apart", (count, own, 0, 16), apart, whole))
    return Tradeoff(tuple(a.task for a in adapters), own, points)


def _errors(updates: Sequence[Update], merged: Merged) -> list[float]:
    """Squared error of a module, by task."""
    return [
        difference_norm(update, merged.shared(), merged.head(head))[0] ** 2
        for update, head in zip(updates, merged.assignment, strict=True)
    ]


def _add_points(
    sums: dict[tuple[str, int, int, int, int], _Sum],
    method: str,
    shape: tuple[int, int, int],
    updates: Sequence[Update],
    merged: Merged,
    bits: Sequence[int],
) -> None:
    """Add a module's bytes and errors as the packer would write it; ``shape`` is (M, R, Q)."""
    assert isinstance(merged, MergedModule)
    for width in bits:
        total = sums.setdefault((method, *shape, width), _Sum(0, 0, [0.0] * len(updates)))
        total.parameters += stored_values([merged])
        stored = store(merged, Precision(width, width))
        total.bytes += stored.bytes
        _add(total.squared, _errors(updates, stored.dequantize()))


def _add(sums: list[float], more: Sequence[float]) -> None:
    sums[:] = [a + b for a, b in zip(sums, more, strict=True)]


def _baselines(adapters: Sequence[Adapter], seed: int, rank: int, whole: _Apart) -> list[Point]:
    if {m.rank for a in adapters for m in a.modules.values()} != {rank}:
        return []  # They merge value by value, which needs one rank.
    points = []
    for method, only_a in BASELINES:
        merged = merge_adapters(adapters, method, seed=seed, only_a=only_a, refit_b=only_a)
        total = _Sum(merged.info.parameters, 2 * merged.info.parameters, [0.0] * len(adapters))
        for name, module in merged.modules.items():
            _add(total.squared, _errors(module_updates(adapters, name), module))
        points.append(_point(merged.info.method, (merged.heads, rank, 0, 16), total, whole))
    return points


def _point(method: str, key: Sequence[int], total: _Sum, whole: _Apart) -> Point:
    heads, rank, output_rank, bits = key
    squares = [
        lost / size if size else lost for lost, size in zip(total.squared, whole.sizes, strict=True)
    ]
    return Point(
        method=method,
        heads=heads,
        rank=rank,
        output_rank=output_rank,
        bits=bits,
        parameters=total.parameters,
        bytes=total.bytes,
        s_percent=100 * total.parameters / whole.parameters,
        percent_of_fp16=100 * total.bytes / (2 * whole.parameters),
        relative_error=math.sqrt(sum(squares) / len(squares)),
        worst_error=math.sqrt(max(squares)),
        decode_bytes=4 * rank * whole.values_per_rank,
    )
