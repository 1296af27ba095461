"""Parts of ``adapters.pte``: stored integers, and the graph that selects and dequantizes them.

Kernels are chosen for speed on a stock runtime: rows are copied whole, integers are widened by
the product with their scales, nibbles are told apart while they are still bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from hydrapack.bundle.stored import StoredModule
from hydrapack.packing.head_digests import Bank
from hydrapack.program.quantized import Quantized, group_columns


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """int8 from -8 to 7, (even rows, ...), two rows to a byte: row 2i low, row 2i + 1 high."""
    return (values[1::2] << 4) | (values[0::2] & 15)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of ``pack_nibbles`` for int8 (rows, columns)."""
    low = torch.bitwise_right_shift(torch.bitwise_left_shift(packed, 4), 4)
    high = torch.bitwise_right_shift(packed, 4)
    rows, columns = packed.shape
    both = torch.cat([low.view(rows, 1, columns), high.view(rows, 1, columns)], 1)
    return both.view(2 * rows, columns)


class MatrixBank(nn.Module):
    """Matrices of one width below each other, all dequantized: float32 (rows, columns)."""

    def __init__(self, matrices: Sequence[Quantized]) -> None:
        """``matrices``: each (its rows, columns), alike in bits and group."""
        super().__init__()
        values = torch.cat([matrix.values for matrix in matrices])
        self.bits, (self.rows, self.columns) = matrices[0].bits, values.shape
        self.group = group_columns(self.columns, self.bits, matrices[0].group)
        values = nn.functional.pad(values, (0, -self.columns % self.group))
        if self.bits == 4:
            values = pack_nibbles(nn.functional.pad(values, (0, 0, 0, self.rows % 2)))
        self.register_buffer("values", values.contiguous())
        scales = [matrix.scales for matrix in matrices if matrix.scales is not None]
        if scales:
            self.register_buffer("scales", torch.cat(scales).contiguous())

    def forward(self) -> torch.Tensor:
        """float32 (rows, columns)."""
        values = self.get_buffer("values")
        if self.bits == 32:
            return values
        if self.bits == 16:
            return values.to(torch.float32)
        if self.bits == 4:
            values = unpack_nibbles(values)[: self.rows]
        scales = self.get_buffer("scales").to(torch.float32)
        wide = values.view(self.rows, -1, self.group) * scales.view(self.rows, -1, 1)
        return wide.view(self.rows, -1)[:, : self.columns]


