"""A merge, in memory and on disk: ``bundle.safetensors`` and ``bundle.json`` (docs/bundle.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load
from torch.nn.functional import pad

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.task_settings import TaskSettings
from hydrapack.adapters.vera import input_widths
from hydrapack.bundle.held import laid, unread
from hydrapack.bundle.merged import LOST, Merged, MergedModule, MergedVera, Objective, frozen
from hydrapack.program.quantized import BitWidth
from hydrapack.support.atomic import new_directory
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import Invalid, Mismatch, NotFound, reading
from hydrapack.support.schema import Digest, Strict, read_model
from hydrapack.support.stored_tensor import bytes_of, write_tensors

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

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    name: str
    route: list[Annotated[int, Field(ge=0)]]
    relative_error: float = Field(ge=0)
    settings: TaskSettings = Field(validation_alias="card", serialization_alias="card")
    """Of task.json."""
    source: SourceAdapter
    task_type: str | None = "CAUSAL_LM"
    """PEFT's, of the adapter; None for a bare model's."""


class BundleInfo(Strict):
    """What is known of a merge beside its tensors."""

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

    @property
    def s_percent(self) -> float:
        """S (%): values stored over values of all adapters apart."""
        return 100.0 * self.parameters / self.baseline_parameters

    def task(self, name: str) -> BundleTask:
        """The task called ``name``.

        Raises:
            HydrapackError: no such task; the message lists those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(t.name for t in self.tasks)
        raise NotFound(f"`task` {name}: not in the bundle; it has {known}")


class BundleFile(BundleInfo):
    """The content of bundle.json."""

    tensors_sha256: Digest
    tensor_sha256: dict[str, Digest] = Field(default_factory=dict)
    """Of each tensor's bytes, to name the damaged one; empty in older bundles."""


