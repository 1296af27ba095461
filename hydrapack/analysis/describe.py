"""What any artifact is: adapter folder, bundle, package or .pte, as one JSON-able description."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hydrapack.adapters.peft_config import CONFIG
from hydrapack.adapters.read import read_adapter
from hydrapack.bundle.format import DESCRIPTION, Bundle, read_description
from hydrapack.packing.manifest import MANIFEST, read_package
from hydrapack.program.load import load_program, matrix_shapes
from hydrapack.support.errors import Invalid


def describe(path: str | Path) -> dict[str, Any]:
    """What an adapter folder, bundle, package or .pte is, and its main facts.

    Raises:
        HydrapackError: none of these, or a damaged one.

    >>> facts = hydrapack.describe("bundle")
    >>> facts["kind"], facts["heads"]
    ('bundle', 2)
    """
    path = Path(path)
    if path.suffix == ".pte" and path.is_file():
        return _program(path)
    if (path / MANIFEST).exists():
        manifest = read_package(path)
        facts = {**manifest.model_dump(), "bits": manifest.bits, "modules": len(manifest.modules)}
        return {"kind": "package", **facts}
    if (path / DESCRIPTION).exists():
        Bundle.load(path)  # Its tensors are checked too.
        info = read_description(path)
        facts = info.model_dump(exclude={"module_errors", "modules", "bits", "tensor_sha256"})
        facts["sources"] = [
            {"task": row["name"], **row["source"], **row["card"].get("source", {})}
            for row in facts["tasks"]
        ]
        return {
            "kind": "bundle",
            **facts,
            "modules": len(info.modules),
            "s_percent": info.s_percent,
        }
    if (path / CONFIG).exists():
        return _adapter(path)
    raise Invalid(
        f"{path}: neither an adapter folder ({CONFIG}), a bundle ({DESCRIPTION}), a package "
        f"({MANIFEST}) nor a .pte file"
    )


def _adapter(path: Path) -> dict[str, Any]:
    adapter = read_adapter(path, path.absolute().name)
    ranks = {m.rank for m in adapter.modules.values()}
    return {
        "kind": "adapter",
        "task": adapter.task,
        "base_model": adapter.base_model,
        "digest": adapter.digest,
        "modules": len(adapter.modules),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in adapter.modules}),
        "ranks": sorted(ranks),
        "scalings": sorted({m.scaling for m in adapter.modules.values()}),
        "parameters": adapter.parameters,
        "card": adapter.settings.model_dump(),
    }


def _program(path: Path) -> dict[str, Any]:
    program = load_program(path)
    names = sorted(program.method_names)
    facts: dict[str, Any] = {}
    for name in names:
        if name.startswith("get_"):
            values = program.constants(name)
            facts[name] = values[0] if len(values) == 1 else values
    if "get_quant_scheme" in facts:
        facts["get_quant_scheme"] = json.loads(facts["get_quant_scheme"])
    kind = "adapter program" if "head" in names else "base program"
    methods = [name for name in names if name not in facts]
    described: dict[str, Any] = {"kind": kind, "bytes": path.stat().st_size, "methods": methods}
    if "forward" in names:
        # Without loading it, which would pack the weights.
        forward = program.program.metadata("forward")
        described["adapter_bytes"] = 4 * sum(map(math.prod, matrix_shapes(forward)))
    return {**described, **facts}
