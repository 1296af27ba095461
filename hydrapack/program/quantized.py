"""Matrices as they are stored: symmetric integers with half-precision scales, or plain floats.

8 bits: one scale a row. 4 bits: one scale for each group of columns of a row. 16 and 32 bits are
half and single precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import AfterValidator, Field

from hydrapack.support.errors import Invalid

BITS = (4, 8, 16, 32)


def _known(bits: int) -> int:
    if bits not in BITS:
        raise ValueError(f"must be one of {', '.join(map(str, BITS))}")
    return bits


BitWidth = Annotated[int, Field(json_schema_extra={"enum": list(BITS)}), AfterValidator(_known)]
DEFAULT_BITS = 8
"""A value, where neither a plan nor the caller says."""
GROUP_SIZE = 32
"""Columns that share a scale at 4 bits."""
SCALE_BYTES = 12
"""Of a task's factor where tasks of unlike size share heads: a float32 and its head's int64."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True)
class Precision:
    """How A and B are stored: bits a value of each, and the group size of 4 bits."""

    bits_a: int = 8
    bits_b: int = 8
    group_size: int = GROUP_SIZE


def check_bits(name: str, bits: int) -> int:
    """``bits``, if it is one of the widths.

    Raises:
        HydrapackError: it is not; the parameter ``name`` is named.
    """
    if bits not in BITS:
        raise Invalid(f"`{name}` {bits}: choose one of {', '.join(map(str, BITS))}")
    return bits


def core_bits(bits: int) -> int:
    """Bits a value of what is small beside matrices of ``bits``: C beside U, d and b of VeRA."""
    return max(bits, 8)


def group_columns(columns: int, bits: int, group_size: int) -> int:
    """Columns that share a scale: ``group_size`` at 4 bits, else the whole row."""
    return min(group_size, columns) if bits == 4 else columns


@dataclass(frozen=True)
class Quantized:
    """A matrix (..., rows, columns) as it is stored."""

    values: torch.Tensor
    """int8 from -127 to 127 at 8 bits, from -7 to 7 at 4; float16 or float32 else."""
    scales: torch.Tensor | None
    """float16 (..., rows, groups) at 4 and 8 bits; a last group may be short."""
    bits: int
    group: int
    """Columns that share a scale; all of them at 8 bits and above."""

    @property
    def bytes(self) -> int:
        """As packed: values and scales."""
        rows, columns = math.prod(self.values.shape[:-1]), self.values.shape[-1]
        return stored_bytes(rows, columns, self.bits, self.group)

    def dequantize(self) -> torch.Tensor:
        """float32 (..., rows, columns)."""
        if self.scales is None:
            return self.values.float()
        wide = self.scales.float().repeat_interleave(self.group, -1)
        return self.values.float() * wide[..., : self.values.shape[-1]]


def quantize(matrix: torch.Tensor, bits: int, group_size: int = GROUP_SIZE) -> Quantized:
    """A float32 matrix (..., rows, columns) at 4, 8, 16 or 32 bits a value.

    At 4 bits each group's scale is the one of least squared error among a few that clip its
    largest values.
    """
    columns = matrix.shape[-1]
    width = group_columns(columns, bits, group_size)
    group = group_size if bits == 4 else columns
    if bits >= 16:
        return Quantized(matrix.half() if bits == 16 else matrix.float(), None, bits, group)
    padded = torch.nn.functional.pad(matrix.float(), (0, -columns % width))
    groups = padded.reshape(*padded.shape[:-1], -1, width)
    top = 7 if bits == 4 else 127
    exact = groups.abs().amax(-1, keepdim=True) / top
    shrinks = _SHRINKS if bits == 4 else (1.0,)
    tried = (_half_above(exact * shrink).float() for shrink in shrinks)
    values, scales = nearest_integers(groups, tried, -top, top)
    integers = values.to(torch.int8).flatten(-2)[..., :columns]
    return Quantized(integers, scales[..., 0].half(), bits, group)


