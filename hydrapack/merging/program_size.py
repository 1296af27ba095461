"""How large ``adapters.pte`` gets for a plan, before it is made: never less than the packer writes.

The stored integers, scales and index tables are counted to the byte, as ``packing/banks.py`` lays
them out; the graph around them is bounded from above by its parts, as measured on executorch 1.5.1
(``tests/test_budget.py`` packs plans of every kind and holds this to it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from hydrapack.program.layout import GROUPS
from hydrapack.program.quantized import (
    GROUP_SIZE,
    SCALE_BYTES,
    core_bits,
    group_columns,
    stored_bytes,
)

ALIGNMENT = 16
"""Bytes; every constant of the file starts at a multiple."""
FRAME = 5_000
"""Bytes of a program without any bank: header, two methods, constants."""
WHOLE_BANK, WHOLE_GROUP = 7_000, 3_500
"""Bytes of the operators of a bank of whole heads, and of a group of ranks more in it."""
SCALED_BANK = 3_000
"""Bytes of the operators that give each task its factor."""
BASIS_BANK = 10_000
"""Bytes of the operators of a bank of heads on a common output basis."""
SHARED_BANK = 3_000
"""Bytes of the operators of one bank of A's."""
INPUTS = {target: group[0] for group in GROUPS for target in group}
"""The linears that read one input have their A's in one bank."""


class Stored(Protocol):
    """How one module is stored."""

    @property
    def head_count(self) -> int:
        """M."""

    @property
    def rank(self) -> int:
        """R of A."""

    @property
    def output_rank(self) -> int:
        """Q of U; 0 for whole heads."""

    @property
    def bits(self) -> int:
        """A value of A and of B or U."""


def adapters_bytes(
    plan: Mapping[str, Stored], shapes: Mapping[str, tuple[int, int]], rank: int, tasks: int
) -> int:
    """Bytes that ``adapters.pte`` has at most.

    Args:
        plan: by module name.
        shapes: (d_out, d_in) by module name.
        rank: of the base program, at least the largest of the plan.
        tasks: N; where they share heads, each has a factor.
    """
    shared: dict[tuple[str, int], list[str]] = {}
    whole: dict[int, list[str]] = {}
    basis: dict[tuple[int, int], list[str]] = {}
    for name, choice in plan.items():
        target = name.rsplit(".", 1)[-1].removesuffix("_proj")
        shared.setdefault((INPUTS.get(target, target), choice.bits), []).append(name)
        if choice.output_rank:
            basis.setdefault((shapes[name][0], choice.bits), []).append(name)
        else:
            whole.setdefault(choice.bits, []).append(name)
    block = math.gcd(*(d_out for d_out, _ in shapes.values()))
    blocks = sum(d_out // block for d_out, _ in shapes.values())
    total = FRAME + (_aligned(4 * blocks) if len(whole) + len(basis) > 1 else 0)
    for (_, bits), names in shared.items():
        rows, d_in = sum(plan[n].rank for n in names), max(shapes[n][1] for n in names)
        # An index of rows, unless all have the same rank and width.
        total += SHARED_BANK + _matrix(rows, d_in, bits) + _aligned(4 * rank * len(names))
    for bits, names in whole.items():
        sizes = [(plan[n].head_count, shapes[n][0], plan[n].rank) for n in names]
        groups = -(-rank // group_columns(rank, bits, GROUP_SIZE))
        total += WHOLE_BANK + WHOLE_GROUP * (groups - 1)
        total += _row_bank(sizes, rank, block, bits, groups)
        if any(plan[n].head_count < tasks for n in names):
            total += SCALED_BANK + (SCALE_BYTES * tasks + 8) * len(names) + 3 * ALIGNMENT
    for (d_out, bits), names in basis.items():
        widths = [plan[n].output_rank for n in names]
        total += BASIS_BANK + _matrix(sum(widths), d_out, bits)
        cores = [(plan[n].head_count, plan[n].rank, plan[n].output_rank) for n in names]
        pieces = math.gcd(rank, *(plan[n].rank for n in names))
        total += _row_bank(cores, max(widths), pieces, core_bits(bits), 1, pad_to=rank)
        total += _aligned(4 * rank * len(names)) + _aligned(4 * max(widths) * len(names))
    return total


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _matrix(rows: int, columns: int, bits: int) -> int:
    if bits == 4:
        # Two rows to a byte, and whole groups of columns.
        rows, group = rows + rows % 2, group_columns(columns, bits, GROUP_SIZE)
        columns = -(-columns // group) * group
    return _aligned(stored_bytes(rows, columns, bits)) + 2 * ALIGNMENT


def _row_bank(
    matrices: Sequence[tuple[int, int, int]],
    rank: int,
    block: int,
    bits: int,
    groups: int,
    pad_to: int = 0,
) -> int:
    """A ``RowBank`` of (choices, d_out, rank) matrices: integers, scales and index tables."""
    values = sum(stored_bytes(choices * d_out, own, bits) for choices, d_out, own in matrices)
    values += block * max(1, bits // 8)
    shown = sum((pad_to or d_out) // block for _, d_out, _ in matrices)
    tables = 2 * _aligned(4 * shown) + (6 + groups) * _aligned(8 * len(matrices)) + 8 * (rank + 2)
    return _aligned(values) + tables + _aligned(8 * len(matrices)) + 4 * ALIGNMENT
