"""What is read of a Hugging Face model's config.json, and which models the decoder takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydrapack.program.layout import Layout
from hydrapack.support.errors import HydrapackError, Invalid

SUPPORTED = ("llama", "qwen2")


@dataclass(frozen=True)
class LinearShapes:
    """Sizes of a decoder's linears, equal in all ``layers``."""

    layers: int
    dim: int
    attention: int
    """Columns of q's output: heads times their size."""
    key_value: int
    intermediate: int

    def linear(self, target: str) -> tuple[int, int]:
        """(d_out, d_in) of the linear named ``target`` (q, k, v, o, gate, up, down)."""
        return {
            "q": (self.attention, self.dim),
            "k": (self.key_value, self.dim),
            "v": (self.key_value, self.dim),
            "o": (self.dim, self.attention),
            "gate": (self.intermediate, self.dim),
            "up": (self.intermediate, self.dim),
            "down": (self.dim, self.intermediate),
        }[target]


@dataclass(frozen=True)
class DecoderConfig:
    """A Llama-family decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tied_embeddings: bool
    qkv_bias: bool
    max_position: int
    bos_id: int
    eos_ids: tuple[int, ...]

    def linear_shape(self, target: str) -> tuple[int, int]:
        """(d_out, d_in) of the linear named ``target`` (q, k, v, o, gate, up, down)."""
        attention, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = LinearShapes(self.layers, self.dim, attention, key_value, self.intermediate)
        return shapes.linear(target)

    def layout(self, targets: tuple[str, ...], rank: int) -> Layout:
        """The packing layout of adapters of ``rank`` on ``targets`` of this model."""
        shapes = tuple((name, self.linear_shape(name)) for name in targets)
        return Layout(layers=self.layers, rank=rank, shapes=shapes)


def read_config(folder: Path) -> DecoderConfig:
    """The decoder of the Hugging Face model in ``folder``.

    Raises:
        HydrapackError: no readable config.json, a missing key, or an architecture not supported.
    """
    path = folder / "config.json"
    return parse_config(_read(path), str(path))


def read_shapes(path: Path) -> LinearShapes:
    """The linears that the config.json at ``path`` describes, of any decoder.

    Raises:
        HydrapackError: not readable, or without the keys of a decoder.
    """
    raw = _read(path)
    with _described(str(path)):
        raw = raw.get("text_config", raw)
        heads, dim = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        head_dim = int(raw.get("head_dim") or dim // heads)
        key_value = int(raw.get("num_key_value_heads") or heads) * head_dim
        layers, intermediate = int(raw["num_hidden_layers"]), int(raw["intermediate_size"])
    if min(heads, dim, head_dim, layers, intermediate) < 1:
        raise Invalid(f"{path}: sizes must be above 0")
    return LinearShapes(layers, dim, heads * head_dim, key_value, intermediate)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(f"{path}: not a readable config.json: {error}") from error
    if not isinstance(raw, dict):
        raise Invalid(f"{path}: not a readable config.json: no JSON object")
    return raw


@contextmanager
def _described(where: str) -> Iterator[None]:
    """Name the key that is missing or of the wrong type."""
    try:
        yield
    except HydrapackError:
        raise
    except KeyError as error:
        raise Invalid(f"{where}: the key {error.args[0]!r} is missing") from error
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise Invalid(f"{where}: a value has the wrong type: {error}") from error


def parse_config(raw: dict[str, Any], where: str) -> DecoderConfig:
    """The decoder described by the content of a config.json; ``where`` names it in errors.

    Raises:
        HydrapackError: a missing key or an architecture not supported, named.
    """
    kind = raw.get("model_type")
    if kind not in SUPPORTED:
        raise Invalid(
            f"{where}: model_type {kind!r} is not supported. hydrapack exports "
            f"{' and '.join(SUPPORTED)} decoders (Llama 2 and 3.x, SmolLM2, TinyLlama, Qwen2 and "
            "2.5); not Gemma, Phi, Qwen3, Mixtral or other mixtures of experts"
        )
    for key, allowed in (("hidden_act", ("silu",)), ("mlp_bias", (False, None))):
        if raw.get(key, allowed[0]) not in allowed:
            raise Invalid(f"{where}: {key} = {raw[key]!r} is not supported")
    if raw.get("use_sliding_window"):
        raise Invalid(f"{where}: use_sliding_window is not supported")
    if kind == "llama" and raw.get("attention_bias"):
        raise Invalid(f"{where}: attention_bias with model_type 'llama' is not supported")
    with _described(where):
        heads = int(raw["num_attention_heads"])
        # Older files have rope_theta and rope_scaling, newer ones rope_parameters.
        rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
        theta = float(rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
        kind_of_rope = rope.get("rope_type", rope.get("type", "default"))
        if kind_of_rope not in ("default", "llama3", "linear", "factors"):
            raise Invalid(f"{where}: rope type {kind_of_rope!r} is not supported")
        eos = raw.get("eos_token_id")
        bos = raw.get("bos_token_id")
        return DecoderConfig(
            vocab_size=int(raw["vocab_size"]),
            dim=int(raw["hidden_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            intermediate=int(raw["intermediate_size"]),
            norm_eps=float(raw["rms_norm_eps"]),
            rope_theta=theta,
            rope_scaling=None if kind_of_rope == "default" else {**rope, "type": kind_of_rope},
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2",
            max_position=int(raw["max_position_embeddings"]),
            bos_id=-1 if bos is None else int(bos),
            eos_ids=tuple([] if eos is None else eos if isinstance(eos, list) else [int(eos)]),
        )


def rope_tables(config: DecoderConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each (length, head_dim / 2), with the config's rope scaling.

    The llama3 rule is that of ``transformers.modeling_rope_utils._compute_llama3_parameters``.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**half
    scaling = config.rope_scaling
    if scaling is not None and scaling["type"] == "linear":
        frequency = frequency / float(scaling["factor"])
    elif scaling is not None and scaling["type"] == "factors":
        # One divisor for each frequency, as a GGUF file stores Llama 3's scaling.
        frequency = frequency / torch.tensor(scaling["factors"], dtype=torch.float32)
    elif scaling is not None:
        factor = float(scaling["factor"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        original = float(scaling["original_max_position_embeddings"])
        wavelength = 2 * math.pi / frequency
        smooth = (original / wavelength - low) / (high - low)
        blend = (1 - smooth) * frequency / factor + smooth * frequency
        scaled = torch.where(wavelength > original / low, frequency / factor, frequency)
        medium = (wavelength <= original / low) & (wavelength >= original / high)
        frequency = torch.where(medium, blend, scaled)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()
