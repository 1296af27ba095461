"""PEFT adapter directories: adapter_config.json, adapter_model.safetensors and, ours, task.json."""

from __future__ import annotations

import re
from pathlib import Path

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.files import Weights, check_folder, read_weights
from hydrapack.adapters.lora import read_lora
from hydrapack.adapters.peft_config import read_config
from hydrapack.adapters.prompt import check_template
from hydrapack.adapters.task_settings import TASK_FILE, Source, TaskSettings
from hydrapack.adapters.update import LoraModule, StoredLora, Update
from hydrapack.adapters.vera import read_vera
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.schema import read_model

# <cache>/models--<owner>--<name>/snapshots/<commit>
_SNAPSHOT = re.compile(r".*/models--([^/]+)/snapshots/([0-9a-f]{40})(/.+)?")
READERS = {"LORA": read_lora, "VERA": read_vera}


def read_adapter(folder: Path, task: str) -> Adapter:
    """The LoRA or VeRA adapter that PEFT saved in ``folder``; docs/adapters.md has what is taken.

    Raises:
        HydrapackError: not an adapter folder, an adapter of another kind or with a key that changes
            the arithmetic, truncated or non-finite weights, or a key that has no counterpart.
    """
    check_folder(folder)
    config = read_config(folder)
    weights = read_weights(folder)
    kind = config["peft_type"].upper()
    modules = READERS[kind](weights.tensors, config, weights.path)
    ranks = [m.A.shape[0] for m in modules.values()]
    revision = config.get("revision") or ""
    return Adapter(
        task=task,
        kind=kind,
        folder=folder,
        base_model=config.get("base_model_name_or_path") or "",
        rank=max(ranks),
        alpha=float(config.get("lora_alpha", 8)) if kind == "LORA" else float(max(ranks)),
        digest=weights.digest,
        modules=_in_file(modules, weights),
        settings=_with_source(_read_settings(folder), folder),
        task_type=config.get("task_type"),
        revision="" if revision == "main" else revision,
    )


def _in_file(modules: dict[str, Update], weights: Weights) -> dict[str, Update]:
    """The modules with LoRA's matrices left in their file."""
    keys = {id(tensor): key for key, tensor in weights.tensors.items()}
    return {
        name: StoredLora(
            weights.places[keys[id(module.A)]], weights.places[keys[id(module.B)]], module.scaling
        )
        if isinstance(module, LoraModule)
        else module
        for name, module in modules.items()
    }


def _with_source(settings: TaskSettings, folder: Path) -> TaskSettings:
    """With the hub's address and commit, where the folder lies in the hub's cache."""
    found = _SNAPSHOT.fullmatch(folder.resolve().as_posix())
    if settings.source is not None or found is None:
        return settings
    name, commit, inner = found.groups()
    url = f"https://huggingface.co/{name.replace('--', '/')}"
    url += f"/tree/{commit}{inner}" if inner else ""
    return settings.model_copy(update={"source": Source(url=url, revision=commit)})


def _read_settings(folder: Path) -> TaskSettings:
    path = folder / TASK_FILE
    if not path.exists():
        return TaskSettings()
    try:
        settings = read_model(path, TaskSettings)
    except HydrapackError as error:
        raise Invalid(
            f"{error}; {TASK_FILE} beside an adapter holds hydrapack's settings of the task "
            "(prompt_template, stop, language, ...): rename or remove another tool's"
        ) from error
    check_template(settings.prompt_template, f"{path}: prompt_template")
    return settings
