"""A task onto a bundle, or in place of one: A and all other heads stay as they are, to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import check_base, check_kind, read_adapters
from hydrapack.adapters.update import (
    ErrorSum,
    LoraModule,
    Update,
    VeraModule,
    difference_norm,
    same_projections,
)
from hydrapack.bundle.format import Bundle, BundleTask, describe_source
from hydrapack.bundle.held import laid
from hydrapack.bundle.merged import Merged, MergedVera, frozen, stored_values
from hydrapack.merging.method import MergeOptions, fit_head
from hydrapack.merging.plan import NEGLIGIBLE, SLACK
from hydrapack.merging.program_size import adapters_bytes
from hydrapack.merging.remove import without
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.take import take_columns
from hydrapack.merging.vera import merge_vera
from hydrapack.program.quantized import DEFAULT_BITS
from hydrapack.support.errors import Invalid, Mismatch
from hydrapack.support.sizes import parse_size
from hydrapack.support.threads import one_thread


@dataclass(frozen=True)
class Extension:
    """The bundle with the new task, and what a full merge would do for it."""

    bundle: Bundle
    relative_error: float
    """The new task's, all modules together."""
    remerge_relative_error: float
    """The new task's error if A were fitted again, to it and to the bundle's heads."""
    own_head_relative_error: float
    """The new task's error with a head of its own; another value if that did not fit the budget."""
    way: Literal["head", "share", "take"] = "head"
    """How the task came in: by a head more; by sharing the nearest heads; or by taking columns of A
    and U from all tasks, those that cost them least."""
    weighed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Where a head more does not fit the budget: for each way weighed, what each task loses. The
    new task that is its relative error, another the norm of what changed of its update over the
    update's. The way of the least sum of squares is taken, or sharing where that is as good."""

    @property
    def advice(self) -> str | None:
        """A sentence where the task is much worse than it might be, else None."""
        if self.way != "head":
            how, loss = "it shares the nearest ones", "other tasks lose nothing"
            if self.way == "take":
                *others, _ = self.weighed["take"].items()
                worst, most = max(others, key=lambda pair: pair[1])
                how = "it takes columns of A and U that cost least elsewhere"
                loss = f"of the other tasks {worst} loses most, {most:.2f} of its update"
            return (
                f"a head more does not fit the budget, so {how}: error {self.relative_error:.2f}, "
                f"{self.own_head_relative_error:.2f} with a head of its own; {loss}"
            )
        if self.relative_error < 0.05 or self.remerge_relative_error > 0.7 * self.relative_error:
            return None
        return (
            f"the bundle's A does not suit this task: its error is {self.relative_error:.2f}, and "
            f"about {self.remerge_relative_error:.2f} if A is fitted again; merge all adapters "
            "again"
        )


@one_thread()
def add(
    bundle: Bundle | str | Path,
    adapter: Adapter | str | Path,
    *,
    budget: int | str | None = None,
    allow_base_mismatch: bool = False,
) -> Extension:
    """``bundle`` with one more head: in each module the best B for its A.

    All that is there stays as it is, to the bit, unless a ``budget`` asks for its columns.

    Args:
        bundle: a merge, or the directory that one was saved to; it stays as it is.
        adapter: of the new task, or its PEFT folder as ``DIR`` or ``NAME=DIR``.
        budget: bytes that ``adapters.pte`` may take, as 400_000 or "400KB". Where a head more
            does not fit, two ways are weighed by what all tasks lose, and the better one is taken.
            The task shares in each module the nearest head that is there (after K-Merge,
            https://arxiv.org/abs/2510.13537), which changes nothing for other tasks. Or it takes
            columns: A, U and heads are planned anew for the budget, from the heads as they are.
        allow_base_mismatch: take an adapter of another base model or revision.

    Raises:
        HydrapackError: an unreadable adapter or bundle; the task's name is taken, another base
            model, or modules that the bundle has not or of another shape; a budget that the bundle
            exceeds as it is.

    >>> extension = hydrapack.add("bundle", "again=adapters/qa")
    >>> extension.bundle.tasks
    ('grammar', 'qa', 'again')
    """
    bundle = Bundle.of(bundle)
    limit = parse_size("`budget`", budget) if isinstance(budget, str) else budget
    read = read_adapters([adapter])[0]
    extension = _extended(bundle, read, len(bundle.tasks), allow_base_mismatch, limit)
    if extension.way == "head" or limit is None:
        return extension
    nothing = dict.fromkeys(bundle.tasks, 0.0)
    weighed = {"share": {**nothing, read.task: extension.relative_error}}
    taken = take_columns(bundle, read, limit)
    if taken is not None:
        weighed["take"] = taken[1]
    extension = dataclasses.replace(extension, weighed=weighed)
    sums = {way: sum(loss**2 for loss in losses.values()) for way, losses in weighed.items()}
    # Sharing leaves all others alone: what is next to nothing is no reason to change them.
    if taken is None or sums["share"] <= SLACK**2 * sums["take"] + NEGLIGIBLE**2:
        return extension
    error = taken[1][read.task]
    return dataclasses.replace(extension, bundle=taken[0], relative_error=error, way="take")


