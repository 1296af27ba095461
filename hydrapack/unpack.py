"""A bundle's heads as standard PEFT adapters, for whoever reads those."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save

from hydrapack.adapters.lora import CARD, CONFIG, WEIGHTS
from hydrapack.atomic import new_directory
from hydrapack.bundle import Bundle, BundleTask
from hydrapack.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LAYER = re.compile(r"\.\d+\.")


def unpack_task(bundle: Bundle, task: str, target: Path, dtype: str = "float32") -> None:
    """Write the task's merged adapter: A of the bundle, B of the task's heads, scaling 1.

    Raises:
        InputError: an unknown task or dtype, or an unwritable target.
    """
    found = _find(bundle, task)
    files = _adapter_files(bundle, found, dtype)
    with new_directory(target) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)


def unpack_all(bundle: Bundle, target: Path, dtype: str = "float32") -> None:
    """Write every task's merged adapter to ``target/<task>``.

    Raises:
        InputError: an unknown dtype, or an unwritable target.
    """
    with new_directory(target) as partial:
        for task in bundle.info.tasks:
            (partial / task.name).mkdir()
            for name, data in _adapter_files(bundle, task, dtype).items():
                (partial / task.name / name).write_bytes(data)


def _find(bundle: Bundle, task: str) -> BundleTask:
    for found in bundle.info.tasks:
        if found.name == task:
            return found
    known = ", ".join(t.name for t in bundle.info.tasks)
    raise InputError(f"--task {task}: not in the bundle; it has {known}")


def _adapter_files(bundle: Bundle, task: BundleTask, dtype: str) -> dict[str, bytes]:
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    tensors: dict[str, torch.Tensor] = {}
    for name, B in bundle.head(task).items():
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = bundle.A[name].to(DTYPES[dtype])
        tensors[f"{key}B.weight"] = B.to(DTYPES[dtype])
    if not all(t.isfinite().all() for t in tensors.values()):
        raise InputError(f"--dtype {dtype}: task {task.name!r} has values beyond it; take float32")
    rank = bundle.info.rank
    config = {
        "base_model_name_or_path": bundle.info.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": target_modules(bundle.info.modules),
        "task_type": "CAUSAL_LM",
    }
    return {
        CONFIG: _json(config),
        WEIGHTS: save(
            {k: v.contiguous() for k, v in sorted(tensors.items())}, metadata={"format": "pt"}
        ),
        CARD: _json(task.card.model_dump()),
    }


def target_modules(names: list[str]) -> list[str]:
    """What PEFT's config names: the linears' own names where every layer has them all.

    PEFT adapts every linear whose name ends so; full names where that would be too many.
    """
    layers: dict[str, set[str]] = {}
    for name in names:
        layers.setdefault(_LAYER.sub(".*.", name), set()).add(name)
    count = {len(group) for group in layers.values()}
    if len(count) == 1 and all(_LAYER.search(name) for name in names):
        return sorted({name.rsplit(".", 1)[1] for name in names})
    return sorted(names)


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode()
