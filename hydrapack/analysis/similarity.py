"""How alike a set of adapters is, module by module, and how well a shared A suits it.

A against B by mean absolute error (the HydraOpt paper's Fig. 2), goodness of fit by canonical
correlations (Fig. 10, after https://arxiv.org/abs/2402.05406 and the R^2 of
https://arxiv.org/abs/1905.00414), and the error a shared A has to leave (spectral, M = N).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import ErrorSum
from hydrapack.analysis.findings import Similarity
from hydrapack.analysis.plots import plot_similarity, plot_tsne
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.modules import module_names, module_updates
from hydrapack.merging.spectral import merge_spectral
from hydrapack.support.atomic import new_directory
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.schema import write_json
from hydrapack.support.threads import one_thread

SHARED_START = 0.5
"""Mean R^2 of the A's above which they seem to have started from one initialisation."""


@dataclass(frozen=True)
class Analysis:
    """The set of adapters as a whole."""

    adapters: list[Adapter]
    modules: list[Similarity]
    relative_errors: dict[str, float]
    """By task: spectral, M = N, at the adapters' rank."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the adapters' tasks."""
        return tuple(adapter.task for adapter in self.adapters)

    def mean(self, key: str) -> float:
        """Mean of one of ``Similarity``'s figures over the modules."""
        return sum(getattr(m, key) for m in self.modules) / len(self.modules)

    @property
    def advice(self) -> str:
        """One line: does a shared A suit these adapters, and with what error."""
        error = math.sqrt(sum(e**2 for e in self.relative_errors.values()) / len(self.tasks))
        if self.mean("a_cca") >= SHARED_START:
            return (
                f"suited: the A's are alike (R² {self.mean('a_cca'):.2f}, B's "
                f"{self.mean('b_cca'):.2f}); a shared A with a head each leaves an error of about "
                f"{error:.2f}"
            )
        return (
            f"badly suited: the A's share little (R² {self.mean('a_cca'):.2f}), as those of "
            f"adapters not trained from one initialisation do; a shared A leaves an error of about "
            f"{error:.2f}. Train all adapters from one seed, or give A a larger rank"
        )

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "advice": self.advice,
            "mean": {k: self.mean(k) for k in ("a_mae", "b_mae", "a_cca", "b_cca")},
            "modules": [asdict(module) for module in self.modules],
            "relative_errors": self.relative_errors,
            "tasks": list(self.tasks),
        }

    def save(self, target: str | Path) -> None:
        """Write the directory, whole or not at all: analysis.json, similarity.png.

        With scikit-learn installed tsne.png too.

        Raises:
            HydrapackError: matplotlib is not installed, or the target cannot be written.
        """
        with new_directory(Path(target)) as partial:
            write_json(partial / "analysis.json", self.as_json())
            plot_similarity(self.modules, partial / "similarity.png")
            plot_tsne(self.adapters, partial / "tsne.png")


@one_thread()
def analyze(
    adapters: Sequence[Adapter | str | Path],
    *,
    allow_base_mismatch: bool = False,
    progress: Progress = quietly,
) -> Analysis:
    """How alike adapters are, every pair in every module, and how well a shared A suits them.

    Args:
        adapters: two or more PEFT folders, as ``DIR`` or ``NAME=DIR``, or adapters that were read.
        allow_base_mismatch: take adapters of different base models.
        progress: called with modules done, modules in all, and a note.

    Raises:
        HydrapackError: unreadable adapters, fewer than two, an untrained one, or VeRA's.

    >>> found = hydrapack.analyze(["adapters/grammar", "adapters/qa"])
    >>> f"A: R² {found.mean('a_cca'):.1f}, B: {found.mean('b_cca'):.1f}"
    'A: R² 1.0, B: 0.1'
    """
    if len(adapters) < 2:
        raise Invalid("give two adapters or more: they are compared with each other")
    adapters = read_adapters(adapters, allow_base_mismatch)
    if adapters[0].kind != "LORA":
        raise Invalid("VeRA adapters share their A and B as they are: there is nothing to compare")
    for adapter in adapters:
        if not any(m.rank and bool(m.trained[1].any()) for m in adapter.modules.values()):
            raise Invalid(
                f"{adapter.folder}: is untrained, every lora_B is zero: there is nothing to compare"
            )
    found, sums = [], [ErrorSum() for _ in adapters]
    names = module_names(adapters)
    for done, name in enumerate(names):
        progress(done, len(names), "")
        updates = module_updates(adapters, name)
        factors = [u.factors() for u in updates if u.rank]
        pairs = list(itertools.combinations(factors, 2))
        rank = max(u.rank for u in updates)
        merged = merge_spectral(updates, MergeOptions(len(updates), rank))
        together = ErrorSum()
        for error, update, head in zip(sums, updates, merged.heads, strict=True):
            own = ErrorSum()
            own.add(update, merged.A, head)
            error.include(own)
            together.include(own)
        found.append(
            Similarity(
                module=name,
                a_mae=_mean([_mae(x[0], y[0]) for x, y in pairs]),
                b_mae=_mean([_mae(x[1], y[1]) for x, y in pairs]),
                a_cca=_mean([_cca(x[0].T, y[0].T) for x, y in pairs]),
                b_cca=_mean([_cca(x[1], y[1]) for x, y in pairs]),
                shared_error=together.relative,
            )
        )
    progress(len(names), len(names), "")
    errors = {a.task: error.relative for a, error in zip(adapters, sums, strict=True)}
    return Analysis(adapters, found, errors)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _mae(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean |x - y| over the mean of |x| and |y|; of different ranks, the rows they share."""
    rows, columns = (min(sizes) for sizes in zip(one.shape, other.shape, strict=True))
    one, other = one[:rows, :columns], other[:rows, :columns]
    size = float((one.abs().mean() + other.abs().mean()) / 2)
    return float((one - other).abs().mean()) / size if size else 0.0


def _cca(one: torch.Tensor, other: torch.Tensor) -> float:
    """||Q_x^T Q_y||_F^2 / rank: the mean squared canonical correlation of two column spaces."""
    if not (one.any() and other.any()):
        return 0.0
    q_one, q_other = (torch.linalg.qr(m)[0] for m in (one, other))
    smaller = min(q_one.shape[1], q_other.shape[1])
    return float((q_one.T @ q_other).square().sum()) / smaller
