"""The tensors of a PEFT VeRA adapter (``peft.tuners.vera``): d and b by module, A and B once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import bare_key, checked
from hydrapack.adapters.peft_config import CONFIG
from hydrapack.adapters.update import Update, VeraModule
from hydrapack.support.errors import Invalid

_KEY = re.compile(r"^(.+)\.vera_lambda_([bd])(?:\.[^.]+)?$")
_LAYERS = re.compile(r"\.\d+\.")
_READS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), ("o_proj", "down_proj")
    ),
    "o_proj": ("q_proj",),
    "down_proj": ("gate_proj", "up_proj"),
}
_PROJECTION = re.compile(r"^(?:base_model\.)?vera_([AB])(?:\.[^.]+)?$")


def read_vera(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], path: Path
) -> dict[str, Update]:
    """Modules by name.

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
    if A.shape[0] != config.get("r", 256):
        raise Invalid(
            f"{path}: vera_A has rank {A.shape[0]}, r in {CONFIG} is {config.get('r', 256)}; put "
            "back the configuration that the adapter was saved with"
        )
    widths = input_widths({name: len(pair["b"]) for name, pair in vectors.items()}, A.shape[1])
    return {
        name: VeraModule(pair["d"], pair["b"], A[:, : widths[name]], B[: len(pair["b"])])
        for name, pair in vectors.items()
    }


def input_widths(outputs: Mapping[str, int], widest: int) -> dict[str, int]:
    """d_in of each module, from the d_out of all; PEFT saves the widest alone, as A's columns.

    In a decoder o reads what q writes, down what gate and up write, and the others what o and down
    write. The widest stands where such a module is not adapted, and for all where they do not fit.
    """
    writes: dict[tuple[str, str], int] = {}
    places = {name: (_LAYERS.split(name, 1)[0], name.rsplit(".", 1)[-1]) for name in outputs}
    fits = all(writes.setdefault(places[name], d_out) == d_out for name, d_out in outputs.items())
    found = {
        name: next((writes[stack, s] for s in _READS.get(leaf, ()) if (stack, s) in writes), widest)
        for name, (stack, leaf) in places.items()
    }
    return found if fits and max(found.values()) == widest else dict.fromkeys(outputs, widest)