class RowBank(nn.Module):
    """Matrices (rank, d_out) of several modules, a choice of them for each, in one bank of rows.

    A row holds ``block`` columns, the greatest common divisor of all d_out, of one rank of one
    matrix. A selection is one list of row numbers; ranks that a matrix lacks name a row of zeros.
    """

    rank: torch.Tensor

    def __init__(
        self,
        matrices: Sequence[Quantized],
        rank: int,
        block: int,
        pad_to: int = 0,
        scaled: Sequence[Sequence[tuple[int, float]]] = (),
    ) -> None:
        """Args:
        matrices: a module each, (choices, d_out, its rank), alike in bits and group.
        scaled: a module each, where there are any: a choice is one of these pairs, a matrix and its
            factor.
        rank: rows of the result, at least the largest rank.
        pad_to: columns of the result for each module, zeros past its d_out; d_out by default.
        """
        super().__init__()
        self.bits, self.ranks, self.block = (bits := matrices[0].bits), rank, block
        self.pairs = 2 if bits == 4 else 1
        rows, scales = [], []
        first, stride, step, height = [], [], [], []
        scale_first, scale_stride, groups = [], [], []
        owner: list[int] = []
        within: list[int] = []
        at = scale_at = 0
        self.group = group_columns(rank, bits, matrices[0].group)
        self.groups = 1
        for index, matrix in enumerate(matrices):
            d_out, own = matrix.values.shape[1:]
            blocks = d_out // block
            if matrix.scales is not None:
                # (choices, groups, blocks, block)
                scales.append(matrix.scales.mT.reshape(-1, block))
                scale_first.append(scale_at)
                scale_stride.append(matrix.scales.shape[-1] * blocks)
                groups.append(matrix.scales.shape[-1])
                scale_at += len(scales[-1])
            turned = matrix.values.mT
            if bits == 4:
                turned = nn.functional.pad(turned, (0, 0, 0, own % 2)).transpose(0, 1)
                turned = pack_nibbles(turned.contiguous()).transpose(0, 1)
            rows.append(turned.reshape(-1, block))
            first.append(at)
            height.append(turned.shape[1])
            stride.append(height[-1] * blocks)
            step.append(blocks)
            shown = pad_to // block or blocks
            owner += [index] * shown
            within += range(shown)
            at += len(rows[-1])
        self.height = -(-rank // self.pairs)
        self.ragged = any(h != self.height for h in height)
        self.padded = pad_to > 0 and any(pad_to != m.values.shape[1] for m in matrices)
        if self.ragged or self.padded:
            rows.append(torch.zeros(1, block, dtype=rows[0].dtype))
        self.zero_row = at
        self.register_buffer("rows", torch.cat(rows).contiguous())
        # Bytes that one choice of each module has to itself, by buffer.
        self.lengths = {"rows": [n * block * rows[0].element_size() for n in stride]}
        if scales:
            half = scales[0].element_size()
            self.lengths["scales"] = [n * block * half for n in scale_stride]
        for name, numbers in (
            ("first", first),
            ("stride", stride),
            ("step", step),
            ("heights", height),
            ("scale_first", scale_first),
            ("scale_stride", scale_stride),
        ):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64))
        # int16 would do but for models of more than 32767 blocks.
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.int32))
        self.register_buffer("within", torch.tensor(within, dtype=torch.int32))
        self.register_buffer("rank", torch.arange(self.height).view(-1, 1))
        self.scaled = bool(scaled)
        if scaled:
            pairs = [pair for own in scaled for pair in own]
            starts = torch.tensor([0, *(len(own) for own in scaled)]).cumsum(0)[:-1]
            self.register_buffer("pair_first", starts)
            self.register_buffer("matrix", torch.tensor([m for m, _ in pairs], dtype=torch.int64))
            factors = torch.tensor([f for _, f in pairs], dtype=torch.float32)
            self.register_buffer("factor", factors)
        if bits < 16:
            self.register_buffer("scales", torch.cat(scales).contiguous())
            counts = torch.tensor(groups)
            self.groups = -(-rank // self.group)
            for i in range(self.groups):
                offset = torch.minimum(torch.tensor(i), counts - 1) * torch.tensor(step)
                self.register_buffer(f"offset_{i}", offset)

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int64: the module and the place within it of each block of columns."""
        return (
            self.get_buffer("owner").to(torch.int64),
            self.get_buffer("within").to(torch.int64),
        )

    def banks(self, members: Sequence[int]) -> list[Bank]:
        """Where choices lie; none where several may name one matrix.

        Args:
            members: the numbers of the modules.
        """
        lengths = {} if self.scaled else self.lengths
        return [
            Bank(self.get_buffer(name), dict(zip(members, own, strict=True)))
            for name, own in lengths.items()
        ]

    def forward(self, choice: torch.Tensor) -> torch.Tensor:
        """int64 (modules,), a choice for each -> float32 (rank, sum of d_out)."""
        owner, within = self._columns()
        factor = None
        if self.scaled:
            pair = self.get_buffer("pair_first") + choice
            choice = torch.index_select(self.get_buffer("matrix"), 0, pair)
            factor = torch.index_select(self.get_buffer("factor"), 0, pair)
            factor = torch.index_select(factor, 0, owner).view(-1, 1)
        start = self.get_buffer("first") + choice * self.get_buffer("stride")
        start = torch.index_select(start, 0, owner) + within
        step = torch.index_select(self.get_buffer("step"), 0, owner)
        index = start.view(1, -1) + self.rank * step.view(1, -1)
        if self.ragged:
            heights = torch.index_select(self.get_buffer("heights"), 0, owner).view(1, -1)
            index = torch.where(self.rank < heights, index, self._zeros(index))
        if self.padded:
            index = torch.where((within < step).view(1, -1), index, self._zeros(index))
        values = torch.index_select(self.get_buffer("rows"), 0, index.view(-1))
        values = self._widened(values.view(self.height, -1))
        if self.bits >= 16:
            if factor is None:
                return values
            blocks = values.view(self.height, -1, self.block) * factor
            return blocks.view(self.height, -1)
        values = values[: self.ranks]
        count = self.groups
        parts = [
            (values[i * self.group : (i + 1) * self.group] if count > 1 else values)
            * self.scale(choice, i, factor)
            for i in range(count)
        ]
        return torch.cat(parts) if count > 1 else parts[0]

    def scale(
        self, choice: torch.Tensor, group: int, factor: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The scales of a group of ranks times a factor for each block, (1, sum of d_out)."""
        owner, within = self._columns()
        at = self.get_buffer("scale_first") + choice * self.get_buffer("scale_stride")
        at = torch.index_select(at + self.get_buffer(f"offset_{group}"), 0, owner)
        if self.padded:
            # Any scale will do for zeros.
            step = torch.index_select(self.get_buffer("step"), 0, owner)
            within = torch.where(within < step, within, torch.zeros_like(within))
        scale = torch.index_select(self.get_buffer("scales"), 0, at + within).to(torch.float32)
        if factor is not None:
            scale = scale * factor
        return scale.view(1, -1)

    def _zeros(self, index: torch.Tensor) -> torch.Tensor:
        return torch.full_like(index, self.zero_row)

    def _widened(self, values: torch.Tensor) -> torch.Tensor:
        """Two ranks out of each row at 4 bits, float32 at 16 and 32."""
        if self.bits == 4:
            return unpack_nibbles(values)
        return values.to(torch.float32) if self.bits == 16 else values


class TwoSidedBank(nn.Module):
    """Heads U C_k of modules of one d_out: U as A is stored, then a batched product with C."""

    def __init__(self, modules: Sequence[StoredModule], rank: int) -> None:
        super().__init__()
        bases = [module.U for module in modules if module.U is not None]
        self.width = max(len(U.values) for U in bases)
        self.count, self.ranks = len(modules), rank
        self.U = MatrixBank(bases)
        cores = [module.heads for module in modules]
        pieces = math.gcd(rank, *(C.values.shape[1] for C in cores))
        self.core = RowBank(cores, self.width, pieces, pad_to=rank)
        # Components that a module lacks name the row of zeros behind the last.
        rows, at = [], 0
        for U in bases:
            own = len(U.values)
            rows += [*range(at, at + own), *[self.U.rows] * (self.width - own)]
            at += own
        self.ragged = len(rows) > at
        if self.ragged:
            self.register_buffer("components", torch.tensor(rows, dtype=torch.int32))
        # (modules, rank) rows to (rank, modules) rows.
        order = torch.arange(self.count * rank).view(self.count, rank).T.reshape(-1)
        self.register_buffer("order", order.to(torch.int32))

    def banks(self, members: Sequence[int]) -> list[Bank]:
        """As ``RowBank``'s, of the C's."""
        return self.core.banks(members)

    def forward(self, choice: torch.Tensor) -> torch.Tensor:
        """int64 (modules,), a head for each -> float32 (rank, sum of d_out)."""
        core = self.core(choice).view(self.width, self.count, -1).permute(1, 2, 0).contiguous()
        U = self.U()
        if self.ragged:
            rows = self.get_buffer("components").to(torch.int64)
            U = torch.index_select(torch.cat([U, torch.zeros(1, U.shape[1])]), 0, rows)
        # (modules, rank, width) x (modules, width, d_out)
        heads = torch.bmm(core, U.view(self.count, self.width, -1))
        order = self.get_buffer("order").to(torch.int64)
        return torch.index_select(heads.view(self.count * self.ranks, -1), 0, order).view(
            self.ranks, -1
        )


def _scaled(stored: Sequence[StoredModule]) -> list[list[tuple[int, float]]]:
    """The pairs (head, factor) that routes may name; none where no module has factors."""
    modules = [module.merged for module in stored]
    if all(module.scales is None for module in modules):
        return []
    return [
        [(head, 1.0) for head in range(len(module.heads))]
        if module.scales is None
        else list(zip(module.of, module.scales.tolist(), strict=True))
        for module in modules
    ]


class Head(nn.Module):
    """``head``: the packed vector ``b`` of a route."""

    def __init__(self, modules: Sequence[StoredModule], rank: int) -> None:
        """Args:
        modules: in packing order, heads fitted to the stored A.
        rank: of the layout.
        """
        super().__init__()
        shapes = [module.merged.shape for module in modules]
        block = math.gcd(*(d_out for d_out, _ in shapes))
        kinds: dict[tuple[int, int], list[int]] = {}
        for index, (module, (d_out, _)) in enumerate(zip(modules, shapes, strict=True)):
            basis = 0 if module.U is None else d_out
            kinds.setdefault((basis, module.bits), []).append(index)
        self.block, self.parts, order = block, nn.ModuleList(), []
        self.banks: list[Bank] = []
        for number, ((basis, _), members) in enumerate(sorted(kinds.items())):
            chosen = [modules[i] for i in members]
            part = (
                TwoSidedBank(chosen, rank)
                if basis
                else RowBank([m.heads for m in chosen], rank, block, scaled=_scaled(chosen))
            )
            self.parts.append(part)
            self.banks += part.banks(members)
            self.register_buffer(f"members_{number}", torch.tensor(members))
            order += [(i, j) for i in members for j in range(shapes[i][0] // block)]
        self.direct = len(kinds) == 1
        if not self.direct:
            places = sorted(range(len(order)), key=order.__getitem__)
            self.register_buffer("places", torch.tensor(places, dtype=torch.int32))

    def forward(self, route: torch.Tensor) -> torch.Tensor:
        """int64 (modules,) in packing order -> float32 (b_size,)."""
        if self.direct:
            return self.parts[0](route).reshape(-1)
        parts = [
            part(torch.index_select(route, 0, self.get_buffer(f"members_{number}")))
            for number, part in enumerate(self.parts)
        ]
        b = torch.cat(parts, 1)
        b = b.view(b.shape[0], -1, self.block)
        return torch.index_select(b, 1, self.get_buffer("places").to(torch.int64)).reshape(-1)
