"""A model's tensors, read into the decoder."""

from __future__ import annotations

import torch

from hydrapack.base.decoder import Decoder
from hydrapack.base.integers import linears
from hydrapack.base.source import Source
from hydrapack.support.errors import Invalid


def load_weights(decoder: Decoder, source: Source) -> None:
    """Fill the float32 ``decoder`` with the weights of ``source``.

    Raises:
        HydrapackError: corrupt files, a missing tensor, or one of the wrong shape.
    """
    config = decoder.config
    architecture = config.architecture

    def put(path: str, *names: str, plus: float = 0.0, times: float = 1.0) -> None:
        value = torch.cat([source.read(name) for name in names])
        target = decoder.get_parameter(path)
        if value.shape != target.shape:
            raise Invalid(
                f"{source.path}: {names[0]} has shape {tuple(value.shape)}, "
                f"its description asks for {tuple(target.shape)}"
            )
        target.copy_(value)
        if plus or times != 1:
            target.mul_(times).add_(plus)

    def put_norm(path: str, name: str) -> None:
        put(f"{path}.weight", f"{name}.weight", plus=float(architecture.norms_from_one))

    with torch.no_grad():
        scale = config.dim**0.5 if architecture.scaled_embedding else 1.0
        put("embed.weight", "model.embed_tokens.weight", times=scale)
        put_norm("output.norm", "model.norm")
        for path, _, names in linears(decoder):
            put(f"{path}.weight", *names)
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
                biases = [f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"]
                put(f"attention_inputs.{i}.qkv.bias", *biases)
            if architecture.qk_norms:
                q, k = (source.read(f"{layer}.self_attn.{name}_norm.weight") for name in "qk")
                norms = torch.cat([q.expand(config.heads, -1), k.expand(config.kv_heads, -1)])
                target = decoder.get_parameter(f"attentions.{i}.norm")
                target.copy_(norms + float(architecture.norms_from_one))
