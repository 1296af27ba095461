"""A new task onto an existing bundle: A and the old heads stay as they are, to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hydrapack.adapters.lora import LoraAdapter, LoraModule
from hydrapack.bundle import Bundle, BundleInfo, BundleTask, describe_source, write_tensors
from hydrapack.errors import InputError
from hydrapack.merge.module import MergeOptions, best_head, difference_norm
from hydrapack.merge.spectral import merge_spectral


@dataclass(frozen=True)
class Extension:
    """The bundle with the new task, and what a full merge would do for it."""

    info: BundleInfo
    relative_error: float
    remerge_relative_error: float
    """The new task's error, were A fitted to it and to the bundle's heads anew."""

    @property
    def advice(self) -> str | None:
        """A sentence where a full merge would be much better, else None."""
        if self.relative_error < 0.05 or self.remerge_relative_error > 0.7 * self.relative_error:
            return None
        return (
            f"the bundle's A suits this task badly: error {self.relative_error:.2f}, about "
            f"{self.remerge_relative_error:.2f} with A fitted anew; merge all adapters again"
        )


def add_adapter(
    bundle: Bundle, adapter: LoraAdapter, target: Path, allow_base_mismatch: bool = False
) -> Extension:
    """Write ``bundle`` with one more head to ``target``: in each module the best B for its A.

    Raises:
        InputError: the task's name is taken, another base model, modules that the bundle has not
            or of another shape, or an unwritable target.
    """
    _check(bundle, adapter, allow_base_mismatch)
    info, heads = bundle.info, dict(bundle.heads)
    errors: dict[str, list[float]] = {}
    sums = {"kept": 0.0, "remerged": 0.0, "own": 0.0}
    for name, (d_out, d_in) in bundle.shapes.items():
        A = bundle.A[name]
        absent = LoraModule(torch.zeros(0, d_in), torch.zeros(d_out, 0), 1.0)
        update = adapter.modules.get(name, absent)
        new = best_head(update, A).float()
        heads[name] = torch.cat([heads[name], new[None]])
        difference, own = difference_norm(update, A, new)
        old = [LoraModule(A, head, 1.0) for head in bundle.heads[name]]
        again = merge_spectral([*old, update], MergeOptions(len(old) + 1, info.rank))
        sums["kept"] += difference**2
        sums["remerged"] += difference_norm(update, again.A, again.heads[-1])[0] ** 2
        sums["own"] += own**2
        errors[name] = [*info.module_errors[name], difference / own if own else difference]
    whole = math.sqrt(sums["own"]) or 1.0
    task = BundleTask(
        name=adapter.task,
        route=[info.heads] * len(info.modules),
        relative_error=math.sqrt(sums["kept"]) / whole,
        card=adapter.card,
        source=describe_source(adapter),
    )
    extended = info.model_copy(
        update={
            "heads": info.heads + 1,
            "module_errors": errors,
            "tasks": [*info.tasks, task],
            "parameters": info.parameters
            + sum(d_out for d_out, _ in bundle.shapes.values()) * info.rank,
            "baseline_parameters": info.baseline_parameters + adapter.parameters,
        }
    )
    return Extension(
        info=write_tensors(extended, bundle.A, heads, target),
        relative_error=task.relative_error,
        remerge_relative_error=math.sqrt(sums["remerged"]) / whole,
    )


def _check(bundle: Bundle, adapter: LoraAdapter, allow_base_mismatch: bool) -> None:
    if adapter.task in [task.name for task in bundle.info.tasks]:
        raise InputError(
            f"{adapter.folder}: the bundle has a task {adapter.task!r}; give another NAME=DIR"
        )
    if adapter.base_model != bundle.info.base_model and not allow_base_mismatch:
        raise InputError(
            f"{adapter.folder}: is of base model {adapter.base_model!r}, the bundle of "
            f"{bundle.info.base_model!r}; --allow-base-mismatch adds it all the same"
        )
    for name, module in adapter.modules.items():
        if name not in bundle.shapes:
            raise InputError(
                f"{adapter.folder}: adapts {name}, for which the bundle has no A; merge all "
                "adapters again"
            )
        if module.shape != bundle.shapes[name]:
            raise InputError(
                f"{adapter.folder}: {name} is {module.shape}, in the bundle {bundle.shapes[name]}"
            )
