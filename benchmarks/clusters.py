"""Forty tasks: one common basis, or clusters of tasks with a basis each, at equal bytes.

python benchmarks/clusters.py

Compress then Serve (https://arxiv.org/abs/2407.00066) finds clusters of bases worth it for hundreds
of adapters. Here 40 made adapters of rank 16 of one linear (576 x 576), relative error of the
updates as packed at 4 bits, for three structures: all updates in one common span, four planted
clusters, and no structure at all. Tasks are clustered by Lloyd's iterations on the updates (the
routing of M < N).
"""

from __future__ import annotations

import math

import torch

from hydrapack.adapters.update import LoraModule, difference_norm
from hydrapack.bundle.stored import store
from hydrapack.merging.assignment import assign
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.span import core_of
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.program.quantized import Precision

TASKS, RANK, DIM, SPAN = 40, 16, 576, 24
CLUSTERS = (1, 2, 4, 8)
SIZES = (4, 8, 12, 16, 24, 32, 48, 64)


def made(structure: str, seed: int = 0) -> list[LoraModule]:
    """Updates of size one: in one span, in a span for each of four clusters, or in none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    spans = {"one span": 1, "four clusters": 4, "no structure": 0}[structure]
    bases = [(normal(DIM, SPAN), normal(SPAN, DIM)) for _ in range(spans)]
    found = []
    for k in range(TASKS):
        A, B = normal(RANK, DIM), normal(DIM, RANK)
        if bases:
            U, V = bases[k % spans]
            A = normal(RANK, SPAN) @ V + 0.3 * math.sqrt(SPAN) * A
            B = U @ normal(SPAN, RANK) + 0.3 * math.sqrt(SPAN) * B
        norm = float(((B.T @ B) * (A @ A.T)).sum()) ** 0.5
        found.append(LoraModule(A, B / norm))
    return found


def stored(updates: list[LoraModule], clusters: int, size: int) -> tuple[int, float]:
    """Bytes and relative error with R = Q = ``size`` in each cluster."""
    route = assign([core_of(updates, RANK)], MergeOptions(clusters, RANK))
    total, lost = 0, 0.0
    for cluster in range(clusters):
        own = [update for update, at in zip(updates, route, strict=True) if at == cluster]
        merged = merge_two_sided(own, MergeOptions(len(own), size), size)
        kept = store(merged, Precision(4, 4))
        total += kept.bytes
        packed = kept.dequantize()
        for k, update in enumerate(own):
            lost += difference_norm(update, packed.A, packed.head(k))[0] ** 2
    return total, math.sqrt(lost / len(updates))


def main() -> None:
    """For each structure: the error at some bytes, between the measured points, by clusters."""
    torch.set_num_threads(1)
    budgets = (8_000, 16_000, 32_000, 64_000, 128_000)
    for structure in ("one span", "four clusters", "no structure"):
        updates = made(structure)
        print(f"\n| {structure} | " + " | ".join(f"{b // 1000} kB" for b in budgets) + " |")
        print("|---" + "|---:" * len(budgets) + "|")
        for clusters in CLUSTERS:
            points = sorted(stored(updates, clusters, size) for size in SIZES)
            cells = []
            for budget in budgets:
                below = [p for p in points if p[0] <= budget]
                above = [p for p in points if p[0] > budget]
                if not below or not above:
                    cells.append("")
                    continue
                (x, low), (y, high) = below[-1], above[0]
                cells.append(f"{low + (high - low) * (budget - x) / (y - x):.3f}")
            label = "one basis" if clusters == 1 else f"{clusters} bases"
            print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
