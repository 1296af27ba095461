"""A package directory, written whole from a bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from hydrapack.adapters.update import LoraModule, difference_norm
from hydrapack.bundle.format import Bundle, BundleInfo, BundleTask
from hydrapack.bundle.merged import LOST, MergedModule, MergedVera, frozen
from hydrapack.bundle.stored import Stored, store_modules, tensor_bytes
from hydrapack.packing.adapter_program import Lowered, lower_adapters
from hydrapack.packing.head_digests import with_head_digests
from hydrapack.packing.manifest import (
    ADAPTERS,
    GOLDEN,
    MANIFEST,
    BaseModelInfo,
    Manifest,
    ManifestContent,
    ManifestTask,
    ModuleInfo,
    SourceInfo,
    Storage,
    TaskGeneration,
    check_fallback,
    describe_file,
    manifest_text,
    read_package,
    sealed,
)
from hydrapack.packing.model_card import MODEL_CARD, card_text
from hydrapack.packing.sbom import SBOM, ml_bom
from hydrapack.packing.signature import read_private_key, sign_manifest
from hydrapack.program.layout import Layout, layout_of
from hydrapack.program.load import load_program
from hydrapack.program.quantized import DEFAULT_BITS, GROUP_SIZE, Precision, check_bits, core_bits
from hydrapack.support.atomic import new_directory
from hydrapack.support.errors import Invalid, Mismatch
from hydrapack.support.extras import need
from hydrapack.support.schema import fitting
from hydrapack.support.threads import one_thread
from hydrapack.support.version import __version__

MAX_LAYERS = 1024
HALF_MAX = 65504.0


@dataclass(frozen=True)
class Package:
    """A package directory.

    >>> package = hydrapack.Package.load("package")
    >>> package.tasks, package.rank
    (('grammar', 'qa'), 4)
    """

    folder: Path
    manifest: Manifest

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self.manifest.tasks)

    @property
    def rank(self) -> int:
        """R of the base program that it runs on."""
        return self.manifest.rank

    @property
    def bytes(self) -> int:
        """Of ``adapters.pte``."""
        return self.manifest.storage.bytes

    @classmethod
    def load(cls, folder: str | Path) -> Package:
        """The package in ``folder``, its files compared with its manifest.

        Raises:
            HydrapackError: missing, malformed or damaged files.
        """
        return cls(Path(folder), read_package(Path(folder)))


@one_thread()
def pack(
    bundle: Bundle | str | Path,
    target: str | Path,
    bits: int | None = None,
    *,
    bits_a: int | None = None,
    bits_b: int | None = None,
    group_size: int = GROUP_SIZE,
    fallback: str = "error",
    model: str | Path | None = None,
    model_card: bool = False,
    sbom: bool = False,
    signing_key: str | Path | None = None,
    package_version: int | None = None,
    channel: str | None = None,
    golden: Callable[[Path], str] | None = None,
) -> Package:
    """Pack ``bundle`` into ``target``: ``adapters.pte`` and ``manifest.json``.

    Args:
        bundle: a merge, or the directory that one was saved to.
        target: the directory to write, whole or not at all.
        bits: 4, 8, 16 or 32 a value; by default what the bundle was planned for, else 8.
        bits_a, bits_b: of A and of B (or U) apart, in place of ``bits``.
        group_size: columns that share a scale at 4 bits.
        fallback: what a name that is no task gets: ``error``, ``base`` or a task's name.
        model: the model.pte it will run on: its layout and rank are checked, its layers counted
            (without one, up to the last adapted), and the digests of its weights and tokenizer
            noted. Modules that no adapter has get zeros.
        model_card: write one (README.md) too.
        sbom: write a CycloneDX ML-BOM (sbom.cdx.json) too.
        signing_key: an Ed25519 private key (PEM) to sign the manifest with.
        package_version: a number of your own, from 1, that rises with each release.
        channel: a name of your own, as ``beta``.
        golden: from the package, the text of its golden.json: ``hydrapack.golden``, with the same
            ``model``.

    Raises:
        HydrapackError: bits not offered, modules no base program adapts, or an unwritable
            target; more bytes than the bundle was planned for; a model.pte or a key that
            does not fit; cyclonedx-python-lib or cryptography not installed.

    >>> package = hydrapack.pack("bundle", "package", bits=8)
    >>> package.bytes == package.folder.joinpath("adapters.pte").stat().st_size
    True
    """
    need("executorch")
    bundle, target = Bundle.of(bundle), Path(target)
    key = None if signing_key is None else read_private_key(Path(signing_key))
    _roundings(bundle.info, bits, bits_a, bits_b, group_size)
    check_fallback(fallback, [task.name for task in bundle.info.tasks], "`fallback`")
    layout = layout_of(bundle.shapes, bundle.info.rank)
    base = BaseModelInfo(id=bundle.info.base_model, weights_sha256=None, tokenizer_sha256=None)
    if model is not None:
        base, layout = base_of(Path(model), bundle.info.base_model, layout)
    bundle = with_all_modules(bundle, layout)
    roundings = _roundings(bundle.info, bits, bits_a, bits_b, group_size)
    _check_range(bundle, roundings)
    stored = store_modules(bundle.modules, roundings)
    with new_directory(target) as partial:
        lowered = lower_adapters(layout, stored, partial / ADAPTERS)
        _check_budget(bundle, (partial / ADAPTERS).stat().st_size)
        with fitting(target / MANIFEST):
            manifest = _manifest(
                bundle, layout, stored, lowered, partial / ADAPTERS, fallback, base, group_size
            )
            manifest = with_head_digests(manifest, lowered.banks, partial / ADAPTERS)
            manifest = _released(manifest, package_version, channel)
        documents = {}
        if model_card:
            documents[MODEL_CARD] = card_text(manifest)
        if sbom:
            documents[SBOM] = ml_bom(manifest)
        for name, text in documents.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
        manifest = _write_manifest(partial, manifest, [*documents])
        if golden is not None:
            # What a device does with the package, golden.json apart.
            text = golden(partial)
            (partial / GOLDEN).write_text(text, encoding="utf-8", newline="\n")
            manifest = _write_manifest(partial, manifest, [GOLDEN])
        if key is not None:
            sign_manifest(partial, key)
    return Package(target, manifest)


def _write_manifest(folder: Path, manifest: ManifestContent, more: Sequence[str]) -> Manifest:
    written = sealed(manifest, [describe_file(folder / name) for name in more])
    (folder / MANIFEST).write_text(manifest_text(written), encoding="utf-8", newline="\n")
    return written


def route_tensor(info: BundleInfo, task: BundleTask, layout: Layout) -> torch.Tensor:
    """A task's route, int64 (modules,), from the bundle's order of modules to packing order."""
    by_name = dict(zip(info.modules, task.route, strict=True))
    return torch.tensor([by_name[name] for name in layout.modules()], dtype=torch.int64)


def _check_budget(bundle: Bundle, size: int) -> None:
    budget = bundle.info.budget_bytes
    if budget is not None and size > budget:
        raise Invalid(
            f"{ADAPTERS} takes {size:,} bytes, the bundle was planned for {budget:,}: pack with "
            "the planned bits and group size, or merge with another `budget`"
        )


def base_of(model: Path, name: str, layout: Layout) -> tuple[BaseModelInfo, Layout]:
    """What ``model`` says of its base, once it is seen to take the layout, with its layers.

    A program holds its layout's digest alone: the count of layers is the one that gives it.
    """
    program = load_program(model, "forward")
    rank = int(program.constant("get_adapter_rank"))
    if rank != layout.rank:
        raise Mismatch(
            f"{model} takes adapters of rank {rank}, the bundle has rank {layout.rank}: export the "
            f"base with `rank` {layout.rank}, or merge with `rank` {rank}"
        )
    digest = str(program.constant("get_adapter_layout"))
    deeper = (replace(layout, layers=n) for n in range(layout.layers, MAX_LAYERS + 1))
    fitting = next((found for found in deeper if found.digest == digest), None)
    if fitting is None:
        raise Mismatch(
            f"{model} has another adapter layout than the bundle (base model {name!r}, target "
            f"modules {','.join(layout.targets)})"
        )
    info = BaseModelInfo(
        id=name,
        weights_sha256=str(program.constant("get_weights_sha256")),
        tokenizer_sha256=str(program.constant("get_tokenizer_sha256")),
        scheme=json.loads(str(program.constant("get_quant_scheme"))),
    )
    return info, fitting


def with_all_modules(bundle: Bundle, layout: Layout) -> Bundle:
    """The bundle with a module of zeros, of one head, wherever the layout has one more."""
    missing = layout.missing(bundle.modules)
    if not missing:
        return bundle
    tasks = [
        task.model_copy(update={"route": [*task.route, *[0] * len(missing)]})
        for task in bundle.info.tasks
    ]
    common, route = frozen(bundle.modules.values()), (0,) * len(tasks)
    modules = dict(bundle.modules)
    for name, (d_out, d_in) in missing.items():
        if common:
            A, B = common["A"][:, :d_in], common["B"][:d_out]
            modules[name] = MergedVera(torch.zeros(len(A)), torch.zeros(1, d_out), route, A, B)
        else:
            modules[name] = MergedModule(torch.zeros(1, d_in), torch.zeros(1, d_out, 1), route)
    update: dict[str, object] = {"modules": list(modules), "tasks": tasks}
    if bundle.info.bits is not None:
        # Zeros are exact at any width; one that others have needs no bank of its own.
        least = min(bundle.info.bits.values())
        update["bits"] = dict.fromkeys(missing, least) | bundle.info.bits
    return Bundle(bundle.info.model_copy(update=update), modules)


def _check_range(bundle: Bundle, roundings: dict[str, Precision]) -> None:
    """Refuse values that the half-precision scales of a bit width cannot hold."""
    top = {4: 7 * HALF_MAX, 8: 127 * HALF_MAX, 16: HALF_MAX}
    common = frozen(bundle.modules.values())
    for name, module in bundle.modules.items():
        for part, tensor in (module.tensors | common).items():
            own = roundings[name]
            small = {"C": core_bits(own.bits_b), "b": core_bits(own.bits_b), "s": 32}
            small["d"] = core_bits(own.bits_a)
            bits = {"A": own.bits_a, **small}.get(part, own.bits_b)
            largest = float(tensor.abs().max())
            if largest > top.get(bits, math.inf):
                raise Invalid(
                    f"{name}: {part} has values up to {largest:.3g}, {bits} bits hold up to "
                    f"{top[bits]:.3g}; pack with `bits` 32 (is the adapter's lora_alpha right?)"
                )


def _roundings(
    info: BundleInfo, bits: int | None, bits_a: int | None, bits_b: int | None, group_size: int
) -> dict[str, Precision]:
    for name, value in (("bits", bits), ("bits_a", bits_a), ("bits_b", bits_b)):
        if value is not None:
            check_bits(name, value)
    if not 2 <= group_size <= 65536 or group_size % 2:
        # Two 4-bit values share a byte.
        raise Invalid(f"`group_size` {group_size}: must be even, from 2 to 65536")
    planned = info.bits or {}
    roundings = {}
    for name in info.modules:
        own: int = bits or planned.get(name, DEFAULT_BITS)
        roundings[name] = Precision(bits_a or own, bits_b or own, group_size)
    return roundings


def _manifest(
    bundle: Bundle,
    layout: Layout,
    stored: dict[str, Stored],
    lowered: Lowered,
    adapters: Path,
    fallback: str,
    base: BaseModelInfo,
    group_size: int,
) -> ManifestContent:
    file = describe_file(adapters)
    info = bundle.info
    once = sum(matrix.numel() for matrix in frozen(bundle.modules.values()).values())
    tasks = [_task(bundle, layout, task, lowered) for task in info.tasks]
    return ManifestContent(
        schema_version=1,
        hydrapack_version=__version__,
        adapter_type=info.adapter_type,
        tools={name: version(name) for name in ("executorch", "torch")},
        base_model=base,
        layout_digest=layout.digest,
        rank=layout.rank,
        heads=max(module.merged.choices for module in stored.values()),
        target_modules=list(layout.targets),
        target_shapes=[shape for _, shape in layout.shapes],
        group_size=group_size,
        modules=[_module(name, stored[name]) for name in layout.modules()],
        sources=[
            SourceInfo(
                task=task.name,
                license=task.settings.license,
                base_model=info.base_model,
                **task.source.model_dump(),
                **(task.settings.source.model_dump() if task.settings.source else {}),
            )
            for task in info.tasks
        ],
        tasks=tasks,
        lost_tasks=[task.name for task in tasks if task.packed_relative_error > LOST],
        fallback=fallback,
        files=[file],
        storage=Storage(
            parameters=info.parameters,
            baseline_parameters=info.baseline_parameters,
            s_percent=info.s_percent,
            bytes=file.bytes,
            tensor_bytes=tensor_bytes(stored.values()),
            baseline_bytes=2 * (info.baseline_parameters + once),
        ),
    )


def _released(
    manifest: ManifestContent, package_version: int | None, channel: str | None
) -> ManifestContent:
    fields = dict(manifest) | {"package_version": package_version, "channel": channel}
    return ManifestContent.model_validate(fields)


def _module(name: str, stored: Stored) -> ModuleInfo:
    merged = stored.merged
    return ModuleInfo(
        name=name,
        heads=merged.choices,
        stored_heads=len(merged.heads) if merged.of else None,
        rank=merged.rank,
        output_rank=merged.output_rank,
        bits_a=stored.A.bits,
        bits_b=stored.bits,
    )


def _task(bundle: Bundle, layout: Layout, task: BundleTask, lowered: Lowered) -> ManifestTask:
    rounding = _rounding_error(bundle, layout, task, lowered)
    return ManifestTask(
        name=task.name,
        prompt_template=task.settings.prompt_template,
        stop=task.settings.stop,
        generation=TaskGeneration(**task.settings.generation.model_dump()),
        language=task.settings.language,
        route=route_tensor(bundle.info, task, layout).tolist(),
        merge_relative_error=task.relative_error,
        packed_relative_error=math.hypot(task.relative_error, rounding),
    )


def _rounding_error(bundle: Bundle, layout: Layout, task: BundleTask, lowered: Lowered) -> float:
    """Norm of (merged update - quantized update) over norm of the merged update."""
    heads = bundle.head(task)
    rounded = layout.unpack(lowered.a, lowered.b(route_tensor(bundle.info, task, layout)))
    norms = [
        difference_norm(LoraModule(bundle.modules[name].shared(), heads[name]), a, b)
        for name, (a, b) in zip(layout.modules(), rounded, strict=True)
    ]
    own = math.hypot(*(norm for _, norm in norms))
    return math.hypot(*(norm for norm, _ in norms)) / own if own else 0.0
