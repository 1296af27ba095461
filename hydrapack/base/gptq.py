"""GPTQ (https://arxiv.org/abs/2210.17323): round a matrix column by column, each column's error
passed on to those not rounded yet, so that the outputs on given inputs change least.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean (the paper's 1 %)."""


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    group_size: int,
    choose_scales: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix in int4, fitted to the inputs whose products the Hessian sums.

    Args:
        weight: (d_out, d_in).
        hessian: (d_in, d_in), the sum of x x^T over inputs x.
        group_size: columns that share a scale; divides d_in.
        choose_scales: scales (d_out,) for the columns (d_out, group_size) of a group.

    Returns:
        int8 values (d_out, d_in) from -8 to 7; scales float32 (d_out, d_in / group_size).
    """
    left = weight.double().clone()
    damped = hessian.double() + torch.eye(len(hessian), dtype=torch.float64) * (
        DAMPING * float(hessian.diagonal().double().mean()) + 1e-12
    )
    # The upper Cholesky factor of the inverse gives all updates of the columns in turn.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    values = torch.zeros(weight.shape, dtype=torch.int8)
    scales = []
    for start in range(0, weight.shape[1], group_size):
        stop = start + group_size
        own = choose_scales(left[:, start:stop].float())
        scales.append(own)
        wide, errors = own.double(), []
        for column in range(start, stop):
            rounded = (left[:, column] / wide).round().clamp(-8, 7)
            values[:, column] = rounded.to(torch.int8)
            error = (left[:, column] - rounded * wide) / factor[column, column]
            left[:, column:stop] -= error[:, None] * factor[column, column:stop]
            errors.append(error)
        left[:, stop:] -= torch.stack(errors, 1) @ factor[start:stop, stop:]
    return values, torch.stack(scales, 1)
