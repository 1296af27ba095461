"""What is read of a Hugging Face model's config.json, and which models the decoder takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hydrapack.program.layout import FUSED, Layout
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.extras import need

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of attention of a layer, by transformers' names."""
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Architecture:
    """What an architecture changes of Llama's decoder, beside the values of its config.json."""

    qkv_bias: bool = False
    qk_norms: bool = False
    """A norm over each head of q and of k, before the rotation."""
    post_norms: bool = False
    """Norms also after attention and after the MLP, before each is added to the stream."""
    norms_from_one: bool = False
    """A norm's factor is 1 + its stored weight."""
    scaled_embedding: bool = False
    """The embedding is multiplied by the root of its width."""
    fused: bool = False
    """One stored tensor holds q, k and v, another gate and up."""


_GEMMA = Architecture(post_norms=True, norms_from_one=True, scaled_embedding=True)
ARCHITECTURES = {
    "llama": Architecture(),
    "qwen2": Architecture(qkv_bias=True),
    "qwen3": Architecture(qk_norms=True),
    "gemma2": _GEMMA,
    "gemma3_text": replace(_GEMMA, qk_norms=True),
    "phi3": Architecture(fused=True),
}
"""By model_type; all of RMSNorm, rotary positions, grouped-query attention and a gated MLP."""
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_REFUSED = ("attention_bias", "mlp_bias", "use_bidirectional_attention")


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
        """(d_out, d_in) of the linear named ``target``, of ``layout.ORDER``."""
        if target in FUSED:
            parts = [self.linear(part) for part in FUSED[target]]
            return sum(d_out for d_out, _ in parts), parts[0][1]
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
    """A decoder of one of ``ARCHITECTURES``."""

    architecture: Architecture
    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    activation: str
    attention: tuple[str, ...]
    """Of each layer, ``FULL`` or ``SLIDING``."""
    window: int | None
    """Positions that a sliding layer sees, its own the last."""
    query_scale: float
    score_cap: float | None
    """Attention scores s become cap * tanh(s / cap)."""
    logit_cap: float | None
    """The same of logits."""
    tied_embeddings: bool
    max_position: int
    bos_id: int
    eos_ids: tuple[int, ...]
    described: Any = field(repr=False, compare=False)
    """The configuration as transformers reads it."""

    def linear_shape(self, target: str) -> tuple[int, int]:
        """(d_out, d_in) of the linear named ``target``, of ``layout.ORDER``."""
        attention, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = LinearShapes(self.layers, self.dim, attention, key_value, self.intermediate)
        return shapes.linear(target)

    @property
    def targets(self) -> tuple[str, ...]:
        """The linears of attention, as adapters of the model name them."""
        return ("qkv", "o") if self.architecture.fused else ("q", "k", "v", "o")

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

    What the file leaves out is as transformers has it.

    Raises:
        HydrapackError: a missing key or an architecture not supported, named.
    """
    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise Invalid(
            f"{where}: model_type {kind!r} is not supported. hydrapack exports "
            f"{', '.join(ARCHITECTURES)} (Llama 2 and 3, SmolLM2, TinyLlama, Qwen 2, 2.5 and 3, "
            "Gemma 2, Gemma 3 for text, Phi 3 and 3.5); no mixtures of experts"
        )
    with _described(where):
        for key in _REQUIRED:
            raw[key]
        found = _by_transformers(raw, where)
        heads = found.num_attention_heads
        head_dim = getattr(found, "head_dim", None) or found.hidden_size // heads
        kv_heads = found.num_key_value_heads or heads
        window = getattr(found, "sliding_window", None)
        attention = getattr(found, "layer_types", None)
        attention = attention or [SLIDING if window else FULL] * found.num_hidden_layers
        key = "hidden_activation" if hasattr(found, "hidden_activation") else "hidden_act"
        activation = getattr(found, key)
        for name in _REFUSED:
            if getattr(found, name, None):
                raise Invalid(f"{where}: {name} = {getattr(found, name)!r} is not supported")
        if activation not in ACTIVATIONS:
            raise Invalid(f"{where}: {key} = {activation!r} is not supported")
        if set(attention) - {FULL, SLIDING}:
            raise Invalid(f"{where}: layer_types {sorted(set(attention))} are not all supported")
        eos, bos = found.eos_token_id, found.bos_token_id
        config = DecoderConfig(
            architecture=ARCHITECTURES[kind],
            vocab_size=found.vocab_size,
            dim=found.hidden_size,
            layers=found.num_hidden_layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=found.intermediate_size,
            norm_eps=found.rms_norm_eps,
            activation=activation,
            attention=tuple(attention),
            window=window,
            query_scale=(getattr(found, "query_pre_attn_scalar", None) or head_dim) ** -0.5,
            score_cap=getattr(found, "attn_logit_softcapping", None),
            logit_cap=getattr(found, "final_logit_softcapping", None),
            tied_embeddings=found.tie_word_embeddings,
            max_position=found.max_position_embeddings,
            bos_id=-1 if bos is None else bos,
            eos_ids=tuple([] if eos is None else eos if isinstance(eos, list) else [eos]),
            described=found,
        )
        for name in set(attention):
            rope_type = _rope_parameters(found, name)["rope_type"]
            if rope_type not in _rope_kinds():
                raise Invalid(f"{where}: rope type {rope_type!r} is not supported")
            rope_tables(config, name, 1)
    return config


def _by_transformers(raw: dict[str, Any], where: str) -> Any:
    transformers = need("transformers")
    values = {key: value for key, value in copy.deepcopy(raw).items() if key != "model_type"}
    try:
        return transformers.AutoConfig.for_model(raw["model_type"], **values)
    except Exception as error:  # transformers' errors are many
        why = " ".join(str(error).split())
        raise Invalid(f"{where}: a value has the wrong type or is missing: {why}") from error


def rope_tables(
    config: DecoderConfig, attention: str, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of positions, each (length, rotated / 2), as transformers scales them.

    Longrope has its long factors where ``length`` passes the positions first trained with.

    Args:
        attention: ``FULL`` or ``SLIDING``, of which each may have its own.
        length: positions of the program.
    """
    described = copy.deepcopy(config.described)
    described.rope_parameters = rope = _rope_parameters(described, attention)
    frequency, scale = _rope_kinds()[rope["rope_type"]](described, seq_len=length)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    return angle.cos() * scale, angle.sin() * scale


def _rope_kinds() -> Any:
    return need("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS


def _rope_parameters(described: Any, attention: str) -> dict[str, Any]:
    """Those of layers of the kind ``attention``; plain ones as linear scaling by 1."""
    both = described.rope_parameters
    own = dict(both.get(attention) or both)
    return own | {"rope_type": "linear", "factor": 1.0} if own["rope_type"] == "default" else own
