"""How much each task's error counts.

HydraOpt minimises sum_k d(dW_k, merged_k): the task whose update is smallest is given up first.
Here that objective is ``absolute``. ``relative`` divides each term by d(dW_k, 0), taken over all
modules, so that every task counts alike whatever its scale: the updates are merged as if each were
of size one, and the heads are scaled back (``method.with_sizes``). ``minimax`` asks for the
smallest error of the worst task: it starts from ``relative`` and gives more weight to what came out
worst, round by round (multiplicative weights, https://theoryofcomputing.org/articles/v008a006/).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import inner_product
from hydrapack.support.engine import Engine
from hydrapack.support.threads import in_parallel

ROUNDS = 8

Made = TypeVar("Made")


def task_sizes(
    adapters: Sequence[Adapter], distance: str = "fro", engine: Engine = in_parallel
) -> list[float]:
    """By what each task's update is divided so that d(dW_k, 0), all modules together, is 1.

    Args:
        distance: HydraOpt's d. fro and cs: the Frobenius norm; mse: the root of the mean squares,
            summed over modules; mae: the mean absolute values, summed over modules.

    Returns:
        a number above 0 for each task; 1 for one without any update.
    """

    def size(adapter: Adapter) -> float:
        return sum(_distance(*module.factors(), distance) for module in adapter.modules.values())

    sizes = list(engine(size, adapters))
    return [(size if distance == "mae" else math.sqrt(size)) or 1.0 for size in sizes]


def _distance(A: torch.Tensor, B: torch.Tensor, distance: str) -> float:
    """From nothing, of one module."""
    if distance == "mae":
        return float((B.float() @ A.float()).abs().mean())
    square = float(inner_product(A, B, A, B))
    return square / (len(B) * A.shape[1]) if distance == "mse" else square


def reweigh(
    solve: Callable[[tuple[float, ...], float], tuple[Sequence[float], Made]],
    weights: Sequence[float],
    rounds: int = ROUNDS,
) -> Made:
    """What ``solve`` makes with the smallest worst relative error, of some rounds of weights.

    Args:
        solve: from weights, and the share of the rounds that are done, to the tasks' relative
            errors and a merge.
        weights: a task's error counts this much, as a factor of its square. They are the first
            round's; no later round is kept unless it is better.
    """
    now, step = tuple(weights), 1.0
    best, worst = None, float("inf")
    for done in range(rounds):
        errors, candidate = solve(now, done / rounds)
        squares = [w * e**2 for w, e in zip(weights, errors, strict=True)]
        if best is None or max(squares) < worst:
            best, worst = candidate, max(squares)
        else:
            step /= 2
        mean = sum(squares) / len(squares)
        if not mean or max(squares) < mean * (1 + 1e-3):
            break
        now = tuple(w * max(s / mean, 1e-3) ** step for w, s in zip(now, squares, strict=True))
    assert best is not None
    return best
