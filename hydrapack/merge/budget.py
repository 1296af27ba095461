"""Heads, rank and bits of every module under one byte budget.

Each module offers candidates, whole heads (M, R) or a common output basis (R, Q), each at several
bit widths, with their bytes and an estimate of their squared error: the energy left out, which is
exact for whole heads and an upper bound for a common basis, plus the noise of rounding. Only those
on the lower convex hull of (bytes, error) are worth taking (the Lagrangian's choices for all
prices); all modules start at their cheapest and the steps with the largest gain a byte are bought
until the budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.modules import Update
from hydrapack.errors import InputError
from hydrapack.merge.adapters import (
    Merge,
    check_any,
    merge_modules,
    module_names,
    module_seed,
    module_updates,
    task_weights,
)
from hydrapack.merge.module import MergedModule, MergeOptions
from hydrapack.merge.spectral import assign, fit, joint, merge_spectral
from hydrapack.merge.two_sided import core_of, energies, merge_two_sided
from hydrapack.quantize import (
    check_bits,
    core_bits,
    noise_by_columns,
    rounded,
    stored_bytes,
)
from hydrapack.threads import one_thread

PLANNED_BITS = (4, 8, 16)
ROUNDS = 8


@dataclass(frozen=True, order=True)
class Choice:
    """What one module gets; ``output_rank`` Q above 0 is a common output basis."""

    bytes: int
    error: float
    """Estimate of the squared error, all tasks together, each with its weight."""
    heads: int
    rank: int
    output_rank: int
    bits: int


@one_thread()
def merge_budget(
    adapters: Sequence[Adapter],
    budget: int,
    rank: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    weights: dict[str, float] | None = None,
    progress: Callable[[float, int, str], None] = lambda done, total, note: None,
) -> tuple[Merge, dict[str, Choice]]:
    """The merge of least squared error whose ``adapters.pte`` takes at most ``budget`` bytes.

    Args:
        rank: no module's R is above it; the largest rank of the adapters by default.
        bits: 4, 8 or 16 for all modules; free by default.

    Returns:
        the merge, and the choice by module name.

    Raises:
        InputError: no adapters, VeRA's, or a budget that the cheapest choices do not meet.
    """
    check_any(adapters)
    if adapters[0].kind != "LORA":
        raise InputError("--budget: plans LoRA adapters; VeRA's vectors are kilobytes as they are")
    if bits is not None and check_bits("--bits", bits) == 32:
        raise InputError("--bits 32: a budget is planned at 4, 8 or 16")
    own = rank or max(a.rank for a in adapters)
    names = module_names(adapters)
    per_task = task_weights(adapters, weights or {})
    hulls = {}
    for done, name in enumerate(names):
        progress(done / 2, len(names), "planning")
        options = MergeOptions(len(adapters), own, module_seed(seed, name), per_task)
        found = candidates(
            module_updates(adapters, name), options, (bits,) if bits else PLANNED_BITS
        )
        hulls[name] = lower_hull(found)
    plan = plan_budget(hulls, budget)
    merge = merge_planned(adapters, plan, own, seed, per_task, progress)
    return merge, plan


def plan_budget(hulls: dict[str, list[Choice]], budget: int) -> dict[str, Choice]:
    """The choice of each module, by name, for an ``adapters.pte`` of at most ``budget`` bytes.

    Raises:
        InputError: the cheapest choices take more.
    """
    least = {name: hull[0] for name, hull in hulls.items()}
    overhead = program_bytes(least)
    for _ in range(ROUNDS):
        plan = buy(hulls, budget - overhead)
        if plan is None:
            break
        if sum(c.bytes for c in plan.values()) + program_bytes(plan) <= budget:
            return plan
        overhead = max(overhead + 1, program_bytes(plan))
    smallest = sum(choice.bytes for choice in least.values()) + program_bytes(least)
    raise InputError(
        f"--budget {budget} bytes: the smallest plan takes about {smallest}; give more"
    )


def program_bytes(plan: dict[str, Choice]) -> int:
    """Upper estimate of the program around the integers: it grows with how mixed the plan is."""
    targets = {name: name.rsplit(".", 1)[-1] for name in plan}
    banks = {(targets[n], c.bits) for n, c in plan.items() if c.output_rank}
    banks |= {("", c.bits) for c in plan.values() if not c.output_rank}
    shared = {(targets[name], c.bits) for name, c in plan.items()}
    return 14_000 + 7_500 * len(banks) + 1_000 * len(shared) + 200 * len(plan)


@one_thread()
def merge_planned(
    adapters: Sequence[Adapter],
    plan: dict[str, Choice],
    rank: int,
    seed: int = 0,
    weights: tuple[float, ...] | None = None,
    progress: Callable[[float, int, str], None] = lambda done, total, note: None,
) -> Merge:
    """The merge with each module as ``plan`` says; ``rank`` is the bundle's."""

    def merge(name: str, updates: Sequence[Update]) -> MergedModule:
        choice = plan[name]
        options = MergeOptions(choice.heads, choice.rank, module_seed(seed, name), weights)
        if choice.output_rank:
            return merge_two_sided(updates, replace(options, output_rank=choice.output_rank))
        # The assignment is the one the plan was made with, found at the bundle's rank.
        found = assign([joint(updates)], replace(options, rank=rank))
        return merge_spectral(updates, replace(options, assignment=found))

    def half(done: float, total: int, note: str) -> None:
        progress((total + done) / 2, total, "merging")

    return merge_modules(adapters, merge, "budget", rank, seed, half)


