"""Adapters merged as a plan says: for a budget of bytes, or for an error of every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import ErrorSum, Update
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged, MergedModule
from hydrapack.bundle.stored import store
from hydrapack.merging.method import MergeOptions, divided, with_sizes
from hydrapack.merging.modules import merge_modules, module_seed, module_updates, task_weights
from hydrapack.merging.objective import reweigh
from hydrapack.merging.plan import Plan, Planner, Request
from hydrapack.merging.spectral import SPECTRAL, merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.program.quantized import Precision
from hydrapack.support.engine import Engine
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, part, quietly
from hydrapack.support.threads import in_parallel, one_thread

ROUNDS = 4
"""Of reweighting, for minimax and for a target."""


@one_thread()
def merge_budget(
    adapters: Sequence[Adapter],
    budget: int,
    rank: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    weights: Mapping[str, float] | None = None,
    objective: str = "relative",
    progress: Progress = quietly,
    engine: Engine = in_parallel,
) -> Bundle:
    """The merge of least error whose ``adapters.pte`` takes at most ``budget`` bytes.

    Args:
        rank: R of the base program, which no module's is above; by default the smallest that is
            nearly as good as the largest rank of the adapters.
        bits: 4, 8 or 16 for all modules; free by default.
        objective: relative, absolute or minimax.
        engine: runs the modules.

    Raises:
        HydrapackError: VeRA adapters, or a budget that the cheapest choices do not meet.
    """
    request = Request(adapters, rank, bits, seed, SPECTRAL.objective(objective), engine)
    rounds = ROUNDS if request.objective == "minimax" else 1

    def solve(weights: tuple[float, ...], done: float) -> tuple[Sequence[float], Bundle]:
        half = 0.5 / rounds
        plan = Planner(request, weights, part(progress, done, half)).within(budget)
        made = merge_plan(request, plan, weights, part(progress, done + half, half), budget)
        return list(made.relative_errors.values()), made

    return reweigh(solve, task_weights(adapters, weights or {}), rounds)


@one_thread()
def merge_target(
    adapters: Sequence[Adapter],
    error: float,
    rank: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    progress: Progress = quietly,
    engine: Engine = in_parallel,
) -> Bundle:
    """The merge of fewest bytes that keeps each task's relative error, as packed, below ``error``.

    Args:
        error: norm of (updates - packed) over norm of the updates, of every task; 0 to 1.
        rank, bits, engine: as ``merge_budget``.

    Raises:
        HydrapackError: VeRA adapters, or an error that the planner's best choices do not reach.
    """
    if not 0 < error < 1:
        raise Invalid(f"`target_error` {error:g}: must lie between 0 and 1")
    request = Request(adapters, rank, bits, seed, "minimax", engine)
    aimed, weights = [error**2] * len(adapters), (1.0,) * len(adapters)
    best: Bundle | None = None
    nearest = fewest = math.inf
    for done in range(ROUNDS):
        start, half = done / ROUNDS, 0.5 / ROUNDS
        planner = Planner(request, weights, part(progress, start, half))
        plan = planner.reaching(aimed) or planner.nearest()
        made = merge_plan(request, plan, weights, part(progress, start + half, half))
        errors = rounded_errors(adapters, made)
        nearest = min(nearest, max(errors))
        if max(errors) <= error and (best is None or plan.bytes < fewest):
            best, fewest = made, plan.bytes
        # Estimates err on either side: aim at what makes the real errors fit, task by task.
        ratios = [error / e if e else 1.0 for e in errors]
        aimed = [a * min(max(r, 0.5), 1.5) ** 2 for a, r in zip(aimed, ratios, strict=True)]
        mean = sum(r**-2 for r in ratios) / len(ratios)
        weights = tuple(w * r**-2 / mean for w, r in zip(weights, ratios, strict=True))
    if best is None:
        raise Invalid(
            f"`target_error` {error:g}: the nearest plan found leaves {nearest:.4f}; give more, or "
            "a larger `rank` or `bits`"
        )
    return best


@one_thread()
def merge_plan(
    request: Request,
    plan: Plan,
    weights: tuple[float, ...],
    progress: Progress = quietly,
    budget: int | None = None,
) -> Bundle:
    """The merge with each module as ``plan`` says.

    Args:
        weights: of the tasks' squared errors, in task order.
        budget: bytes that ``adapters.pte`` may take, for the packer to hold it to.
    """
    sizes, seed, choices = request.sizes, request.seed, plan.choices

    def merge(name: str, updates: Sequence[Update]) -> Merged:
        choice, sized = choices[name], divided(updates, sizes)
        options = MergeOptions(
            choice.head_count, choice.rank, module_seed(seed, name), weights, choice.assignment
        )
        if choice.output_rank:
            merged: Merged = merge_two_sided(sized, options, choice.output_rank)
        else:
            merged = merge_spectral(sized, options)
        return with_sizes(merged, updates, sizes)

    made = merge_modules(
        request.adapters,
        merge,
        "budget",
        request.objective,
        plan.rank,
        seed,
        progress,
        plan.bits,
        request.engine,
    )
    info = made.info.model_copy(update={"budget_bytes": budget})
    return Bundle(info, made.modules, plan.bytes)


def rounded_errors(adapters: Sequence[Adapter], bundle: Bundle) -> list[float]:
    """Each task's relative error as packed: of (updates - rounded) over the updates, in norm."""
    errors = [ErrorSum() for _ in adapters]
    assert bundle.info.bits is not None
    for name, module in bundle.modules.items():
        assert isinstance(module, MergedModule)
        bits = bundle.info.bits[name]
        stored = store(module, Precision(bits, bits)).dequantize()
        for k, update in enumerate(module_updates(adapters, name)):
            errors[k].add(update, stored.shared(), stored.head(stored.assignment[k]))
    return [error.relative for error in errors]
