"""Shapes of the linears of known models, and of any Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydrapack.base.config import LinearShapes, read_shapes
from hydrapack.support.errors import Invalid


@dataclass(frozen=True)
class ModelShapes:
    """A model's linears, and which of them adapters change unless said otherwise."""

    name: str
    linears: LinearShapes
    targets: tuple[str, ...] = ("q", "k", "v", "o")


# From the published config.json of each. Targets are those of the HydraOpt paper's appendix A.1;
# Phi's fused qkv counts as three linears, and as one with --target-modules qkv,o.
KNOWN = {
    shapes.name: shapes
    for shapes in (
        ModelShapes("llama-3.2-1b", LinearShapes(16, 2048, 2048, 512, 8192)),
        ModelShapes("llama-3.2-3b", LinearShapes(28, 3072, 3072, 1024, 8192)),
        ModelShapes("gemma-2-2b", LinearShapes(26, 2304, 2048, 1024, 9216), ("q", "v")),
        ModelShapes("gemma-3-270m", LinearShapes(18, 640, 1024, 256, 2048), ("q", "v")),
        ModelShapes("gemma-3-1b", LinearShapes(26, 1152, 1024, 256, 6912), ("q", "v")),
        ModelShapes("phi-3.5-mini", LinearShapes(32, 3072, 3072, 3072, 8192)),
        ModelShapes("qwen2.5-0.5b", LinearShapes(24, 896, 896, 128, 4864)),
        ModelShapes("qwen2.5-1.5b", LinearShapes(28, 1536, 1536, 256, 8960)),
        ModelShapes("qwen2.5-3b", LinearShapes(36, 2048, 2048, 256, 11008)),
        ModelShapes("qwen3-0.6b", LinearShapes(28, 1024, 2048, 1024, 3072)),
        ModelShapes("qwen3-1.7b", LinearShapes(28, 2048, 2048, 1024, 6144)),
        ModelShapes("smollm2-135m", LinearShapes(30, 576, 576, 192, 1536)),
        ModelShapes("smollm2-360m", LinearShapes(32, 960, 960, 320, 2560)),
        ModelShapes("smollm2-1.7b", LinearShapes(24, 2048, 2048, 2048, 8192)),
        ModelShapes("qwen2.5-0.5b", LinearShapes(24, 896, 896, 128, 4864)),
        ModelShapes("qwen2.5-1.5b", LinearShapes(28, 1536, 1536, 256, 8960)),
        ModelShapes("qwen2.5-3b", LinearShapes(36, 2048, 2048, 256, 11008)),
        ModelShapes("qwen3-0.6b", LinearShapes(28, 1024, 2048, 1024, 3072)),
        ModelShapes("qwen3-1.7b", LinearShapes(28, 2048, 2048, 1024, 6144)),
        ModelShapes("qwen3-4b", LinearShapes(36, 2560, 4096, 1024, 9728)),
        ModelShapes("gemma-3-270m", LinearShapes(18, 640, 1024, 256, 2048), ("q", "v")),
        ModelShapes("gemma-3-1b", LinearShapes(26, 1152, 1024, 256, 6912), ("q", "v")),
        ModelShapes("tinyllama-1.1b", LinearShapes(22, 2048, 2048, 256, 5632)),
    )
}


def model_shapes(layout: str) -> ModelShapes:
    """A known layout by name, or that of a config.json (a file, or a folder with one).

    Raises:
        HydrapackError: neither, or a config.json without the keys of a decoder.
    """
    if layout in KNOWN:
        return KNOWN[layout]
    path = Path(layout)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise Invalid(
            f"`layout` {layout}: no such file; give a config.json or one of {', '.join(KNOWN)}"
        )
    return ModelShapes(str(path), read_shapes(path))
