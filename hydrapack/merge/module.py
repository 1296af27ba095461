"""What a merge method takes and gives, for one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.lora import LoraModule


@dataclass(frozen=True)
class MergedModule:
    """A shared A (rank, d_in), heads B (M, d_out, rank), and each task's head.

    The scaling is folded into the heads: task k's update is ``heads[assignment[k]] @ A``.
    """

    A: torch.Tensor
    heads: torch.Tensor
    assignment: tuple[int, ...]


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
MergeMethod = Callable[[Sequence[LoraModule], MergeOptions], MergedModule]


def difference_norm(module: LoraModule, A: torch.Tensor, B: torch.Tensor) -> tuple[float, float]:
    """Frobenius norms of (update - B @ A) and of the update.

    By thin QR of the stacked factors: no d_out x d_in product, and no cancellation when the two
    are equal.
    """
    left = torch.cat([module.scaled_b(), -B.double()], 1)
    right = torch.cat([module.A.double(), A.double()])
    r_left = torch.linalg.qr(left, mode="r").R
    r_right = torch.linalg.qr(right.T, mode="r").R
    rank = module.rank
    whole = torch.linalg.matrix_norm(r_left @ r_right.T)
    own = torch.linalg.matrix_norm(r_left[:, :rank] @ r_right[:, :rank].T)
    return float(whole), float(own)


def best_head(module: LoraModule, A: torch.Tensor) -> torch.Tensor:
    """The B (d_out, rank of A) that brings B @ A nearest to the update, float64.

    Least squares through the pseudo-inverse, so that any A will do.
    """
    return module.scaled_b() @ (module.A.double() @ torch.linalg.pinv(A.double()))
