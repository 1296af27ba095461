"""The closed-form merge: the Frobenius optimum of HydraOpt's Eq. (1) and (2).

HydraOpt (https://arxiv.org/abs/2507.17706) minimises sum_k d(dW_k, B_k A) over a shared A and the
heads by gradient descent. With d the squared Frobenius norm and M = N that is a truncated
eigenproblem. Stack the A_k and take a thin QR, [A_1; ...; A_N]^T = Q R. With K the Gram matrix of
the stacked B_k, sum_k dW_k^T dW_k = Q (R W R^T) Q^T, where W is K with all but the blocks of one
task's own set to zero. The best A is the top eigenvectors of R W R^T, mapped back by Q; its rows
are orthonormal, so the best heads are B_k = dW_k A^T.

For M < N a head is the weighted mean of its tasks, and W keeps the blocks of tasks that share one.
Lloyd's iterations alternate between assigning each task to its nearest head and refitting. All
distances come from the N x N inner products of the updates, so no d_out x d_in matrix is formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hydrapack.adapters.update import Update
from hydrapack.bundle.merged import MergedModule
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


def merge_spectral(updates: Sequence[Update], options: MergeOptions) -> MergedModule:
    """The least-squares shared A and heads for one module.

    Args:
        updates: the tasks' updates, in task order; rank 0 for a task without this module.
        options: ``heads`` M from 1 to N, ``rank`` R of A (cut to the updates' joint rank),
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
    A smaller rank's best A and heads are the first rows and
    columns of these.
    """
    weights = _weights(options, len(updates))
    gram = problem.gram(_shares(assignment, weights, options.heads))
    vectors = top_eigenvectors(gram, options.rank)
    vectors = vectors[:, : _spanned(gram, vectors)]
    A = (problem.basis @ vectors).T
    heads = A.new_zeros(options.heads, updates[0].shape[0], A.shape[0])
    totals = _members(assignment, options.heads).T @ weights
    for k, update in enumerate(updates):
        head = assignment[k]
        own_a, own_b = update.factors()
        heads[head] += (weights[k] / totals[head]) * (own_b @ (own_a @ A.T))
    return A, heads


def assign(problems: Sequence[Joint], options: MergeOptions) -> tuple[int, ...]:
    """Each task's head, one for all of ``problems``, of lowest squared error found.

    Lloyd's iterations on the whole updates from many seeded starts, which cost next to nothing;
    the best few are refined with A refitted in every round.
    """
    count = int(problems[0].owner.max()) + 1
    if options.heads in (1, count):
        return tuple(range(count)) if options.heads == count else (0,) * count
    whole = sum((p.products() for p in problems), torch.zeros(1, dtype=torch.float64))
    weights = _weights(options, count)
    generator = torch.Generator().manual_seed(options.seed)
    found: dict[tuple[int, ...], float] = {}
    permutations = [torch.randperm(count, generator=generator) for _ in range(STARTS)]
    starts = {tuple(sorted(p[: options.heads].tolist())) for p in permutations}
    for centres in sorted(starts):
        start = _nearest(whole, torch.eye(count, dtype=torch.float64)[:, list(centres)])
        assignment = start
        for _ in range(MAX_ROUNDS):
            moved = _move(whole, assignment, weights, options.heads)
            if moved == assignment:
                break
            assignment = moved
        found[assignment] = _kept(whole, assignment, weights, options.heads)
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
        shares = _shares(assignment, weights, options.heads)
        kept, products = 0.0, torch.zeros(1, dtype=torch.float64)
        for problem in problems:
            gram = problem.gram(shares)
            vectors = top_eigenvectors(gram, options.rank)
            kept += float((vectors * (gram @ vectors)).sum())
            products = products + problem.products(vectors)
        if kept <= most:
            break
        best, most = assignment, kept
        assignment = _move(products, assignment, weights, options.heads)
    return best, most


def top_eigenvectors(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors (P, at most rank) of the largest eigenvalues, largest first."""
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :rank]
    # An eigenvector's sign is arbitrary; fix it, so that the same input gives the same bytes.
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * torch.sign(vectors.gather(0, largest))


def _spanned(gram: torch.Tensor, vectors: torch.Tensor) -> int:
    """How many of the eigenvectors, largest first, carry more than rounding; at least 1."""
    energy = (vectors * (gram @ vectors)).sum(0)
    # Of squares in float64: what is left out is below single precision.
    return max(1, int((energy > 1e-14 * len(gram) * energy[0]).sum()))


def _weights(options: MergeOptions, count: int) -> torch.Tensor:
    return torch.tensor([options.weight(k) for k in range(count)], dtype=torch.float64)


def _members(assignment: tuple[int, ...], heads: int) -> torch.Tensor:
    """(N, M): 1 where a task has the head."""
    return torch.nn.functional.one_hot(torch.tensor(assignment), heads).double()


def _shares(assignment: tuple[int, ...], weights: torch.Tensor, heads: int) -> torch.Tensor:
    members = _members(assignment, heads) * weights[:, None]
    return members / members.sum(0).clamp(min=1e-300).sqrt()


def _means(assignment: tuple[int, ...], weights: torch.Tensor, heads: int) -> torch.Tensor:
    members = _members(assignment, heads) * weights[:, None]
    return members / members.sum(0).clamp(min=1e-300)


def _kept(
    products: torch.Tensor, assignment: tuple[int, ...], weights: torch.Tensor, heads: int
) -> float:
    """Squared norm of the heads, each counted with its tasks' weight."""
    shares = _shares(assignment, weights, heads)
    return float((shares * (products @ shares)).sum())


def _distances(products: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Squared distances (N, M) of the updates to means given as mixtures (N, M) of them."""
    crossed = products @ means
    return products.diagonal()[:, None] - 2 * crossed + (means * crossed).sum(0)


def _nearest(products: torch.Tensor, means: torch.Tensor) -> tuple[int, ...]:
    return _canonical(_fill_empty(_distances(products, means)))


def _move(
    products: torch.Tensor, assignment: tuple[int, ...], weights: torch.Tensor, heads: int
) -> tuple[int, ...]:
    return _nearest(products, _means(assignment, weights, heads))


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
