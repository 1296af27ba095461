"""What a merge method takes and gives, for one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from hydrapack.adapters.update import Update, inner_product
from hydrapack.bundle.merged import Merged, MergedVera


def divided(updates: Sequence[Update], sizes: Sequence[float] | None) -> Sequence[Update]:
    """Each task's update over its size, where there are sizes."""
    if sizes is None:
        return updates
    return [update.times(1 / size) for update, size in zip(updates, sizes, strict=True)]


def with_sizes(merged: Merged, updates: Sequence[Update], sizes: Sequence[float] | None) -> Merged:
    """A merge of ``divided(updates, sizes)`` as one of ``updates`` themselves.

    Where every task has a head of its own, the heads are multiplied; else every task gets a factor,
    its size times what brings its head nearest to its update (least squares).
    """
    if sizes is None:
        return merged
    count = len(sizes)
    if merged.assignment == tuple(range(count)):
        factors = torch.tensor(sizes, dtype=torch.float64)
        heads = merged.heads * factors.view(-1, *[1] * (merged.heads.dim() - 1))
        return replace(merged, heads=heads.float())
    shared = merged.shared().double()
    found = []
    for update, head, size in zip(updates, merged.assignment, sizes, strict=True):
        own_a, own_b = update.factors()
        B = merged.head(head).double()
        energy = float(inner_product(shared, B, shared, B))
        cross = float(inner_product(own_a, own_b, shared, B))
        found.append(cross / energy if energy > 0 else size)
    return replace(
        merged,
        assignment=tuple(range(count)),
        scales=torch.tensor(found, dtype=torch.float32),
        of=merged.assignment,
    )


@dataclass(frozen=True)
class MergeOptions:
    """What a method may need beside the updates; each reads what concerns it."""

    heads: int
    """M."""
    rank: int
    """R of the shared A."""
    seed: int = 0
    weights: tuple[float, ...] | None = None
    """Per task, in task order; all 1 by default."""
    assignment: tuple[int, ...] | None = None
    """Each task's head, where it is settled beforehand (one route for all modules)."""
    output_rank: int = 0
    """two-sided's Q; twice the rank if 0."""
    density: float = 0.5
    """Share of values that TIES and DARE keep."""
    only_a: bool = False
    refit_b: bool = False
    distance: str = "mae"
    """HydraOpt's d: mae, fro, mse or cs."""
    steps: int = 200
    learning_rate: float = 0.05
    """Relative to the root mean square of what is trained."""
    temperature: float = 1.0
    init: str = "adapters"
    """HydraOpt's start: adapters, spectral or random."""
    report: Callable[[float, float], None] = lambda share, loss: None
    """Called with the share of the steps done and the loss."""

    def weight(self, task: int) -> float:
        """The weight of a task's squared error."""
        return 1.0 if self.weights is None else self.weights[task]


# A method maps the tasks' updates of one module to the merged module.
MergeMethod = Callable[[Sequence[Update], MergeOptions], Merged]


def fit_head(update: Update, merged: Merged) -> torch.Tensor:
    """The head, as ``merged.heads`` holds one, that comes nearest to the update; float64.

    Least squares: through the pseudo-inverse of A (and of U), or row by row for VeRA's b.
    """
    A, B = update.factors()
    shared = merged.shared().double()
    if isinstance(merged, MergedVera):
        frozen = merged.B.double()
        size = ((frozen @ (shared @ shared.T)) * frozen).sum(1)
        return ((B @ (A @ shared.T)) * frozen).sum(1) / size.clamp(min=1e-300)
    head = B @ (A @ torch.linalg.pinv(shared))
    return head if merged.U is None else torch.linalg.pinv(merged.U.double()) @ head
