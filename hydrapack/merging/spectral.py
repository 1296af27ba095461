"""The closed-form merge: the Frobenius optimum of HydraOpt's Eq. (1) and (2).

HydraOpt (https://arxiv.org/abs/2507.17706) minimises sum_k d(dW_k, B_k A) over a shared A and the
heads by gradient descent. With d the squared Frobenius norm and M = N that is a truncated
eigenproblem. Stack the A_k and take a thin QR, [A_1; ...; A_N]^T = Q R. With K the Gram matrix of
the stacked B_k, sum_k dW_k^T dW_k = Q (R W R^T) Q^T, where W is K with all but the blocks of one
task's own set to zero. The best A is the top eigenvectors of R W R^T, mapped back by Q; its rows
are orthonormal, so the best heads are B_k = dW_k A^T.

For M < N a head is the weighted mean of its tasks, and W keeps the blocks of tasks that share one.
Lloyd's iterations (``assignment.py``) alternate between assigning each task to its nearest head and
refitting.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import MergedModule
from hydrapack.merging.assignment import (
    Joint,
    assign,
    joint,
    members,
    shares,
    top_eigenvectors,
    weight_vector,
)
from hydrapack.merging.method import MergeOptions, Method, Shared
from hydrapack.merging.vera import merge_vera


def merge_spectral(updates: Sequence[Update], options: MergeOptions) -> MergedModule:
    """The least-squares shared A and heads for one module.

    Args:
        updates: the tasks' updates, in task order; rank 0 for a task without this module.
        options: ``head_count`` M from 1 to N, ``rank`` R of A (cut to the updates' joint rank),
            ``seed`` of the starts when M < N, ``weights``, ``assignment``.
    """
    problem = joint(updates)
    assignment = options.assignment or assign([problem], options)
    A, heads = fit(problem, updates, assignment, options)
    return MergedModule(A.float(), heads.float(), assignment)


def fit(
    problem: Joint,
    updates: Sequence[Update],
    assignment: tuple[int, ...],
    options: MergeOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best A (rank, d_in) and heads (M, d_out, rank) for an assignment, float64.

    ``problem`` is ``joint(updates)``; the rank is ``options.rank``, cut to the heads' joint rank.
    The best A and heads of a smaller rank are the first rows and columns of these.
    """
    weights = weight_vector(options, len(updates))
    gram = problem.gram(shares(assignment, weights, options.head_count))
    vectors = top_eigenvectors(gram, options.rank)
    vectors = vectors[:, : _spanned(gram, vectors)]
    A = (problem.basis @ vectors).T
    heads = A.new_zeros(options.head_count, updates[0].shape[0], A.shape[0])
    totals = members(assignment, options.head_count).T @ weights
    for k, update in enumerate(updates):
        head = assignment[k]
        own_a, own_b = update.factors()
        heads[head] += (weights[k] / totals[head]) * (own_b @ (own_a @ A.T))
    return A, heads


def _spanned(gram: torch.Tensor, vectors: torch.Tensor) -> int:
    """How many of the eigenvectors, largest first, carry more than rounding; at least 1."""
    energy = (vectors * (gram @ vectors)).sum(0)
    # Of squares in float64: what is left out is below single precision.
    return max(1, int((energy > 1e-14 * len(gram) * energy[0]).sum()))


def one_route(modules: Sequence[Sequence[Update]], options: MergeOptions) -> tuple[int, ...]:
    """One head a task for all modules."""
    return assign([joint(updates) for updates in modules], options)


SPECTRAL = Method(
    name="spectral",
    paper="https://arxiv.org/abs/2507.17706",
    merge=lambda updates, options, own: merge_spectral(updates, options),
    vera=lambda updates, options, own: merge_vera(updates, options),
    knobs=Shared,
    shares=True,
    objectives=("relative", "absolute", "minimax"),
    calibrates=True,
    route=lambda modules, options, own: one_route(modules, options),
)
