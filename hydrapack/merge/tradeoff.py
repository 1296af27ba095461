"""The curve from bytes to error: every M, rank and bit width from one factorization a module.

For a given assignment the best A of rank R is the first R of one set of eigenvectors, so one
eigenproblem for each M serves all ranks: the squared error is the sum of the eigenvalues left out.
Rounding is measured, not modelled: A and heads are quantized as the packer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.modules import Update
from hydrapack.errors import InputError
from hydrapack.merge.adapters import (
    check_any,
    merge_adapters,
    module_names,
    module_seed,
    module_updates,
)
from hydrapack.merge.module import (
    Merged,
    MergedModule,
    MergeOptions,
    difference_norm,
    stored_values,
)
from hydrapack.merge.spectral import assign, fit, joint
from hydrapack.merge.two_sided import merge_two_sided
from hydrapack.quantize import Rounding, check_bits, module_bytes, round_module
from hydrapack.threads import one_thread

BASELINES: tuple[tuple[str, bool], ...] = (
    ("task-arithmetic", False),
    ("ties", False),
    ("dare", False),
    ("dare-ties", False),
    ("task-arithmetic", True),
)

OUTPUT_RANKS = (1, 2, 3, 4)
"""two-sided's Q, in adapters' ranks."""


@dataclass(frozen=True)
class Point:
    """One way of storing all tasks."""

    method: str
    heads: int
    rank: int
    output_rank: int
    """two-sided's Q; 0 for whole heads."""
    bits: int
    parameters: int
    bytes: int
    s_percent: float
    relative_error: float
    """Norm of (updates - stored) over norm of the updates, all tasks and modules together."""


@dataclass
class _Sum:
    parameters: int = 0
    bytes: int = 0
    squared: float = 0.0


@one_thread()
def trade_off(
    adapters: Sequence[Adapter],
    ranks: Sequence[int] | None = None,
    bits: Sequence[int] = (4, 8, 16),
    seed: int = 0,
    progress: Callable[[float, int, str], None] = lambda done, total, note: None,
) -> list[Point]:
    """Points of the spectral merge for M = 1..N, every rank and bit width, and the baselines'.

    Args:
        ranks: R; from a quarter to twice the adapters' own by default. With M < N the tasks are
            assigned to heads once, at the adapters' rank.
        bits: 4, 8, 16 or 32 a value.

    Raises:
        InputError: no adapters, VeRA's, or a rank or a bit width out of range.
    """
    check_any(adapters)
    if not bits:
        raise InputError("no bit widths given: choose of 4, 8, 16 and 32")
    own = max(a.rank for a in adapters)
    ranks = sorted(set(ranks or [max(1, own * i // 4) for i in (1, 2, 3, 4, 6, 8)]))
    if min(ranks) < 1:
        raise InputError(f"--ranks {min(ranks)}: must be 1 or more")
    for width in bits:
        check_bits("--bits", width)
    if adapters[0].kind != "LORA":
        raise InputError("the trade-off is of LoRA adapters; VeRA's is merge's S for each --heads")
    names = module_names(adapters)
    sums: dict[tuple[str, int, int, int, int], _Sum] = {}
    whole = 0.0
    for done, name in enumerate(names):
        progress(done, len(names), "")
        updates = module_updates(adapters, name)
        problem = joint(updates)
        whole += float(problem.products().diagonal().sum())
        for heads in range(1, len(adapters) + 1):
            options = MergeOptions(heads, own, module_seed(seed, name))
            assignment = assign([problem], options)
            A, found = fit(problem, updates, assignment, MergeOptions(heads, max(ranks)))
            for rank in ranks:
                part = MergedModule(A[:rank].float(), found[:, :, :rank].float(), assignment)
                _add_points(sums, "spectral", (heads, rank, 0), updates, part, bits)
        for width in sorted({min(f, len(adapters)) * own for f in OUTPUT_RANKS}):
            merged = merge_two_sided(updates, MergeOptions(len(adapters), own, output_rank=width))
            shape = (len(adapters), own, width)
            _add_points(sums, "two-sided", shape, updates, merged, bits)
    progress(len(names), len(names), "")
    baseline = sum(a.parameters for a in adapters)
    points = [
        _point(method, key, total, whole, baseline)
        for (method, *key), total in sorted(sums.items())
    ]
    apart = _Sum(baseline, 2 * baseline, 0.0)
    return [
        *points,
        *_baselines(adapters, seed, own, whole, baseline),
        _point("adapters apart", (len(adapters), own, 0, 16), apart, whole, baseline),
    ]


def _error(updates: Sequence[Update], merged: Merged) -> float:
    """Squared error of a module, all tasks together."""
    return sum(
        difference_norm(update, merged.shared(), merged.head(head))[0] ** 2
        for update, head in zip(updates, merged.assignment, strict=True)
    )


def _add_points(
    sums: dict[tuple[str, int, int, int, int], _Sum],
    method: str,
    shape: tuple[int, int, int],
    updates: Sequence[Update],
    merged: MergedModule,
    bits: Sequence[int],
) -> None:
    """Add a module's bytes and errors as the packer would write it; ``shape`` is (M, R, Q)."""
    for width in bits:
        total = sums.setdefault((method, *shape, width), _Sum())
        rounding = Rounding(width, width)
        total.parameters += stored_values([merged])
        total.bytes += module_bytes(merged, rounding)
        total.squared += _error(updates, round_module(merged, rounding))


def _baselines(
    adapters: Sequence[Adapter], seed: int, rank: int, whole: float, baseline: int
) -> list[Point]:
    if {m.rank for a in adapters for m in a.modules.values()} != {rank}:
        return []  # They merge value by value, which needs one rank.
    points = []
    for method, only_a in BASELINES:
        merged = merge_adapters(adapters, method, seed=seed, only_a=only_a, refit_b=only_a)
        squared = sum(
            _error(module_updates(adapters, name), module)
            for name, module in merged.modules.items()
        )
        total = _Sum(merged.parameters, 2 * merged.parameters, squared)
        points.append(_point(merged.method, (merged.heads, rank, 0, 16), total, whole, baseline))
    return points


def _point(method: str, key: Sequence[int], total: _Sum, whole: float, baseline: int) -> Point:
    heads, rank, output_rank, bits = key
    return Point(
        method=method,
        heads=heads,
        rank=rank,
        output_rank=output_rank,
        bits=bits,
        parameters=total.parameters,
        bytes=total.bytes,
        s_percent=100 * total.parameters / baseline,
        relative_error=math.sqrt(max(total.squared, 0.0) / whole) if whole else 0.0,
    )
