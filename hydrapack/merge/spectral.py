"""The closed-form merge: the Frobenius optimum of HydraOpt's Eq. (1) and (2).

HydraOpt (https://arxiv.org/abs/2507.17706) minimises sum_k d(dW_k, B_k A) over a shared A and the
heads by gradient descent. With d the squared Frobenius norm and M = N that is a truncated
eigenproblem. Stack the A_k and take a thin QR, [A_1; ...; A_N]^T = Q R: each dW_k = C_k Q^T with
C_k = B_k R_k^T small. The best A is the top eigenvectors of sum_k C_k^T C_k, mapped back by Q; its
rows are orthonormal, so the best heads are B_k = dW_k A^T. For M < N, Lloyd's iterations alternate
between assigning each task to its nearest head and refitting A and the heads, from several seeded
starts. No d_out x d_in matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hydrapack.adapters.lora import LoraModule
from hydrapack.merge.module import MergedModule, MergeOptions

STARTS = 8
MAX_ROUNDS = 50


def merge_spectral(updates: Sequence[LoraModule], options: MergeOptions) -> MergedModule:
    """The least-squares shared A and heads for one module.

    Args:
        updates: the tasks' updates, in task order; rank 0 for a task without this module.
        options: ``heads`` M from 1 to N, ``rank`` R of A (rows beyond the updates' joint rank
            are zero), ``seed`` of the starts when M < N.
    """
    stacked = torch.cat([u.A.double() for u in updates])
    q, r = torch.linalg.qr(stacked.T)
    blocks = torch.split(r.T, [u.rank for u in updates])
    small = [u.scaled_b() @ block for u, block in zip(updates, blocks, strict=True)]
    count = len(updates)
    assignment = tuple(range(count)) if options.heads == count else _cluster(small, options)
    basis, means = _fit(small, assignment, options.heads, options.rank)
    A = (q @ basis).T
    heads = torch.stack([mean @ basis for mean in means])
    if (missing := options.rank - A.shape[0]) > 0:
        A = torch.nn.functional.pad(A, (0, 0, 0, missing))
        heads = torch.nn.functional.pad(heads, (0, missing))
    return MergedModule(A.float(), heads.float(), assignment)


def _fit(
    small: list[torch.Tensor], assignment: tuple[int, ...], heads: int, rank: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The best basis (P, rank) for an assignment, and each head's mean update (d_out, P)."""
    means: list[torch.Tensor] = []
    gram = small[0].new_zeros(small[0].shape[1], small[0].shape[1])
    for head in range(heads):
        members = [c for c, a in zip(small, assignment, strict=True) if a == head]
        mean = torch.stack(members).mean(0) if members else torch.zeros_like(small[0])
        gram += len(members) * (mean.T @ mean)
        means.append(mean)
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same bytes.
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * torch.sign(vectors.gather(0, largest)), means


def _cluster(small: list[torch.Tensor], options: MergeOptions) -> tuple[int, ...]:
    """The assignment of lowest squared error over several seeded starts."""
    generator = torch.Generator().manual_seed(options.seed)
    best: tuple[int, ...] = ()
    best_error = float("inf")
    for _ in range(STARTS if options.heads > 1 else 1):
        centres = torch.randperm(len(small), generator=generator)[: options.heads].tolist()
        starts = [[_distance(task, small[c]) for c in centres] for task in small]
        assignment = tuple(row.index(min(row)) for row in starts)
        for _ in range(MAX_ROUNDS):
            basis, means = _fit(small, assignment, options.heads, options.rank)
            heads = [mean @ basis for mean in means]
            projected = [c @ basis for c in small]
            distances = [[_distance(p, h) for h in heads] for p in projected]
            moved = _fill_empty(tuple(row.index(min(row)) for row in distances), distances)
            if moved == assignment:
                break
            assignment = moved
        basis, means = _fit(small, assignment, options.heads, options.rank)
        error = sum(
            float((c - means[a] @ basis @ basis.T).square().sum())
            for c, a in zip(small, assignment, strict=True)
        )
        if error < best_error * (1 - 1e-12):
            best, best_error = assignment, error
    return _canonical(best)


def _fill_empty(assignment: tuple[int, ...], distances: list[list[float]]) -> tuple[int, ...]:
    """Give each head that lost all its tasks the task that its own head serves worst."""
    filled = list(assignment)
    for head in range(len(distances[0])):
        if head not in filled:
            movable = [k for k, a in enumerate(filled) if filled.count(a) > 1]
            filled[max(movable, key=lambda k: distances[k][filled[k]])] = head
    return tuple(filled)


def _distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum())


def _canonical(assignment: tuple[int, ...]) -> tuple[int, ...]:
    """Heads numbered in the order in which the tasks first use them."""
    order = list(dict.fromkeys(assignment))
    return tuple(order.index(head) for head in assignment)
