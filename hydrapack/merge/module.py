"""What a merge method takes and gives, for one module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from hydrapack.adapters.modules import Update, VeraModule


@dataclass(frozen=True)
class MergedModule:
    """A shared A (rank, d_in), heads B (M, d_out, rank), and each task's head.

    The scaling is folded into the heads: task k's update is ``head(assignment[k]) @ A``. With a
    common output basis ``U`` (d_out, Q) the heads are C (M, Q, rank), and B is U @ C. Where tasks
    of unlike size share heads, ``scales`` holds a factor for each task and ``of`` its head; what a
    task is assigned then is one of those pairs.
    """

    A: torch.Tensor
    heads: torch.Tensor
    assignment: tuple[int, ...]
    U: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    of: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear."""
        return (self.heads.shape[1] if self.U is None else self.U.shape[0]), self.A.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]

    @property
    def output_rank(self) -> int:
        """Q, columns of U; 0 for whole heads."""
        return 0 if self.U is None else self.U.shape[1]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by the name it has in a bundle."""
        own = {"A": self.A, "C": self.heads, "U": self.U}
        if self.U is None:
            own = {"A": self.A, "B": self.heads}
        own["s"] = self.scales
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    @property
    def choices(self) -> int:
        """How many heads, scaled ones apart, a route may name."""
        return len(self.of) or len(self.heads)

    def shared(self) -> torch.Tensor:
        """A (rank, d_in) as a plain LoRA has it."""
        return self.A

    def head(self, index: int) -> torch.Tensor:
        """B (d_out, rank) as a plain LoRA has it."""
        own = _scaled_head(self, index)
        return own if self.U is None else self.U @ own


@dataclass(frozen=True)
class MergedVera:
    """A shared d (rank,) and heads b (M, d_out) over VeRA's common frozen A and B.

    ``scales`` and ``of`` are as ``MergedModule``'s.
    """

    d: torch.Tensor
    heads: torch.Tensor
    assignment: tuple[int, ...]
    A: torch.Tensor
    B: torch.Tensor
    scales: torch.Tensor | None = None
    of: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear; d_in is the widest of the model's adapted linears."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Values of d."""
        return self.d.shape[0]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored for this module, by the name it has in a bundle."""
        own = {"d": self.d, "b": self.heads, "s": self.scales}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    @property
    def choices(self) -> int:
        """How many heads, scaled ones apart, a route may name."""
        return len(self.of) or len(self.heads)

    def shared(self) -> torch.Tensor:
        """A (rank, d_in) as a plain LoRA has it."""
        return self.d[:, None] * self.A.to(self.d)

    def head(self, index: int) -> torch.Tensor:
        """B (d_out, rank) as a plain LoRA has it."""
        return self.vector(index)[:, None] * self.B.to(self.heads)

    def vector(self, index: int) -> torch.Tensor:
        """b (d_out,) as a plain VeRA has it."""
        return _scaled_head(self, index)


Merged = MergedModule | MergedVera


def _scaled_head(merged: Merged, index: int) -> torch.Tensor:
    if merged.scales is None:
        return merged.heads[index]
    return merged.scales[index] * merged.heads[merged.of[index]]


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


def stored_values(modules: Iterable[Merged]) -> int:
    """Values that are stored for the modules, as the paper counts them.

    VeRA's common frozen A and B are left out, and so are tasks' factors: those count as bytes.
    """
    return sum(
        tensor.numel()
        for module in modules
        for part, tensor in module.tensors.items()
        if part != "s"
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


def merged_like(
    update: Update, shared: torch.Tensor, heads: torch.Tensor, assignment: tuple[int, ...]
) -> Merged:
    """A and heads B, or for VeRA d and heads b, as a merged module in float32."""
    if isinstance(update, VeraModule):
        return MergedVera(shared.float(), heads.float(), assignment, update.A, update.B)
    return MergedModule(shared.float(), heads.float(), assignment)


def inner_product(
    A: torch.Tensor, B: torch.Tensor, other_a: torch.Tensor, other_b: torch.Tensor
) -> torch.Tensor:
    """Sum of (B @ A) * (other_b @ other_a), by Gram matrices: no d_out x d_in product."""
    return ((B.T @ other_b) * (A @ other_a.T)).sum()


def difference_norm(update: Update, A: torch.Tensor, B: torch.Tensor) -> tuple[float, float]:
    """Frobenius norms of (update - B @ A) and of the update.

    From Gram matrices in float64, without a d_out x d_in product; differences below 1e-8 of the
    update's norm are rounding.
    """
    own_a, own_b = update.factors()
    A, B = A.double(), B.double()
    own = inner_product(own_a, own_b, own_a, own_b)
    rest = own - 2 * inner_product(own_a, own_b, A, B) + inner_product(A, B, A, B)
    return math.sqrt(max(float(rest), 0.0)), math.sqrt(max(float(own), 0.0))


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
