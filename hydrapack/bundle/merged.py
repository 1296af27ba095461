"""Merged modules: a shared A and heads, of LoRA and of VeRA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from hydrapack.adapters.update import Update, VeraModule, widest

Objective = Literal["relative", "absolute", "minimax"]


LOST = 0.9
"""Relative error above which a task counts as lost: 1 is that of leaving its adapter out."""


class _WithHeads:
    """What both kinds have: heads, and perhaps a factor for each task that shares one."""

    heads: torch.Tensor
    scales: torch.Tensor | None
    of: tuple[int, ...]

    @property
    def choices(self) -> int:
        """How many heads, scaled ones apart, a route may name."""
        return len(self.of) or len(self.heads)

    def scaled_head(self, index: int) -> torch.Tensor:
        """The head that a route's entry names, times its factor."""
        if self.scales is None:
            return self.heads[index]
        return self.scales[index] * self.heads[self.of[index]]


@dataclass(frozen=True)
class MergedModule(_WithHeads):
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

    def shared(self) -> torch.Tensor:
        """A (rank, d_in) as a plain LoRA has it."""
        return self.A

    def head(self, index: int) -> torch.Tensor:
        """B (d_out, rank) as a plain LoRA has it."""
        own = self.scaled_head(index)
        return own if self.U is None else self.U @ own


@dataclass(frozen=True)
class MergedVera(_WithHeads):
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
        """(d_out, d_in) of the linear."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Values of d."""
        return self.d.shape[0]

    @property
    def output_rank(self) -> int:
        """0: heads are whole."""
        return 0

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored for this module, by the name it has in a bundle."""
        own = {"d": self.d, "b": self.heads, "s": self.scales}
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def shared(self) -> torch.Tensor:
        """A (rank, d_in) as a plain LoRA has it."""
        return self.d[:, None] * self.A.to(self.d)

    def head(self, index: int) -> torch.Tensor:
        """B (d_out, rank) as a plain LoRA has it."""
        return self.scaled_head(index)[:, None] * self.B.to(self.heads)

    def nearest(self, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        """The b (d_out,) of least squared error for an update B @ A, float64: row by row."""
        shared, frozen = self.shared().double(), self.B.double()
        size = ((frozen @ (shared @ shared.T)) * frozen).sum(1)
        return ((B @ (A @ shared.T)) * frozen).sum(1) / size.clamp(min=1e-300)


Merged = MergedModule | MergedVera


def frozen(modules: Iterable[Merged]) -> dict[str, torch.Tensor]:
    """VeRA's common ``A`` (rank, widest d_in) and ``B`` (widest d_out, rank); none for LoRA."""
    vera = [(module.A, module.B) for module in modules if isinstance(module, MergedVera)]
    return dict(zip("AB", widest(vera), strict=True)) if vera else {}


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


def merged_like(
    update: Update, shared: torch.Tensor, heads: torch.Tensor, assignment: tuple[int, ...]
) -> Merged:
    """A and heads B, or for VeRA d and heads b, as a merged module in float32."""
    if isinstance(update, VeraModule):
        return MergedVera(shared.float(), heads.float(), assignment, update.A, update.B)
    return MergedModule(shared.float(), heads.float(), assignment)
