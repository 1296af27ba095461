"""A package directory, written whole from a bundle."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import cast

import torch

from hydrapack import __version__
from hydrapack.adapters.lora import LoraModule
from hydrapack.atomic import new_directory
from hydrapack.bundle import Bundle, BundleTask
from hydrapack.errors import InputError
from hydrapack.layout import Layout, layout_of
from hydrapack.merge.module import difference_norm
from hydrapack.pack.manifest import (
    ADAPTERS,
    MANIFEST,
    Manifest,
    ManifestFile,
    ManifestTask,
    Storage,
    package_digest,
)
from hydrapack.pack.program import lower_adapters, route_tensor
from hydrapack.quantize import BITS, Bits


def write_package(bundle: Bundle, target: Path, bits: int = 8) -> Manifest:
    """Pack ``bundle`` into ``target``: ``adapters.pte`` and ``manifest.json``.

    Args:
        bits: 8 (int8 rows, float16 scales), 16 (float16) or 32 (float32) a value.

    Raises:
        InputError: bits not offered, modules no base program adapts, or an unwritable target.
    """
    if bits not in BITS:
        raise InputError(f"--bits {bits}: choose one of {', '.join(map(str, BITS))}")
    layout = layout_of(bundle.shapes, bundle.info.rank)
    with new_directory(target) as partial:
        packed = lower_adapters(bundle, layout, bits, partial / ADAPTERS)
        manifest = _manifest(bundle, layout, bits, packed, partial / ADAPTERS)
        text = json.dumps(manifest.model_dump(), ensure_ascii=False, indent=2, sort_keys=True)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8", newline="\n")
    return manifest


def _manifest(
    bundle: Bundle, layout: Layout, bits: int, packed: dict[str, torch.Tensor], adapters: Path
) -> Manifest:
    data = adapters.read_bytes()
    info = bundle.info
    manifest = Manifest(
        hydrapack_version=__version__,
        base_model=info.base_model,
        layout_digest=layout.digest,
        rank=layout.rank,
        heads=info.heads,
        target_modules=list(layout.targets),
        bits=cast(Bits, bits),
        tasks=[_task(bundle, layout, task, packed) for task in info.tasks],
        files=[
            ManifestFile(name=ADAPTERS, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        ],
        storage=Storage(
            parameters=info.parameters,
            baseline_parameters=info.baseline_parameters,
            bytes=len(data),
            baseline_bytes=2 * info.baseline_parameters,
        ),
        package_digest="0" * 64,
    )
    return manifest.model_copy(update={"package_digest": package_digest(manifest)})


def _task(
    bundle: Bundle, layout: Layout, task: BundleTask, packed: dict[str, torch.Tensor]
) -> ManifestTask:
    rounding = _rounding_error(bundle, layout, task, packed)
    return ManifestTask(
        name=task.name,
        prompt_template=task.card.prompt_template,
        stop=task.card.stop,
        language=task.card.language,
        route=route_tensor(bundle, layout, task.route).tolist(),
        merge_relative_error=task.relative_error,
        packed_relative_error=math.hypot(task.relative_error, rounding),
        source_digest=task.source.digest,
    )


def _rounding_error(
    bundle: Bundle, layout: Layout, task: BundleTask, packed: dict[str, torch.Tensor]
) -> float:
    """Norm of (merged update - quantized update) over norm of the merged update."""
    heads = bundle.head(task)
    rounded = layout.unpack(packed[""], packed[task.name])
    norms = [
        difference_norm(LoraModule(bundle.A[name], heads[name], 1.0), a, b)
        for name, (a, b) in zip(layout.modules(), rounded, strict=True)
    ]
    own = math.hypot(*(norm for _, norm in norms))
    return math.hypot(*(norm for norm, _ in norms)) / own if own else 0.0
