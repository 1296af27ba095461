"""Merged modules as a package stores them: every matrix quantized once, heads fitted to that.

A is stored as it is, U transposed: a row is a component, and few rows have few scales. C is stored
as A's side needs it, transposed too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from hydrapack.bundle.merged import MergedModule
from hydrapack.program.quantized import SCALE_BYTES, Precision, Quantized, core_bits, quantize
from hydrapack.support.threads import one_thread


@dataclass(frozen=True)
class StoredModule:
    """A merged module with its matrices quantized."""

    merged: MergedModule
    """With heads in closed form for A (and U) as they are stored; none rounded."""
    A: Quantized
    """(rank, d_in)."""
    heads: Quantized
    """(M, d_out, rank); with U the transposed C's (M, rank, Q)."""
    U: Quantized | None = None
    """Transposed, (Q, d_out)."""

    @property
    def bits(self) -> int:
        """A value of B, or of U where there is one."""
        return self.heads.bits if self.U is None else self.U.bits

    @property
    def bytes(self) -> int:
        """As packed, the program around it left out."""
        basis = 0 if self.U is None else self.U.bytes
        return self.A.bytes + basis + self.heads.bytes + SCALE_BYTES * len(self.merged.of)

    def dequantize(self) -> MergedModule:
        """The module as the device will see it."""
        A, heads = self.A.dequantize(), self.heads.dequantize()
        if self.U is None:
            return replace(self.merged, A=A, heads=heads)
        return replace(self.merged, A=A, heads=heads.mT, U=self.U.dequantize().T)


@one_thread()
def store(merged: MergedModule, rounding: Precision, refit: bool = True) -> StoredModule:
    """The module at ``rounding``'s bits.

    Args:
        refit: replace the heads by the least-squares ones for A and U as they are stored, which
            make up for part of their rounding, B A pinv(A'), before they are rounded themselves.
    """
    group, bits = rounding.group_size, rounding.bits_b
    A = quantize(merged.A, rounding.bits_a, group)
    U = None if merged.U is None else quantize(merged.U.T, bits, group)
    fitted = _refitted(merged, A, U) if refit else merged
    if U is None:
        return StoredModule(fitted, A, quantize(fitted.heads, bits, group))
    return StoredModule(fitted, A, quantize(fitted.heads.mT, core_bits(bits), group), U)


def _refitted(merged: MergedModule, A: Quantized, U: Quantized | None) -> MergedModule:
    """The module with least-squares heads for the stored A and U."""
    basis = A.dequantize().double()
    heads = merged.heads.double() @ _solution(basis.T, merged.A.double().T).T
    if U is not None and merged.U is not None:
        heads = _solution(U.dequantize().T.double(), merged.U.double()) @ heads
    return replace(merged, heads=heads.float())


def _solution(basis: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least-squares X of basis @ X = target, by the small Gram matrix of the basis' columns."""
    gram = torch.linalg.pinv(basis.T @ basis, hermitian=True)
    return gram @ (basis.T @ target)