def nearest_integers(
    groups: torch.Tensor, tried: Iterable[torch.Tensor], low: int, high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group's whole numbers (..., group), and its scale (..., 1), of least squared error.

    Args:
        groups: (..., group), float32.
        tried: scales (..., 1) to choose from, float32; where two are equally good the first counts.
        low, high: the smallest and largest number.
    """
    found: tuple[torch.Tensor, ...] = ()
    for scales in tried:
        values = (groups / scales.masked_fill(scales == 0, 1.0)).round().clamp(low, high)
        error = (values * scales - groups).square().sum(-1, keepdim=True)
        now = error, values, scales
        if not found:
            found = now
        better = error < found[0]
        found = tuple(torch.where(better, new, old) for new, old in zip(now, found, strict=True))
    return found[1], found[2]


def _half_above(scales: torch.Tensor) -> torch.Tensor:
    """float16 at or above ``scales``: one rounded down would clip the row's largest value."""
    half = scales.clamp(max=65504.0).to(torch.float16)
    bumped = torch.nextafter(half, torch.full_like(half, torch.inf)).clamp(max=65504.0)
    return torch.where(half.float() < scales, bumped, half)


def noise_by_columns(matrix: torch.Tensor, widths: Sequence[int]) -> dict[int, torch.Tensor]:
    """Estimates of the squared rounding error of the first 1, 2, ... columns, by bits a value.

    Args:
        matrix: (..., rows, columns).
        widths: bits a value.

    Returns:
        (..., columns) for each width: a value's error is uniform over its step, so each adds
        step^2 / 12.
    """
    columns, found = matrix.shape[-1], {}
    energy: dict[int, torch.Tensor] = {}
    for bits in widths:
        if bits >= 16:
            # A half of size x has steps of 2^-11 x to 2^-10 x.
            step = 0.72 * 2.0**-10 if bits == 16 else 2.0**-23
            found[bits] = step**2 / 12 * matrix.square().sum(-2).cumsum(-1)
            continue
        group = group_columns(columns, bits, GROUP_SIZE)
        if group not in energy:
            energy[group] = _largest_so_far(matrix, group)
        found[bits] = energy[group] / (7 if bits == 4 else 127) ** 2 / 12
    return found


def _largest_so_far(matrix: torch.Tensor, group: int) -> torch.Tensor:
    """For 1, 2, ... columns, sums (..., columns) of the squared largest value of their groups."""
    whole, before = [], matrix.new_zeros(matrix.shape[:-2])
    for part in torch.split(matrix.abs(), group, -1):
        energy = part.cummax(-1).values.square().sum(-2)
        counts = torch.arange(1, part.shape[-1] + 1, device=matrix.device)
        whole.append(before[..., None] + energy * counts)
        before = whole[-1][..., -1]
    return torch.cat(whole, -1)


def stored_bytes(rows: int, columns: int, bits: int, group_size: int = GROUP_SIZE) -> int:
    """Bytes of a (rows, columns) matrix with its scales, as packed."""
    if bits >= 16:
        return rows * columns * bits // 8
    groups = -(-columns // group_columns(columns, bits, group_size)) if columns else 0
    return rows * ((columns * bits + 7) // 8 + 2 * groups)


def part_bytes(
    shape: tuple[int, int], rank: int, output_rank: int, rounding: Precision
) -> tuple[int, int]:
    """Bytes as packed of what all tasks share of a module, A (and U), and of one head, B (or C).

    Args:
        shape: (d_out, d_in).
        output_rank: Q of U; 0 for whole heads.
    """
    (d_out, d_in), bits, group = shape, rounding.bits_b, rounding.group_size
    shared = stored_bytes(rank, d_in, rounding.bits_a, group)
    if not output_rank:
        return shared, stored_bytes(d_out, rank, bits, group)
    shared += stored_bytes(output_rank, d_out, bits, group)
    return shared, stored_bytes(rank, output_rank, core_bits(bits), group)


def vera_bytes(rank: int, d_out: int, rounding: Precision) -> tuple[int, int]:
    """Bytes as packed of a VeRA module's d, which all tasks share, and of one b."""
    d = stored_bytes(1, rank, core_bits(rounding.bits_a))
    return d, stored_bytes(1, d_out, core_bits(rounding.bits_b))


def frozen_bytes(rank: int, widest: tuple[int, int], rounding: Precision) -> int:
    """Bytes as packed of VeRA's common A and B, for a widest d_out and d_in: a scale a row."""
    d_out, d_in = widest
    A = stored_bytes(rank, d_in, rounding.bits_a, d_in)
    return A + stored_bytes(d_out, rank, rounding.bits_b, rank)
