"""``adapters.pte``: ``shared() -> a`` and ``head(route) -> b`` over the stored integers.

Both dequantize in the program with kernels that every stock ExecuTorch runtime has, so that a swap
is one ``execute("head", route)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydrapack.bundle import Bundle
from hydrapack.layout import Layout, module_name
from hydrapack.quantize import quantize_rows


class Shared(nn.Module):
    """Every A of the bundle, dequantized to the packed vector ``a``."""

    def __init__(self, layout: Layout, bundle: Bundle, bits: int) -> None:
        super().__init__()
        self.layers, self.count = layout.layers, len(layout.groups())
        for index, group in enumerate(layout.groups()):
            # (layers, group * rank, d_in): rows of A are the rows that share a scale.
            stack = [
                torch.cat([bundle.A[module_name(i, name)] for name in group])
                for i in range(layout.layers)
            ]
            values, scales = _stored(torch.stack(stack), bits)
            self.register_buffer(f"values_{index}", values.mT.contiguous())
            self.register_buffer(f"scales_{index}", scales.mT.contiguous())

    def forward(self) -> torch.Tensor:
        """float32 (a_size,)."""
        parts = []
        for index in range(self.count):
            values = self.get_buffer(f"values_{index}").to(torch.float32)
            matrix = values * self.get_buffer(f"scales_{index}").to(torch.float32)
            parts.append(matrix.reshape(self.layers, -1))
        return torch.cat(parts, 1).reshape(-1)


class Head(nn.Module):
    """The heads of each target in one bank (rank, M * layers, d_out); a route picks its rows."""

    layer: torch.Tensor

    def __init__(self, layout: Layout, bundle: Bundle, bits: int) -> None:
        super().__init__()
        self.layers, self.targets, self.rank = layout.layers, layout.targets, layout.rank
        self.register_buffer("layer", torch.arange(layout.layers))
        for target in layout.targets:
            names = [module_name(i, target) for i in range(layout.layers)]
            # (M, layers, d_out, rank): an output row of B shares a scale.
            values, scales = _stored(torch.stack([bundle.heads[n] for n in names], 1), bits)
            bank = values.flatten(0, 1).permute(2, 0, 1)
            self.register_buffer(f"values_{target}", bank.contiguous())
            self.register_buffer(f"scales_{target}", scales.flatten(0, 1)[..., 0].contiguous())

    def forward(self, route: torch.Tensor) -> torch.Tensor:
        """int64 (modules,) in packing order -> float32 (b_size,)."""
        heads = route.view(self.layers, len(self.targets))
        parts = []
        for index, target in enumerate(self.targets):
            rows = heads[:, index] * self.layers + self.layer
            values = torch.index_select(self.get_buffer(f"values_{target}"), 1, rows)
            scales = torch.index_select(self.get_buffer(f"scales_{target}"), 0, rows)
            # Flat, so that the kernel sees a matrix times a row.
            matrix = values.to(torch.float32).view(self.rank, -1) * scales.to(torch.float32).view(
                1, -1
            )
            parts.append(matrix.view(self.rank, self.layers, -1))
        return torch.cat(parts, -1).reshape(-1)


def _stored(matrix: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of float32 (..., rows, columns) at ``bits`` a value."""
    if bits == 8:
        return quantize_rows(matrix)
    scales = matrix.new_ones((*matrix.shape[:-1], 1), dtype=torch.float16)
    return matrix.to(torch.float16 if bits == 16 else torch.float32), scales


def lower_adapters(
    bundle: Bundle, layout: Layout, bits: int, target: Path
) -> dict[str, torch.Tensor]:
    """Write ``adapters.pte``.

    Returns:
        what the program gives for each task, by name: the packed vector ``b`` after quantization,
        and ``""`` -> ``a``.
    """
    from executorch.exir import EdgeCompileConfig, to_edge

    routes = {task.name: route_tensor(bundle, layout, task.route) for task in bundle.info.tasks}
    shared = Shared(layout, bundle, bits).eval()
    head = Head(layout, bundle, bits).eval()
    example = next(iter(routes.values()))
    metadata: dict[str, Any] = {
        "get_adapter_layout": layout.digest,
        "get_adapter_rank": layout.rank,
        "get_heads": bundle.info.heads,
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
