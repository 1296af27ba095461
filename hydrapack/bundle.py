"""The merge result on disk: ``bundle.safetensors`` and ``bundle.json`` (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from hydrapack import __version__
from hydrapack.adapters.lora import LoraAdapter
from hydrapack.adapters.task_card import TaskCard
from hydrapack.atomic import new_directory
from hydrapack.errors import InputError
from hydrapack.merge.adapters import Merge
from hydrapack.merge.module import MergedModule
from hydrapack.schema import Digest, Strict, read_model

TENSORS, DESCRIPTION = "bundle.safetensors", "bundle.json"


class SourceAdapter(Strict):
    """Where a task's update came from."""

    digest: Digest
    """SHA-256 of adapter_model.safetensors."""
    rank: int = Field(ge=1)
    alpha: float
    parameters: int = Field(ge=1)


class BundleTask(Strict):
    """One task: the head it uses in each module, in the order of ``BundleInfo.modules``."""

    name: str
    route: list[Annotated[int, Field(ge=0)]]
    relative_error: float = Field(ge=0)
    card: TaskCard
    source: SourceAdapter


class BundleInfo(Strict):
    """The content of bundle.json."""

    format: Literal["hydrapack-bundle-1"] = "hydrapack-bundle-1"
    hydrapack_version: str
    base_model: str
    method: str
    seed: int
    heads: int = Field(ge=1, le=4096)
    rank: int = Field(ge=1, le=65536)
    modules: list[str]
    module_errors: dict[str, list[float]]
    tasks: list[BundleTask]
    parameters: int = Field(ge=1)
    baseline_parameters: int = Field(ge=1)
    tensors_sha256: Digest

    @property
    def s_percent(self) -> float:
        """S (%): values stored over values of all adapters apart."""
        return 100.0 * self.parameters / self.baseline_parameters


class Bundle(BaseModel):
    """A merge, read back: A (rank, d_in) and heads (M, d_out, rank) by module name."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    info: BundleInfo
    A: dict[str, torch.Tensor]
    heads: dict[str, torch.Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by module name."""
        return {n: (self.heads[n].shape[1], self.A[n].shape[1]) for n in self.info.modules}

    def head(self, task: BundleTask) -> dict[str, torch.Tensor]:
        """The task's B (d_out, rank) by module name."""
        return {
            name: self.heads[name][head]
            for name, head in zip(self.info.modules, task.route, strict=True)
        }


def write_bundle(merge: Merge, adapters: Sequence[LoraAdapter], target: Path) -> BundleInfo:
    """Write the bundle directory; the same merge gives the same bytes.

    Raises:
        InputError: the target cannot be written.
    """
    names = sorted(merge.modules)
    info = BundleInfo(
        hydrapack_version=__version__,
        base_model=adapters[0].base_model,
        method=merge.method,
        seed=merge.seed,
        heads=merge.heads,
        rank=merge.rank,
        modules=names,
        module_errors={name: list(merge.module_errors[name]) for name in names},
        tasks=[_task(merge, k, adapter, names) for k, adapter in enumerate(adapters)],
        parameters=merge.parameters,
        baseline_parameters=merge.baseline_parameters,
        tensors_sha256="0" * 64,
    )
    A = {name: merge.modules[name].A for name in names}
    return write_tensors(info, A, {name: merge.modules[name].heads for name in names}, target)


def write_tensors(
    info: BundleInfo, A: dict[str, torch.Tensor], heads: dict[str, torch.Tensor], target: Path
) -> BundleInfo:
    """Write a bundle of A (rank, d_in) and heads (M, d_out, rank) by module name.

    Returns:
        ``info`` with the digest of the tensors.

    Raises:
        InputError: the target cannot be written.
    """
    tensors = {f"{name}.A": A[name].contiguous() for name in info.modules}
    tensors |= {f"{name}.B": heads[name].contiguous() for name in info.modules}
    data = save(dict(sorted(tensors.items())))
    info = info.model_copy(update={"tensors_sha256": hashlib.sha256(data).hexdigest()})
    with new_directory(target) as partial:
        (partial / TENSORS).write_bytes(data)
        (partial / DESCRIPTION).write_text(
            info.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n"
        )
    return info


def describe_source(adapter: LoraAdapter) -> SourceAdapter:
    """What a bundle notes of an adapter."""
    return SourceAdapter(
        digest=adapter.digest,
        rank=adapter.rank,
        alpha=adapter.alpha,
        parameters=adapter.parameters,
    )


def _task(merge: Merge, k: int, adapter: LoraAdapter, names: list[str]) -> BundleTask:
    modules: list[MergedModule] = [merge.modules[name] for name in names]
    return BundleTask(
        name=adapter.task,
        route=[module.assignment[k] for module in modules],
        relative_error=merge.relative_errors[adapter.task],
        card=adapter.card,
        source=describe_source(adapter),
    )


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle directory.

    Raises:
        InputError: missing or corrupt files, a digest that does not fit, tensors of wrong shape,
            routes out of range.
    """
    path = folder / DESCRIPTION
    info = read_model(path, BundleInfo, "; is it a bundle?")
    tensors_path = folder / TENSORS
    try:
        digest = hashlib.sha256(tensors_path.read_bytes()).hexdigest()
        if digest != info.tensors_sha256:
            raise InputError(
                f"{tensors_path}: SHA-256 {digest[:16]}… is not the {info.tensors_sha256[:16]}… "
                f"that {DESCRIPTION} names: the file was changed or cut; merge again"
            )
        tensors = load_file(tensors_path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{tensors_path}: cannot be read: {error}") from error
    _check(info, tensors, folder)
    return Bundle(
        info=info,
        A={name: tensors[f"{name}.A"] for name in info.modules},
        heads={name: tensors[f"{name}.B"] for name in info.modules},
    )


def _check(info: BundleInfo, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {f"{name}.{part}" for name in info.modules for part in "AB"}
    if len(set(info.modules)) != len(info.modules) or expected != set(tensors):
        odd = sorted(expected ^ set(tensors))[:3]
        raise InputError(f"{folder / TENSORS}: tensors and {DESCRIPTION} disagree: {odd}")
    for name in info.modules:
        a, b = tensors[f"{name}.A"], tensors[f"{name}.B"]
        fits = a.dim() == 2 and b.dim() == 3 and a.shape[0] == b.shape[2] == info.rank
        if not fits or b.shape[0] != info.heads or a.dtype != b.dtype or a.dtype != torch.float32:
            raise InputError(f"{folder / TENSORS}: {name}: A or B has the wrong shape or type")
        if not math.isfinite(float(a.sum())) or not math.isfinite(float(b.sum())):
            raise InputError(f"{folder / TENSORS}: {name}: NaN or infinity")
    if not info.tasks or len({t.name for t in info.tasks}) != len(info.tasks):
        raise InputError(f"{folder / DESCRIPTION}: tasks: none, or a name twice")
    for task in info.tasks:
        if len(task.route) != len(info.modules) or max(task.route) >= info.heads:
            raise InputError(f"{folder / DESCRIPTION}: task {task.name!r}: route does not fit")
