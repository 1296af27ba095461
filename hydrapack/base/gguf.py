"""A GGUF file as a base model: its weights, its description, and the 4-bit blocks it stores.

Formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, block layouts of ggml-common.h.
The values come through the package gguf, config and tokenizer through transformers.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hydrapack.support.errors import Invalid, NotFound
from hydrapack.support.extras import need

BLOCK = 32
"""Columns that share a scale and an offset in every 4-bit format taken over here."""
_PIECE = 1 << 20
"""Values that are dequantized together."""
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ARCHITECTURES = {
    "llama": MODULES,
    "qwen2": MODULES,
    "qwen3": {**MODULES, **_QK_NORMS},
    "gemma3": {**MODULES, **_QK_NORMS, **_GEMMA_NORMS},
}
"""By the file's architecture: its names of modules, and Hugging Face's."""
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Blocks:
    """A matrix as 4-bit blocks: value = scale * (level - 8) + offset, ``BLOCK`` columns a block."""

    levels: torch.Tensor
    """uint8 (d_out, d_in), from 0 to 15."""
    scales: torch.Tensor
    """float32 (d_out, d_in / BLOCK), not negative."""
    offsets: torch.Tensor
    """float32 (d_out, d_in / BLOCK)."""


class GgufModel:
    """The tensors of a GGUF file by their Hugging Face names."""

    def __init__(self, path: Path) -> None:
        """Open the file; nothing is read but its head.

        Raises:
            HydrapackError: missing, no GGUF, or of an architecture that is not supported.
        """
        gguf = need("gguf")
        if not path.is_file():
            raise NotFound(f"{path}: no such file")
        try:
            reader = gguf.GGUFReader(path)
            architecture = reader.fields["general.architecture"].contents()
        except (ValueError, KeyError, IndexError, OSError, TypeError) as error:
            raise Invalid(f"{path}: not a GGUF file, or a damaged one: {error}") from error
        if architecture not in ARCHITECTURES:
            raise Invalid(
                f"{path}: architecture {architecture!r} is not supported; of GGUF files hydrapack "
                f"exports {', '.join(ARCHITECTURES)}; of Hugging Face folders more"
            )
        if "gemma3.rope.scaling.factor" in reader.fields:
            # Of 4 B parameters and more; transformers passes it over.
            raise Invalid(f"{path}: gemma3 with rope scaling: give its Hugging Face folder")
        self.path, self.architecture = path, architecture
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            if (name := _hugging_face_name(tensor.name, ARCHITECTURES[architecture])) is not None:
                self._tensors[name] = tensor
        self._heads = {
            "q_proj": self._integer(reader, "attention.head_count"),
            "k_proj": self._integer(reader, "attention.head_count_kv"),
        }
        length = f"{architecture}.attention.key_length"
        self._head_dim = int(reader.fields[length].contents()) if length in reader.fields else None
        freqs = [t for t in reader.tensors if t.name == "rope_freqs.weight"]
        chat = reader.fields.get("tokenizer.chat_template")
        self._chat_template = str(chat.contents()) if chat else ""
        bos = reader.fields.get("tokenizer.ggml.add_bos_token")
        self._adds_bos = bool(bos and bos.contents())
        self._rope_factors = [float(x) for x in freqs[0].data] if freqs else None

    def _integer(self, reader: Any, key: str) -> int:
        field = reader.fields.get(f"{self.architecture}.{key}")
        if field is None and key == "attention.head_count_kv":
            return self._integer(reader, "attention.head_count")
        if field is None:
            raise Invalid(f"{self.path}: the key {self.architecture}.{key} is missing")
        return int(field.contents())

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str) -> torch.Tensor:
        """The tensor's values, float32, in the order of Hugging Face's rows.

        Raises:
            HydrapackError: a format that the package gguf cannot read.
        """
        gguf = need("gguf")
        tensor, data = self._tensors[name], self._data(name)
        found = torch.empty(tuple(map(int, reversed(tensor.shape))))
        try:
            # A few rows at a time: the package takes twice the memory of what it gives.
            step = max(1, _PIECE // found[0].numel())
            for i in range(0, len(data), step):
                found.numpy()[i : i + step] = gguf.dequantize(
                    data[i : i + step], tensor.tensor_type
                )
        except (NotImplementedError, ValueError) as error:
            kind = tensor.tensor_type.name
            raise Invalid(f"{self.path}: {name}: {kind} cannot be read: {error}") from error
        if self.architecture == "gemma3" and found.dim() == 1:
            # A norm's factor, of which Hugging Face's files have what is above 1.
            found = found - 1
        return self._in_order(name, found)

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's 4-bit blocks, or None where it is stored in another format."""
        tensor = self._tensors[name]
        split = {"Q4_0": _split_q4_0, "Q4_1": _split_q4_1, "Q4_K": _split_q4_k}
        kind = tensor.tensor_type.name
        if kind not in split:
            return None
        levels, scales, offsets = split[kind](self._data(name))
        parts = (levels, scales, offsets)
        return Blocks(*(self._in_order(name, torch.from_numpy(part)) for part in parts))

    def _data(self, name: str) -> np.ndarray:
        """The tensor's bytes, read: pages of a mapped file would stay in memory with the file."""
        data, offset = self._tensors[name].data, self._tensors[name].data_offset
        return np.fromfile(self.path, data.dtype, data.size, offset=offset).reshape(data.shape)

    def _in_order(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        # llama.cpp interleaves the halves of every head's q and k rows, for its rotation.
        target = name.split(".")[-2]
        if self.architecture != "llama" or target not in self._heads:
            return rows
        heads = self._heads[target]
        halves = rows.reshape(heads, -1, 2, *rows.shape[1:])
        return halves.transpose(1, 2).reshape(rows.shape).contiguous()

    def config(self) -> dict[str, Any]:
        """The content of a config.json, by transformers' reading of the file.

        Raises:
            HydrapackError: keys are missing.
        """
        transformers = need("transformers")
        try:
            read = transformers.AutoConfig.from_pretrained(
                self.path.parent, gguf_file=self.path.name
            )
        except Exception as error:  # transformers' errors are many
            raise Invalid(f"{self.path}: its description cannot be read: {error}") from error
        raw: dict[str, Any] = read.to_dict()
        if self._head_dim is not None:
            # transformers passes it over for some architectures.
            raw["head_dim"] = self._head_dim
        raw["tie_word_embeddings"] = "lm_head.weight" not in self
        if self._rope_factors is not None:
            # transformers leaves out this tensor, in which llama.cpp keeps Llama 3's rope scaling:
            # a divisor for each frequency, as longrope has them.
            raw["rope_parameters"] = {
                "rope_type": "longrope",
                "rope_theta": read.rope_parameters["rope_theta"],
                "short_factor": self._rope_factors,
                "long_factor": self._rope_factors,
                "factor": 1.0,
            }
        return raw

    def chat_template(self) -> str:
        """Jinja of the file's chat template; empty if it has none."""
        return self._chat_template

    def tokenizer(self) -> bytes:
        """The file's tokenizer as the content of a tokenizer.json.

        Raises:
            HydrapackError: transformers cannot read it.
        """
        transformers = need("transformers")
        with tempfile.TemporaryDirectory() as scratch:
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self.path.parent, gguf_file=self.path.name
                )
                # transformers passes over what the file says of it.
                if self._adds_bos:
                    tokenizer.add_bos_token = True
                tokenizer.save_pretrained(scratch)
                return (Path(scratch) / "tokenizer.json").read_bytes()
            except Exception as error:  # transformers' errors are many
                raise Invalid(f"{self.path}: its tokenizer cannot be read: {error}") from error


