"""Which tasks share a head: a module's updates as one small problem, Lloyd's iterations on it.

All distances come from the N x N inner products of the updates, so no d_out x d_in matrix is
formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update
from hydrapack.merging.method import MergeOptions

STARTS = 32
REFINED = 2
MAX_ROUNDS = 50


@dataclass(frozen=True)
class Joint:
    """One module's updates in the span of all its A's, float64.

    ``basis`` (d_in, P) is orthonormal; task k's A is ``inner[:, k's columns].T @ basis.T``;
    ``outer`` (sum of ranks)^2 is the Gram matrix of the scaled B's.
    """

    basis: torch.Tensor
    inner: torch.Tensor
    outer: torch.Tensor
    owner: torch.Tensor
    """Which task each column belongs to."""

    def products(self, projection: torch.Tensor | None = None) -> torch.Tensor:
        """Inner products (N, N) of the updates, projected on (P, rank) orthonormal columns."""
        inner = self.inner if projection is None else projection.T @ self.inner
        tasks = torch.nn.functional.one_hot(self.owner).to(inner.dtype)
        return tasks.T @ ((inner.T @ inner) * self.outer) @ tasks

    def gram(self, shares: torch.Tensor) -> torch.Tensor:
        """Gram matrix (P, P) of the heads, each counted with its tasks' weight.

        ``shares`` (N, M) is w_k / sqrt(weight of the head) where task k has the head, else 0.
        """
        pairs = (shares @ shares.T)[self.owner][:, self.owner]
        return self.inner @ (self.outer * pairs) @ self.inner.T


def joint(updates: Sequence[Update]) -> Joint:
    """The updates of one module, some perhaps of rank 0, as one small problem."""
    factors = [u.factors() for u in updates]
    basis, inner = torch.linalg.qr(torch.cat([A for A, _ in factors]).T)
    outer = torch.cat([B for _, B in factors], 1)
    owner = torch.cat([torch.full((len(A),), k) for k, (A, _) in enumerate(factors)])
    # A task without this module still needs its row in the one-hot matrix of tasks.
    missing = len(updates) - 1 - int(owner.max()) if len(owner) else len(updates)
    if missing > 0:
        padding = (0, 1)
        inner = torch.nn.functional.pad(inner, padding)
        outer = torch.nn.functional.pad(outer, padding)
        owner = torch.cat([owner, torch.tensor([len(updates) - 1])])
    return Joint(basis, inner, outer.T @ outer, owner)


def assign(problems: Sequence[Joint], options: MergeOptions) -> tuple[int, ...]:
    """Each task's head, one for all of ``problems``, of lowest squared error found.

    Lloyd's iterations on the whole updates from many seeded starts, which cost next to nothing;
    the best few are refined with A refitted in every round.
    """
    count = int(problems[0].owner.max()) + 1
    if options.head_count in (1, count):
        return tuple(range(count)) if options.head_count == count else (0,) * count
    whole = sum((p.products() for p in problems), torch.zeros(1, dtype=torch.float64))
    weights = weight_vector(options, count)
    generator = torch.Generator().manual_seed(options.seed)
    found: dict[tuple[int, ...], float] = {}
    permutations = [torch.randperm(count, generator=generator) for _ in range(STARTS)]
    starts = {tuple(sorted(p[: options.head_count].tolist())) for p in permutations}
    for centres in sorted(starts):
        start = _nearest(whole, torch.eye(count, dtype=torch.float64)[:, list(centres)])
        assignment = start
        for _ in range(MAX_ROUNDS):
            moved = _move(whole, assignment, weights, options.head_count)
            if moved == assignment:
                break
            assignment = moved
        found[assignment] = _kept(whole, assignment, weights, options.head_count)
    best, most = min(found), float("-inf")
    for start in sorted(found, key=lambda a: (-found[a], a))[:REFINED]:
        assignment, kept = _refine(problems, start, weights, options)
        if kept > most * (1 + 1e-12) or most == float("-inf"):
            best, most = assignment, kept
    return best


def _refine(
    problems: Sequence[Joint], start: tuple[int, ...], weights: torch.Tensor, options: MergeOptions
) -> tuple[tuple[int, ...], float]:
    """Lloyd's rounds with A refitted; the assignment and the squared norm it keeps."""
    best, most, assignment = start, float("-inf"), start
    for _ in range(MAX_ROUNDS):
        own = shares(assignment, weights, options.head_count)
        kept, products = 0.0, torch.zeros(1, dtype=torch.float64)
        for problem in problems:
            gram = problem.gram(own)
            vectors = top_eigenvectors(gram, options.rank)
            kept += float((vectors * (gram @ vectors)).sum())
            products = products + problem.products(vectors)
        if kept <= most:
            break
        best, most = assignment, kept
        assignment = _move(products, assignment, weights, options.head_count)
    return best, most


def top_eigenvectors(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors (P, at most rank) of the largest eigenvalues, largest first."""
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same bytes.
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * torch.sign(vectors.gather(0, largest))


def weight_vector(options: MergeOptions, count: int) -> torch.Tensor:
    """The tasks' weights (N,), float64."""
    return torch.tensor([options.weight(k) for k in range(count)], dtype=torch.float64)


def members(assignment: tuple[int, ...], head_count: int) -> torch.Tensor:
    """(N, M): 1 where a task has the head."""
    return torch.nn.functional.one_hot(torch.tensor(assignment), head_count).double()


def shares(assignment: tuple[int, ...], weights: torch.Tensor, head_count: int) -> torch.Tensor:
    """(N, M): w_k / sqrt(weight of the head) where task k has the head, else 0."""
    weighed = members(assignment, head_count) * weights[:, None]
    return weighed / weighed.sum(0).clamp(min=1e-300).sqrt()


def _means(assignment: tuple[int, ...], weights: torch.Tensor, head_count: int) -> torch.Tensor:
    weighed = members(assignment, head_count) * weights[:, None]
    return weighed / weighed.sum(0).clamp(min=1e-300)


def _kept(
    products: torch.Tensor, assignment: tuple[int, ...], weights: torch.Tensor, head_count: int
) -> float:
    """Squared norm of the heads, each counted with its tasks' weight."""
    own = shares(assignment, weights, head_count)
    return float((own * (products @ own)).sum())


def _distances(products: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Squared distances (N, M) of the updates to means given as mixtures (N, M) of them."""
    crossed = products @ means
    return products.diagonal()[:, None] - 2 * crossed + (means * crossed).sum(0)


def _nearest(products: torch.Tensor, means: torch.Tensor) -> tuple[int, ...]:
    return _canonical(_fill_empty(_distances(products, means)))


def _move(
    products: torch.Tensor, assignment: tuple[int, ...], weights: torch.Tensor, head_count: int
) -> tuple[int, ...]:
    return _nearest(products, _means(assignment, weights, head_count))


def _fill_empty(distances: torch.Tensor) -> list[int]:
    """The nearest head of each task; a head without any takes the task served worst elsewhere."""
    filled: list[int] = distances.argmin(1).tolist()
    for head in range(distances.shape[1]):
        if head not in filled:
            movable = [k for k, a in enumerate(filled) if filled.count(a) > 1]
            filled[max(movable, key=lambda k: float(distances[k, filled[k]]))] = head
    return filled


def _canonical(assignment: list[int]) -> tuple[int, ...]:
    """Heads numbered in the order in which the tasks first use them."""
    order = list(dict.fromkeys(assignment))
    return tuple(order.index(head) for head in assignment)
