"""Whole adapters, module by module, through one merge method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.lora import LoraAdapter, LoraModule
from hydrapack.errors import InputError
from hydrapack.merge.module import MergedModule, MergeMethod, MergeOptions, difference_norm
from hydrapack.merge.spectral import merge_spectral
from hydrapack.merge.task_arithmetic import merge_task_arithmetic

METHODS: dict[str, MergeMethod] = {
    "spectral": merge_spectral,
    "task-arithmetic": merge_task_arithmetic,
}


@dataclass(frozen=True)
class Merge:
    """The merge of N adapters: modules by name, and what it costs and saves."""

    tasks: tuple[str, ...]
    method: str
    heads: int
    rank: int
    seed: int
    modules: dict[str, MergedModule]
    relative_errors: dict[str, float]
    """By task: norm of (updates - merged) over norm of the updates, all modules together."""
    module_errors: dict[str, tuple[float, ...]]
    """By module: the same for each task, in task order."""
    parameters: int
    baseline_parameters: int

    @property
    def s_percent(self) -> float:
        """S (%): values stored over values of all adapters apart (the HydraOpt paper's S)."""
        return 100.0 * self.parameters / self.baseline_parameters


def merge_adapters(
    adapters: Sequence[LoraAdapter],
    method: str = "spectral",
    heads: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Merge:
    """Merge ``adapters`` with ``method``.

    Args:
        heads: M from 1 to N; N by default (1 for task-arithmetic).
        rank: R of the shared A; the largest rank of the adapters by default.
        progress: called with modules done and modules in all.

    Raises:
        InputError: an unknown method, or options the method cannot take.
    """
    if method not in METHODS:
        raise InputError(f"--method {method}: choose one of {', '.join(METHODS)}")
    count = len(adapters)
    heads = heads if heads is not None else (count if method == "spectral" else 1)
    rank = rank if rank is not None else max(a.rank for a in adapters)
    if not 1 <= heads <= count:
        raise InputError(f"--heads {heads}: must be from 1 to the number of adapters, {count}")
    if rank < 1:
        raise InputError(f"--rank {rank}: must be 1 or more")
    options = MergeOptions(heads=heads, rank=rank, seed=seed)
    names = sorted({name for adapter in adapters for name in adapter.modules})
    modules: dict[str, MergedModule] = {}
    module_errors: dict[str, tuple[float, ...]] = {}
    squared = [[0.0, 0.0] for _ in adapters]
    for done, name in enumerate(names):
        progress(done, len(names))
        updates = _updates(adapters, name)
        modules[name] = merged = METHODS[method](updates, options)
        errors = []
        for k, update in enumerate(updates):
            head = merged.heads[merged.assignment[k]]
            difference, own = difference_norm(update, merged.A, head)
            squared[k][0] += difference**2
            squared[k][1] += own**2
            errors.append(difference / own if own else difference)
        module_errors[name] = tuple(errors)
    progress(len(names), len(names))
    return Merge(
        tasks=tuple(a.task for a in adapters),
        method=method,
        heads=heads,
        rank=rank,
        seed=seed,
        modules=modules,
        relative_errors={
            a.task: math.sqrt(d / own) if own else math.sqrt(d)
            for a, (d, own) in zip(adapters, squared, strict=True)
        },
        module_errors=module_errors,
        parameters=sum(m.A.numel() + m.heads.numel() for m in modules.values()),
        baseline_parameters=sum(a.parameters for a in adapters),
    )


def _updates(adapters: Sequence[LoraAdapter], name: str) -> list[LoraModule]:
    """Each task's update of the module; rank 0 where a task leaves it alone."""
    d_out, d_in = next(a.modules[name].shape for a in adapters if name in a.modules)
    absent = LoraModule(torch.zeros(0, d_in), torch.zeros(d_out, 0), 1.0)
    return [adapter.modules.get(name, absent) for adapter in adapters]
