"""One module's updates as small problems, at a cost linear in their number.

A head's update H counts by H^T H, and rows X with X^T X = H^T H are as few as its tasks' ranks, or
d_out. The best shared A is the leading right singular vectors of all heads' rows, from the Gram
matrix of whichever side is smaller: of the rows (the core space, https://arxiv.org/abs/2509.17786),
or of the inputs, summed up a few tasks at a time. Of a large Gram matrix the leading eigenvectors
come from a block Krylov space (https://arxiv.org/abs/1504.05477).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update

DENSE = 400
"""Size up to which a Gram matrix is decomposed whole."""
CHUNK = 2048
"""Rows that are squared at once."""
TOLERANCE = 1e-7
"""Share of what is not captured yet that another Krylov block must bring."""
EXACT, ROOM = 1 << 22, 1 << 23
"""Values of all tasks' cores: up to the first they keep every direction, above it no more than the
second."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""A (rank, d_in) and B (d_out, rank) of an update B @ A, float64."""


@dataclass(frozen=True)
class Core:
    """One module's updates in the span of their leading inputs and outputs, float64.

    Task k's update is ``output @ cores[k] @ input.T``: all of it for few tasks; for many, what lies
    in the leading directions.
    """

    input: torch.Tensor
    """(d_in, P), orthonormal."""
    output: torch.Tensor
    """(d_out, Q), orthonormal."""
    cores: torch.Tensor
    """(N, Q, P)."""
    whole: bool
    """Whether the updates lie in these directions, all of them."""

    def products(self, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """Inner products (N, N) of the updates, projected on (P, rank) orthonormal inputs."""
        points = (self.cores if inputs is None else self.cores @ inputs).flatten(1)
        return points @ points.T

    def gram(self, shares: torch.Tensor) -> torch.Tensor:
        """Gram matrix (P, P) of the heads, each counted with its tasks' weight.

        ``shares`` (N, M) is w_k / sqrt(weight of the head) where task k has the head, else 0.
        """
        return square(torch.tensordot(shares.T, self.cores, 1).flatten(0, 1))


def core_of(updates: Sequence[Update], width: int, exact: int = EXACT) -> Core:
    """The updates of one module, some perhaps of rank 0, as one small problem.

    Args:
        width: directions that are kept on either side at the least, as far as there are so many.
        exact: values of all cores up to which every direction is kept.
    """
    d_out, d_in = updates[0].shape
    count, ranks = len(updates), sum(u.rank for u in updates)
    ways_in, ways_out = min(ranks, d_in), min(ranks, d_out)
    if count * ways_in * ways_out <= exact:
        factors = [update.factors() for update in updates]
        own = [len(A) for A, _ in factors]
        basis_in, inner = torch.linalg.qr(torch.cat([A for A, _ in factors]).T)
        basis_out, outer = torch.linalg.qr(torch.cat([B for _, B in factors], 1))
        parts = zip(outer.split(own, 1), inner.split(own, 1), strict=True)
        return Core(basis_in, basis_out, torch.stack([b @ a.T for b, a in parts]), whole=True)
    ways = max(width, min(2 * width, math.isqrt(min(ROOM, 2 * exact) // count)))
    pairs = (update.factors() for update in updates)
    turned = ((B.T, A.T) for A, B in (update.factors() for update in updates))
    basis_in = leading(map(_rows, pairs), ranks, d_in, ways, rough=True)
    basis_out = leading(map(_rows, turned), ranks, d_out, ways, rough=True)
    cores = [(basis_out.T @ B) @ (A @ basis_in) for A, B in (u.factors() for u in updates)]
    return Core(basis_in, basis_out, torch.stack(cores), whole=False)


def _rows(pair: Pair) -> torch.Tensor:
    return rows_of([pair], len(pair[0]))


def rows_of(pairs: Iterable[Pair], ranks: int) -> torch.Tensor:
    """Rows X (at most d_out, d_in) with X^T X = H^T H, of the sum H of the updates.

    Args:
        ranks: of all of them together.
    """
    pairs = iter(pairs)
    A, B = next(pairs)
    if ranks < len(B):
        more = list(pairs)
        B = torch.cat([B, *(other for _, other in more)], 1)
        return torch.linalg.qr(B, mode="r").R @ torch.cat([A, *(other for other, _ in more)])
    total = B @ A
    for A, B in pairs:
        total.addmm_(B, A)
    return total


def leading(
    blocks: Iterable[torch.Tensor], rows: int, width: int, count: int, rough: bool = False
) -> torch.Tensor:
    """The leading right singular vectors (width, at most ``count``) of stacked rows, orthonormal.

    What carries no more than rounding is left out; one vector there is always.

    Args:
        blocks: of rows, (any, width), float64.
        rows: in all.
        rough: near the leading ones is enough, as for a basis to work in.
    """
    if 0 < rows <= width:
        stacked = torch.cat(list(blocks))
        gram = square(stacked.T)
        vectors = stacked.T @ top_eigenvectors(gram, count, rough)
        energy = vectors.square().sum(0)
    else:
        gram = torch.zeros(width, width, dtype=torch.float64)
        for chunk in _chunks(blocks):
            gram += square(chunk)
        vectors = top_eigenvectors(gram, count, rough)
        energy = (vectors * (gram @ vectors)).sum(0)
    kept = spanned(energy, len(gram))
    sized = vectors[:, :kept] / energy[:kept].sqrt().clamp(min=1e-150)
    return _signed(torch.linalg.qr(sized).Q)


def _signed(vectors: torch.Tensor) -> torch.Tensor:
    """The columns, each with its largest value above 0: the same input gives the same bytes."""
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * torch.sign(vectors.gather(0, largest))


def spanned(energy: torch.Tensor, size: int) -> int:
    """How many of the directions, largest first, carry more than rounding; at least 1."""
    # Of squares in float64: what is left out is below single precision.
    return max(1, int((energy > 1e-14 * size * energy[0]).sum()))


def square(rows: torch.Tensor) -> torch.Tensor:
    """rows^T @ rows, the product of two groups of columns once for both."""
    size = rows.shape[1]
    if size <= DENSE:
        return rows.T @ rows
    gram = rows.new_empty(size, size)
    step = -(-size // 8)
    for at in range(0, size, step):
        end = at + step
        gram[at:end, at:] = rows[:, at:end].T @ rows[:, at:]
        gram[end:, at:end] = gram[at:end, end:].T
    return gram


def top_eigenvectors(gram: torch.Tensor, count: int, rough: bool = False) -> torch.Tensor:
    """Eigenvectors (P, at most count) of the largest eigenvalues, largest first.

    With ``rough`` of a large matrix what two steps of subspace iteration find.
    """
    size = len(gram)
    if size > DENSE and 3 * count < size:
        found = _iterated(gram, count) if rough else _krylov(gram, count)
        if found is not None:
            return _signed(found)
    return _signed(torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :count])


def _iterated(gram: torch.Tensor, count: int) -> torch.Tensor:
    basis = _drawn(len(gram), count)
    for _ in range(2):
        basis = torch.linalg.qr(gram @ basis).Q
    vectors = torch.linalg.eigh(basis.T @ (gram @ basis)).eigenvectors
    return basis @ vectors.flip(1)[:, :count]


def _drawn(size: int, count: int) -> torch.Tensor:
    """Random columns, some more than are asked for."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, count + 16, generator=generator, dtype=torch.float64)


def _krylov(gram: torch.Tensor, count: int) -> torch.Tensor | None:
    """From the span of V, gram V, gram^2 V, …; None where that takes half the space.

    The eigenvalues' sum grows with every block; it is enough where one brings next to nothing of
    what is missing.
    """
    size, whole = len(gram), float(gram.trace())
    block = _drawn(size, count)
    basis, products = gram.new_empty(size, 0), gram.new_empty(size, 0)
    captured = 0.0
    while basis.shape[1] + block.shape[1] <= size // 2:
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat([basis, block], 1)
        products = torch.cat([products, gram @ block], 1)
        values, vectors = torch.linalg.eigh(basis.T @ products)
        before, captured = captured, float(values[-count:].sum())
        missing = whole - captured
        if captured - before <= TOLERANCE * missing or missing <= 1e-13 * whole:
            return basis @ vectors.flip(1)[:, :count]
        block = products[:, -block.shape[1] :]
    return None


def _chunks(blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks, small ones stacked."""
    held: list[torch.Tensor] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= CHUNK:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)
