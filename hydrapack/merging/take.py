"""A task more in no more bytes: every task gives up the columns of A and U that cost it least."""

from __future__ import annotations

import math
from pathlib import Path

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import LoraModule
from hydrapack.bundle.format import Bundle, BundleTask
from hydrapack.merging.plan import Planner, Request
from hydrapack.merging.planned import merge_plan
from hydrapack.program.quantized import DEFAULT_BITS
from hydrapack.support.errors import Invalid


def take_columns(
    bundle: Bundle, adapter: Adapter, budget: int
) -> tuple[Bundle, dict[str, float]] | None:
    """The bundle planned anew, its heads in the place of their adapters, with the new task's.

    Each module keeps its bits, and the base program's R stays.

    Args:
        budget: bytes that ``adapters.pte`` may take.

    Returns:
        It and what each task loses: the new one its relative error, another the norm of what
        changed of its update over the update's, as the bundle has it. None where the budget is too
        small.
    """
    info = bundle.info
    adapters = [*(_as_adapter(bundle, task) for task in info.tasks), adapter]
    bits = info.bits or dict.fromkeys(info.modules, DEFAULT_BITS)
    request = Request(adapters, info.rank, bits, info.seed)
    weights = (1.0,) * len(adapters)
    try:
        plan = Planner(request, weights).within(budget)
    except Invalid:
        return None
    made = merge_plan(request, plan, weights, budget=budget)
    lost = made.relative_errors
    tasks = [
        old.model_copy(
            update={
                "route": new.route,
                "relative_error": _worse(old.relative_error, new.relative_error),
            }
        )
        for old, new in zip(info.tasks, made.info.tasks, strict=False)
    ]
    errors = {
        name: [*map(_worse, info.module_errors[name], more), more[-1]]
        for name, more in made.info.module_errors.items()
    }
    kept = {
        "hydrapack_version": info.hydrapack_version,
        "method": info.method,
        "objective": info.objective,
        "bits": info.bits,
        "module_errors": errors,
        "tasks": [*tasks, made.info.tasks[-1]],
        "baseline_parameters": info.baseline_parameters + adapter.parameters,
    }
    return Bundle(made.info.model_copy(update=kept), made.modules), lost


def _as_adapter(bundle: Bundle, task: BundleTask) -> Adapter:
    """A task's head as if it were an adapter."""
    modules = {
        name: LoraModule(bundle.modules[name].shared(), head)
        for name, head in bundle.head(task).items()
    }
    info, source = bundle.info, task.source
    return Adapter(
        task.name,
        Path(),
        info.base_model,
        source.rank,
        source.alpha,
        source.digest,
        dict(modules),
        settings=task.settings,
        task_type=task.task_type,
        revision=info.base_revision,
    )


def _worse(old: float, lost: float) -> float:
    """A task's relative error after the loss, if what is lost lies apart from what it lacked.

    A best head's error lies apart from the head: the head has sqrt(1 - old^2) of the norm.
    """
    return math.hypot(old, lost * math.sqrt(max(0.0, 1 - old**2)))
