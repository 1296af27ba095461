"""The baselines that merge A and B value by value.

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
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import Merged, merged_like
from hydrapack.merging.method import Knobs, MergeOptions, Method, fit_head
from hydrapack.support.errors import Invalid


@dataclass(frozen=True)
class Elementwise(Knobs):
    """Of all four."""

    only_a: bool = False
    """Merge A alone, every task keeps its own B."""
    refit_b: bool = False
    """With only_a: the least-squares B for the merged A."""

    def __post_init__(self) -> None:
        if self.refit_b and not self.only_a:
            raise Invalid("`refit_b`: needs `only_a`")

    def default_heads(self, tasks: int) -> tuple[int, str]:
        """One, or each task's own."""
        if self.only_a:
            return tasks, f"{tasks} heads with `only_a`, one for each task"
        return 1, "one head"

    @property
    def note(self) -> str:
        """What was merged, where it is not all."""
        if not self.only_a:
            return ""
        return " (A only, B refitted)" if self.refit_b else " (A only)"


@dataclass(frozen=True)
class Pruned(Elementwise):
    """Of those that drop values."""

    density: float = 0.5
    """Share of values that are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density < 1:
            raise Invalid(f"`density` {self.density}: must lie between 0 and 1")


Prune = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


def _largest(tensor: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """The tensor with all but its largest values zero."""
    mask = torch.zeros_like(tensor).reshape(-1)
    mask[torch.topk(tensor.abs().reshape(-1), int(density * tensor.numel())).indices] = 1
    return tensor * mask.reshape(tensor.shape)


def _drawn(tensor: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """The tensor with values dropped at random, the others scaled up to keep the mean."""
    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def _method(name: str, paper: str, prune: Prune | None, elect: bool) -> Method:
    """A method of this file.

    Args:
        prune: drops values of each task's tensor.
        elect: whether the tasks first agree on each value's sign, and those against are left out;
            their weights then do not sum to 1.
    """

    def combine(
        tensors: list[torch.Tensor],
        weights: list[float],
        own: Elementwise,
        generator: torch.Generator,
    ) -> torch.Tensor:
        if prune is not None and isinstance(own, Pruned):
            tensors = [prune(tensor, own.density, generator) for tensor in tensors]
        stacked = torch.stack(tensors)
        weighed = stacked * torch.tensor(weights).view(-1, *[1] * (stacked.dim() - 1))
        if not elect:
            return weighed.sum(0)
        mask = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1, -1)
        return (weighed * mask).sum(0) / torch.clamp(mask.sum(0), min=1.0)

    def merge(updates: Sequence[Update], options: MergeOptions, own: Elementwise) -> Merged:
        present = [k for k, u in enumerate(updates) if u.rank]
        ranks = {updates[k].rank for k in present}
        if ranks != {options.rank}:
            raise Invalid(
                f"{name} merges A and B value by value: all ranks must equal `rank`; adapters have "
                f"{sorted(ranks)}, `rank` is {options.rank}"
            )
        if any(updates[k].scaling < 0 for k in present):
            raise Invalid(f"{name}: takes no adapter with lora_alpha below 0; merge with spectral")
        weights = [options.weight(k) / (1 if elect else len(updates)) for k in present]
        draws = torch.Generator().manual_seed(options.seed)
        if own.only_a:
            shared = combine([updates[k].trained[0] for k in present], weights, own, draws)
            heads = torch.stack([_own_head(u, updates[present[0]]) for u in updates])
            kept = merged_like(updates[0], shared, heads, tuple(range(len(updates))))
            if not own.refit_b:
                return kept
            heads = torch.stack([fit_head(u, kept) for u in updates])
            return merged_like(updates[0], shared, heads, kept.assignment)
        roots = [math.sqrt(w * updates[k].scaling) for k, w in zip(present, weights, strict=True)]
        A, B = (
            combine([updates[k].trained[part] for k in present], roots, own, draws)
            for part in (0, 1)
        )
        return merged_like(updates[0], A, B[None], (0,) * len(updates))

    return Method(name, paper, merge, merge, Elementwise if prune is None else Pruned)


def _own_head(update: Update, like: Update) -> torch.Tensor:
    """The task's own B with its scaling, or b; zeros, sized as ``like``'s, where it has none."""
    if not update.rank:
        return torch.zeros_like(like.trained[1])
    return update.trained[1] * update.scaling


TASK_ARITHMETIC = _method("task-arithmetic", "https://arxiv.org/abs/2212.04089", None, False)
TIES = _method("ties", "https://arxiv.org/abs/2306.01708", _largest, True)
DARE = _method("dare", "https://arxiv.org/abs/2311.03099", _drawn, False)
DARE_TIES = _method("dare-ties", "https://arxiv.org/abs/2311.03099", _drawn, True)
