"""The curve from bytes to error: every M, rank and bit width from one factorization a module.

For a given assignment the best A of rank R is the first R of one set of eigenvectors, so one
eigenproblem for each M serves all ranks: the squared error is the sum of the eigenvalues left out.
Rounding is measured, not modelled: A and heads are quantized as the packer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.lora import LoraAdapter, LoraModule
from hydrapack.errors import InputError
from hydrapack.merge.adapters import merge_adapters, module_seed, module_updates
from hydrapack.merge.module import MergedModule, MergeOptions
from hydrapack.merge.spectral import assign, fit, joint
from hydrapack.quantize import quantize_rows

BASELINES: tuple[tuple[str, bool], ...] = (
    ("task-arithmetic", False),
    ("ties", False),
    ("dare", False),
    ("dare-ties", False),
    ("task-arithmetic", True),
)


@dataclass(frozen=True)
class Point:
    """One way of storing all tasks."""

    method: str
    heads: int
    rank: int
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


def trade_off(
    adapters: Sequence[LoraAdapter],
    ranks: Sequence[int] | None = None,
    bits: Sequence[int] = (8, 16),
    seed: int = 0,
    progress: Callable[[float, int, str], None] = lambda done, total, note: None,
) -> list[Point]:
    """Points of the spectral merge for M = 1..N, every rank and bit width, and the baselines'.

    Args:
        ranks: R; from a quarter to twice the adapters' own by default. With M < N the tasks are
            assigned to heads once, at the adapters' rank.
        bits: 8, 16 or 32 a value.

    Raises:
        InputError: a rank or a bit width out of range.
    """
    own = max(a.rank for a in adapters)
    ranks = sorted(set(ranks or [max(1, own * i // 4) for i in (1, 2, 3, 4, 6, 8)]))
    if min(ranks) < 1:
        raise InputError(f"--ranks {min(ranks)}: must be 1 or more")
    for width in bits:
        if width not in (8, 16, 32):
            raise InputError(f"--bits {width}: choose of 8, 16, 32")
    names = sorted({name for adapter in adapters for name in adapter.modules})
    sums: dict[tuple[int, int, int], _Sum] = {}
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
            _add_points(sums, updates, MergedModule(A, found, assignment), ranks, bits)
    progress(len(names), len(names), "")
    baseline = sum(a.parameters for a in adapters)
    points = [
        _point("spectral", key, total, whole, baseline) for key, total in sorted(sums.items())
    ]
    apart = _Sum(baseline, 2 * baseline, 0.0)
    return [
        *points,
        *_baselines(adapters, seed, own, whole, baseline),
        _point("adapters apart", (len(adapters), own, 16), apart, whole, baseline),
    ]


def _square(update: LoraModule, A: torch.Tensor, B: torch.Tensor) -> float:
    """Squared norm of (update - B @ A), from Gram matrices."""
    own_b, own_a = update.scaled_b(), update.A.double()
    own = ((own_b.T @ own_b) * (own_a @ own_a.T)).sum()
    cross = ((own_b.T @ B) * (own_a @ A.T)).sum()
    return float((own - 2 * cross + ((B.T @ B) * (A @ A.T)).sum()).clamp(min=0))


def _error(updates: Sequence[LoraModule], merged: MergedModule) -> float:
    """Squared error of a module, all tasks together."""
    return sum(
        _square(update, merged.A.double(), merged.heads[head].double())
        for update, head in zip(updates, merged.assignment, strict=True)
    )


def _add_points(
    sums: dict[tuple[int, int, int], _Sum],
    updates: Sequence[LoraModule],
    fitted: MergedModule,
    ranks: Sequence[int],
    bits: Sequence[int],
) -> None:
    """Add a module's bytes and errors; ``fitted`` has the largest rank, the rest are its parts."""
    d_out, d_in = updates[0].shape
    count = len(fitted.heads)
    for rank in ranks:
        for width in bits:
            total = sums.setdefault((count, rank, width), _Sum())
            values = rank * d_in + count * d_out * rank
            total.parameters += values
            total.bytes += values * width // 8 + (2 * (rank + count * d_out) if width == 8 else 0)
            A = _rounded(fitted.A[:rank], width)
            heads = _rounded(fitted.heads[:, :, :rank], width)
            total.squared += _error(updates, MergedModule(A, heads, fitted.assignment))


def _rounded(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """What the packer's storage at ``bits`` a value gives back, float64."""
    if bits == 8:
        values, scales = quantize_rows(matrix.float())
        return values.double() * scales.double()
    return matrix.half().double() if bits == 16 else matrix


def _baselines(
    adapters: Sequence[LoraAdapter], seed: int, rank: int, whole: float, baseline: int
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
        points.append(_point(merged.method, (merged.heads, rank, 16), total, whole, baseline))
    return points


def _point(
    method: str, key: tuple[int, int, int], total: _Sum, whole: float, baseline: int
) -> Point:
    heads, rank, bits = key
    return Point(
        method=method,
        heads=heads,
        rank=rank,
        bits=bits,
        parameters=total.parameters,
        bytes=total.bytes,
        s_percent=100 * total.parameters / baseline,
        relative_error=math.sqrt(max(total.squared, 0.0) / whole) if whole else 0.0,
    )
