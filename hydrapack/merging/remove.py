"""A task out of a bundle: A and all other heads stay as they are, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged, stored_values
from hydrapack.support.errors import Invalid


def remove(bundle: Bundle | str | Path, task: str) -> Bundle:
    """``bundle`` without a task, and without the heads that no other task uses.

    Args:
        bundle: a merge, or the directory that one was saved to; it stays as it is.
        task: the one to take out.

    Raises:
        HydrapackError: no such task, or it is the only one.

    >>> hydrapack.remove("bundle", "qa").tasks
    ('grammar',)
    """
    rest, _ = without(Bundle.of(bundle), task)
    if not rest.tasks:
        raise Invalid(f"task {task!r} is the bundle's only one; there would be nothing left")
    return rest


def without(bundle: Bundle, task: str) -> tuple[Bundle, int]:
    """The bundle without the task, which may leave it with no head at all, and the task's place.

    Raises:
        NotFound: no such task.
    """
    info = bundle.info
    gone = info.task(task)
    at = info.tasks.index(gone)
    rest = [other for other in info.tasks if other is not gone]
    modules: dict[str, Merged] = {}
    columns: list[list[int]] = []
    for index, (name, module) in enumerate(bundle.modules.items()):
        used = sorted({other.route[index] for other in rest})
        modules[name] = _with_choices(module, used)
        columns.append([used.index(other.route[index]) for other in rest])
    tasks = [
        other.model_copy(update={"route": [column[k] for column in columns]})
        for k, other in enumerate(rest)
    ]
    errors = {name: [*own[:at], *own[at + 1 :]] for name, own in info.module_errors.items()}
    new_info = info.model_copy(
        update={
            "heads": max(len(module.heads) for module in modules.values()),
            "module_errors": errors,
            "tasks": tasks,
            "parameters": stored_values(modules.values()),
            "baseline_parameters": info.baseline_parameters - gone.source.parameters,
        }
    )
    return replace(bundle, info=new_info, modules=modules), at


def _with_choices(module: Merged, choices: list[int]) -> Merged:
    """The module with these of its choices, in this order, and the heads that they name."""
    kept = torch.tensor(choices, dtype=torch.int64)
    if module.scales is None:
        return replace(module, heads=module.heads[kept])
    named = [module.of[choice] for choice in choices]
    heads = sorted(set(named))
    return replace(
        module,
        heads=module.heads[torch.tensor(heads, dtype=torch.int64)],
        scales=module.scales[kept],
        of=tuple(heads.index(head) for head in named),
    )
