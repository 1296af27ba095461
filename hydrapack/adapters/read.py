"""PEFT adapter directories: adapter_config.json, adapter_model.safetensors and, ours, task.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.lora import read_lora
from hydrapack.adapters.task_card import TaskCard
from hydrapack.adapters.vera import read_vera
from hydrapack.errors import InputError
from hydrapack.prompts import check_template
from hydrapack.schema import read_model

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "task.json"
READERS = {"LORA": read_lora, "VERA": read_vera}


def read_adapter(folder: Path, task: str) -> Adapter:
    """The LoRA or VeRA adapter that PEFT saved in ``folder``.

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
    kind = config["peft_type"].upper()
    modules = READERS[kind](tensors, config, path)
    ranks = [m.A.shape[0] for m in modules.values()]
    return Adapter(
        task=task,
        kind=kind,
        folder=folder,
        base_model=str(config.get("base_model_name_or_path") or ""),
        rank=max(ranks),
        alpha=float(config.get("lora_alpha", 8)) if kind == "LORA" else float(max(ranks)),
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
    if kind not in READERS:
        raise InputError(f"{path}: peft_type is {kind or 'missing'}; only LORA and VERA are read")
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


def _read_card(folder: Path) -> TaskCard:
    path = folder / CARD
    if not path.exists():
        return TaskCard()
    card = read_model(path, TaskCard)
    check_template(card.prompt_template, f"{path}: prompt_template")
    return card
