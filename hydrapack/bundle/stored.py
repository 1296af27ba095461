"""Merged modules as a package stores them: every matrix quantized once, heads fitted to that.

A is stored as it is, U transposed: a row is a component, and few rows have few scales. C is stored
as A's side needs it, transposed too. VeRA's frozen A and B are stored once for all modules, with a
scale a row at 4 bits too: their values are drawn alike. Its vectors d and b have a scale each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from hydrapack.bundle.merged import Merged, MergedModule, MergedVera, frozen
from hydrapack.program.quantized import SCALE_BYTES, Precision, Quantized, core_bits, quantize
from hydrapack.support.errors import Invalid
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


@dataclass(frozen=True)
class StoredVera:
    """A merged VeRA module with its vectors quantized, and the A and B that all modules share."""

    merged: MergedVera
    """With heads in closed form for A, B and d as they are stored; none rounded."""
    A: Quantized
    """(rank, widest d_in)."""
    B: Quantized
    """(widest d_out, rank)."""
    d: Quantized
    """(1, rank)."""
    heads: Quantized
    """(M, d_out), the vectors b."""

    @property
    def bits(self) -> int:
        """A value of B."""
        return self.B.bits

    @property
    def bytes(self) -> int:
        """As packed, the program around it and the common A and B left out."""
        return self.d.bytes + self.heads.bytes + SCALE_BYTES * len(self.merged.of)

    def dequantize(self) -> MergedVera:
        """The module as the device will see it."""
        d_out, d_in = self.merged.shape
        return replace(
            self.merged,
            d=self.d.dequantize()[0],
            heads=self.heads.dequantize(),
            A=self.A.dequantize()[:, :d_in],
            B=self.B.dequantize()[:d_out],
        )


Stored = StoredModule | StoredVera


def store_modules(
    modules: Mapping[str, Merged], roundings: Mapping[str, Precision]
) -> dict[str, Stored]:
    """All modules of a bundle at their ``roundings``, by name.

    Raises:
        Invalid: VeRA's, at roundings that are not all the same.
    """
    common = frozen(modules.values())
    if not common:
        return {
            name: store(module, roundings[name])
            for name, module in modules.items()
            if isinstance(module, MergedModule)
        }
    rounding, *more = set(roundings.values())
    if more:
        raise Invalid("VeRA's modules have A and B in common: give one `bits` for all of them")
    A = quantize(common["A"], rounding.bits_a, common["A"].shape[1])
    B = quantize(common["B"], rounding.bits_b, common["B"].shape[1])
    return {
        name: _store_vera(module, A, B, rounding)
        for name, module in modules.items()
        if isinstance(module, MergedVera)
    }


@one_thread()
def _store_vera(merged: MergedVera, A: Quantized, B: Quantized, rounding: Precision) -> StoredVera:
    d = quantize(merged.d[None], core_bits(rounding.bits_a))
    stored = StoredVera(merged, A, B, d, quantize(merged.heads, core_bits(rounding.bits_b)))
    # The best factor of each row of diag(b) B is the same for every b.
    gain = stored.dequantize().nearest(merged.shared().double(), merged.B.double())
    heads = (merged.heads.double() * gain).float()
    fitted = quantize(heads, core_bits(rounding.bits_b))
    return replace(stored, merged=replace(merged, heads=heads), heads=fitted)


def tensor_bytes(modules: Collection[Stored]) -> int:
    """As packed, the program around it left out; VeRA's common A and B once."""
    common = next((m.A.bytes + m.B.bytes for m in modules if isinstance(m, StoredVera)), 0)
    return sum(module.bytes for module in modules) + common


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
