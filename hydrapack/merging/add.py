"""A new task onto an existing bundle: A and the old heads stay as they are, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import ErrorSum, LoraModule, Update, VeraModule, same_projections
from hydrapack.bundle.format import Bundle, BundleTask, describe_source
from hydrapack.bundle.merged import Merged, MergedVera, frozen, stored_values
from hydrapack.merging.method import MergeOptions, fit_head
from hydrapack.merging.modules import check_any
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.vera import merge_vera
from hydrapack.support.errors import Invalid, Mismatch
from hydrapack.support.threads import one_thread


@dataclass(frozen=True)
class Extension:
    """The bundle with the new task, and what a full merge would do for it."""

    bundle: Bundle
    relative_error: float
    """The new task's, all modules together."""
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


@one_thread()
def add(
    bundle: Bundle | str | Path, adapter: Adapter | str | Path, *, allow_base_mismatch: bool = False
) -> Extension:
    """``bundle`` with one more head: in each module the best B for its A.

    Args:
        bundle: a merge, or the directory that one was saved to; it stays as it is.
        adapter: of the new task, or its PEFT folder as ``DIR`` or ``NAME=DIR``.
        allow_base_mismatch: take an adapter of another base model or revision.

    Raises:
        HydrapackError: an unreadable adapter or bundle; the task's name is taken, another base
            model, or modules that the bundle has not or of another shape.

    >>> extension = hydrapack.add("bundle", "again=adapters/qa")
    >>> extension.bundle.tasks
    ('grammar', 'qa', 'again')
    """
    bundle = Bundle.of(bundle)
    if not isinstance(adapter, Adapter):
        (adapter,) = read_adapters([adapter])
    check_any([adapter])
    _check(bundle, adapter, allow_base_mismatch)
    info = bundle.info
    modules: dict[str, Merged] = {}
    errors: dict[str, list[float]] = {}
    error, again = ErrorSum(), ErrorSum()
    for name, module in bundle.modules.items():
        update = _update(adapter, name, module)
        new = fit_head(update, module).float()
        modules[name] = extended = _with_head(module, new)
        own = error.add(update, module.shared(), extended.head(module.choices))
        errors[name] = [*info.module_errors[name], own]
        anew = _remerged(module, update)
        again.add(update, anew.shared(), anew.head(-1))
    task = BundleTask(
        name=adapter.task,
        route=[module.choices for module in bundle.modules.values()],
        relative_error=error.relative,
        card=adapter.card,
        source=describe_source(adapter),
        task_type=adapter.task_type,
    )
    new_info = info.model_copy(
        update={
            "heads": max(len(module.heads) for module in modules.values()),
            "module_errors": errors,
            "tasks": [*info.tasks, task],
            "parameters": stored_values(modules.values()),
            "baseline_parameters": info.baseline_parameters + adapter.parameters,
        }
    )
    return Extension(
        bundle=Bundle(new_info, modules).as_read(),
        relative_error=task.relative_error,
        remerge_relative_error=again.relative,
    )


def _with_head(module: Merged, head: torch.Tensor) -> Merged:
    """The module with one head more, and one choice more."""
    more = replace(module, heads=torch.cat([module.heads, head[None]]))
    if module.scales is None:
        return more
    scales = torch.cat([module.scales, torch.ones(1)])
    return replace(more, scales=scales, of=(*module.of, len(module.heads)))


def _update(adapter: Adapter, name: str, module: Merged) -> Update:
    """The adapter's update of the module, or none of the module's shape."""
    if name in adapter.modules:
        return adapter.modules[name]
    if isinstance(module, MergedVera):
        none = torch.zeros(len(module.d)), torch.zeros(len(module.B))
        return VeraModule(*none, module.A, module.B)
    d_out, d_in = module.shape
    return LoraModule(torch.zeros(0, d_in), torch.zeros(d_out, 0))


def _remerged(module: Merged, update: Update) -> Merged:
    """The module with A fitted to the new task and to the module's heads anew; its head is last."""
    count = len(module.heads)
    options = MergeOptions(count + 1, module.rank)
    if isinstance(module, MergedVera):
        old = [VeraModule(module.d, head, module.A, module.B) for head in module.heads]
        return merge_vera([*old, update], options)  # type: ignore[list-item]
    heads = [LoraModule(module.A, module.head(m)) for m in range(count)]
    return merge_spectral([*heads, update], options)


def _check(bundle: Bundle, adapter: Adapter, allow_base_mismatch: bool) -> None:
    if adapter.task in [task.name for task in bundle.info.tasks]:
        raise Invalid(
            f"{adapter.folder}: the bundle has a task {adapter.task!r}; give another NAME=DIR"
        )
    if adapter.base_model != bundle.info.base_model and not allow_base_mismatch:
        raise Mismatch(
            f"{adapter.folder}: is of base model {adapter.base_model!r}, the bundle of "
            f"{bundle.info.base_model!r}; `allow_base_mismatch` adds it all the same"
        )
    if adapter.revision != bundle.info.base_revision and not allow_base_mismatch:
        raise Mismatch(
            f"{adapter.folder}: is of revision {adapter.revision or 'main'!r} of the base model, "
            f"the bundle of {bundle.info.base_revision or 'main'!r}; `allow_base_mismatch` adds it "
            "all the same"
        )
    if adapter.kind != bundle.info.adapter_type.upper():
        raise Mismatch(
            f"{adapter.folder}: peft_type is {adapter.kind}, the bundle's is "
            f"{bundle.info.adapter_type.upper()}"
        )
    common = frozen(bundle.modules.values())
    own = [(u.A, u.B) for u in adapter.modules.values() if isinstance(u, VeraModule)]
    if common and not same_projections(own, [(common["A"], common["B"])]):
        raise Mismatch(
            f"{adapter.folder}: its vera_A and vera_B are not the bundle's; VeRA adapters share "
            "them only when trained with one projection_prng_key, rank and set of target modules"
        )
    for name, module in adapter.modules.items():
        if name not in bundle.shapes:
            raise Mismatch(
                f"{adapter.folder}: adapts {name}, for which the bundle has no A; merge all "
                "adapters again"
            )
        if module.shape != bundle.shapes[name]:
            raise Mismatch(
                f"{adapter.folder}: {name} is {module.shape}, in the bundle {bundle.shapes[name]}"
            )