@dataclass(frozen=True)
class Bundle:
    """A merge: the merged modules by name, in the order of ``info.modules``, and what is known.

    >>> bundle = hydrapack.Bundle.load("bundle")
    >>> [f"{task}: {error:.1f}" for task, error in bundle.relative_errors.items()]
    ['grammar: 0.1', 'qa: 0.1']
    """

    info: BundleInfo
    modules: Mapping[str, Merged]
    planned_bytes: int | None = None
    """Of ``adapters.pte``, at most, where a plan chose the bits; not saved."""
    absent: Mapping[str, list[str]] = field(default_factory=dict)
    """By task, modules that other tasks adapt and it does not (zero updates); not saved."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self.info.tasks)

    @property
    def heads(self) -> int:
        """M, the most heads a module has."""
        return self.info.heads

    @property
    def rank(self) -> int:
        """R, of the base program; no module's rank is above it."""
        return self.info.rank

    @property
    def s_percent(self) -> float:
        """S (%): values stored over values of all adapters apart (the HydraOpt paper's S)."""
        return self.info.s_percent

    @property
    def relative_errors(self) -> dict[str, float]:
        """By task: norm of (updates - merged) over norm of the updates, all modules together."""
        return {task.name: task.relative_error for task in self.info.tasks}

    @property
    def lost(self) -> list[str]:
        """Tasks of which next to nothing is left: their relative error is above 0.9."""
        return [task for task, error in self.relative_errors.items() if error > LOST]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) by module name."""
        return {name: module.shape for name, module in unread(self.modules)}

    def head(self, task: BundleTask) -> dict[str, torch.Tensor]:
        """The task's B (d_out, rank) by module name."""
        return {
            name: module.head(head)
            for (name, module), head in zip(self.modules.items(), task.route, strict=True)
        }

    def factors(
        self, task: BundleTask, rank: int = 0, all: bool = False
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The task's A (r, d_in) and B (d_out, r) by module name; rows of zeros make r ``rank``.

        Without the modules that the task leaves alone (zero heads), except with ``all``.
        """
        heads = self.head(task)
        if not all:
            heads = {name: B for name, B in heads.items() if bool(B.any())} or heads
        found = {}
        for name, B in heads.items():
            A = self.modules[name].shared()
            missing = max(rank - len(A), 0)
            found[name] = pad(A, (0, 0, 0, missing)), pad(B, (0, missing))
        return found

    def with_bits(self, bits: int) -> Bundle:
        """The same, to be packed at so many bits a value."""
        info = self.info.model_copy(update={"bits": dict.fromkeys(self.modules, bits)})
        return replace(self, info=info)

    def save(self, target: str | Path) -> BundleFile:
        """Write the bundle directory, whole or not at all; the same merge gives the same bytes.

        Returns:
            the content of bundle.json.

        Raises:
            HydrapackError: the target cannot be written.
        """
        with new_directory(Path(target)) as partial:
            digest, each = write_tensors(partial / TENSORS, _tensors(self.modules))
            file = BundleFile(**dict(self.info), tensors_sha256=digest, tensor_sha256=each)
            (partial / DESCRIPTION).write_text(
                file.model_dump_json(indent=2) + "\n", encoding="utf-8", newline="\n"
            )
        return file

    @classmethod
    def of(cls, bundle: Bundle | str | Path) -> Bundle:
        """``bundle`` itself, or the one in that directory.

        Raises:
            HydrapackError: see ``load``.
        """
        return bundle if isinstance(bundle, Bundle) else cls.load(bundle)

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Read and check a bundle directory.

        Raises:
            HydrapackError: missing or corrupt files, a digest that does not fit, tensors of wrong
                shape, routes out of range.
        """
        folder = Path(folder)
        file = read_description(folder)
        known = {name: value for name, value in dict(file).items() if name not in _DIGESTS}
        info = BundleInfo.model_construct(**known)
        modules = _modules(info, _read_tensors(folder, file), folder)
        _check(info, modules, folder)
        return cls(info, modules)


_DIGESTS = ("tensors_sha256", "tensor_sha256")


def describe_source(adapter: Adapter) -> SourceAdapter:
    """What a bundle notes of an adapter."""
    return SourceAdapter(
        digest=adapter.digest,
        rank=adapter.rank,
        alpha=adapter.alpha,
        parameters=adapter.parameters,
    )


def read_description(folder: Path) -> BundleFile:
    """The content of a bundle's bundle.json, its tensors not looked at.

    Raises:
        HydrapackError: missing or malformed.
    """
    return read_model(folder / DESCRIPTION, BundleFile, "; is it a bundle?")


def _tensors(modules: Mapping[str, Merged]) -> dict[str, torch.Tensor]:
    """What bundle.safetensors holds."""
    tensors: dict[str, torch.Tensor] = {}
    vera: list[Merged] = []
    for name, module in unread(modules):
        tensors |= {f"{name}.{part}": tensor for part, tensor in module.tensors.items()}
        if module.of:
            tensors[f"{name}.of"] = torch.tensor(module.of, dtype=torch.int64)
        vera += [module] if isinstance(module, MergedVera) else []
    for part, matrix in frozen(vera).items():
        tensors[f"vera_{part}"] = matrix.float()
    return tensors


def _read_tensors(folder: Path, file: BundleFile) -> dict[str, torch.Tensor]:
    path, sha256 = folder / TENSORS, file.tensors_sha256
    with reading(path):
        data = path.read_bytes()
    digest = bytes_sha256(data)
    if digest != sha256:
        raise Mismatch(
            f"{path}: SHA-256 {digest[:16]}… is not the {sha256[:16]}… that {DESCRIPTION} names: "
            f"{_damage(data, file.tensor_sha256)}; merge again"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise Invalid(f"{path}: cannot be read: {error}") from error


def _damage(data: bytes, stated: Mapping[str, str]) -> str:
    """Which tensors are not as stated, in words."""
    try:
        tensors = load(data)
    except SafetensorError:
        tensors = {}
    if not tensors or not stated:
        return "the file was changed or cut"
    lost = [
        name
        for name, sha256 in stated.items()
        if name not in tensors or bytes_sha256(bytes_of(tensors[name])) != sha256
    ]
    more = f" and {len(lost) - 3} more tensors" if len(lost) > 3 else ""
    return f"{', '.join(lost[:3]) or 'its header'}{more} changed"


def _modules(info: BundleInfo, tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, Merged]:
    modules = {
        name: laid(_module(info, index, name, tensors, folder))
        for index, name in enumerate(info.modules)
    }
    if tensors:
        raise Invalid(f"{folder / TENSORS}: {sorted(tensors)[0]}: belongs to no module")
    vera = {name: module for name, module in modules.items() if isinstance(module, MergedVera)}
    if vera:
        columns = next(iter(vera.values())).A.shape[1]
        widths = input_widths({name: len(m.B) for name, m in vera.items()}, columns)
        return {name: replace(m, A=m.A[:, : widths[name]]) for name, m in vera.items()}
    return modules


def _module(
    info: BundleInfo, index: int, name: str, tensors: dict[str, torch.Tensor], folder: Path
) -> Merged:
    """The module's tensors, taken out of ``tensors``, as a merged module."""
    path = folder / TENSORS
    assignment = tuple(t.route[index] if index < len(t.route) else -1 for t in info.tasks)
    parts = {p: tensors.pop(f"{name}.{p}") for p in "ABCUbds" if f"{name}.{p}" in tensors}
    for part, tensor in parts.items():
        if tensor.dtype != torch.float32 or not math.isfinite(float(tensor.sum())):
            raise Invalid(f"{path}: {name}.{part}: is not finite float32")
    scales, of = parts.pop("s", None), tensors.pop(f"{name}.of", torch.zeros(0, dtype=torch.int64))
    heads = len(next((parts[part] for part in "BCb" if part in parts), ()))
    paired = scales is not None and of.dtype == torch.int64 and scales.shape == of.shape
    if (scales is not None or len(of)) and not (
        paired and of.dim() == 1 and len(of) and int(of.min()) >= 0 and int(of.max()) < heads
    ):
        raise Invalid(f"{path}: {name}: s and of are not a factor and a head for each choice")
    scaled = scales, tuple(of.tolist())
    dimensions = {part: tensor.dim() for part, tensor in parts.items()}
    if info.adapter_type == "vera" and dimensions == {"b": 2, "d": 1}:
        frozen_a, frozen_b = (tensors.get(f"vera_{p}", torch.zeros(0)) for p in "AB")
        if name == info.modules[-1]:
            tensors.pop("vera_A", None), tensors.pop("vera_B", None)
        rank, (_, d_out) = len(parts["d"]), parts["b"].shape
        if frozen_a.dim() != 2 or frozen_b.dim() != 2 or len(frozen_b) < d_out:
            raise Invalid(f"{path}: {name}: vera_A or vera_B is missing or has another shape")
        if not rank == frozen_a.shape[0] == frozen_b.shape[1]:
            raise Invalid(f"{path}: {name}: d does not fit vera_A and vera_B")
        return MergedVera(parts["d"], parts["b"], assignment, frozen_a, frozen_b[:d_out], *scaled)
    if info.adapter_type == "lora" and dimensions == {"A": 2, "B": 3}:
        fits = parts["A"].shape[0] == parts["B"].shape[2]
        if fits:
            return MergedModule(parts["A"], parts["B"], assignment, None, *scaled)
    if info.adapter_type == "lora" and dimensions == {"A": 2, "C": 3, "U": 2}:
        fits = parts["A"].shape[0] == parts["C"].shape[2]
        if fits and parts["U"].shape[1] == parts["C"].shape[1]:
            return MergedModule(parts["A"], parts["C"], assignment, parts["U"], *scaled)
    raise Invalid(
        f"{path}: {name}: A and B (or A, U and C; d and b for VeRA) are missing or have the wrong "
        "shape"
    )


def _check(info: BundleInfo, modules: Mapping[str, Merged], folder: Path) -> None:
    path = folder / DESCRIPTION
    if len(modules) != len(info.modules):
        raise Invalid(f"{path}: modules: a name twice")
    if info.heads != max(len(m.heads) for m in modules.values()):
        raise Invalid(f"{path}: heads: is not the number of heads in {TENSORS}")
    if info.rank < max(m.rank for m in modules.values()):
        raise Invalid(f"{path}: rank: is below a rank in {TENSORS}")
    if info.bits is not None and set(info.bits) != set(info.modules):
        raise Invalid(f"{path}: bits: does not name the modules")
    if not info.tasks or len({t.name for t in info.tasks}) != len(info.tasks):
        raise Invalid(f"{path}: tasks: none, or a name twice")
    counts = [m.choices for m in modules.values()]
    for task in info.tasks:
        fits = len(task.route) == len(counts)
        if not fits or any(r >= m for r, m in zip(task.route, counts, strict=True)):
            raise Invalid(f"{path}: task {task.name!r}: route does not fit")
