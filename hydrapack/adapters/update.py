"""One adapted linear of one task, as LoRA and as VeRA hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hydrapack.support.stored_tensor import StoredTensor


class _Lora:
    """What a LoRA update is, wherever its matrices are: ``scaling`` * B @ A."""

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    @property
    def trained(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What training changed, float32: A, which a merge shares, and B."""
        return self.A.float(), self.B.float()

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and the scaled B, float64: the update is B @ A."""
        return self.A.double(), self.B.double() * self.scaling

    def expand(self, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A merged A and head as the two factors of an update: themselves."""
        return A, B

    def absent(self) -> LoraModule:
        """The update of a task that leaves this linear alone."""
        return LoraModule(self.A[:0], self.B[:, :0])


@dataclass(frozen=True)
class LoraModule(_Lora):
    """A LoRA update in memory.

    A (rank, d_in) and B (d_out, rank) are in the file's precision; rank 0 stands for no update.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]

    @property
    def values(self) -> int:
        """Of A and B."""
        return self.A.numel() + self.B.numel()

    @property
    def bytes(self) -> int:
        """Of A and B in the file's precision."""
        return self.A.nbytes + self.B.nbytes

    def times(self, factor: float) -> LoraModule:
        """The update times ``factor``."""
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class StoredLora(_Lora):
    """A LoRA update that stays in its file: its matrices are read each time they are asked for.

    Reading raises ``HydrapackError`` where the file was changed or removed since it was checked.
    """

    place_a: StoredTensor
    place_b: StoredTensor
    scaling: float = 1.0

    @property
    def A(self) -> torch.Tensor:  # type: ignore[override]
        """(rank, d_in), as in the file."""
        return self.place_a.read()

    @property
    def B(self) -> torch.Tensor:  # type: ignore[override]
        """(d_out, rank), as in the file."""
        return self.place_b.read()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear."""
        return self.place_b.shape[0], self.place_a.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.place_a.shape[0]

    @property
    def values(self) -> int:
        """Of A and B."""
        return self.rank * sum(self.shape)

    @property
    def bytes(self) -> int:
        """Of A and B in the file's precision."""
        return self.place_a.nbytes + self.place_b.nbytes

    def times(self, factor: float) -> StoredLora:
        """The update times ``factor``."""
        return replace(self, scaling=self.scaling * factor)


@dataclass(frozen=True)
class VeraModule:
    """A VeRA update (https://arxiv.org/abs/2310.11454): diag(b) @ B @ diag(d) @ A.

    d (rank,) and b (d_out,) are the task's; A (rank, d_in) and B (d_out, rank) are frozen, random
    and common to all tasks.
    """

    d: torch.Tensor
    b: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Values of d; 0 for a task that leaves this linear alone."""
        return self.d.shape[0] if self.d.any() else 0

    @property
    def values(self) -> int:
        """Of d and b."""
        return self.d.numel() + self.b.numel()

    @property
    def trained(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What training changed, float32: d, which a merge shares, and b."""
        return self.d.float(), self.b.float()

    @property
    def bytes(self) -> int:
        """Of d and b in the file's precision; A and B follow from a seed."""
        return self.d.nbytes + self.b.nbytes

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """diag(d) A and diag(b) B, float64: the update is the second times the first."""
        return self.expand(self.d.double(), self.b.double())

    def expand(self, d: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A merged d and head b as the two factors of an update."""
        return d[:, None] * self.A.to(d), b[:, None] * self.B.to(b)

    def times(self, factor: float) -> VeraModule:
        """The update times ``factor``."""
        return replace(self, b=self.b * factor)

    def absent(self) -> VeraModule:
        """The update of a task that leaves this linear alone."""
        return VeraModule(torch.zeros_like(self.d), torch.zeros_like(self.b), self.A, self.B)


Update = LoraModule | StoredLora | VeraModule


def widest(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """VeRA's common A (rank, d_in) and B (d_out, rank), from what each module has of them."""
    return max((A for A, _ in pairs), key=lambda A: A.shape[1]), max((B for _, B in pairs), key=len)


def same_projections(
    one: Sequence[tuple[torch.Tensor, torch.Tensor]],
    other: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> bool:
    """Whether VeRA modules have the A and B of others, in the columns and rows that both have."""
    (A, B), (other_a, other_b) = widest(one), widest(other)
    rows, columns = min(len(B), len(other_b)), min(A.shape[1], other_a.shape[1])
    same_b = torch.equal(B[:rows].float(), other_b[:rows].float())
    return same_b and torch.equal(A[:, :columns].float(), other_a[:, :columns].float())


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


@dataclass
class ErrorSum:
    """How far merged updates are from the tasks', over all that was added, in Frobenius norm."""

    lost: float = 0.0
    """Squared norm of (updates - merged)."""
    whole: float = 0.0
    """Squared norm of the updates."""

    def add(self, update: Update, A: torch.Tensor, B: torch.Tensor) -> float:
        """Count one update and B @ A, which stands for it.

        Returns:
            the relative error of this one.
        """
        return self.count(*difference_norm(update, A, B))

    def count(self, difference: float, own: float) -> float:
        """Count one update by the norms of ``difference_norm``.

        Returns:
            its relative error.
        """
        self.lost += difference**2
        self.whole += own**2
        return difference / own if own else difference

    def include(self, other: ErrorSum) -> None:
        """Count all that another sum has."""
        self.lost += other.lost
        self.whole += other.whole

    @property
    def relative(self) -> float:
        """Norm of (updates - merged) over norm of the updates; of no updates the former alone."""
        return math.sqrt(self.lost / self.whole) if self.whole else math.sqrt(self.lost)
