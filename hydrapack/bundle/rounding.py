"""Merged modules as they are stored: heads fitted to the rounded A, and their bytes."""

from __future__ import annotations

from dataclasses import replace

import torch

from hydrapack.bundle.merged import MergedModule
from hydrapack.program.quantized import SCALE_BYTES, Rounding, core_bits, part_bytes, rounded
from hydrapack.support.threads import one_thread


@one_thread()
def refit_heads(merged: MergedModule, rounding: Rounding) -> MergedModule:
    """The module with heads in closed form for A (and U) as they will be stored; none rounded.

    The least-squares heads for a rounded A make up for part of its rounding: B A pinv(A').
    """
    A = rounded(merged.A, rounding.bits_a, rounding.group_size).double()
    heads = merged.heads.double() @ _solution(A.T, merged.A.double().T).T
    if merged.U is not None:
        U = rounded(merged.U.T, rounding.bits_b, rounding.group_size).T.double()
        heads = _solution(U, merged.U.double()) @ heads
    return replace(merged, heads=heads.float())


def _solution(basis: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least-squares X of basis @ X = target, by the small Gram matrix of the basis' columns."""
    gram = torch.linalg.pinv(basis.T @ basis, hermitian=True)
    return gram @ (basis.T @ target)


@one_thread()
def round_module(merged: MergedModule, rounding: Rounding, refit: bool = True) -> MergedModule:
    """The module as the device will see it.

    Args:
        refit: fit the heads to the rounded A before they are rounded themselves.
    """
    fitted = refit_heads(merged, rounding) if refit else merged
    group, bits = rounding.group_size, rounding.bits_b
    A = rounded(merged.A, rounding.bits_a, group)
    if merged.U is None:
        return replace(fitted, A=A, heads=rounded(fitted.heads, bits, group))
    # C is stored as A's side needs it, transposed.
    heads = rounded(fitted.heads.mT, core_bits(bits), group).mT
    return replace(fitted, A=A, heads=heads, U=rounded(merged.U.T, bits, group).T)


def module_bytes(merged: MergedModule, rounding: Rounding) -> int:
    """Bytes of one merged module as packed, the program around it left out."""
    shared, head = part_bytes(merged.shape, merged.rank, merged.output_rank, rounding)
    return shared + len(merged.heads) * head + SCALE_BYTES * len(merged.of)
