"""``shared`` and ``head`` of VeRA: A and B stored once, a d and M vectors b of each module.

    a = diag(d) A    b = diag(b_route) B    for each module, in LoRA's packing

so that a base program takes them as it takes any adapter of their rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from hydrapack.bundle.stored import StoredVera
from hydrapack.packing.banks import MatrixBank
from hydrapack.packing.head_digests import Bank
from hydrapack.program.layout import Layout


class VeraShared(nn.Module):
    """``shared``: diag(d) A of every module, as the packed vector ``a``."""

    def __init__(self, layout: Layout, modules: Sequence[StoredVera]) -> None:
        """``modules``: in packing order."""
        super().__init__()
        self.layout = layout
        self.A, self.d = MatrixBank([modules[0].A]), MatrixBank([m.d for m in modules])

    def forward(self) -> torch.Tensor:
        """float32 (a_size,)."""
        layers, rank = self.layout.layers, self.layout.rank
        A, d = self.A().T, self.d().view(layers, -1, rank)
        widths = dict(self.layout.shapes)
        parts, at = [], 0
        for group in self.layout.groups():
            count, (_, d_in) = len(group), widths[group[0]]
            wide = A[:d_in].repeat(layers, count).view(layers, d_in, count * rank)
            scale = d[:, at : at + count].reshape(layers, 1, count * rank)
            parts.append((wide * scale).view(layers, -1))
            at += count
        return torch.cat(parts, 1).reshape(-1)


class VeraHead(nn.Module):
    """``head``: diag(b) B of a route, as the packed vector ``b``.

    The vectors lie in one bank of rows of ``block`` values, the greatest common divisor of all
    d_out. What a route names in a module is where a vector begins, and its factor.
    """

    def __init__(self, layout: Layout, modules: Sequence[StoredVera]) -> None:
        """``modules``: in packing order."""
        super().__init__()
        self.rank, self.B = layout.rank, MatrixBank([modules[0].B])
        sizes = [module.merged.shape[0] for module in modules]
        self.block = math.gcd(*sizes)
        shown = [size // self.block for size in sizes]
        factors: list[torch.Tensor] = []
        first: list[int] = []
        start: list[int] = []
        at = 0
        for module, blocks in zip(modules, shown, strict=True):
            merged, heads = module.merged, module.heads
            of = list(merged.of or range(len(heads.values)))
            factor = torch.ones(len(of)) if merged.scales is None else merged.scales
            factors.append(factor if heads.scales is None else factor * heads.scales[of, 0])
            first.append(len(start))
            start += [at + head * blocks for head in of]
            at += len(heads.values) * blocks
        rows = [module.heads.values.reshape(-1, self.block) for module in modules]
        self.register_buffer("vectors", torch.cat(rows).contiguous())
        wide = self.block * rows[0].element_size()
        own = Bank(self.get_buffer("vectors"), {i: n * wide for i, n in enumerate(shown)})
        # None where several choices may name one vector.
        self.banks = [] if any(module.merged.of for module in modules) else [own]
        # By choice: all of the first module, then all of the second...
        self.register_buffer("first", torch.tensor(first))
        self.register_buffer("start", torch.tensor(start))
        self.register_buffer("factor", torch.cat(factors))
        # By block of columns of b: its module, and its place there.
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(shown))
        self.register_buffer("owner", owner)
        self.register_buffer("within", torch.cat([torch.arange(count) for count in shown]))

    def forward(self, route: torch.Tensor) -> torch.Tensor:
        """int64 (modules,) in packing order -> float32 (b_size,)."""
        within = self.get_buffer("within")
        choice = torch.index_select(self.get_buffer("first") + route, 0, self.get_buffer("owner"))
        start = torch.index_select(self.get_buffer("start"), 0, choice) + within
        factor = torch.index_select(self.get_buffer("factor"), 0, choice).view(-1, 1)
        vectors = torch.index_select(self.get_buffer("vectors"), 0, start) * factor
        B = self.B().T.reshape(self.rank, -1, self.block)
        wide = torch.index_select(B, 1, within).view(self.rank, -1)
        return (wide * vectors.view(1, -1)).reshape(-1)
