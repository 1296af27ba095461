"""The package's model card: README.md as the Hugging Face hub reads it."""

from __future__ import annotations

import json

from hydrapack.packing.manifest import ManifestContent, SourceInfo

MODEL_CARD = "README.md"


def card_text(manifest: ManifestContent) -> str:
    """Markdown with a YAML head (https://huggingface.co/docs/hub/model-cards)."""
    storage = manifest.storage
    vera = manifest.adapter_type == "vera"
    shared = "d over VeRA's common A and B" if vera else "A"
    licenses = {source.license for source in manifest.sources}
    head: dict[str, object] = {
        "base_model": manifest.base_model.id,
        "base_model_relation": "adapter",
        "language": sorted({t.language.split("-")[0] for t in manifest.tasks if t.language}),
        "library_name": "executorch",
        "license": _license(licenses),
        "tags": ["executorch", "hydrapack", manifest.adapter_type],
    }
    # JSON is YAML, and quotes what needs it.
    lines = ["---"]
    lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    lines += [
        "---",
        "",
        f"# Task heads for {manifest.base_model.id}",
        "",
        f"{len(manifest.tasks)} tasks on one shared {shared} (rank {manifest.rank}) and up to "
        f"{manifest.heads} heads, merged without data by hydrapack {manifest.hydrapack_version} "
        "and packed for ExecuTorch.",
        "",
        f"- `adapters.pte`: {storage.bytes:,} bytes at {manifest.bits} bits; the adapters apart "
        f"take {storage.baseline_bytes:,} in half precision",
        f"- parameters: {storage.parameters:,} of {storage.baseline_parameters:,} "
        f"(S = {storage.s_percent:.1f} %)",
        f"- target modules: {', '.join(manifest.target_modules)}",
        "",
        "| task | language | error of the merge | after quantization | licence | source SHA-256 |",
        "|---|---|---|---|---|---|",
    ]
    sources = {source.task: source for source in manifest.sources}
    for task in manifest.tasks:
        source = sources.get(task.name)
        lines.append(
            f"| {task.name} | {task.language or ''} | {task.merge_relative_error:.4f} | "
            f"{task.packed_relative_error:.4f} | {(source and source.license) or 'unknown'} | "
            f"{_source(source) if source else ''} |"
        )
    lines += [
        "",
        "Errors are ‖updates − stored‖ / ‖updates‖ (Frobenius), all modules together.",
        "",
    ]
    return "\n".join(lines)


def _source(source: SourceInfo) -> str:
    digest = f"{source.digest[:16]}…"
    return f"[{digest}]({source.url})" if source.url else digest


def _license(licenses: set[str | None]) -> str:
    """One identifier where all adapters have it (in the hub's lower case), else ``other``."""
    known = {license.lower() for license in licenses if license}
    return known.pop() if len(known) == 1 and None not in licenses else "other"
