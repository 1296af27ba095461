"""Symmetric 8-bit rows with half-precision scales, and half precision."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Bits = Literal[8, 16, 32]
BITS: tuple[int, ...] = get_args(Bits)


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and float16 scales of float32 (..., rows, columns), one scale a row.

    Returns:
        values int8 (..., rows, columns), scales float16 (..., rows, 1); ``values * scales`` is
        within half a scale of ``matrix``.
    """
    exact = matrix.abs().amax(-1, keepdim=True) / 127
    scales = exact.to(torch.float16)
    # A scale rounded down would clip the row's largest value.
    low = scales.float() < exact
    bumped = torch.nextafter(scales, torch.full_like(scales, torch.inf))
    scales = torch.where(low, bumped, scales)
    divisor = scales.float().masked_fill(scales == 0, 1.0)
    values = (matrix / divisor).round().clamp(-127, 127).to(torch.int8)
    return values, scales
