"""Heads, rank and bits of every module: least error in so many bytes, or fewest bytes for an error.

A module's candidates are on its hull (``hulls.py``). No module's rank is above one R, that of the
base program, and a program of lower rank decodes faster: of all R the smallest is taken whose plan
is nearly as good as the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import Update, inner_product
from hydrapack.bundle.merged import Objective
from hydrapack.merging.candidates import Choice, candidates, steps_to
from hydrapack.merging.hulls import Step, buy, climb, lower_hull, steps_of
from hydrapack.merging.method import MergeOptions, divided
from hydrapack.merging.modules import at_once, module_names, module_seed, named_updates
from hydrapack.merging.objective import task_sizes
from hydrapack.merging.program_size import adapters_bytes
from hydrapack.program.layout import layout_of
from hydrapack.program.quantized import check_bits
from hydrapack.support.engine import Engine
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.threads import in_parallel

PLANNED_BITS = (4, 8, 16)
SLACK = 1.02
"""A lower R may cost this factor of the error, or of the bytes where an error is asked for."""
NEGLIGIBLE = 0.005
"""Relative error that is not worth a higher R."""
GRID = 8
"""Sizes of the integers that are tried before the best is refined."""


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Raises:
        HydrapackError: VeRA adapters, or a rank or width out of range.
    """

    adapters: Sequence[Adapter]
    rank: int | None = None
    """R of the base program; by default free, up to the largest rank of the adapters."""
    bits: int | Mapping[str, int] | None = None
    """A value of every module: 4, 8 or 16, or each module's own; free by default."""
    seed: int = 0
    objective: Objective | None = "relative"
    engine: Engine = in_parallel
    """Runs the modules."""

    def __post_init__(self) -> None:
        if self.adapters[0].kind != "LORA":
            raise Invalid(
                "`budget` and `target_error` plan LoRA adapters; VeRA's vectors take kilobytes "
                "without a plan"
            )
        if isinstance(self.bits, int) and check_bits("bits", self.bits) == 32:
            raise Invalid("`bits` 32: a plan takes 4, 8 or 16")
        if self.rank is not None and self.rank < 1:
            raise Invalid(f"`rank` {self.rank}: must be 1 or more")

    @cached_property
    def sizes(self) -> Sequence[float] | None:
        """By what each task's updates are divided; None for the absolute objective."""
        if self.objective == "absolute":
            return None
        return task_sizes(self.adapters, engine=self.engine)


@dataclass(frozen=True)
class Plan:
    """What each module gets, by name, and the bytes and error of the whole."""

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
    """The adapters' modules with all their choices, for one weight of each task."""

    def __init__(
        self, request: Request, weights: tuple[float, ...], progress: Progress = quietly
    ) -> None:
        """``weights``: of the tasks' squared errors, in task order."""
        adapters, sizes = request.adapters, request.sizes
        most = request.rank or max(a.rank for a in adapters)
        self.shapes: dict[str, tuple[int, int]] = {}
        self.found: dict[str, list[Choice]] = {}
        self.whole = 0.0
        """Weighted squared norm of all updates."""
        names, seed = module_names(adapters), request.seed
        asked = request.bits

        def one(named: tuple[str, Sequence[Update]]) -> tuple[list[Choice], list[float]]:
            name, updates = named
            options = MergeOptions(len(updates), most, module_seed(seed, name), weights)
            sized = divided(updates, sizes)
            bits = asked[name] if isinstance(asked, Mapping) else asked
            widths = (bits,) if bits else PLANNED_BITS
            squares = [inner_product(A, B, A, B) for A, B in (u.factors() for u in sized)]
            return candidates(sized, options, widths), [float(square) for square in squares]

        made = request.engine(one, named_updates(adapters), at_once(adapters, most))
        for done, name in enumerate(names):
            progress(done, len(names), "planning")
            self.found[name], squares = next(made)
            self.shapes[name] = next(a.modules[name].shape for a in adapters if name in a.modules)
            for weight, square in zip(weights, squares, strict=True):
                self.whole += weight * square
        self.rank = request.rank
        largest = max(c.rank for found in self.found.values() for c in found)
        self.ranks = steps_to(largest) if request.rank is None else [largest]
        self.zeros, self.tasks = _missing(self.shapes), len(adapters)

    def plan(self, choices: dict[str, Choice]) -> Plan:
        """The plan of these choices, by module name."""
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

    def nearest(self) -> Plan:
        """The plan of least error, whatever it takes."""
        return self.plan(
            {name: min(found, key=lambda c: c.error) for name, found in self.found.items()}
        )

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
