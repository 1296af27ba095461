"""The baselines that merge A and B value by value, with PEFT's own functions.

Task arithmetic (https://arxiv.org/abs/2212.04089), TIES (https://arxiv.org/abs/2306.01708), DARE
and DARE-TIES (https://arxiv.org/abs/2311.03099), as in ``peft.LoraModel.add_weighted_adapter``: A
and B are merged apart, each task with the square root of its weight times its scaling. Weights are
the HydraOpt paper's: 1/N for task arithmetic and DARE, 1 for TIES and DARE-TIES. VeRA's d and b
take the place of A and B.

With ``only_a`` (the paper's Fig. 6) A alone is merged and every task keeps its own B; with
``refit_b`` (ours) that B is replaced by the least-squares one for the merged A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import Merged, merged_like
from hydrapack.merging.method import MergeOptions, fit_head
from hydrapack.support.errors import Invalid

# PEFT's function, whether it takes a density, and whether weights sum to 1.
_FUNCTIONS = {
    "task-arithmetic": ("task_arithmetic", False, True),
    "ties": ("ties", True, False),
    "dare": ("dare_linear", True, True),
    "dare-ties": ("dare_ties", True, False),
}


def elementwise(name: str) -> Callable[[Sequence[Update], MergeOptions], Merged]:
    """The merge method called ``name``, one of task-arithmetic, ties, dare, dare-ties."""

    def merge(updates: Sequence[Update], options: MergeOptions) -> Merged:
        return _merge(name, updates, options)

    return merge


def _merge(name: str, updates: Sequence[Update], options: MergeOptions) -> Merged:
    present = [k for k, u in enumerate(updates) if u.rank]
    ranks = {updates[k].rank for k in present}
    if ranks != {options.rank}:
        raise Invalid(
            f"{name} merges A and B value by value: all ranks must equal `rank`; adapters have "
            f"{sorted(ranks)}, `rank` is {options.rank}"
        )
    if any(updates[k].scaling < 0 for k in present):
        raise Invalid(f"{name}: takes no adapter with lora_alpha below 0; merge with spectral")
    weights = [options.weight(k) / (len(updates) if _FUNCTIONS[name][2] else 1) for k in present]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if options.only_a:
            own = [updates[k].trained[0] for k in present]
            merged = _combine(name, own, weights, options.density)
            heads = torch.stack([_own_head(u, updates[present[0]]) for u in updates])
            kept = merged_like(updates[0], merged, heads, tuple(range(len(updates))))
            if not options.refit_b:
                return kept
            heads = torch.stack([fit_head(u, kept) for u in updates])
            return merged_like(updates[0], merged, heads, kept.assignment)
        roots = [math.sqrt(w * updates[k].scaling) for k, w in zip(present, weights, strict=True)]
        A, B = (
            _combine(name, [updates[k].trained[part] for k in present], roots, options.density)
            for part in (0, 1)
        )
    return merged_like(updates[0], A, B[None], (0,) * len(updates))


def _combine(
    name: str, tensors: list[torch.Tensor], weights: list[float], density: float
) -> torch.Tensor:
    # Imported late: peft takes seconds.
    from peft.utils import merge_utils

    function, takes_density, _ = _FUNCTIONS[name]
    arguments = [tensors, torch.tensor(weights), *([density] if takes_density else [])]
    return getattr(merge_utils, function)(*arguments)


def _own_head(update: Update, like: Update) -> torch.Tensor:
    """The task's own B with its scaling, or b; zeros, sized as ``like``'s, where it has none."""
    if not update.rank:
        return torch.zeros_like(like.trained[1])
    return update.trained[1] * update.scaling
