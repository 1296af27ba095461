"""A bundle's heads as standard PEFT adapters, for whoever reads those."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save

from hydrapack.adapters.read import CARD, CONFIG, WEIGHTS
from hydrapack.atomic import new_directory
from hydrapack.bundle import Bundle, BundleTask
from hydrapack.errors import InputError
from hydrapack.merge.module import MergedVera
from hydrapack.threads import one_thread

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LAYER = re.compile(r"\.\d+\.")


@one_thread()
def unpack_task(bundle: Bundle, task: str, target: Path, dtype: str = "float32") -> None:
    """Write the task's merged adapter: A of the bundle, B of the task's heads, scaling 1.

    Raises:
        InputError: an unknown task or dtype, or an unwritable target.
    """
    found = bundle.info.task(task)
    files = _adapter_files(bundle, found, dtype)
    with new_directory(target) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)


@one_thread()
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


def _adapter_files(bundle: Bundle, task: BundleTask, dtype: str) -> dict[str, bytes]:
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    kind, rank = bundle.info.adapter_type.upper(), bundle.info.rank
    tensors = _vera_tensors(bundle, task) if kind == "VERA" else _lora_tensors(bundle, task)
    tensors = {key: tensors[key].to(DTYPES[dtype]).contiguous() for key in sorted(tensors)}
    if not all(t.isfinite().all() for t in tensors.values()):
        raise InputError(f"--dtype {dtype}: task {task.name!r} has values beyond it; take float32")
    own: dict[str, object] = (
        {"d_initial": 0.1, "projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0}
        if kind == "VERA"
        else {"init_lora_weights": True, "lora_alpha": rank, "lora_dropout": 0.0}
    )
    config = {
        "base_model_name_or_path": bundle.info.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind,
        "r": rank,
        "target_modules": target_modules(bundle.info.modules),
        "task_type": "CAUSAL_LM",
        **own,
    }
    return {
        CONFIG: _json(config),
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        CARD: _json(task.card.model_dump()),
    }


def _lora_tensors(bundle: Bundle, task: BundleTask) -> dict[str, torch.Tensor]:
    """A and B by PEFT's keys; a module of lower rank gets rows of zeros, for one rank in all."""
    tensors: dict[str, torch.Tensor] = {}
    for name, B in bundle.head(task).items():
        A = bundle.modules[name].shared()
        missing = bundle.info.rank - A.shape[0]
        key = f"base_model.model.{name}.lora_"
        tensors[f"{key}A.weight"] = torch.nn.functional.pad(A, (0, 0, 0, missing))
        tensors[f"{key}B.weight"] = torch.nn.functional.pad(B, (0, missing))
    return tensors


def _vera_tensors(bundle: Bundle, task: BundleTask) -> dict[str, torch.Tensor]:
    """d, b and the frozen projections by the keys of ``peft.tuners.vera``."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, module), head in zip(bundle.modules.items(), task.route, strict=True):
        if not isinstance(module, MergedVera):
            continue
        key = f"base_model.model.{name}.vera_lambda_"
        tensors[f"{key}d"], tensors[f"{key}b"] = module.d, module.heads[head]
        widest = tensors.get("base_model.vera_B", module.B)
        tensors["base_model.vera_A"] = module.A
        tensors["base_model.vera_B"] = module.B if len(module.B) > len(widest) else widest
    return tensors


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
