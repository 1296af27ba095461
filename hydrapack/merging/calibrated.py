"""Merging for the error of the linears' outputs on some text, and not of their weights.

With S the second moments E[x x^T] of a linear's inputs, the squared error of its outputs is
||(dW_k - merged_k) S^(1/2)||^2. The best A lies in the span of the tasks' A's, so a module needs S
in that span alone, a matrix of their ranks' sum: with Q an orthonormal basis of the span and
Q^T S Q = L L^T, the updates B_k (A_k Q L) are merged by any method, and the merged A is taken back
by L^-1 Q^T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.update import LoraModule, Update
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged
from hydrapack.merging.methods import METHODS
from hydrapack.merging.modules import merge_modules, module_names, module_updates
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.threads import one_thread

DAMPING = 0.05
"""Of the mean moment, added to each direction: what the text does not show counts a little."""


@dataclass(frozen=True)
class Span:
    """The span of all tasks' A's of one module, and how its inputs lie in it."""

    basis: torch.Tensor
    """Q (d_in, P), orthonormal."""
    root: torch.Tensor
    """L (P, P), lower triangular."""

    def apply(self, update: Update) -> LoraModule:
        """The update with its A in the span, (rank, P)."""
        A, B = update.factors()
        return LoraModule(A @ self.basis @ self.root, B)

    def restore(self, merged: Merged) -> Merged:
        """The merged module with its A back in the linear's inputs."""
        A = torch.linalg.solve_triangular(self.root, merged.A.double(), upper=False, left=False)
        return replace(merged, A=(A @ self.basis.T).float())


@one_thread()
def spans(adapters: Sequence[Adapter], method: str = "spectral") -> dict[str, torch.Tensor]:
    """By module name, an orthonormal basis Q (d_in, P) of all tasks' A's, float64.

    Args:
        method: the one to merge by; refused here, before anyone reads a text for it.

    Raises:
        HydrapackError: another method than spectral or two-sided, or VeRA adapters.
    """
    takes = [one.name for one in METHODS if one.calibrates]
    if method not in takes:
        raise Invalid(f"`calibrate`: works with `method` {' or '.join(takes)}, not {method}")
    if adapters[0].kind != "LORA":
        raise Invalid("`calibrate`: takes LoRA adapters; VeRA's A is frozen")
    return {
        name: torch.linalg.qr(
            torch.cat([u.factors()[0] for u in module_updates(adapters, name)]).T
        ).Q
        for name in module_names(adapters)
    }


@one_thread()
def merge_calibrated(
    adapters: Sequence[Adapter],
    bases: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    method: str = "spectral",
    heads: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress = quietly,
    **options: Any,
) -> Bundle:
    """``merge_adapters`` of least error of the outputs; the errors it notes are of the weights.

    Args:
        bases: by module name, as of ``spans`` for ``method``.
        moments: by module name, Q^T E[x x^T] Q (P, P) of the linear's inputs x.
        options: of ``merge_adapters``.

    Raises:
        HydrapackError: as ``merge_adapters``.
    """
    found = {name: Span(bases[name], _root(moments[name])) for name in bases}
    inside = [
        replace(
            adapter,
            modules={name: found[name].apply(module) for name, module in adapter.modules.items()},
        )
        for adapter in adapters
    ]
    rank = rank if rank is not None else max(a.rank for a in adapters)
    made = merge_adapters(inside, method, heads, rank, seed, progress, **options)

    def merge(name: str, updates: Sequence[Update]) -> Merged:
        return found[name].restore(made.modules[name])

    label = f"{made.info.method} (calibrated)"
    return merge_modules(adapters, merge, label, made.info.objective, made.rank, seed, quietly)


def _root(moment: torch.Tensor) -> torch.Tensor:
    """L of the damped moment, whose mean direction counts 1."""
    moment = moment.double()
    size = len(moment)
    mean = float(moment.diagonal().mean()) or 1.0
    return torch.linalg.cholesky(moment / mean + DAMPING * torch.eye(size, dtype=torch.float64))
