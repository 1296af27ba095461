"""A task's whole adapter, as read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from hydrapack.adapters.task_settings import TaskSettings
from hydrapack.adapters.update import Update
from hydrapack.support.errors import Invalid


@dataclass(frozen=True)
class Adapter:
    """A task's adapter: ``modules`` by the linear's name in the base model.

    LoRA's matrices stay in their file, which must lie there unchanged while the adapter is in use.

    >>> adapter = hydrapack.Adapter.load("adapters/grammar")
    >>> adapter.task, adapter.rank, len(adapter.modules)
    ('grammar', 4, 4)
    """

    task: str
    folder: Path
    base_model: str
    rank: int
    alpha: float
    digest: str
    modules: dict[str, Update]
    kind: str = "LORA"
    """``LORA`` or ``VERA``."""
    settings: TaskSettings = field(default_factory=TaskSettings)
    task_type: str | None = None
    """PEFT's, as CAUSAL_LM; None for a bare model's adapter."""
    revision: str = ""
    """Of the base model; empty for the main one."""

    @classmethod
    def load(cls, folder: str | Path, task: str | None = None) -> Adapter:
        """The LoRA or VeRA adapter that PEFT saved in ``folder``.

        Args:
            task: its name; the folder's by default.

        Raises:
            HydrapackError: not an adapter folder, or one that cannot be merged; says why.
        """
        from hydrapack.adapters.read import read_adapter

        return read_adapter(Path(folder), task or Path(folder).absolute().name)

    @property
    def parameters(self) -> int:
        """Values the adapter stores (VeRA: the common frozen A and B apart)."""
        return sum(module.values for module in self.modules.values())

    @property
    def bytes(self) -> int:
        """Of those values in the file's own precision."""
        return sum(m.bytes for m in self.modules.values())


WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, DistributedDataParallel, FSDP and checkpointing put into names."""


def bare_key(key: str) -> str:
    """A weight's key without PEFT's prefix and the names of wrappers, wherever they stand."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)


def checked(tensor: torch.Tensor, dimensions: int, key: str, path: Path) -> torch.Tensor:
    """``tensor``, if it is finite, floating-point and of so many dimensions.

    Raises:
        HydrapackError: it is not.
    """
    if not tensor.is_floating_point() or tensor.dim() != dimensions:
        kind = {1: "vector", 2: "matrix"}[dimensions]
        raise Invalid(f"{path}: key {key!r} is not a floating-point {kind}")
    if not torch.isfinite(tensor).all():
        raise Invalid(f"{path}: key {key!r} holds NaN or infinity; retrain or re-save it")
    return tensor
