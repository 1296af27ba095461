"""Shapes of the linears of known models, and of any Hugging Face config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrapack.support.errors import InputError


@dataclass(frozen=True)
class ModelShapes:
    """A decoder's linears: (d_out, d_in) by target, equal in all ``layers``."""

    name: str
    layers: int
    linears: dict[str, tuple[int, int]]
    targets: tuple[str, ...]
    """The modules that adapters change unless said otherwise."""


def _shapes(
    name: str,
    layers: int,
    dim: int,
    attention: int,
    key_value: int,
    intermediate: int,
    targets: tuple[str, ...] = ("q", "k", "v", "o"),
) -> ModelShapes:
    linears = {
        "q": (attention, dim),
        "k": (key_value, dim),
        "v": (key_value, dim),
        "o": (dim, attention),
        "gate": (intermediate, dim),
        "up": (intermediate, dim),
        "down": (dim, intermediate),
    }
    return ModelShapes(name, layers, linears, targets)


# Targets are those of the HydraOpt paper's appendix A.1; Phi's fused qkv counts as three linears.
KNOWN = {
    shapes.name: shapes
    for shapes in (
        _shapes("llama-3.2-1b", 16, 2048, 2048, 512, 8192),
        _shapes("llama-3.2-3b", 28, 3072, 3072, 1024, 8192),
        _shapes("gemma-2-2b", 26, 2304, 2048, 1024, 9216, ("q", "v")),
        _shapes("phi-3.5-mini", 32, 3072, 3072, 3072, 8192),
        _shapes("smollm2-135m", 30, 576, 576, 192, 1536),
    )
}


def model_shapes(layout: str) -> ModelShapes:
    """A known layout by name, or that of a config.json (a file, or a folder with one).

    Raises:
        InputError: neither, or a config.json without the keys of a decoder.
    """
    if layout in KNOWN:
        return KNOWN[layout]
    path = Path(layout)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(
            f"--layout {layout}: no such file; give a config.json or one of {', '.join(KNOWN)}"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw = raw.get("text_config", raw)
        return _from_config(raw, path)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a readable config.json: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: the key {error.args[0]!r} is missing") from error
    except TypeError as error:
        raise InputError(f"{path}: a value has the wrong type: {error}") from error


def _from_config(raw: dict[str, Any], path: Path) -> ModelShapes:
    heads, dim = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    head_dim = int(raw.get("head_dim") or dim // heads)
    key_value = int(raw.get("num_key_value_heads") or heads) * head_dim
    layers, intermediate = int(raw["num_hidden_layers"]), int(raw["intermediate_size"])
    if min(heads, dim, head_dim, layers, intermediate) < 1:
        raise InputError(f"{path}: sizes must be above 0")
    return _shapes(str(path), layers, dim, heads * head_dim, key_value, intermediate)
