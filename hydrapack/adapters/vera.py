"""The tensors of a PEFT VeRA adapter (``peft.tuners.vera``): d and b by module, A and B once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import bare_key, checked
from hydrapack.adapters.peft_config import CONFIG
from hydrapack.adapters.update import Update, VeraModule
from hydrapack.support.errors import Invalid

_KEY = re.compile(r"^(.+)\.vera_lambda_([bd])(?:\.[^.]+)?$")
_PROJECTION = re.compile(r"^(?:base_model\.)?vera_([AB])(?:\.[^.]+)?$")


def read_vera(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], path: Path
) -> dict[str, Update]:
    """Modules by name; the widest d_in stands for all, which PEFT does not save.

    Raises:
        HydrapackError: no saved projections, or keys and shapes that do not fit.
    """
    projection: dict[str, torch.Tensor] = {}
    vectors: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        if match := _PROJECTION.match(bare_key(key)):
            projection[match[1]] = checked(tensors[key], 2, key, path)
        elif match := _KEY.match(bare_key(key)):
            vectors.setdefault(match[1], {})[match[2]] = checked(tensors[key], 1, key, path)
        else:
            raise Invalid(f"{path}: key {key!r} is no VeRA vector or projection")
    if set(projection) != {"A", "B"}:
        raise Invalid(
            f"{path}: has no vera_A and vera_B; save the adapter with save_projection=True "
            f"(save_projection in adapter_config.json is {config.get('save_projection')})"
        )
    if not vectors:
        raise Invalid(f"{path}: holds no VeRA vectors")
    A, B = projection["A"], projection["B"]
    modules: dict[str, Update] = {}
    for name, pair in vectors.items():
        if set(pair) != {"b", "d"}:
            missing = "b" if "d" in pair else "d"
            raise Invalid(f"{path}: {name} has no vera_lambda_{missing}")
        d, b = pair["d"], pair["b"]
        if len(d) != A.shape[0] or len(d) != B.shape[1] or len(b) > B.shape[0]:
            raise Invalid(
                f"{path}: {name}: d {tuple(d.shape)} and b {tuple(b.shape)} do not fit vera_A "
                f"{tuple(A.shape)} and vera_B {tuple(B.shape)}"
            )
        bound = 1.0
        for tensor in (d, b, A, B):
            bound *= max(float(tensor.abs().max().double()), 1.0) if tensor.numel() else 1.0
        if not bound * len(d) * len(b) < torch.finfo(torch.float32).max:
            raise Invalid(f"{path}: {name}: its update exceeds single precision; retrain it")
        modules[name] = VeraModule(d, b, A, B[: len(b)])
    if A.shape[0] != config.get("r", 256):
        raise Invalid(
            f"{path}: vera_A has rank {A.shape[0]}, r in {CONFIG} is {config.get('r', 256)}; put "
            "back the configuration that the adapter was saved with"
        )
    return modules
