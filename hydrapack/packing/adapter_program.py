"""``adapters.pte``: ``shared() -> a`` and ``head(route) -> b`` over the stored integers.

Both dequantize in the program with kernels that every stock ExecuTorch runtime has, so that a swap
is one ``execute("head", route)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrapack.bundle.stored import Stored, StoredModule, StoredVera
from hydrapack.packing.banks import Head, MatrixBank
from hydrapack.packing.head_digests import Bank, found_in
from hydrapack.packing.vera import VeraHead, VeraShared
from hydrapack.program.layout import Layout, module_name
from hydrapack.support.threads import one_thread


class Shared(nn.Module):
    """``shared``: every A, dequantized to the packed vector ``a``."""

    def __init__(self, layout: Layout, modules: Mapping[str, StoredModule]) -> None:
        super().__init__()
        self.layers, self.rank = layout.layers, layout.rank
        self.banks: list[list[MatrixBank]] = []
        self.counts: list[int] = []
        for number, group in enumerate(layout.groups()):
            names = [module_name(i, target) for i in range(layout.layers) for target in group]
            widths = sorted({modules[name].A.bits for name in names})
            banks: list[MatrixBank] = []
            order: dict[str, range] = {}
            at = 0
            for bits in widths:
                own = [name for name in names if modules[name].A.bits == bits]
                banks.append(MatrixBank([modules[name].A for name in own]))
                self.add_module(f"bank_{number}_{bits}", banks[-1])
                for name in own:
                    rows = modules[name].merged.rank
                    order[name] = range(at, at + rows)
                    at += rows
            wanted = [
                row for name in names for row in [*order[name], *[at] * layout.rank][: layout.rank]
            ]
            self.banks.append(banks)
            self.counts.append(len(group))
            if wanted != list(range(at)):
                self.register_buffer(f"rows_{number}", torch.tensor(wanted, dtype=torch.int32))
        self.ordered = {name for name, _ in self.named_buffers(recurse=False)}

    def forward(self) -> torch.Tensor:
        """float32 (a_size,)."""
        parts = []
        for number, (banks, count) in enumerate(zip(self.banks, self.counts, strict=True)):
            found = [bank() for bank in banks]
            name = f"rows_{number}"
            if name in self.ordered:
                zero = torch.zeros(1, found[0].shape[1])
                rows = self.get_buffer(name).to(torch.int64)
                A = torch.index_select(torch.cat([*found, zero]), 0, rows)
            else:
                A = found[0] if len(found) == 1 else torch.cat(found)
            A = A.reshape(self.layers, count * self.rank, -1)
            parts.append(A.permute(0, 2, 1).reshape(self.layers, -1))
        return torch.cat(parts, 1).reshape(-1)


@dataclass(frozen=True)
class Lowered:
    """What the program written gives."""

    a: torch.Tensor
    """float32 (a_size,)."""
    head: Head | VeraHead
    banks: dict[int, Bank]
    """With the heads, by where they begin in the file."""

    def b(self, route: torch.Tensor) -> torch.Tensor:
        """float32 (b_size,) of a route, int64 (modules,) in packing order."""
        with torch.no_grad():
            found: torch.Tensor = self.head(route)
        return found


def _methods(layout: Layout, modules: Sequence[Stored]) -> tuple[nn.Module, Head | VeraHead]:
    """``shared`` and ``head`` of modules in packing order, all of LoRA or all of VeRA."""
    vera = [module for module in modules if isinstance(module, StoredVera)]
    if vera:
        return VeraShared(layout, vera).eval(), VeraHead(layout, vera).eval()
    lora = [module for module in modules if isinstance(module, StoredModule)]
    named = dict(zip(layout.modules(), lora, strict=True))
    return Shared(layout, named).eval(), Head(lora, layout.rank).eval()


@one_thread()
def lower_adapters(
    layout: Layout,
    modules: Mapping[str, Stored],
    target: Path,
) -> Lowered:
    """Write ``adapters.pte``.

    Args:
        modules: by name, all of the layout's.
    """
    from executorch.exir import EdgeCompileConfig, to_edge

    shared, head = _methods(layout, [modules[name] for name in layout.modules()])
    example = torch.zeros(len(layout.modules()), dtype=torch.int64)
    metadata: dict[str, Any] = {
        "get_adapter_layout": layout.digest,
        "get_adapter_rank": layout.rank,
        "get_heads": max(module.merged.choices for module in modules.values()),
    }
    with torch.no_grad():
        edge = to_edge(
            {
                "head": torch.export.export(head, (example,), strict=False),
                "shared": torch.export.export(shared, (), strict=False),
            },
            constant_methods=metadata,
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        )
        program = edge.to_executorch()
        with target.open("wb") as file:
            program.write_to_file(file)
        own = {id(bank.values) for bank in head.banks}
        others = [b for m in (shared, head) for b in m.buffers() if id(b) not in own]
        return Lowered(shared(), head, found_in(target.read_bytes(), head.banks, others))
