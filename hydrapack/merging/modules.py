"""Adapters module by module: what each task changes, and a bundle of the merged modules."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import ErrorSum, Update, VeraModule, difference_norm
from hydrapack.bundle.format import Bundle, BundleInfo, BundleTask, describe_source
from hydrapack.bundle.held import HeldModules
from hydrapack.bundle.merged import Merged, Objective, stored_values
from hydrapack.support.engine import Engine
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress
from hydrapack.support.threads import in_parallel, one_thread
from hydrapack.support.version import __version__

ROOM = 1 << 30
"""Bytes that the modules merged at the same time may take."""


@one_thread()
def merge_modules(
    adapters: Sequence[Adapter],
    merge: Callable[[str, Sequence[Update]], Merged],
    label: str,
    objective: Objective | None,
    rank: int,
    seed: int,
    progress: Progress,
    bits: Mapping[str, int] | None = None,
    engine: Engine = in_parallel,
) -> Bundle:
    """Every module by ``merge`` (its name, the tasks' updates), with what it costs and saves.

    Args:
        merge: with another engine than ``in_parallel``, one that can be pickled.
        label: what the bundle calls the method.
        bits: by module, the bits a value that a plan gives it.
    """
    modules, heads, parameters = HeldModules(), 1, 0
    module_errors: dict[str, list[float]] = {}
    routes: list[tuple[int, ...]] = []
    sums = [ErrorSum() for _ in adapters]
    names = module_names(adapters)

    def one(
        named: tuple[str, Sequence[Update]],
    ) -> tuple[Merged, list[tuple[float, float]]]:
        name, updates = named
        merged = merge(name, updates)
        # Without a copy: of a thousand tasks the heads are large.
        ends = [float(end) for t in merged.tensors.values() for end in torch.aminmax(t)]
        if not all(map(math.isfinite, ends)):
            raise Invalid(f"{name}: the merged values exceed single precision; is an alpha wrong?")
        shared = merged.shared().double()
        norms = [
            difference_norm(update, shared, merged.head(head))
            for update, head in zip(updates, merged.assignment, strict=True)
        ]
        return merged, norms

    made = engine(one, named_updates(adapters), at_once(adapters, rank))
    for done, name in enumerate(names):
        merged, norms = next(made)
        modules.add(name, merged)
        heads, parameters = max(heads, len(merged.heads)), parameters + stored_values([merged])
        routes.append(merged.assignment)
        module_errors[name] = [error.count(*pair) for error, pair in zip(sums, norms, strict=True)]
        del merged  # Before the next one is waited for.
        progress(done + 1, len(names), "")
    tasks = [
        BundleTask(
            name=adapter.task,
            route=[assignment[k] for assignment in routes],
            relative_error=sums[k].relative,
            settings=adapter.settings,
            source=describe_source(adapter),
            task_type=adapter.task_type,
        )
        for k, adapter in enumerate(adapters)
    ]
    info = BundleInfo(
        hydrapack_version=__version__,
        adapter_type="vera" if adapters[0].kind == "VERA" else "lora",
        base_model=adapters[0].base_model,
        base_revision=adapters[0].revision,
        method=label,
        objective=objective,
        seed=seed,
        heads=heads,
        rank=rank,
        modules=names,
        module_errors=module_errors,
        bits=None if bits is None else {name: bits[name] for name in names},
        tasks=tasks,
        parameters=parameters,
        baseline_parameters=sum(a.parameters for a in adapters),
    )
    return Bundle(info, modules)


def at_once(adapters: Sequence[Adapter], rank: int) -> int:
    """How many modules may be merged at a time: each holds its heads and some Gram matrices."""
    shapes = {module.shape for adapter in adapters for module in adapter.modules.values()}
    largest = max(
        4 * len(adapters) * rank * d_out + 32 * max(d_in, d_out) ** 2 for d_out, d_in in shapes
    )
    return max(1, ROOM // largest)


def module_names(adapters: Sequence[Adapter]) -> list[str]:
    """Every module that some adapter has, sorted."""
    return sorted({name for adapter in adapters for name in adapter.modules})


def module_updates(adapters: Sequence[Adapter], name: str) -> list[Update]:
    """Each task's update of the module; rank 0 where a task leaves it alone."""
    absent = next(a.modules[name] for a in adapters if name in a.modules).absent()
    return [adapter.modules.get(name, absent) for adapter in adapters]


def named_updates(adapters: Sequence[Adapter]) -> Iterator[tuple[str, list[Update]]]:
    """Every module's name and updates: what the work on one module needs of the adapters."""
    for name in module_names(adapters):
        yield name, module_updates(adapters, name)


def module_rank(updates: Sequence[Update], asked: int | None = None) -> int:
    """R of one module: ``asked``, cut to what its updates can span together, or the largest own.

    VeRA's is given by its frozen A and B.
    """
    first = updates[0]
    if isinstance(first, VeraModule):
        return asked or len(first.d)
    ranks = [u.rank for u in updates]
    return max(ranks) if asked is None else min(asked, sum(ranks), first.shape[1])


def module_seed(seed: int, name: str) -> int:
    """The seed of one module: another for each, so that random masks differ."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big")


def absent_modules(adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """By task: the modules that other tasks adapt and this one does not (zero updates)."""
    every = {name for adapter in adapters for name in adapter.modules}
    absent = {a.task: sorted(every - set(a.modules)) for a in adapters}
    return {task: names for task, names in absent.items() if names}


def task_weights(adapters: Sequence[Adapter], weights: Mapping[str, float]) -> tuple[float, ...]:
    """Weights in task order, 1 where not named.

    Raises:
        HydrapackError: an unknown task or a weight that is not above 0.
    """
    tasks = [a.task for a in adapters]
    for name, weight in weights.items():
        if name not in tasks:
            raise Invalid(f"`weights` {name}: no such task; there are {', '.join(tasks)}")
        if not (math.isfinite(weight) and weight > 0):
            raise Invalid(f"`weights` {name}={weight:g}: must be above 0")
    return tuple(weights.get(task, 1.0) for task in tasks)
