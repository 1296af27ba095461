"""Heads that share an output basis too: B_k = U C_k, with U common and C_k tiny.

A Tucker-2 decomposition of the updates, as in Compress then Serve
(https://arxiv.org/abs/2407.00066): R d_in + Q d_out + M Q R values for a module, so that a task
more costs kilobytes. A and U come from alternating eigenproblems (higher-order orthogonal
iteration) on the updates in the span of their leading inputs and outputs (``span.py``); both are
orthonormal, so the best C_k is U^T dW_k A^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import MergedModule
from hydrapack.merging.method import Knobs, MergeOptions, Method
from hydrapack.merging.span import core_of, square, top_eigenvectors
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


def merge_two_sided(
    updates: Sequence[Update], options: MergeOptions, output_rank: int | None = None
) -> MergedModule:
    """A, U and a C for each task.

    Args:
        updates: the tasks' LoRA updates of one module, in task order.
        options: ``rank`` R, ``weights``.
        output_rank: Q, twice the rank by default; it and R are cut to what the updates span.
    """
    width = output_rank or 2 * options.rank
    core = core_of(updates, 2 * max(width, options.rank))
    roots = torch.tensor([options.weight(k) for k in range(len(updates))]).double().sqrt()
    cores = core.cores * roots[:, None, None]
    left = outputs_of(cores, None, width)
    for _ in range(ROUNDS):
        right = inputs_of(cores, left, options.rank)
        left = outputs_of(cores, right, width)
    heads = left.T @ core.cores @ right
    A, U = (core.input @ right).T, core.output @ left
    return MergedModule(A.float(), heads.float(), tuple(range(len(updates))), U.float())


def outputs_of(cores: torch.Tensor, inputs: torch.Tensor | None, width: int) -> torch.Tensor:
    """The output basis (Q, width) of cores (N, Q, P) that keeps most, for an input basis."""
    inside = cores if inputs is None else cores @ inputs
    return top_eigenvectors(square(inside.mT.flatten(0, 1)), width)


def inputs_of(cores: torch.Tensor, outputs: torch.Tensor | None, rank: int) -> torch.Tensor:
    """The input basis (P, rank) that keeps most, for an output basis."""
    return outputs_of(cores.mT, outputs, rank)


TWO_SIDED = Method(
    name="two-sided",
    paper="https://arxiv.org/abs/2407.00066",
    merge=lambda updates, options, own: merge_two_sided(updates, options, own.output_rank),
    vera=None,
    knobs=TwoSided,
    objectives=("relative", "absolute", "minimax"),
    calibrates=True,
)
