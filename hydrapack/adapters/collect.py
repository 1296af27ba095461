"""The adapters of one merge: ``DIR`` or ``NAME=DIR`` arguments, checked against each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.read import read_adapter
from hydrapack.adapters.update import VeraModule, same_projections
from hydrapack.support.errors import Invalid, Mismatch
from hydrapack.support.threads import in_parallel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Parts of names that come, go and change places as transformers renames a model's modules.
_RENAMED = ("language_model", "model", "text_model")


def read_adapters(
    adapters: Sequence[Adapter | str | Path], allow_base_mismatch: bool = False
) -> list[Adapter]:
    """The adapters of one merge; folders are read, adapters taken as they are.

    Args:
        adapters: PEFT folders, as ``DIR`` or ``NAME=DIR`` (the task's name is NAME, else the
            folder's), or adapters.

    Raises:
        HydrapackError: an unreadable adapter, a name given twice, adapters of different base models
            or revisions, with a module of different shapes, or with none in common.
    """
    found: list[Adapter] = []
    names: set[str] = set()
    for one, adapter in zip(adapters, in_parallel(_read, adapters), strict=True):
        if adapter.task in names:
            raise Invalid(
                f"{one if isinstance(one, str) else adapter.folder}: the task name "
                f"{adapter.task!r} is taken; give another as NAME=DIR"
            )
        if not adapter.modules:
            raise Invalid(f"{adapter.folder}: adapts no module")
        names.add(adapter.task)
        found.append(adapter)
    if not found:
        raise Invalid("no adapters given: a merge takes one or more")
    _check_together(found, allow_base_mismatch)
    return found


def _read(one: Adapter | str | Path) -> Adapter:
    if isinstance(one, Adapter):
        return one
    argument = str(one)
    task, separator, folder = argument.partition("=")
    if not separator or Path(argument).is_dir():
        task, folder = Path(argument).absolute().name, argument
    if not _NAME.fullmatch(task):
        raise Invalid(
            f"{argument}: {task!r} is no task name (letters, digits, '.', '_', '-'); "
            "give one as NAME=DIR"
        )
    return read_adapter(Path(folder), task)


def _check_together(adapters: list[Adapter], allow_base_mismatch: bool) -> None:
    first = adapters[0]
    shapes: dict[str, tuple[tuple[int, int], str]] = {}
    for adapter in adapters:
        if not allow_base_mismatch:
            check_base(adapter, first.base_model, first.revision, str(first.folder))
        check_kind(adapter, first.kind, str(first.folder))
        _check_projections(first, adapter)
        for name, module in adapter.modules.items():
            shape, task = shapes.setdefault(name, (module.shape, adapter.task))
            if shape != module.shape:
                raise Mismatch(
                    f"{adapter.folder}: {name} is {module.shape[0]} x {module.shape[1]}, in task "
                    f"{task!r} it is {shape[0]} x {shape[1]}: adapters of different models"
                )
    _check_names(adapters)


def check_base(adapter: Adapter, base_model: str, revision: str, whose: str) -> None:
    """Refuse an adapter of another base model or revision than what it is merged with.

    Raises:
        Mismatch: naming ``whose`` they are.
    """
    for what, key, own, other in (
        ("base model", "base_model_name_or_path", adapter.base_model, base_model),
        ("revision", "revision", adapter.revision or "main", revision or "main"),
    ):
        if own != other:
            raise Mismatch(
                f"different {what}s: {whose} has {other!r}, {adapter.folder} has {own!r} ({key} in "
                "adapter_config.json); `allow_base_mismatch` takes both"
            )


def check_kind(adapter: Adapter, kind: str, whose: str) -> None:
    """Refuse VeRA beside LoRA.

    Raises:
        Mismatch: naming ``whose`` kind it is.
    """
    if adapter.kind != kind:
        raise Mismatch(
            f"{adapter.folder}: peft_type is {adapter.kind}, that of {whose} is {kind}: LoRA and "
            "VeRA adapters do not merge with each other"
        )


def _check_names(adapters: list[Adapter]) -> None:
    """Refuse adapters that name one model's modules in two ways, or have none in common."""
    known: dict[str, tuple[str, Adapter]] = {}
    for adapter in adapters:
        for name in sorted(adapter.modules):
            short = ".".join(p for p in name.split(".") if p not in _RENAMED)
            other, owner = known.setdefault(short, (name, adapter))
            if other != name and other not in adapter.modules and name not in owner.modules:
                raise Mismatch(
                    f"{adapter.folder}: adapts {name}, {owner.folder} {other}: two names of one "
                    "module, as before and after transformers renamed those of multimodal models "
                    "(4.52), or of a bare model and a whole one, so nothing would be shared; load "
                    "one on the other's model with PEFT and save it again"
                )
    for adapter in adapters:
        rest = [other for other in adapters if other is not adapter]
        if rest and not any(set(adapter.modules) & set(other.modules) for other in rest):
            raise Mismatch(
                f"{adapter.folder}: has no module in common with the other adapters ("
                f"{min(adapter.modules)} is not in {rest[0].folder}), so nothing would be shared; "
                "leave it out of the merge"
            )


def _check_projections(first: Adapter, adapter: Adapter) -> None:
    one, other = (
        [(m.A, m.B) for m in a.modules.values() if isinstance(m, VeraModule)]
        for a in (first, adapter)
    )
    if one and other and not same_projections(one, other):
        raise Mismatch(
            f"{adapter.folder}: its vera_A and vera_B are not those of {first.folder}; VeRA "
            "adapters share them only when trained with one projection_prng_key, rank and set of "
            "target modules"
        )
