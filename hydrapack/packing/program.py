"""``adapters.pte``: ``shared() -> a`` and ``head(route) -> b`` over the stored integers.

Both dequantize in the program with kernels that every stock ExecuTorch runtime has, so that a swap
is one ``execute("head", route)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import MergedModule
from hydrapack.bundle.rounding import refit_heads
from hydrapack.packing.banks import Head, MatrixBank
from hydrapack.program.layout import Layout, module_name
from hydrapack.program.quantized import Rounding
from hydrapack.support.threads import one_thread


class Shared(nn.Module):
    """``shared``: every A, dequantized to the packed vector ``a``."""

    def __init__(
        self,
        layout: Layout,
        modules: Mapping[str, MergedModule],
        roundings: Mapping[str, Rounding],
    ) -> None:
        super().__init__()
        self.layers, self.rank = layout.layers, layout.rank
        self.banks: list[list[MatrixBank]] = []
        self.counts: list[int] = []
        for number, group in enumerate(layout.groups()):
            names = [module_name(i, target) for i in range(layout.layers) for target in group]
            widths = sorted({roundings[name].bits_a for name in names})
            banks: list[MatrixBank] = []
            order: dict[str, range] = {}
            at = 0
            for bits in widths:
                own = [name for name in names if roundings[name].bits_a == bits]
                matrix = torch.cat([modules[name].A for name in own])
                banks.append(MatrixBank(matrix, bits, roundings[own[0]].group_size))
                self.add_module(f"bank_{number}_{bits}", banks[-1])
                for name in own:
                    rows = modules[name].rank
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
                A = found[0]
            A = A.reshape(self.layers, count * self.rank, -1)
            parts.append(A.permute(0, 2, 1).reshape(self.layers, -1))
        return torch.cat(parts, 1).reshape(-1)


@one_thread()
def lower_adapters(
    bundle: Bundle, layout: Layout, roundings: Mapping[str, Rounding], target: Path
) -> dict[str, torch.Tensor]:
    """Write ``adapters.pte``.

    Args:
        bundle: of LoRA adapters.
        roundings: by module name.

    Returns:
        what the program gives for each task, by name: the packed vector ``b`` after quantization,
        and ``""`` -> ``a``.
    """
    from executorch.exir import EdgeCompileConfig, to_edge

    routes = {task.name: route_tensor(bundle, layout, task.route) for task in bundle.info.tasks}
    modules = {n: m for n, m in bundle.modules.items() if isinstance(m, MergedModule)}
    fitted = {name: refit_heads(module, roundings[name]) for name, module in modules.items()}
    names: Sequence[str] = layout.modules()
    shared = Shared(layout, modules, roundings).eval()
    head = Head([fitted[n] for n in names], layout.rank, [roundings[n] for n in names]).eval()
    example = next(iter(routes.values()))
    metadata: dict[str, Any] = {
        "get_adapter_layout": layout.digest,
        "get_adapter_rank": layout.rank,
        "get_heads": max(module.choices for module in modules.values()),
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
        return {"": shared(), **{name: head(route) for name, route in routes.items()}}


def route_tensor(bundle: Bundle, layout: Layout, route: list[int]) -> torch.Tensor:
    """A bundle task's route, reordered from the bundle's modules to packing order, int64."""
    by_name = dict(zip(bundle.info.modules, route, strict=True))
    return torch.tensor([by_name[name] for name in layout.modules()], dtype=torch.int64)
