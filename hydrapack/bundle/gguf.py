"""A task's LoRA as a GGUF file of llama.cpp, as its convert_lora_to_gguf.py writes one.

https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hydrapack.bundle.format import Bundle, BundleTask
from hydrapack.program.layout import FUSED
from hydrapack.support.errors import Invalid, Mismatch, NotFound
from hydrapack.support.extras import need

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
"""By transformers' model_type: GGUF's general.architecture."""


def described(model: str | Path | None) -> Any:
    """The base's configuration, as transformers reads it.

    Args:
        model: its folder or config.json, or a GGUF file.

    Raises:
        HydrapackError: none given, missing, not readable, or of another architecture.
    """
    if model is None:
        raise Invalid("`model`: gguf needs the base: its folder, config.json or GGUF file")
    path, file = Path(model), None
    if not path.exists():
        raise NotFound(f"{path}: no such file")
    if path.suffix == ".gguf":
        path, file = path.parent, path.name
    try:
        config = need("transformers").AutoConfig.from_pretrained(path, gguf_file=file)
    except Exception as error:  # transformers' errors are many
        why = " ".join(str(error).split())
        raise Invalid(f"{model}: no model's description can be read: {why}") from error
    if config.model_type not in ARCHITECTURES:
        raise Invalid(
            f"{model}: model_type {config.model_type!r} is not supported as gguf, only "
            f"{', '.join(ARCHITECTURES)}: take peft, and llama.cpp's convert_lora_to_gguf.py"
        )
    return config


def tensors(bundle: Bundle, task: BundleTask, base: Any) -> dict[str, torch.Tensor]:
    """A (rank, d_in) and B (d_out, rank) of the modules that the task adapts, by GGUF name.

    Raises:
        HydrapackError: modules that ``base`` has not, or not of that size.
    """
    gguf = need("gguf")
    name = ARCHITECTURES[base.model_type]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], base.num_hidden_layers)
    heads = {"q_proj": base.num_attention_heads, "k_proj": base.num_key_value_heads}
    found: dict[str, torch.Tensor] = {}
    for module, (A, B) in bundle.factors(task, bundle.info.rank).items():
        target = module.rsplit(".", 1)[-1]
        stored = names.get_name(module)
        if stored is None or not _is_stored(target, base):
            raise Mismatch(f"{module}: a GGUF file of `model` has no such matrix; take peft")
        wide = len(B) if target in ("o_proj", "down_proj") else A.shape[1]
        fits = wide == base.hidden_size
        if name == "llama" and target in heads:
            fits &= len(B) == heads[target] * base.head_dim
            B = _interleaved(B, heads[target]) if fits else B
        if not fits:
            raise Mismatch(f"{module}: {len(B)} x {A.shape[1]} is another size than `model` has")
        found[f"{stored}.weight.lora_a"], found[f"{stored}.weight.lora_b"] = A, B
    return found


def _is_stored(target: str, base: Any) -> bool:
    """Whether the file has the linear as it is, not as a part of another or made of others."""
    target = target.removesuffix("_proj")
    if any(target in parts for parts in FUSED.values()):
        return base.model_type != "phi3"
    if target in FUSED:
        return base.model_type == "phi3"
    return target in ("o", "down") or (target == "lm_head" and not base.tie_word_embeddings)


def _interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows in llama.cpp's order: the halves of every head's take turns, for its rotation."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def write(path: Path, tensors: dict[str, torch.Tensor], base: Any, rank: int) -> None:
    """Write the file; alpha is the rank, so that llama.cpp scales by 1."""
    gguf = need("gguf")
    kinds = gguf.GGMLQuantizationType
    types = {torch.float32: kinds.F32, torch.float16: kinds.F16, torch.bfloat16: kinds.BF16}
    writer = gguf.GGUFWriter(path, ARCHITECTURES[base.model_type])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=types[tensor.dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
