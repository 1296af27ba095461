"""All modules of some adapters by one merge method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import Update
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged, Objective
from hydrapack.merging.method import Knobs, MergeOptions, Method, divided, with_sizes
from hydrapack.merging.methods import find_method
from hydrapack.merging.modules import (
    merge_modules,
    module_names,
    module_rank,
    module_seed,
    module_updates,
    task_weights,
)
from hydrapack.merging.objective import ROUNDS, reweigh, task_sizes
from hydrapack.support.engine import Engine
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, part, quietly
from hydrapack.support.threads import in_parallel, one_thread


@one_thread()
def merge_adapters(
    adapters: Sequence[Adapter],
    method: str = "spectral",
    heads: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress = quietly,
    *,
    objective: str | None = None,
    weights: Mapping[str, float] | None = None,
    engine: Engine = in_parallel,
    **options: Any,
) -> Bundle:
    """Merge ``adapters`` with ``method``, all modules alike.

    Args:
        heads: M from 1 to N; by default what the method makes by itself.
        rank: the most R of a module's shared A, which has no more rows than its updates span
            together; by default each module's own largest rank.
        progress: called with modules done, modules in all and a note (HydraOpt's loss).
        objective: ``relative`` (each task's error over its own size), ``absolute``, or ``minimax``
            (the least error of the worst task); by default the method's own.
        weights: of the tasks' squared errors, by task, on top of the objective's; 1 where not
            named.
        engine: runs the modules.
        options: the method's knobs, by name.

    Raises:
        HydrapackError: an unknown method, or options the method cannot take.
    """
    chosen = find_method(method, vera=adapters[0].kind == "VERA")
    own = chosen.own(options)
    asked, rank = rank, rank if rank is not None else max(a.rank for a in adapters)
    if rank < 1:
        raise Invalid(f"`rank` {rank}: must be 1 or more")
    count = chosen.head_count(heads, len(adapters), own)
    minimised = chosen.objective(objective)
    own_weights = task_weights(adapters, weights or {})
    shared = MergeOptions(count, rank, seed, own_weights)
    sizes = None
    if minimised in ("relative", "minimax"):
        sizes = task_sizes(adapters, own.measure, engine)
    job = _Job(adapters, chosen, own, minimised, sizes, asked, engine)
    rounds = ROUNDS if minimised == "minimax" else 1

    def solve(weights: tuple[float, ...], done: float) -> tuple[Sequence[float], Bundle]:
        report = part(progress, done, 1 / rounds)
        made = job.merge(replace(shared, weights=weights), report)
        return list(made.relative_errors.values()), made

    return reweigh(solve, own_weights, rounds)


@dataclass(frozen=True)
class _Job:
    """A merge of all modules alike, for any weights of the tasks."""

    adapters: Sequence[Adapter]
    method: Method
    own: Knobs
    objective: Objective | None
    sizes: Sequence[float] | None
    rank: int | None
    """As it was asked for."""
    engine: Engine

    def merge(self, shared: MergeOptions, progress: Progress) -> Bundle:
        """One pass over the modules."""
        names, seed = module_names(self.adapters), shared.seed
        own, sizes, asked = self.own, self.sizes, self.rank
        if self.own.one_route and shared.head_count < len(self.adapters):
            shared = replace(shared, assignment=self._route(names, shared, progress))
        vera = self.adapters[0].kind == "VERA"
        run, done = (self.method.vera if vera else self.method.merge), 0
        # Progress within a module is told on this machine alone.
        tell = progress if self.engine is in_parallel else quietly

        def merge(module: str, updates: Sequence[Update]) -> Merged:
            nonlocal done
            report, done = _reporter(tell, done, len(names)), done + 1
            options = replace(
                shared,
                rank=module_rank(updates, asked),
                seed=module_seed(seed, module),
                report=report,
            )
            assert run is not None
            merged = run(divided(updates, sizes), options, own)
            return with_sizes(merged, updates, sizes)

        label = self.method.name + self.own.note
        return merge_modules(
            self.adapters,
            merge,
            label,
            self.objective,
            shared.rank,
            seed,
            progress,
            engine=self.engine,
        )

    def _route(
        self, names: Sequence[str], shared: MergeOptions, progress: Progress
    ) -> tuple[int, ...]:
        """Each task's head in all modules."""
        modules = (divided(module_updates(self.adapters, name), self.sizes) for name in names)
        total = len(names)

        def report(share: float, loss: float) -> None:
            progress(share * total, total, f"routing, loss {loss:.4f}")

        assert self.method.route is not None
        return self.method.route(modules, replace(shared, report=report), self.own)


def _reporter(progress: Progress, done: int, total: int) -> Callable[[float, float], None]:
    return lambda share, loss: progress(done + share, total, f"loss {loss:.4f}")