@one_thread()
def candidates(
    updates: Sequence[Update], options: MergeOptions, widths: Sequence[int]
) -> list[Choice]:
    """Every way to store one module that the planner weighs.

    Args:
        options: ``heads`` N, ``rank`` the largest R, ``seed``, ``weights``.
        widths: bits a value.
    """
    step = max(1, options.rank // 16)
    ranks = sorted({*range(step, options.rank + 1, step), options.rank})
    found = []
    problem = joint(updates)
    weights = torch.tensor([options.weight(k) for k in range(len(updates))], dtype=torch.float64)
    whole = float((problem.products().diagonal() * weights).sum())
    for heads in range(1, options.heads + 1):
        now = replace(options, heads=heads)
        assignment = assign([problem], now)
        A, B = fit(problem, updates, assignment, now)
        shares = torch.stack([weights[[a == m for a in assignment]].sum() for m in range(heads)])
        # Energy of each rank's column; what all columns keep comes off the whole.
        energy = (B.square().sum(1) * shares[:, None]).sum(0)
        for bits in widths:
            noise_a = ((A - rounded(A, bits).double()).square().sum(1) * energy).cumsum(0)
            noise_b = (noise_by_columns(B, bits) * shares[:, None]).sum(0)
            error = whole - energy.cumsum(0) + noise_a + noise_b
            for rank in sorted({min(rank, len(A)) for rank in ranks}):
                size = stored_bytes(rank, A.shape[1], bits)
                size += stored_bytes(heads * B.shape[1], rank, bits)
                found.append(Choice(size, float(error[rank - 1]), heads, rank, 0, bits))
    return found + _two_sided(updates, options, widths, whole)


def _two_sided(
    updates: Sequence[Update],
    options: MergeOptions,
    widths: Sequence[int],
    whole: float,
) -> list[Choice]:
    count = len(updates)
    core = core_of(updates, options)
    left, right = core.left(None, 1 << 30), core.right(None, options.rank)
    U, A = core.output @ left, (core.input @ right).T
    kept = energies(core.projected(left, right))
    step = max(1, options.rank // 4)
    # Few ranks, so that the C's of several modules lie in equal pieces.
    ranks = list(range(max(1, options.rank // 8), len(A) + 1, max(1, options.rank // 8)))
    found = []
    for bits in widths:
        noise_a = (A - rounded(A, bits).double()).square().sum(1).cumsum(0)
        noise_u = noise_by_columns(U[None], bits)[0]
        for rank in ranks:
            for width in range(step, U.shape[1] + 1, step):
                held = float(kept[width - 1, rank - 1])
                # U and A are orthonormal: noise of a basis scales with the energy it carries.
                noise = held * float(noise_u[width - 1] / width + noise_a[rank - 1] / rank)
                size = stored_bytes(rank, A.shape[1], bits) + stored_bytes(len(U), width, bits)
                size += stored_bytes(count * rank, width, core_bits(bits))
                found.append(Choice(size, whole - held + noise, count, rank, width, bits))
    return found


def lower_hull(found: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull of (bytes, error), cheapest first."""
    hull: list[Choice] = []
    for choice in sorted(found):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _gain(hull[-2], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        if hull and choice.bytes == hull[-1].bytes:
            hull.pop()
        hull.append(choice)
    return hull


def _gain(old: Choice, new: Choice) -> float:
    """Squared error saved a byte."""
    return (old.error - new.error) / max(new.bytes - old.bytes, 1)


def buy(hulls: dict[str, list[Choice]], room: int) -> dict[str, Choice] | None:
    """Choices of at most ``room`` bytes in all; None if the cheapest take more.

    Steps are taken by gain a byte; one that no longer fits ends its module's climb.
    """
    at = dict.fromkeys(hulls, 0)
    room -= sum(hull[0].bytes for hull in hulls.values())
    if room < 0:
        return None
    steps = [
        (-_gain(hull[i], hull[i + 1]), name, i)
        for name, hull in hulls.items()
        for i in range(len(hull) - 1)
    ]
    for _, name, i in sorted(steps):
        price = hulls[name][i + 1].bytes - hulls[name][i].bytes
        if at[name] == i and price <= room:
            at[name], room = i + 1, room - price
    return {name: hull[at[name]] for name, hull in hulls.items()}
