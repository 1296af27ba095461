"""Heads, rank and bits of every module: least error in so many bytes, or fewest bytes for an error.

Only a module's choices on the lower convex hull of (bytes, error) are worth taking (the
Lagrangian's choices for all prices); all modules start at their cheapest and the steps with the
largest gain a byte are bought until the budget is spent, or every task is near enough.

No module's rank is above one R, that of the base program, and a program of lower rank decodes
faster: of all R the smallest is taken whose plan is nearly as good as the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import ErrorSum, Update, inner_product
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged, MergedModule, Objective
from hydrapack.bundle.stored import round_module
from hydrapack.merging.candidates import Choice, candidates, gain, lower_hull, steps_to
from hydrapack.merging.method import MergeOptions, divided, with_sizes
from hydrapack.merging.modules import (
    check_any,
    merge_modules,
    module_names,
    module_seed,
    module_updates,
    task_weights,
)
from hydrapack.merging.objective import reweigh, task_sizes
from hydrapack.merging.program_size import adapters_bytes
from hydrapack.merging.spectral import SPECTRAL, merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.program.layout import layout_of
from hydrapack.program.quantized import Precision, check_bits
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.threads import one_thread

PLANNED_BITS = (4, 8, 16)
SLACK = 1.02
"""A lower R may cost this factor of the error, or of the bytes where an error is asked for."""
NEGLIGIBLE = 0.005
"""Relative error that is not worth a higher R."""
ROUNDS = 4
"""Of reweighting, for minimax and for a target."""
GRID = 8
"""Sizes of the integers that are tried before the best is refined."""
Step = tuple[float, str, int]
"""Minus the gain a byte, module, place on its hull."""


@dataclass(frozen=True)
class Plan:
    """What each module gets, by name, and what it comes to."""

    choices: dict[str, Choice]
    rank: int
    """R of the base program: the one asked for, or the largest of the choices."""
    bytes: int
    """Of ``adapters.pte``, at most."""
    error: float
    """Estimate of the weighted squared error."""

    @property
    def bits(self) -> dict[str, int]:
        """Bits a value by module name."""
        return {name: choice.bits for name, choice in self.choices.items()}


class Planner:
    """The adapters' modules with all their choices, for one weight of each task.

    Errors are of the updates over ``sizes``, where those are given.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        rank: int,
        bits: Sequence[int],
        seed: int,
        weights: tuple[float, ...],
        sizes: Sequence[float] | None,
        progress: Callable[[float], None],
        free_rank: bool = True,
    ) -> None:
        """Args:
        rank: R of the base program, or with ``free_rank`` the largest it may be.
        """
        self.shapes: dict[str, tuple[int, int]] = {}
        self.found: dict[str, list[Choice]] = {}
        self.whole = 0.0
        """Weighted squared norm of all updates."""
        names = module_names(adapters)
        for done, name in enumerate(names):
            progress(done / len(names))
            updates = module_updates(adapters, name)
            self.shapes[name] = updates[0].shape
            options = MergeOptions(len(adapters), rank, module_seed(seed, name), weights)
            sized = divided(updates, sizes)
            self.found[name] = candidates(sized, options, bits)
            for weight, update in zip(weights, sized, strict=True):
                A, B = update.factors()
                self.whole += weight * float(inner_product(A, B, A, B))
        self.rank = None if free_rank else rank
        largest = max(c.rank for found in self.found.values() for c in found)
        self.ranks = steps_to(largest) if free_rank else [largest]
        self.zeros, self.tasks = _missing(self.shapes), len(adapters)

    def plan(self, choices: dict[str, Choice]) -> Plan:
        """Choices by module name, with what they come to."""
        rank = self.rank or max(choice.rank for choice in choices.values())
        every, shapes = dict(choices), dict(self.shapes)
        for name, shape in self.zeros.items():
            every[name], shapes[name] = Choice(0, 0.0, 1, 1, 0, 8), shape  # as the packer's
        size = adapters_bytes(every, shapes, rank, self.tasks)
        return Plan(choices, rank, size, sum(choice.error for choice in choices.values()))

    def hulls(self) -> Iterator[tuple[int, dict[str, list[Choice]]]]:
        """Hulls by module name, for each R and for what is simple enough for a small program."""
        kinds: tuple[Callable[[Choice], bool], ...] = (
            lambda c: True,
            lambda c: c.bits == 4,
            lambda c: c.bits == 4 and c.output_rank > 0,
            lambda c: c.bits == 8 and not c.output_rank,
        )
        for rank in self.ranks:
            for kind in kinds:
                hulls = {
                    name: lower_hull(c for c in found if c.rank <= rank and kind(c))
                    for name, found in self.found.items()
                }
                if all(hulls.values()):
                    yield rank, hulls

    def within(self, budget: int) -> Plan:
        """The plan of least error in ``budget`` bytes.

        Raises:
            HydrapackError: the cheapest choices take more.
        """
        best: dict[int, Plan] = {}
        smallest = math.inf
        for rank, hulls in self.hulls():
            least = self.plan({name: hull[0] for name, hull in hulls.items()})
            smallest = min(smallest, least.bytes)
            found = self._within(hulls, budget)
            if found is not None and (rank not in best or found.error < best[rank].error):
                best[rank] = found
        if not best:
            raise Invalid(
                f"`budget` {budget} bytes: the smallest plan takes about {smallest}; give more"
            )
        least_error = min(plan.error for plan in best.values())
        # Errors are squares.
        enough = SLACK**2 * least_error + NEGLIGIBLE**2 * self.whole
        return next(best[r] for r in sorted(best) if best[r].error <= enough)

    def _within(self, hulls: dict[str, list[Choice]], budget: int) -> Plan | None:
        # The program around the integers depends on the plan, up and down: all sizes of the
        # integers are tried, then the best is refined.
        steps, best = steps_of(hulls), None
        least = sum(hull[0].bytes for hull in hulls.values())
        low = least
        for room in [least + (budget - least) * i // GRID for i in range(GRID + 1)]:
            plan = self._in_room(hulls, room, steps, budget)
            if plan is not None and (best is None or plan.error < best.error):
                best, low = plan, room
        high = low + (budget - least) // GRID
        while best is not None and high - low > max(16, budget // 10_000):
            room = (low + high) // 2
            plan = self._in_room(hulls, room, steps, budget)
            if plan is None:
                high = room
                continue
            low, best = room, min(plan, best, key=lambda p: p.error)
        return best

    def _in_room(
        self, hulls: dict[str, list[Choice]], room: int, steps: Sequence[Step], budget: int
    ) -> Plan | None:
        choices = buy(hulls, room, steps)
        plan = None if choices is None else self.plan(choices)
        return plan if plan is not None and plan.bytes <= budget else None

    def reaching(self, limits: Sequence[float]) -> Plan | None:
        """The plan of fewest bytes whose tasks' squared errors are at most ``limits``, if any."""
        best: dict[int, Plan] = {}
        for rank, hulls in self.hulls():
            choices = climb(hulls, limits)
            if choices is None:
                continue
            plan = self.plan(choices)
            if rank not in best or plan.bytes < best[rank].bytes:
                best[rank] = plan
        fewest = min((plan.bytes for plan in best.values()), default=0)
        return next((best[r] for r in sorted(best) if best[r].bytes <= SLACK * fewest), None)


def _missing(shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Modules that the packer adds, zeros, so that all layers are alike; shapes by name."""
    try:
        return layout_of(shapes, 1).missing(shapes)
    except HydrapackError:
        return {}  # No decoder's linears: the bundle cannot be packed anyway.


@one_thread()
def merge_budget(
    adapters: Sequence[Adapter],
    budget: int,
    rank: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    weights: dict[str, float] | None = None,
    objective: str = "relative",
    progress: Progress = quietly,
) -> Bundle:
    """The merge of least error whose ``adapters.pte`` takes at most ``budget`` bytes.

    Args:
        rank: R of the base program, which no module's is above; by default the smallest that is
            nearly as good as the largest rank of the adapters.
        bits: 4, 8 or 16 for all modules; free by default.
        objective: relative, absolute or minimax.

    Raises:
        HydrapackError: no adapters, VeRA's, or a budget that the cheapest choices do not meet.
    """
    named = SPECTRAL.objective(objective)
    job = _Job(adapters, rank, bits, seed, weights, named, "`budget`", progress)
    if named != "minimax":
        return job.within(budget, job.weights)
    rounds = 0

    def solve(weights: tuple[float, ...]) -> tuple[list[float], Bundle]:
        nonlocal rounds
        made = job.within(budget, weights, rounds, ROUNDS)
        rounds += 1
        return list(made.relative_errors.values()), made

    return reweigh(solve, job.weights, ROUNDS)[1]


@one_thread()
def merge_target(
    adapters: Sequence[Adapter],
    error: float,
    rank: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    progress: Progress = quietly,
) -> Bundle:
    """The merge of fewest bytes that keeps each task's relative error, as packed, below ``error``.

    Args:
        error: norm of (updates - packed) over norm of the updates, of every task; 0 to 1.
        rank, bits: as ``merge_budget``.

    Raises:
        HydrapackError: no adapters, VeRA's, or an error that the planner's best choices do not
            reach.
    """
    if not 0 < error < 1:
        raise Invalid(f"`target_error` {error:g}: must lie between 0 and 1")
    job = _Job(adapters, rank, bits, seed, None, "minimax", "`target_error`", progress)
    aimed, weights = [error**2] * len(adapters), job.weights
    best: Bundle | None = None
    nearest = fewest = math.inf
    for done in range(ROUNDS):
        planner = job.planner(weights, done, ROUNDS)
        plan = planner.reaching(aimed)
        if plan is None:
            plan = planner.plan(
                {name: min(found, key=lambda c: c.error) for name, found in planner.found.items()}
            )
        made = job.merge(plan, weights, done, ROUNDS)
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


class _Job:
    """What all plans of one call have in common."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        rank: int | None,
        bits: int | None,
        seed: int,
        weights: dict[str, float] | None,
        objective: Objective | None,
        flag: str,
        progress: Progress,
    ) -> None:
        check_any(adapters)
        if adapters[0].kind != "LORA":
            raise Invalid(f"{flag}: plans LoRA adapters; VeRA's vectors are kilobytes as they are")
        if bits is not None and check_bits("bits", bits) == 32:
            raise Invalid("`bits` 32: a plan is made at 4, 8 or 16")
        if rank is not None and rank < 1:
            raise Invalid(f"`rank` {rank}: must be 1 or more")
        self.adapters, self.seed, self.progress = adapters, seed, progress
        self.rank, self.free_rank = rank or max(a.rank for a in adapters), rank is None
        self.bits = (bits,) if bits else PLANNED_BITS
        self.weights = task_weights(adapters, weights or {})
        self.objective = objective
        self.sizes = None if objective == "absolute" else task_sizes(adapters)
        self.total = len(module_names(adapters))

    def planner(self, weights: tuple[float, ...], done: int, rounds: int) -> Planner:
        """Of round ``done`` of so many."""

        def report(share: float) -> None:
            self.progress((done + share / 2) * self.total / rounds, self.total, "planning")

        return Planner(
            self.adapters,
            self.rank,
            self.bits,
            self.seed,
            weights,
            self.sizes,
            report,
            self.free_rank,
        )

    def within(
        self,
        budget: int,
        weights: tuple[float, ...],
        done: int = 0,
        rounds: int = 1,
    ) -> Bundle:
        """The merge by the best plan in ``budget`` bytes."""
        plan = self.planner(weights, done, rounds).within(budget)
        return self.merge(plan, weights, done, rounds, budget)

    def merge(
        self,
        plan: Plan,
        weights: tuple[float, ...],
        done: int,
        rounds: int,
        budget: int | None = None,
    ) -> Bundle:
        """The merge with each module as ``plan`` says."""

        def report(share: float, total: int, note: str) -> None:
            before = (done + 0.5) * total / rounds
            self.progress(before + share / 2 / rounds, total, "merging")

        return merge_plan(
            self.adapters, plan, weights, self.sizes, self.objective, self.seed, report, budget
        )


@one_thread()
def merge_plan(
    adapters: Sequence[Adapter],
    plan: Plan,
    weights: tuple[float, ...],
    sizes: Sequence[float] | None,
    objective: Objective | None = None,
    seed: int = 0,
    progress: Progress = quietly,
    budget: int | None = None,
) -> Bundle:
    """The merge with each module as ``plan`` says.

    Args:
        budget: bytes that ``adapters.pte`` may take, for the packer to hold it to.
    """

    def merge(name: str, updates: Sequence[Update]) -> Merged:
        choice, sized = plan.choices[name], divided(updates, sizes)
        options = MergeOptions(
            choice.heads, choice.rank, module_seed(seed, name), weights, choice.assignment
        )
        if choice.output_rank:
            merged: Merged = merge_two_sided(sized, options, choice.output_rank)
        else:
            merged = merge_spectral(sized, options)
        return with_sizes(merged, updates, sizes)

    made = merge_modules(adapters, merge, "budget", objective, plan.rank, seed, progress, plan.bits)
    info = made.info.model_copy(update={"budget_bytes": budget})
    return Bundle(info, made.modules, plan.bytes)


def rounded_errors(adapters: Sequence[Adapter], bundle: Bundle) -> list[float]:
    """Each task's relative error as packed: of (updates - rounded) over the updates, in norm."""
    errors = [ErrorSum() for _ in adapters]
    assert bundle.info.bits is not None
    for name, module in bundle.modules.items():
        assert isinstance(module, MergedModule)
        bits = bundle.info.bits[name]
        stored = round_module(module, Precision(bits, bits))
        for k, update in enumerate(module_updates(adapters, name)):
            errors[k].add(update, stored.shared(), stored.head(stored.assignment[k]))
    return [error.relative for error in errors]


def steps_of(hulls: Mapping[str, list[Choice]]) -> list[Step]:
    """Each step along each hull, the largest gain a byte first."""
    return sorted(
        (-gain(hull[i], hull[i + 1]), name, i)
        for name, hull in hulls.items()
        for i in range(len(hull) - 1)
    )


def buy(
    hulls: Mapping[str, list[Choice]], room: int, steps: Sequence[Step]
) -> dict[str, Choice] | None:
    """Choices of at most ``room`` bytes in all; None if the cheapest take more.

    Steps are taken by gain a byte; one that no longer fits ends its module's climb.
    """
    at = dict.fromkeys(hulls, 0)
    room -= sum(hull[0].bytes for hull in hulls.values())
    if room < 0:
        return None
    for _, name, i in steps:
        price = hulls[name][i + 1].bytes - hulls[name][i].bytes
        if at[name] == i and price <= room:
            at[name], room = i + 1, room - price
    return {name: hull[at[name]] for name, hull in hulls.items()}


def climb(hulls: Mapping[str, list[Choice]], limits: Sequence[float]) -> dict[str, Choice] | None:
    """The cheapest choices, by gain a byte, whose tasks' errors add up to at most ``limits``.

    None where all steps together do not reach them.
    """
    now = {name: hull[0] for name, hull in hulls.items()}
    left = [sum(parts) for parts in zip(*(c.errors for c in now.values()), strict=True)]
    for _, name, i in steps_of(hulls):
        if all(own <= limit for own, limit in zip(left, limits, strict=True)):
            return now
        old, now[name] = now[name], hulls[name][i + 1]
        parts = zip(left, old.errors, now[name].errors, strict=True)
        left = [total - before + after for total, before, after in parts]
    reached = all(own <= limit for own, limit in zip(left, limits, strict=True))
    return now if reached else None
