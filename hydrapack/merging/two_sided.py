"""Heads that share an output basis too: B_k = U C_k, with U common and C_k tiny.

A Tucker-2 decomposition of the updates, as in Compress then Serve
(https://arxiv.org/abs/2407.00066): R d_in + Q d_out + M Q R values for a module, so that a task
more costs kilobytes. A and U come from alternating eigenproblems (higher-order orthogonal
iteration) on the updates in the span of all A's and all B's; both are orthonormal, so the best C_k
is U^T dW_k A^T.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import MergedModule
from hydrapack.merging.assignment import top_eigenvectors
from hydrapack.merging.method import Knobs, MergeOptions, Method
from hydrapack.support.errors import Invalid

ROUNDS = 6


@dataclass(frozen=True)
class TwoSided(Knobs):
    """two-sided's own."""

    output_rank: int | None = None
    """Q, columns of the common output basis; twice the rank by default."""

    def __post_init__(self) -> None:
        if self.output_rank is not None and self.output_rank < 1:
            raise Invalid(f"`output_rank` {self.output_rank}: must be 1 or more")

    def default_heads(self, tasks: int) -> tuple[int, str]:
        """One small head for each task."""
        return tasks, "a small head for each task"


@dataclass(frozen=True)
class Core:
    """One module's updates in the span of all their A's and all their B's, float64.

    Task k's update is ``output @ S_k @ R_k^T @ input^T``; ``pairs`` holds (S_k, R_k).
    """

    input: torch.Tensor
    output: torch.Tensor
    pairs: list[tuple[torch.Tensor, torch.Tensor]]

    def left(self, right: torch.Tensor | None, width: int) -> torch.Tensor:
        """The output basis (P, width) that keeps most, for an input basis."""
        grams = (s @ _square(r, right) @ s.T for s, r in self.pairs)
        return top_eigenvectors(_sum(grams, self.output), width)

    def right(self, left: torch.Tensor | None, rank: int) -> torch.Tensor:
        """The input basis (P, rank) that keeps most, for an output basis."""
        grams = (r @ _square(s, left) @ r.T for s, r in self.pairs)
        return top_eigenvectors(_sum(grams, self.input), rank)

    def projected(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """The updates (N, Q, R) in those bases."""
        return torch.stack([(left.T @ s) @ (r.T @ right) for s, r in self.pairs])


def core_of(updates: Sequence[Update], options: MergeOptions) -> Core:
    """The updates of one module as one small problem; each counts with its weight."""
    factors = [u.factors() for u in updates]
    ranks = [len(A) for A, _ in factors]
    basis_in, inner = torch.linalg.qr(torch.cat([A for A, _ in factors]).T)
    basis_out, outer = torch.linalg.qr(torch.cat([B for _, B in factors], 1))
    roots = [options.weight(k) ** 0.5 for k in range(len(updates))]
    parts = zip(outer.split(ranks, 1), inner.split(ranks, 1), roots, strict=True)
    return Core(basis_in, basis_out, [(root * s, r) for s, r, root in parts])


def merge_two_sided(
    updates: Sequence[Update], options: MergeOptions, output_rank: int | None = None
) -> MergedModule:
    """A, U and a C for each task.

    Args:
        updates: the tasks' LoRA updates of one module, in task order.
        options: ``rank`` R, ``weights``.
        output_rank: Q, twice the rank by default; it and R are cut to what the updates span.
    """
    core = core_of(updates, options)
    width = output_rank or 2 * options.rank
    left = core.left(None, width)
    for _ in range(ROUNDS):
        right = core.right(left, options.rank)
        left = core.left(right, width)
    roots = torch.tensor([options.weight(k) ** 0.5 for k in range(len(updates))])
    heads = core.projected(left, right) / roots[:, None, None]
    A, U = (core.input @ right).T, core.output @ left
    return MergedModule(A.float(), heads.float(), tuple(range(len(updates))), U.float())


TWO_SIDED = Method(
    name="two-sided",
    paper="https://arxiv.org/abs/2407.00066",
    merge=lambda updates, options, own: merge_two_sided(updates, options, own.output_rank),
    vera=None,
    knobs=TwoSided,
    objectives=("relative", "absolute", "minimax"),
    calibrates=True,
)


def _square(factor: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
    inside = factor if basis is None else basis.T @ factor
    return inside.T @ inside


def _sum(grams: Iterable[torch.Tensor], basis: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    for gram in grams:
        total += gram
    return total
