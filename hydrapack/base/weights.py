"""A model's tensors, read into the decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hydrapack.base.decoder import Decoder
from hydrapack.base.integers import EMBEDDING, linears, quantize_decoder
from hydrapack.base.source import Source
from hydrapack.support.errors import Invalid


def load_weights(decoder: Decoder, source: Source) -> None:
    """Fill the ``decoder`` with the weights of ``source``, in float32.

    Raises:
        HydrapackError: corrupt files, a missing tensor, or one of the wrong shape.
    """
    _load_vectors(decoder, source)
    _load_matrix(decoder, source, "embed", (EMBEDDING,))
    for path, _, names in linears(decoder):
        _load_matrix(decoder, source, path, names)


def load_quantized(decoder: Decoder, scheme: Mapping[str, str], source: Source) -> dict[str, str]:
    """The same in the formats of ``scheme``, with one matrix at a time in float32.

    Returns:
        as ``quantize_decoder``.

    Raises:
        HydrapackError: as ``load_weights``, or a width that a format cannot have.
    """
    _load_vectors(decoder, source)

    def fill(path: str, names: tuple[str, ...]) -> None:
        _load_matrix(decoder, source, path, names)

    return quantize_decoder(decoder, scheme, source, fill=fill)


def _load_matrix(decoder: Decoder, source: Source, path: str, names: tuple[str, ...]) -> None:
    value = _read(source, *names)
    if path == "embed" and decoder.config.architecture.scaled_embedding:
        value = value * decoder.config.dim**0.5
    _put(decoder, source, f"{path}.weight", value, names[0])


def _load_vectors(decoder: Decoder, source: Source) -> None:
    config, architecture = decoder.config, decoder.config.architecture
    one = float(architecture.norms_from_one)

    def put_norm(path: str, name: str) -> None:
        name = f"{name}.weight"
        _put(decoder, source, f"{path}.weight", _read(source, name) + one, name)

    put_norm("output.norm", "model.norm")
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        put_norm(f"attention_inputs.{i}.norm", f"{layer}.input_layernorm")
        before_mlp = "post_attention_layernorm"
        if architecture.post_norms:
            before_mlp = "pre_feedforward_layernorm"
            put_norm(f"attention_outputs.{i}.norm", f"{layer}.post_attention_layernorm")
            put_norm(f"mlp_outputs.{i}.norm", f"{layer}.post_feedforward_layernorm")
        put_norm(f"mlp_inputs.{i}.norm", f"{layer}.{before_mlp}")
        if architecture.qkv_bias:
            names = [f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"]
            path = f"attention_inputs.{i}.qkv.bias"
            _put(decoder, source, path, _read(source, *names), names[0])
        if architecture.qk_norms:
            names = [f"{layer}.self_attn.{name}_norm.weight" for name in "qk"]
            q, k = (_read(source, name) + one for name in names)
            norms = torch.cat([q.expand(config.heads, -1), k.expand(config.kv_heads, -1)])
            _put(decoder, source, f"attentions.{i}.norm", norms, names[0])


def _read(source: Source, *names: str) -> torch.Tensor:
    """The tensors of one width, one below the other, float32."""
    parts = [source.read(name).float() for name in names]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _put(decoder: Decoder, source: Source, path: str, value: torch.Tensor, name: str) -> None:
    wanted = decoder.get_parameter(path).shape
    if value.shape != wanted:
        raise Invalid(
            f"{source.path}: {name} has shape {tuple(value.shape)}, "
            f"its description asks for {tuple(wanted)}"
        )
    parent, _, own = path.rpartition(".")
    parameter = nn.Parameter(value, requires_grad=False)
    decoder.get_submodule(parent).register_parameter(own, parameter)
