"""A model's tensors, read into the decoder."""

from __future__ import annotations

import torch

from hydrapack.base.config import DecoderConfig
from hydrapack.base.decoder import Decoder
from hydrapack.base.source import Source
from hydrapack.support.errors import Invalid


def load_weights(decoder: Decoder, source: Source) -> None:
    """Fill the float32 ``decoder`` with the weights of ``source``.

    Raises:
        HydrapackError: corrupt files, a missing tensor, or one of the wrong shape.
    """
    config: DecoderConfig = decoder.config

    def put(target: torch.Tensor, *names: str) -> None:
        value = torch.cat([source.read(name) for name in names])
        if value.shape != target.shape:
            raise Invalid(
                f"{source.path}: {names[0]} has shape {tuple(value.shape)}, "
                f"its description asks for {tuple(target.shape)}"
            )
        target.copy_(value)

    head = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
    with torch.no_grad():
        put(decoder.get_parameter("embed.weight"), "model.embed_tokens.weight")
        put(decoder.get_parameter("exit.lm_head.weight"), head)
        put(decoder.get_parameter("exit.norm.weight"), "model.norm.weight")
        for i in range(config.layers):
            layer = f"model.layers.{i}"
            qkv = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
            put(decoder.get_parameter(f"entries.{i}.qkv.weight"), *[f"{n}.weight" for n in qkv])
            if config.qkv_bias:
                put(decoder.get_parameter(f"entries.{i}.qkv.bias"), *[f"{n}.bias" for n in qkv])
            put(
                decoder.get_parameter(f"entries.{i}.norm.weight"), f"{layer}.input_layernorm.weight"
            )
            put(
                decoder.get_parameter(f"mixes.{i}.norm.weight"),
                f"{layer}.post_attention_layernorm.weight",
            )
            put(decoder.get_parameter(f"mixes.{i}.o.weight"), f"{layer}.self_attn.o_proj.weight")
            put(decoder.get_parameter(f"mixes.{i}.gate.weight"), f"{layer}.mlp.gate_proj.weight")
            put(decoder.get_parameter(f"mixes.{i}.up.weight"), f"{layer}.mlp.up_proj.weight")
            put(decoder.get_parameter(f"downs.{i}.down.weight"), f"{layer}.mlp.down_proj.weight")
