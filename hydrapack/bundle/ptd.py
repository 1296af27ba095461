"""A task's LoRA as ExecuTorch's ``.ptd``, for a program that takes it as inputs.

Names, order and shapes are those of ExecuTorch 1.5.1's own Llama with static attention
(``lora_call`` in examples/models/llama/lora.py, https://github.com/pytorch/executorch/pull/19953),
the list of keys is that of https://github.com/pytorch/executorch/pull/19725. Its runner binds the
tensors to inputs by their order in the file: every file has every module, at one rank.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hydrapack.bundle.format import Bundle, BundleTask
from hydrapack.program.layout import FUSED, layout_of, module_name
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.schema import write_json
from hydrapack.support.stored_tensor import bytes_of

KEYS = "model.lora_keys.json"
_NAMES = {
    "q": "attention.wqs.0",
    "k": "attention.wks.0",
    "v": "attention.wvs.0",
    "o": "attention.wo",
    "gate": "feed_forward.w1",
    "down": "feed_forward.w2",
    "up": "feed_forward.w3",
}
"""By target, ExecuTorch's name in a layer, in the order of its modules."""


def tensors(bundle: Bundle, task: BundleTask) -> dict[str, torch.Tensor]:
    """A (rank, d_in) and B (d_out, rank) of all modules, by key, in the order of the file.

    Raises:
        HydrapackError: modules that ExecuTorch's Llama has not, or some layers without one.
    """
    layout = layout_of(bundle.shapes, bundle.info.rank)
    missing = [*layout.missing(bundle.modules)]
    fused = [f"{target}_proj" for target in layout.targets if target in FUSED]
    if missing or fused:
        why = f"no layer may lack {missing[0]}" if missing else f"has no fused {fused[0]}"
        raise Invalid(f"`format` ptd: {why}; take peft")
    factors = bundle.factors(task, bundle.info.rank, all=True)
    found: dict[str, torch.Tensor] = {}
    for layer in range(layout.layers):
        for target, name in _NAMES.items():
            if target in layout.targets:
                key = f"layers.{layer}.{name}"
                found[f"{key}.lora_a"], found[f"{key}.lora_b"] = factors[module_name(layer, target)]
    return found


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the file and, beside it, the list of its modules."""
    flat = need("executorch.extension.flat_tensor.serialize.serialize", "device")
    data = need("executorch.exir._serialize.data_serializer", "device")
    layout = need("executorch.exir.tensor_layout", "device").TensorLayout
    scalar_type = need("executorch.exir.tensor", "device").scalar_type_enum
    entries = {
        key: data.DataEntry(index, 1, layout(scalar_type(t.dtype), list(t.shape), [0, 1]))
        for index, (key, t) in enumerate(tensors.items())
    }
    buffers = [bytes(bytes_of(t)) for t in tensors.values()]
    payload = data.DataPayload(buffers, entries)
    path.write_bytes(bytes(flat.FlatTensorSerializer().serialize(payload)))
    modules = [key.removesuffix(".lora_a") for key in tensors if key.endswith(".lora_a")]
    write_json(path.parent / KEYS, modules)
