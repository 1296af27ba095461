"""PEFT LoRA directories: adapter_config.json, adapter_model.safetensors and, ours, task.json."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hydrapack.adapters.task_card import TaskCard
from hydrapack.errors import InputError
from hydrapack.prompts import check_template
from hydrapack.schema import read_model

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "task.json"
# Older PEFT wrote the adapter's name ("default") into the key.
_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$")


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear: the update is ``scaling`` * B @ A.

    A is float32 (rank, d_in), B float32 (d_out, rank); rank 0 stands for no update.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the linear."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]

    def scaled_b(self) -> torch.Tensor:
        """B with the scaling folded in, float64 (d_out, rank)."""
        return self.B.double() * self.scaling


@dataclass(frozen=True)
class LoraAdapter:
    """A task's adapter: ``modules`` by the linear's name in the base model."""

    task: str
    folder: Path
    base_model: str
    rank: int
    alpha: float
    digest: str
    modules: dict[str, LoraModule]
    card: TaskCard = field(default_factory=TaskCard)

    @property
    def parameters(self) -> int:
        """Values in all A and B."""
        return sum(m.A.numel() + m.B.numel() for m in self.modules.values())


def read_adapter(folder: Path, task: str) -> LoraAdapter:
    """The LoRA adapter that PEFT saved in ``folder``.

    Raises:
        InputError: not an adapter folder, an adapter of another kind (DoRA, modules_to_save, bias,
            embeddings), truncated or non-finite weights, or a key that has no counterpart.
    """
    config = _read_config(folder)
    _refuse_unsupported(config, folder / CONFIG)
    path = folder / WEIGHTS
    if not path.exists():
        if (folder / "adapter_model.bin").exists():
            raise InputError(
                f"{folder / 'adapter_model.bin'}: pickled weights are not read; load the adapter "
                "with PeftModel.from_pretrained and save it again with save_pretrained, which "
                f"writes {WEIGHTS}"
            )
        raise InputError(f"{path}: missing; {folder} is not a complete PEFT adapter")
    try:
        data = path.read_bytes()
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: corrupt or truncated safetensors: {error}") from error
    modules = _modules(tensors, config, path)
    return LoraAdapter(
        task=task,
        folder=folder,
        base_model=str(config.get("base_model_name_or_path") or ""),
        rank=max(m.rank for m in modules.values()),
        alpha=float(config.get("lora_alpha", 8)),
        digest=hashlib.sha256(data).hexdigest(),
        modules=modules,
        card=_read_card(folder),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir() or not path.exists():
        raise InputError(
            f"{folder}: not an adapter folder, it has no {CONFIG}; give the folder that PEFT's "
            "save_pretrained wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object")
    return config


def _refuse_unsupported(config: dict[str, Any], path: Path) -> None:
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind or 'missing'}; only LORA is read")
    refused = {
        "use_dora": "DoRA's magnitudes have no place in a shared A; retrain with use_dora=False",
        "modules_to_save": "whole saved modules are not merged; retrain without modules_to_save",
        "fan_in_fan_out": "transposed (Conv1D) linears are not supported",
        "trainable_token_indices": "trained embeddings are not merged",
        "layer_replication": "replicated layers are not supported",
        "target_parameters": "LoRA on parameters is not supported",
    }
    for key, why in refused.items():
        if config.get(key):
            raise InputError(f"{path}: {key} = {json.dumps(config[key])}: {why}")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise InputError(f"{path}: trained biases are not merged; retrain with bias='none'")
    for key, kinds in (
        ("lora_alpha", (int, float)),
        ("rank_pattern", dict),
        ("alpha_pattern", dict),
    ):
        if not isinstance(config.get(key, kinds() if kinds is dict else 8), kinds):
            raise InputError(f"{path}: {key} has the wrong type: {config[key]!r}")


def _modules(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], path: Path
) -> dict[str, LoraModule]:
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        match = _KEY.match(key)
        if match is None:
            raise InputError(f"{path}: key {key!r} is no LoRA A or B of a linear")
        tensor = tensors[key]
        if not tensor.is_floating_point() or tensor.dim() != 2:
            raise InputError(f"{path}: key {key!r} is not a floating-point matrix")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: key {key!r} holds NaN or infinity; retrain or re-save it")
        name, part = match.groups()
        if part in pairs.setdefault(name, {}):
            raise InputError(f"{path}: {name} has two lora_{part}")
        pairs[name][part] = tensor.float()
    if not pairs:
        raise InputError(f"{path}: holds no LoRA weights")
    modules = {}
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


def _read_card(folder: Path) -> TaskCard:
    path = folder / CARD
    if not path.exists():
        return TaskCard()
    card = read_model(path, TaskCard)
    check_template(card.prompt_template, f"{path}: prompt_template")
    return card
