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
from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.task_card import TaskCard
from hydrapack.bundle.merged import Merge, Merged, MergedModule, MergedVera, Objective
from hydrapack.program.quantized import BitWidth
from hydrapack.support.atomic import new_directory
from hydrapack.support.errors import InputError
from hydrapack.support.schema import Digest, Strict, read_model

TENSORS, DESCRIPTION = "bundle.safetensors", "bundle.json"


class SourceAdapter(Strict):
    """Where a task's update came from."""

    digest: Digest
    """SHA-256 of adapter_model.safetensors, or of its shards one after another."""
    rank: int = Field(ge=1)
    alpha: float
    parameters: int = Field(ge=1)


class BundleTask(Strict):
    """One task: the head it uses in each module, in the order of ``BundleInfo.modules``.

    Where a module has factors, an entry names one of them, and with it a head.
    """

    name: str
    route: list[Annotated[int, Field(ge=0)]]
    relative_error: float = Field(ge=0)
    card: TaskCard
    source: SourceAdapter
    task_type: str | None = "CAUSAL_LM"
    """PEFT's, of the adapter; None for a bare model's."""


class BundleInfo(Strict):
    """The content of bundle.json."""

    format: Literal["hydrapack-bundle-1"] = "hydrapack-bundle-1"
    hydrapack_version: str
    adapter_type: Literal["lora", "vera"] = "lora"
    base_model: str
    base_revision: str = ""
    """Of the base model; empty for the main one."""
    method: str
    objective: Objective | None = None
    """What the method minimised; None for one that minimises no error, and in older bundles."""
    seed: int
    heads: int = Field(ge=1, le=4096)
    """M, the most heads a module has."""
    rank: int = Field(ge=1, le=65536)
    """R, no module's rank is above it."""
    modules: list[str] = Field(min_length=1)
    module_errors: dict[str, list[float]]
    bits: dict[str, BitWidth] | None = None
    """By module, the bits a value that a plan gave it; the packer's default else."""
    budget_bytes: int | None = Field(default=None, ge=1)
    """What ``adapters.pte`` was planned to take at most."""
    tasks: list[BundleTask]
    parameters: int = Field(ge=1)
    baseline_parameters: int = Field(ge=1)
    tensors_sha256: Digest

    @property
    def s_percent(self) -> float:
        """S (%): values stored over values of all adapters apart."""
        return 100.0 * self.parameters / self.baseline_parameters

    def task(self, name: str) -> BundleTask:
        """The task called ``name``.

        Raises:
            InputError: no such task; the message lists those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(t.name for t in self.tasks)
        raise InputError(f"--task {name}: not in the bundle; it has {known}")


class Bundle(BaseModel):
    """A merge, read back: the merged modules by name, in the order of ``info.modules``."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    info: BundleInfo
    modules: dict[str, Merged]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by module name."""
        return {name: module.shape for name, module in self.modules.items()}

    def head(self, task: BundleTask) -> dict[str, torch.Tensor]:
        """The task's B (d_out, rank) by module name."""
        return {
            name: module.head(head)
            for (name, module), head in zip(self.modules.items(), task.route, strict=True)
        }


def write_bundle(
    merge: Merge,
    adapters: Sequence[Adapter],
    target: Path,
    bits: dict[str, int] | None = None,
    budget_bytes: int | None = None,
) -> BundleInfo:
    """Write the bundle directory; the same merge gives the same bytes.

    Args:
        bits: by module, the bits a value it is planned for.
        budget_bytes: that ``adapters.pte`` may take.

    Raises:
        InputError: adapters other than the merge's, or the target cannot be written.
    """
    if tuple(a.task for a in adapters) != merge.tasks:
        raise InputError(
            f"the bundle is of {', '.join(merge.tasks)}; given are the adapters "
            f"{', '.join(a.task for a in adapters) or 'of no task'}"
        )
    names = sorted(merge.modules)
    info = BundleInfo(
        hydrapack_version=__version__,
        adapter_type="vera" if adapters[0].kind == "VERA" else "lora",
        base_model=adapters[0].base_model,
        base_revision=adapters[0].revision,
        method=merge.method,
        objective=merge.objective,
        seed=merge.seed,
        heads=merge.heads,
        rank=merge.rank,
        modules=names,
        module_errors={name: list(merge.module_errors[name]) for name in names},
        bits={name: bits[name] for name in names} if bits else None,
        budget_bytes=budget_bytes,
        tasks=[_task(merge, k, adapter, names) for k, adapter in enumerate(adapters)],
        parameters=merge.parameters,
        baseline_parameters=merge.baseline_parameters,
        tensors_sha256="0" * 64,
    )
    return write_modules(info, merge.modules, target)