@one_thread()
def replace(
    bundle: Bundle | str | Path,
    task: str,
    adapter: Adapter | str | Path,
    *,
    allow_base_mismatch: bool = False,
) -> Extension:
    """``bundle`` with another head for a task, which keeps its name and its place.

    A head that other tasks use too stays for them.

    Args:
        bundle: a merge, or the directory that one was saved to; it stays as it is.
        task: the one to replace.
        adapter: the task's new one, or its PEFT folder.
        allow_base_mismatch: take an adapter of another base model or revision.

    Raises:
        HydrapackError: no such task, or what ``add`` refuses.

    >>> hydrapack.replace("bundle", "qa", "adapters/qa").bundle.tasks
    ('grammar', 'qa')
    """
    bundle = Bundle.of(bundle)
    rest, at = without(bundle, task)
    new = dataclasses.replace(read_adapters([adapter])[0], task=task)
    return _extended(rest, new, at, allow_base_mismatch)


def _extended(
    bundle: Bundle,
    adapter: Adapter,
    at: int,
    allow_base_mismatch: bool,
    budget: int | None = None,
) -> Extension:
    """The bundle with the adapter's task as number ``at`` of its tasks."""
    _check(bundle, adapter, allow_base_mismatch)
    info = bundle.info
    updates = {name: _update(adapter, name, module) for name, module in bundle.modules.items()}
    grown = {
        name: laid(_with_head(module, fit_head(updates[name], module).float()))
        for name, module in bundle.modules.items()
    }
    fits = budget is None or _fits(bundle, grown, budget)
    modules: Mapping[str, Merged] = grown if fits else bundle.modules
    errors: dict[str, list[float]] = {}
    route: list[int] = []
    error, again = ErrorSum(), ErrorSum()
    alone = error if fits else ErrorSum()
    for name, module in bundle.modules.items():
        update = updates[name]
        route.append(module.choices if fits else _nearest(update, module))
        own = error.add(update, module.shared(), modules[name].head(route[-1]))
        if not fits:
            alone.add(update, module.shared(), grown[name].head(module.choices))
        known = info.module_errors[name]
        errors[name] = [*known[:at], own, *known[at:]]
        anew = _remerged(module, update)
        again.add(update, anew.shared(), anew.head(-1))
    task = BundleTask(
        name=adapter.task,
        route=route,
        relative_error=error.relative,
        settings=adapter.settings,
        source=describe_source(adapter),
        task_type=adapter.task_type,
    )
    new_info = info.model_copy(
        update={
            "heads": max(len(module.heads) for module in modules.values()),
            "module_errors": errors,
            "tasks": [*info.tasks[:at], task, *info.tasks[at:]],
            "parameters": stored_values(modules.values()),
            "baseline_parameters": info.baseline_parameters + adapter.parameters,
            "budget_bytes": budget or info.budget_bytes,
        }
    )
    return Extension(
        bundle=Bundle(new_info, modules),
        relative_error=task.relative_error,
        remerge_relative_error=again.relative,
        own_head_relative_error=alone.relative,
        way="head" if fits else "share",
    )


class _Kept(NamedTuple):
    """How one module is stored, for ``adapters_bytes``."""

    head_count: int
    rank: int
    output_rank: int
    bits: int


def _fits(bundle: Bundle, grown: Mapping[str, Merged], budget: int) -> bool:
    """Whether the grown modules fit the budget; refuses one that the bundle exceeds as it is."""
    info = bundle.info
    if info.adapter_type != "lora":
        raise Invalid("`budget`: counts the bytes of LoRA heads; a VeRA bundle takes none")

    def size(modules: Mapping[str, Merged]) -> int:
        plan = {
            name: _Kept(
                len(module.heads),
                module.rank,
                module.output_rank,
                (info.bits or {}).get(name, DEFAULT_BITS),
            )
            for name, module in modules.items()
        }
        # More than the heads where they have factors.
        tasks = max(module.choices for module in modules.values())
        return adapters_bytes(plan, bundle.shapes, info.rank, tasks)

    if (now := size(bundle.modules)) > budget:
        raise Invalid(
            f"`budget` {budget:,}: the bundle takes up to {now:,} bytes as it is; take out a task "
            "with hydrapack remove, or merge all adapters again with `budget`"
        )
    return size(grown) <= budget


def _nearest(update: Update, module: Merged) -> int:
    """The choice of the module whose head is nearest to the update."""
    A = module.shared()
    lost = [difference_norm(update, A, module.head(choice))[0] for choice in range(module.choices)]
    return lost.index(min(lost))


def _with_head(module: Merged, head: torch.Tensor) -> Merged:
    """The module with one head more, and one choice more."""
    more = dataclasses.replace(module, heads=torch.cat([module.heads, head[None]]))
    if module.scales is None:
        return more
    scales = torch.cat([module.scales, torch.ones(1)])
    return dataclasses.replace(more, scales=scales, of=(*module.of, len(module.heads)))


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
    if not allow_base_mismatch:
        check_base(adapter, bundle.info.base_model, bundle.info.base_revision, "the bundle")
    check_kind(adapter, bundle.info.adapter_type.upper(), "the bundle")
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
