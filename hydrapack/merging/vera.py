"""VeRA adapters (https://arxiv.org/abs/2310.11454): one shared d and M vectors b.

Task k's update is diag(b_k) B diag(d_k) A with A and B frozen and common. HydraOpt's paper shares d
and keeps the b's (its Table 3). The squared error is quadratic in d for given b's and in each b for
a given d: alternating least squares, every round a small linear system. With K = A A^T,

    [(B^T diag(sum_k w_k b_k'^2) B) * K] d = sum_k w_k [(B^T diag(b_k' b_k) B) * K] d_k,

where b_k' is the head of task k and * multiplies value by value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hydrapack.adapters.update import VeraModule, difference_norm
from hydrapack.bundle.merged import MergedVera
from hydrapack.merging.assignment import route
from hydrapack.merging.method import MergeOptions, fit_head
from hydrapack.support.errors import Invalid

ROUNDS, PLATEAU = 50, 1e-9


def merge_vera(updates: Sequence[VeraModule], options: MergeOptions) -> MergedVera:
    """The d and heads b of one module, of least squared error as far as alternating finds it.

    Args:
        updates: the tasks' updates, in task order.
        options: ``head_count`` M, ``rank`` (VeRA's own), ``seed``, ``weights``, ``assignment``.

    Raises:
        HydrapackError: a rank that is not the adapters' own.
    """
    first = updates[0]
    if options.rank != len(first.d):
        raise Invalid(f"`rank` {options.rank}: VeRA's frozen A and B fix the rank, {len(first.d)}")
    assignment, _ = route(updates, options)
    weights = [options.weight(k) for k in range(len(updates))]
    present = [k for k, u in enumerate(updates) if u.rank]
    d = torch.stack([updates[k].d.double() for k in present]).mean(0)
    merged = _with_heads(updates, d, assignment, weights, options.head_count)
    best = _squared(updates, merged, weights)
    K, B = first.A.double() @ first.A.double().T, first.B.double()
    for _ in range(ROUNDS):
        left, right = torch.zeros_like(K), torch.zeros_like(d)
        for update, head, weight in zip(updates, assignment, weights, strict=True):
            own = merged.heads[head].double()
            left += weight * (B.T @ (own.square()[:, None] * B)) * K
            cross = (B.T @ ((own * update.b.double())[:, None] * B)) * K
            right += weight * (cross @ update.d.double())
        d = torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution[:, 0]
        new = _with_heads(updates, d, assignment, weights, options.head_count)
        error = _squared(updates, new, weights)
        if error >= best * (1 - PLATEAU):
            break
        merged, best = new, error
    return merged


def _with_heads(
    updates: Sequence[VeraModule],
    d: torch.Tensor,
    assignment: tuple[int, ...],
    weights: Sequence[float],
    count: int,
) -> MergedVera:
    first = updates[0]
    heads = torch.zeros(count, len(first.b), dtype=torch.float64)
    merged = MergedVera(d, heads, assignment, first.A, first.B)
    totals = [0.0] * count
    for head, weight in zip(assignment, weights, strict=True):
        totals[head] += weight
    for update, head, weight in zip(updates, assignment, weights, strict=True):
        heads[head] += (weight / totals[head]) * fit_head(update, merged)
    return MergedVera(d.float(), heads.float(), assignment, first.A, first.B)


def _squared(updates: Sequence[VeraModule], merged: MergedVera, weights: Sequence[float]) -> float:
    shared = merged.shared()
    return sum(
        weight * difference_norm(update, shared, merged.head(head))[0] ** 2
        for update, head, weight in zip(updates, merged.assignment, weights, strict=True)
    )