def write_modules(info: BundleInfo, modules: dict[str, Merged], target: Path) -> BundleInfo:
    """Write a bundle of merged modules by name.

    Returns:
        ``info`` with the digest of the tensors.

    Raises:
        InputError: the target cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in info.modules:
        module = modules[name]
        tensors |= {f"{name}.{part}": t.contiguous() for part, t in module.tensors.items()}
        if module.of:
            tensors[f"{name}.of"] = torch.tensor(module.of, dtype=torch.int64)
        if isinstance(module, MergedVera):
            wide = "vera_B" not in tensors or len(module.B) > len(tensors["vera_B"])
            tensors["vera_A"] = module.A.float().contiguous()
            tensors["vera_B"] = module.B.float().contiguous() if wide else tensors["vera_B"]
    data = save(dict(sorted(tensors.items())))
    info = info.model_copy(update={"tensors_sha256": hashlib.sha256(data).hexdigest()})
    with new_directory(target) as partial:
        (partial / TENSORS).write_bytes(data)
        (partial / DESCRIPTION).write_text(
            info.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n"
        )
    return info


def describe_source(adapter: Adapter) -> SourceAdapter:
    """What a bundle notes of an adapter."""
    return SourceAdapter(
        digest=adapter.digest,
        rank=adapter.rank,
        alpha=adapter.alpha,
        parameters=adapter.parameters,
    )


def _task(merge: Merge, k: int, adapter: Adapter, names: list[str]) -> BundleTask:
    return BundleTask(
        name=adapter.task,
        route=[merge.modules[name].assignment[k] for name in names],
        relative_error=merge.relative_errors[adapter.task],
        card=adapter.card,
        source=describe_source(adapter),
        task_type=adapter.task_type,
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
    modules = {
        name: _module(info, index, name, tensors, folder) for index, name in enumerate(info.modules)
    }
    if tensors:
        raise InputError(f"{tensors_path}: {sorted(tensors)[0]}: belongs to no module")
    _check(info, modules, folder)
    return Bundle(info=info, modules=modules)


def _module(
    info: BundleInfo, index: int, name: str, tensors: dict[str, torch.Tensor], folder: Path
) -> Merged:
    """The module's tensors, taken out of ``tensors``, as a merged module."""
    path = folder / TENSORS
    assignment = tuple(t.route[index] if index < len(t.route) else -1 for t in info.tasks)
    parts = {p: tensors.pop(f"{name}.{p}") for p in "ABCUbds" if f"{name}.{p}" in tensors}
    for part, tensor in parts.items():
        if tensor.dtype != torch.float32 or not math.isfinite(float(tensor.sum())):
            raise InputError(f"{path}: {name}.{part}: is not finite float32")
    scales, of = parts.pop("s", None), tensors.pop(f"{name}.of", torch.zeros(0, dtype=torch.int64))
    heads = len(next((parts[part] for part in "BCb" if part in parts), ()))
    paired = scales is not None and of.dtype == torch.int64 and scales.shape == of.shape
    if (scales is not None or len(of)) and not (
        paired and of.dim() == 1 and len(of) and int(of.min()) >= 0 and int(of.max()) < heads
    ):
        raise InputError(f"{path}: {name}: s and of are not a factor and a head for each choice")
    scaled = scales, tuple(of.tolist())
    dimensions = {part: tensor.dim() for part, tensor in parts.items()}
    if info.adapter_type == "vera" and dimensions == {"b": 2, "d": 1}:
        frozen_a, frozen_b = (tensors.get(f"vera_{p}", torch.zeros(0)) for p in "AB")
        if name == info.modules[-1]:
            tensors.pop("vera_A", None), tensors.pop("vera_B", None)
        rank, (_, d_out) = len(parts["d"]), parts["b"].shape
        if frozen_a.dim() != 2 or frozen_b.dim() != 2 or len(frozen_b) < d_out:
            raise InputError(f"{path}: {name}: vera_A or vera_B is missing or has another shape")
        if not rank == frozen_a.shape[0] == frozen_b.shape[1]:
            raise InputError(f"{path}: {name}: d does not fit vera_A and vera_B")
        return MergedVera(parts["d"], parts["b"], assignment, frozen_a, frozen_b[:d_out], *scaled)
    if info.adapter_type == "lora" and dimensions == {"A": 2, "B": 3}:
        fits = parts["A"].shape[0] == parts["B"].shape[2]
        if fits:
            return MergedModule(parts["A"], parts["B"], assignment, None, *scaled)
    if info.adapter_type == "lora" and dimensions == {"A": 2, "C": 3, "U": 2}:
        fits = parts["A"].shape[0] == parts["C"].shape[2]
        if fits and parts["U"].shape[1] == parts["C"].shape[1]:
            return MergedModule(parts["A"], parts["C"], assignment, parts["U"], *scaled)
    raise InputError(
        f"{path}: {name}: A and B (or A, U and C; d and b for VeRA) are missing or have the wrong "
        "shape"
    )


def _check(info: BundleInfo, modules: dict[str, Merged], folder: Path) -> None:
    path = folder / DESCRIPTION
    if len(modules) != len(info.modules):
        raise InputError(f"{path}: modules: a name twice")
    if info.heads != max(len(m.heads) for m in modules.values()):
        raise InputError(f"{path}: heads: is not the number of heads in {TENSORS}")
    if info.rank < max(m.rank for m in modules.values()):
        raise InputError(f"{path}: rank: is below a rank in {TENSORS}")
    if info.bits is not None and set(info.bits) != set(info.modules):
        raise InputError(f"{path}: bits: does not name the modules")
    if not info.tasks or len({t.name for t in info.tasks}) != len(info.tasks):
        raise InputError(f"{path}: tasks: none, or a name twice")
    counts = [m.choices for m in modules.values()]
    for task in info.tasks:
        fits = len(task.route) == len(counts)
        if not fits or any(r >= m for r, m in zip(task.route, counts, strict=True)):
            raise InputError(f"{path}: task {task.name!r}: route does not fit")
