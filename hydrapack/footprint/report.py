"""Parameters, bytes and S (%) of packages, bundles and plans, against what they replace."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydrapack.bundle.format import DESCRIPTION, Bundle
from hydrapack.bundle.merged import LOST, MergedModule
from hydrapack.footprint.shapes import model_shapes
from hydrapack.packing.manifest import ADAPTERS, MANIFEST, read_package
from hydrapack.packing.package import Package
from hydrapack.program.layout import ORDER, parse_targets
from hydrapack.program.quantized import (
    SCALE_BYTES,
    Precision,
    check_bits,
    frozen_bytes,
    part_bytes,
    stored_bytes,
    vera_bytes,
)
from hydrapack.support.errors import Invalid, NotFound

COMMON = "vera_A and vera_B"
"""What VeRA adapters have in common, as one of the modules."""


@dataclass(frozen=True)
class Baseline:
    """Another way to store the same tasks."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What one package, bundle or plan takes."""

    name: str
    kind: str
    tasks: int
    heads: int
    rank: int
    bits: str
    parameters: int
    baseline_parameters: int
    bytes: int
    baseline_bytes: int
    shared_bytes: int
    """A (and what else all tasks share) by arithmetic."""
    head_bytes: int
    """One head, by arithmetic: what one head more would take."""
    task_names: tuple[str, ...] = ()
    task_errors: dict[str, float] = field(default_factory=dict)
    """By task: relative error, of a package as packed."""
    merge_errors: dict[str, float] = field(default_factory=dict)
    """By task: relative error before rounding, of a package."""
    modules: dict[str, int] = field(default_factory=dict)
    """Bytes by target module."""
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes by what they are: A, B or U and C, factors, program, manifest."""
    files: dict[str, int] = field(default_factory=dict)
    baselines: tuple[Baseline, ...] = ()
    model_bytes: int | None = None
    """The base program, where one was given."""
    zip_bytes: int | None = None
    zstd_bytes: int | None = None

    @property
    def s_percent(self) -> float:
        """S (%): parameters stored over those of all adapters apart (the HydraOpt paper's S)."""
        return 100.0 * self.parameters / self.baseline_parameters

    @property
    def percent_of_fp16(self) -> float:
        """Bytes over those of the adapters apart in half precision, as PEFT's files hold them."""
        return 100.0 * self.bytes / self.baseline_bytes

    @property
    def lost_tasks(self) -> list[str]:
        """Tasks of which next to nothing is left."""
        return [task for task, error in self.task_errors.items() if error > LOST]

    @property
    def bytes_per_task(self) -> float:
        """Bytes over tasks."""
        return self.bytes / self.tasks

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        content = asdict(self)
        content["s_percent"] = self.s_percent
        content["percent_of_fp16"] = self.percent_of_fp16
        content["lost_tasks"] = self.lost_tasks
        content["bytes_per_task"] = self.bytes_per_task
        content["task_names"] = list(self.task_names)
        return content


def planned(
    layout: str,
    rank: int,
    tasks: int,
    heads: int,
    adapter_type: str = "lora",
    bits: int = 16,
    targets: str | None = None,
) -> Report:
    """The report of a merge that is not made yet, from shapes alone.

    S = (|A| + M |B|) / (N (|A| + |B|)); for VeRA |d| and |b| in their place, while bytes have its
    common A and B too, once.

    Raises:
        HydrapackError: an unknown layout, adapter type or width, or numbers out of range.
    """
    shapes = model_shapes(layout)
    check_bits("bits", bits)
    for flag, value in (("`rank`", rank), ("`tasks`", tasks), ("`heads`", heads)):
        if not 1 <= value <= 65536:
            raise Invalid(f"{flag} {value}: must be from 1 to 65536")
    if heads > tasks:
        raise Invalid(f"`heads` {heads}: must be at most `tasks`, {tasks}")
    if adapter_type not in ("lora", "vera"):
        raise Invalid(f"`adapter_type` {adapter_type}: choose lora or vera")
    chosen = parse_targets(targets) if targets else shapes.targets
    layers, rounding = shapes.linears.layers, Precision(bits, bits)
    linears = [shapes.linears.linear(target) for target in chosen]
    once, modules = _common(adapter_type, rank, linears, rounding)
    parts = dict(modules)
    shared = head = head_bytes = 0
    shared_bytes = sum(modules.values())
    for target, (d_out, d_in) in zip(chosen, linears, strict=True):
        if adapter_type == "lora":
            own_shared, own_head = rank * d_in, rank * d_out
            a, b = part_bytes((d_out, d_in), rank, 0, rounding)
        else:
            own_shared, own_head = rank, d_out
            a, b = vera_bytes(rank, d_out, rounding)
        shared, head = shared + layers * own_shared, head + layers * own_head
        names = ("A", "B") if adapter_type == "lora" else ("d", "b")
        _add(parts, {names[0]: layers * a, names[1]: layers * heads * b})
        if heads < tasks:
            a, b = _with_factors(a, b, tasks, heads)
            _add(parts, {"factors": layers * SCALE_BYTES * tasks})
        a, b = layers * a, layers * b
        shared_bytes, head_bytes = shared_bytes + a, head_bytes + b
        modules[target] = a + heads * b
    return Report(
        name=f"{shapes.name}, rank {rank}, {adapter_type}",
        kind="plan",
        tasks=tasks,
        heads=heads,
        rank=rank,
        bits=str(bits),
        parameters=shared + heads * head,
        baseline_parameters=tasks * (shared + head),
        bytes=shared_bytes + heads * head_bytes,
        baseline_bytes=2 * (tasks * (shared + head) + once),
        shared_bytes=shared_bytes,
        head_bytes=head_bytes,
        modules=modules,
        parts=parts,
        baselines=_baselines(tasks, shared + head, once, None),
    )


def storage(artifact: Package | Bundle | str | Path, model: str | Path | None = None) -> Report:
    """Parameters, bytes and S (%) of a package or bundle, against adapters apart.

    Args:
        artifact: its directory, or the bundle or package itself.
        model: its model.pte, for the program-per-adapter baseline and the base's size.

    Raises:
        HydrapackError: neither, a damaged one, or no such model.

    >>> report = hydrapack.storage("package")
    >>> f"{report.tasks} tasks, S = {report.s_percent:.1f} %"
    '2 tasks, S = 71.4 %'
    """
    model_bytes = None
    if model is not None:
        model = Path(model)
        if not model.is_file():
            raise NotFound(f"{model}: no such file")
        model_bytes = model.stat().st_size
    if isinstance(artifact, Bundle):
        return _of_bundle(artifact, artifact.info.method, model_bytes)
    path = artifact.folder if isinstance(artifact, Package) else Path(artifact)
    if (path / MANIFEST).exists():
        return _of_package(path, model_bytes)
    if (path / DESCRIPTION).exists():
        return _of_bundle(Bundle.load(path), str(path), model_bytes)
    raise Invalid(f"{path}: neither a package ({MANIFEST}) nor a bundle ({DESCRIPTION})")


def _of_package(path: Path, model_bytes: int | None) -> Report:
    manifest = read_package(path)
    files = {file.name: file.bytes for file in manifest.files}
    files[MANIFEST] = (path / MANIFEST).stat().st_size
    shapes, vera = dict(manifest.layout.shapes), manifest.adapter_type == "vera"
    first = manifest.modules[0]
    rounding = Precision(first.bits_a, first.bits_b)
    once, modules = _common(manifest.adapter_type, manifest.rank, shapes.values(), rounding)
    parts = dict(modules)
    shared, head, most = sum(modules.values()), 0, 0
    for module in manifest.modules:
        target = _target(module.name)
        rounding = Precision(module.bits_a, module.bits_b, manifest.group_size)
        stored = module.stored_heads or module.heads
        if vera:
            a, b = vera_bytes(module.rank, shapes[target][0], rounding)
            _add(parts, {"d": a, "b": b * stored})
        else:
            a, b = part_bytes(shapes[target], module.rank, module.output_rank, rounding)
            own_a = stored_bytes(module.rank, shapes[target][1], module.bits_a, manifest.group_size)
            _add(parts, _matrices(a, own_a, b * stored, module.output_rank))
        if module.stored_heads:
            a, b = _with_factors(a, b, module.heads, module.stored_heads)
            _add(parts, {"factors": SCALE_BYTES * module.heads})
        shared, head = shared + a, head + b
        most = max(most, stored)
        modules[target] = modules.get(target, 0) + a + stored * b
    parts["program"] = files[ADAPTERS] - sum(parts.values())
    parts["manifest"] = sum(size for name, size in files.items() if name != ADAPTERS)
    zipped, zstd = download_bytes([path / name for name in files])
    storage = manifest.storage
    whole = storage.baseline_parameters // len(manifest.tasks)
    return Report(
        name=str(path),
        kind="package",
        tasks=len(manifest.tasks),
        heads=most,
        rank=manifest.rank,
        bits=manifest.bits,
        parameters=storage.parameters,
        baseline_parameters=storage.baseline_parameters,
        bytes=sum(files.values()),
        baseline_bytes=storage.baseline_bytes,
        shared_bytes=shared,
        head_bytes=head,
        task_names=tuple(task.name for task in manifest.tasks),
        task_errors={task.name: task.packed_relative_error for task in manifest.tasks},
        merge_errors={task.name: task.merge_relative_error for task in manifest.tasks},
        modules=modules,
        parts=parts,
        files=files,
        baselines=_baselines(len(manifest.tasks), whole, once, model_bytes),
        model_bytes=model_bytes,
        zip_bytes=zipped,
        zstd_bytes=zstd,
    )


def _of_bundle(bundle: Bundle, name: str, model_bytes: int | None) -> Report:
    info = bundle.info
    planned_bits = info.bits or {}
    bits = max(planned_bits.values(), default=8)
    rounding = Precision(bits, bits)
    once, modules = _common(info.adapter_type, info.rank, bundle.shapes.values(), rounding)
    parts = dict(modules)
    shared = total = sum(modules.values())
    head = 0
    for module_name, module in bundle.modules.items():
        bits = planned_bits.get(module_name, 8)
        a, b = (
            part_bytes(module.shape, module.rank, module.output_rank, Precision(bits, bits))
            if isinstance(module, MergedModule)
            else vera_bytes(module.rank, len(module.B), Precision(bits, bits))
        )
        if isinstance(module, MergedModule):
            own_a = stored_bytes(module.rank, module.shape[1], bits)
            _add(parts, _matrices(a, own_a, b * len(module.heads), module.output_rank))
        else:
            _add(parts, {"d": a, "b": b * len(module.heads)})
        if module.of:
            a, b = _with_factors(a, b, module.choices, len(module.heads))
            _add(parts, {"factors": SCALE_BYTES * module.choices})
        size = a + len(module.heads) * b
        shared, head, total = shared + a, head + b, total + size
        target = _target(module_name)
        modules[target] = modules.get(target, 0) + size
    whole = info.baseline_parameters // len(info.tasks)
    widths = {planned_bits.get(name, 8) for name in info.modules}
    return Report(
        name=name,
        kind="bundle",
        tasks=len(info.tasks),
        heads=info.heads,
        rank=info.rank,
        bits=str(widths.pop()) if len(widths) == 1 else "mixed",
        parameters=info.parameters,
        baseline_parameters=info.baseline_parameters,
        bytes=total,
        baseline_bytes=2 * (info.baseline_parameters + once),
        shared_bytes=shared,
        head_bytes=head,
        task_names=tuple(task.name for task in info.tasks),
        task_errors={task.name: task.relative_error for task in info.tasks},
        modules=modules,
        parts=parts,
        baselines=_baselines(len(info.tasks), whole, once, model_bytes),
        model_bytes=model_bytes,
    )


def _matrices(shared: int, own_a: int, heads: int, output_rank: int) -> dict[str, int]:
    if not output_rank:
        return {"A": own_a, "B": heads}
    return {"A": own_a, "U": shared - own_a, "C": heads}


def _add(parts: dict[str, int], more: dict[str, int]) -> None:
    for name, size in more.items():
        parts[name] = parts.get(name, 0) + size


def _with_factors(shared: int, head: int, choices: int, heads: int) -> tuple[int, int]:
    """With the tasks' factors: one head more brings one, the others are shared."""
    return shared + SCALE_BYTES * (choices - heads), head + SCALE_BYTES


def _common(
    adapter_type: str, rank: int, shapes: Iterable[tuple[int, int]], rounding: Precision
) -> tuple[int, dict[str, int]]:
    """VeRA's common A and B for linears (d_out, d_in): their values, and their bytes by a name."""
    if adapter_type != "vera":
        return 0, {}
    rows, columns = map(max, zip(*shapes, strict=True))
    return rank * (rows + columns), {COMMON: frozen_bytes(rank, (rows, columns), rounding)}


def _target(name: str) -> str:
    short = name.rsplit(".", 1)[-1].removesuffix("_proj")
    return short if short in ORDER else name


def _baselines(tasks: int, one: int, once: int, model_bytes: int | None) -> tuple[Baseline, ...]:
    """``one``: values of one adapter; ``once``: of VeRA's A and B, which adapters apart share."""
    files = f"{tasks} PEFT files, fp16" + (f", {COMMON} once" if once else "")
    found = [
        Baseline(files, tasks * one, 2 * (tasks * one + once)),
        Baseline("merged to one adapter (TA), fp16", one, 2 * (one + once)),
    ]
    if model_bytes is not None:
        size = tasks * (model_bytes + 4 * (one + once))
        name = f"{tasks} ExecuTorch programs, the adapter (fp32) inside"
        found.append(Baseline(name, tasks * one, size))
    return tuple(found)


def download_bytes(paths: Sequence[Path]) -> tuple[int, int | None]:
    """Size of the files in one zip (deflate 9) and, with zstandard installed, as zstd -19.

    zstd's is that of the files one by one, without a container.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(paths):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    try:
        import zstandard
    except ImportError:
        return len(out.getvalue()), None
    squeeze = zstandard.ZstdCompressor(level=19)
    return len(out.getvalue()), sum(len(squeeze.compress(path.read_bytes())) for path in paths)
