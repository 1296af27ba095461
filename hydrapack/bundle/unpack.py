"""A bundle's heads as adapters of their own: PEFT's, ExecuTorch's .ptd or llama.cpp's GGUF."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from hydrapack.adapters.files import WEIGHTS
from hydrapack.adapters.peft_config import CONFIG
from hydrapack.adapters.task_settings import TASK_FILE, TaskSettings
from hydrapack.bundle import gguf, ptd
from hydrapack.bundle.format import Bundle, BundleTask
from hydrapack.bundle.merged import Merged, MergedVera, frozen
from hydrapack.support.atomic import new_directory
from hydrapack.support.errors import Invalid
from hydrapack.support.schema import json_text
from hydrapack.support.threads import one_thread

FORMATS = ("peft", "ptd", "gguf")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


@one_thread()
def unpack(
    bundle: Bundle | str | Path,
    target: str | Path,
    task: str | None = None,
    dtype: str = "float32",
    format: str = "peft",
    model: str | Path | None = None,
) -> dict[str, Path]:
    """Write merged adapters apart: A of the bundle, B of a task's heads, scaling 1.

    Args:
        bundle: a merge, or the directory that one was saved to.
        target: the directory to write. PEFT: the task's own, or with no task one for each in it.
            Else it has a file ``TASK.ptd`` or ``TASK.gguf`` for each task.
        task: the one to write; all of them by default.
        dtype: float32, float16 or bfloat16.
        format: ``peft``, ``ptd`` (ExecuTorch's LoRA as inputs, with ``model.lora_keys.json``) or
            ``gguf`` (llama.cpp's LoRA); docs/bundle.md says what they hold.
        model: for gguf, the base: its folder, its config.json or a GGUF file.

    Returns:
        the folder or file of each task written.

    Raises:
        HydrapackError: an unknown task, dtype or format, values that the dtype cannot hold, what
            the format cannot hold, another base's ``model``, or an unwritable target.

    >>> sorted(hydrapack.unpack("bundle", "unpacked"))
    ['grammar', 'qa']
    """
    bundle, target = Bundle.of(bundle), Path(target)
    for name, value, known in (("dtype", dtype, DTYPES), ("format", format, FORMATS)):
        if value not in known:
            raise Invalid(f"`{name}` {value}: choose one of {', '.join(known)}")
    if format != "peft" and bundle.info.adapter_type != "lora":
        raise Invalid(f"`format` {format}: holds LoRA alone, these tasks are VeRA: take peft")
    base = gguf.described(model) if format == "gguf" else None
    tasks = bundle.info.tasks if task is None else [bundle.info.task(task)]
    made = {one.name: f"{one.name}.{format}" for one in tasks}
    if format == "peft":
        made = {one.name: "" if task else one.name for one in tasks}
    with new_directory(target) as partial:
        for one in tasks:
            path = partial / made[one.name]
            if format == "peft":
                path.mkdir(exist_ok=True)
                _write(path, _adapter_files(bundle, one, dtype))
            elif format == "ptd":
                ptd.write(path, _stored(ptd.tensors(bundle, one), dtype, one))
            else:
                held = _stored(gguf.tensors(bundle, one, base), dtype, one)
                gguf.write(path, held, base, bundle.info.rank)
    return {name: target / file for name, file in made.items()}


@one_thread()
def new_adapter(bundle: Bundle | str | Path, target: str | Path) -> Path:
    """Write a PEFT folder to train a new task from: A of the bundle, B zero, scaling 1.

    Where A (of VeRA, d) stays as it is in training, and heads are whole, ``add`` takes the trained
    adapter without a merge error. PEFT has no option that freezes A: see docs/adapters.md.

    Args:
        bundle: a merge, or the directory that one was saved to.
        target: the folder to write.

    Raises:
        HydrapackError: an unreadable bundle or an unwritable target.

    >>> hydrapack.new_adapter("bundle", "translate").name
    'translate'
    """
    bundle, target = Bundle.of(bundle), Path(target)
    one = bundle.info.tasks[0]
    blank = one.model_copy(update={"settings": TaskSettings(), "route": [0] * len(bundle.modules)})
    modules: dict[str, Merged] = {
        name: replace(module, heads=torch.zeros_like(module.heads[:1]), scales=None, of=())
        for name, module in bundle.modules.items()
    }
    with new_directory(target) as partial:
        _write(partial, _adapter_files(replace(bundle, modules=modules), blank, "float32"))
    return target


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _stored(
    tensors: dict[str, torch.Tensor], dtype: str, task: BundleTask
) -> dict[str, torch.Tensor]:
    stored = {key: tensor.to(DTYPES[dtype]).contiguous() for key, tensor in tensors.items()}
    if not all(t.isfinite().all() for t in stored.values()):
        raise Invalid(f"`dtype` {dtype}: task {task.name!r} has values beyond it; take float32")
    return stored


def _adapter_files(bundle: Bundle, task: BundleTask, dtype: str) -> dict[str, bytes]:
    kind = bundle.info.adapter_type.upper()
    tensors = _vera_tensors(bundle, task) if kind == "VERA" else _lora_tensors(bundle, task)
    tensors = _stored({key: tensors[key] for key in sorted(tensors)}, dtype, task)
    config: dict[str, object] = {
        "base_model_name_or_path": bundle.info.base_model or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "peft_type": kind,
        "revision": bundle.info.base_revision or None,
        "task_type": task.task_type,
    }
    names = bundle.info.modules
    if kind == "VERA":
        config |= {"d_initial": 0.1, "projection_prng_key": 0, "save_projection": True}
        config |= {"r": bundle.info.rank, "vera_dropout": 0.0}
    else:
        names = [name for name in names if _key(name, "A") in tensors]
        config |= {"init_lora_weights": True, "lora_dropout": 0.0, "use_rslora": False}
        config |= _ranks({name: len(tensors[_key(name, "A")]) for name in names})
    config["target_modules"] = exactly(names)
    return {
        CONFIG: _json(config),
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        # What is written was not published there.
        TASK_FILE: _json(task.settings.model_copy(update={"source": None}).model_dump()),
    }


def _ranks(ranks: dict[str, int]) -> dict[str, object]:
    """r and, by full name, what differs from it; alpha is each module's rank, for scaling 1.

    Any release of PEFT takes a module's full name as a pattern.
    """
    common = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    odd = {name: rank for name, rank in ranks.items() if rank != common}
    return {"r": common, "lora_alpha": common, "rank_pattern": odd, "alpha_pattern": odd}


def _key(name: str, part: str) -> str:
    return f"base_model.model.{name}.lora_{part}.weight"


def _lora_tensors(bundle: Bundle, task: BundleTask) -> dict[str, torch.Tensor]:
    """A and B by PEFT's keys; without the modules that the task leaves alone (zero heads)."""
    kept = bundle.factors(task)
    # One rank for all where names alone would not tell two modules apart.
    if any(name.endswith(f".{other}") for name in kept for other in kept):
        kept = bundle.factors(task, bundle.info.rank)
    tensors: dict[str, torch.Tensor] = {}
    for name, (A, B) in kept.items():
        tensors[_key(name, "A")], tensors[_key(name, "B")] = A, B
    return tensors


def _vera_tensors(bundle: Bundle, task: BundleTask) -> dict[str, torch.Tensor]:
    """d, b and the frozen projections by the keys of ``peft.tuners.vera``."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, module), head in zip(bundle.modules.items(), task.route, strict=True):
        if not isinstance(module, MergedVera):
            continue
        key = f"base_model.model.{name}.vera_lambda_"
        tensors[f"{key}d"], tensors[f"{key}b"] = module.d, module.scaled_head(head)
    for part, matrix in frozen(bundle.modules.values()).items():
        tensors[f"base_model.vera_{part}"] = matrix
    return tensors


def exactly(names: list[str]) -> str:
    """The regular expression of PEFT's target_modules that matches these names and no others.

    A list would do by name endings, and so also name a vision tower's q_proj.
    """
    layers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = _LAYER.fullmatch(name)
        before, number, after = match.groups() if match else ("", "", name)
        layers.setdefault((before, after), []).append(number)
    same: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (before, after), numbers in sorted(layers.items()):
        own = tuple(sorted(numbers, key=lambda n: (len(n), n)))
        same.setdefault((before, own), []).append(re.escape(after))
    parts = []
    for (before, own), after in same.items():
        start = f"{re.escape(before)}\\.({'|'.join(own)})\\." if own != ("",) else ""
        parts.append(f"{start}({'|'.join(after)})")
    return "|".join(parts)


def _json(value: object) -> bytes:
    return json_text(value).encode()