def save_as_folder(gguf: Path, target: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write any GGUF file that transformers reads as a Hugging Face folder, dequantized.

    Args:
        gguf: the file.
        target: a folder that is there.
        dtype: of the weights; float32 is what the file's blocks say, without a second rounding.

    Raises:
        HydrapackError: transformers cannot read the file, or would leave out a part of it.
    """
    transformers = need("transformers")
    reader = need("gguf").GGUFReader(gguf)
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise Invalid(
            f"{gguf}: transformers leaves out its rope_freqs.weight, Llama 3's rope scaling: take "
            "the model from the hub"
        )
    named = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**named)
        model = transformers.AutoModelForCausalLM.from_pretrained(**named, dtype=dtype)
    except Exception as error:  # transformers' errors are many
        raise Invalid(f"{gguf}: transformers cannot read it: {error}") from error
    # The weights are dequantized: a config that still names the GGUF quantizer cannot be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _hugging_face_name(name: str, modules: dict[str, str]) -> str | None:
    if name in TOP:
        return TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in modules:
        return f"model.layers.{parts[1]}.{modules[parts[2]]}.{parts[3]}"
    return None


def _half(data: np.ndarray) -> np.ndarray:
    """float32 of little-endian half-precision bytes (..., 2)."""
    return np.ascontiguousarray(data).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """The low and then the high half of each byte: (..., n) -> (..., 2 n)."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _split_q4_0(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of d (half) and 16 bytes: value = d * (level - 8); d has either sign."""
    blocks = data.reshape(len(data), -1, 18)
    d, levels = _half(blocks[..., :2]), _nibbles(blocks[..., 2:])
    # With a negative d: d * (level - 8) = |d| * ((15 - level) - 8) + |d|.
    levels = np.where(d[..., None] < 0, 15 - levels, levels).astype(np.uint8)
    return levels.reshape(len(data), -1), np.abs(d), np.where(d < 0, np.abs(d), 0)


def _split_q4_1(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of d, m (halves) and 16 bytes: value = d * level + m."""
    blocks = data.reshape(len(data), -1, 20)
    d, m, levels = _half(blocks[..., :2]), _half(blocks[..., 2:4]), _nibbles(blocks[..., 4:])
    levels = np.where(d[..., None] < 0, 15 - levels, levels).astype(np.uint8)
    offsets = np.where(d < 0, 7 * d + m, 8 * d + m)
    return levels.reshape(len(data), -1), np.abs(d), offsets


def _split_q4_k(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Super-blocks of 256: d, dmin (halves), 8 scales and 8 minima of 6 bits, 128 bytes.

    value = d * scale * level - dmin * minimum; each 32 bytes hold two blocks, low and high halves.
    """
    blocks = data.reshape(len(data), -1, 144)
    d, dmin = _half(blocks[..., :2])[..., None], _half(blocks[..., 2:4])[..., None]
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    levels = _nibbles(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    wide = (d * scales).astype(np.float32).reshape(len(data), -1)
    lowest = (dmin * minima).astype(np.float32).reshape(len(data), -1)
    levels = np.where(
        wide[..., None] < 0, 15 - levels.reshape(*wide.shape, 32), levels.reshape(*wide.shape, 32)
    ).astype(np.uint8)
    offsets = np.where(wide < 0, 7 * wide, 8 * wide) - lowest
    return levels.reshape(len(data), -1), np.abs(wide), offsets.astype(np.float32)
