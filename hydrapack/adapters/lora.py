"""The tensors of a PEFT LoRA adapter (``peft.tuners.lora``): A and B by module."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import checked
from hydrapack.adapters.modules import LoraModule, Update
from hydrapack.errors import InputError

# Older PEFT wrote the adapter's name ("default") into the key.
_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$")


def read_lora(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], path: Path
) -> dict[str, Update]:
    """Modules by name, in the file's precision.

    Raises:
        InputError: keys that are no A or B of a linear, shapes that do not fit, NaN or infinity.
    """
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        match = _KEY.match(key)
        if "lora_embedding_" in key:
            raise InputError(
                f"{path}: key {key!r} adapts an embedding, which has no input to share an A for; "
                "retrain without embed_tokens in target_modules"
            )
        if match is None:
            raise InputError(f"{path}: key {key!r} is no LoRA A or B of a linear")
        tensor = checked(tensors[key], 2, key, path)
        name, part = match.groups()
        if part in pairs.setdefault(name, {}):
            raise InputError(f"{path}: {name} has two lora_{part}")
        pairs[name][part] = tensor
    if not pairs:
        raise InputError(f"{path}: holds no LoRA weights")
    modules: dict[str, Update] = {}
    for name, pair in pairs.items():
        if len(pair) < 2:
            missing = "B" if "A" in pair else "A"
            raise InputError(f"{path}: {name} has no lora_{missing}")
        a, b = pair["A"], pair["B"]
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise InputError(
                f"{path}: {name}: A {tuple(a.shape)} and B {tuple(b.shape)} do not fit; "
                "(rank, d_in) and (d_out, rank) are expected"
            )
        modules[name] = LoraModule(a, b, _scaling(name, a.shape[0], config))
    return modules


def _scaling(name: str, rank: int, config: dict[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (``peft.tuners.lora.LoraLayer.update_layer``)."""
    # Imported late: peft takes seconds, and the device side needs none of it.
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), name), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
