"""Which tasks share a head: Lloyd's iterations on a module's updates as one small problem.

All distances come from the N x N inner products of the updates' cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from hydrapack.adapters.update import Update
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.span import Core, core_of, top_eigenvectors

STARTS = 32
REFINED = 2
MAX_ROUNDS = 50


def route(updates: Sequence[Update], options: MergeOptions) -> tuple[tuple[int, ...], Core | None]:
    """Each task's head in one module: as ``options`` say, or the best one found, and where."""
    if options.assignment:
        return options.assignment, None
    if options.head_count in (1, len(updates)):
        return _plain(options.head_count, len(updates)), None
    core = core_of(updates, options.rank)
    return assign([core], options), core


def _plain(heads: int, count: int) -> tuple[int, ...]:
    """One head for all, or one for each."""
    return tuple(range(count)) if heads == count else (0,) * count


def assign(problems: Sequence[Core], options: MergeOptions) -> tuple[int, ...]:
    """Each task's head, one for all of ``problems``, of lowest squared error found.

    Lloyd's iterations on the whole updates from many seeded starts, which cost next to nothing;
    the best few are refined with A refitted in every round.
    """
    count = len(problems[0].cores)
    if options.head_count in (1, count):
        return _plain(options.head_count, count)
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
    problems: Sequence[Core], start: tuple[int, ...], weights: torch.Tensor, options: MergeOptions
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
    used = Counter(filled)
    for head in range(distances.shape[1]):
        if head not in used:
            movable = [k for k, a in enumerate(filled) if used[a] > 1]
            worst = max(movable, key=lambda k: float(distances[k, filled[k]]))
            used.subtract([filled[worst]])
            filled[worst], used[head] = head, 1
    return filled


def _canonical(assignment: list[int]) -> tuple[int, ...]:
    """Heads numbered in the order in which the tasks first use them."""
    order = list(dict.fromkeys(assignment))
    return tuple(order.index(head) for head in assignment)
