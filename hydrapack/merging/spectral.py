"""The closed-form merge: the Frobenius optimum of HydraOpt's Eq. (1) and (2).

HydraOpt (https://arxiv.org/abs/2507.17706) minimises sum_k d(dW_k, B_k A) over a shared A and the
heads by gradient descent. With d the squared Frobenius norm and M = N that is a truncated
eigenproblem: the best A is the top eigenvectors of sum_k dW_k^T dW_k, which ``span.py`` finds in
the smaller of two spaces; its rows are orthonormal, so the best heads are B_k = dW_k A^T.

For M < N a head is the weighted mean of its tasks. Lloyd's iterations (``assignment.py``) alternate
between assigning each task to its nearest head and refitting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import MergedModule
from hydrapack.merging.assignment import assign, members, route, shares, weight_vector
from hydrapack.merging.method import MergeOptions, Method, Shared
from hydrapack.merging.span import Core, core_of, leading, rows_of, spanned, top_eigenvectors
from hydrapack.merging.vera import merge_vera

TOGETHER = 1 << 19
"""Values of the cores of one module, where those of all modules are held at once."""


def merge_spectral(updates: Sequence[Update], options: MergeOptions) -> MergedModule:
    """The least-squares shared A and heads for one module.

    Args:
        updates: the tasks' updates, in task order; rank 0 for a task without this module.
        options: ``head_count`` M from 1 to N, ``rank`` R of A (cut to the updates' joint rank),
            ``seed`` of the starts when M < N, ``weights``, ``assignment``.
    """
    assignment, core = route(updates, options)
    if core is not None and core.whole:
        A = basis_within(core, updates, assignment, options)
    else:
        A = _shared(updates, assignment, options)
    return MergedModule(A.float(), heads_for(A, updates, assignment, options), assignment)


def fit(
    problem: Core, updates: Sequence[Update], assignment: tuple[int, ...], options: MergeOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best A (rank, d_in), float64, in the span of ``problem``, and its heads."""
    A = basis_within(problem, updates, assignment, options)
    return A, heads_for(A, updates, assignment, options)


def heads_for(
    A: torch.Tensor,
    updates: Sequence[Update],
    assignment: tuple[int, ...],
    options: MergeOptions,
) -> torch.Tensor:
    """The best heads (M, d_out, rank) for an A with orthonormal rows, float32."""
    heads = torch.empty(options.head_count, updates[0].shape[0], len(A))
    for head, (_, B) in enumerate(heads_one_by_one(A, updates, assignment, options)):
        heads[head] = B
    return heads


def heads_one_by_one(
    A: torch.Tensor,
    updates: Sequence[Update],
    assignment: tuple[int, ...],
    options: MergeOptions,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Each head's tasks, and the best head (d_out, rank) for them, float64."""
    weights = weight_vector(options, len(updates))
    totals = members(assignment, options.head_count).T @ weights
    for head, own in enumerate(_tasks(assignment, options.head_count)):
        total = A.new_zeros(updates[0].shape[0], len(A))
        for k in own:
            own_a, own_b = updates[k].factors()
            total += (weights[k] / totals[head]) * (own_b @ (own_a @ A.T))
        yield own, total


def basis_within(
    core: Core, updates: Sequence[Update], assignment: tuple[int, ...], options: MergeOptions
) -> torch.Tensor:
    """The best A (at most rank, d_in) in the span of ``core``, its rows orthonormal, float64.

    A smaller rank's best A is the first rows of this one, and its heads their columns.
    """
    weights = weight_vector(options, len(updates))
    gram = core.gram(shares(assignment, weights, options.head_count))
    vectors = top_eigenvectors(gram, options.rank)
    kept = spanned((vectors * (gram @ vectors)).sum(0), len(gram))
    return (core.input @ vectors[:, :kept]).T


def _shared(
    updates: Sequence[Update], assignment: tuple[int, ...], options: MergeOptions
) -> torch.Tensor:
    """The best A (at most rank, d_in), its rows orthonormal, float64."""
    d_out, d_in = updates[0].shape
    own = shares(assignment, weight_vector(options, len(updates)), options.head_count)
    ranks, tasks = [u.rank for u in updates], _tasks(assignment, options.head_count)
    rows = sum(min(d_out, sum(ranks[k] for k in group)) for group in tasks)

    def heads() -> Iterable[torch.Tensor]:
        for head, group in enumerate(tasks):
            if group:
                each = (updates[k].times(float(own[k, head])).factors() for k in group)
                yield rows_of(each, sum(ranks[k] for k in group))

    return leading(heads(), rows, d_in, options.rank).T


def _tasks(assignment: tuple[int, ...], heads: int) -> list[list[int]]:
    """Each head's tasks."""
    found: list[list[int]] = [[] for _ in range(heads)]
    for k, head in enumerate(assignment):
        found[head].append(k)
    return found


def one_route(modules: Iterable[Sequence[Update]], options: MergeOptions) -> tuple[int, ...]:
    """One head a task for all modules."""
    return assign([core_of(updates, options.rank, TOGETHER) for updates in modules], options)


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
