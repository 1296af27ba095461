"""A Hugging Face folder's safetensors, read into the decoder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hydrapack.base import smollm2
from hydrapack.base.config import DecoderConfig
from hydrapack.base.decoder import Decoder
from hydrapack.digest import file_sha256
from hydrapack.errors import InputError


def resolve_model(model: str) -> Path:
    """A local folder as it is; the embedded SmolLM2 by its hub id; any other hub id downloaded.

    Raises:
        InputError: no such folder, and the hub does not give the model.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if model == smollm2.NAME:
        return smollm2.base_model_directory()
    if folder.exists() or model.startswith(("/", ".")) or model.count("/") != 1:
        raise InputError(
            f"{model}: no such folder. Give a Hugging Face folder (config.json, *.safetensors, "
            "tokenizer.json) or a hub id such as meta-llama/Llama-3.2-1B-Instruct"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub's own errors are many; all mean the same to the user
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{model}: cannot be fetched from the Hugging Face hub: {reason}"
        ) from error


def weights_sha256(folder: Path) -> str:
    """SHA-256 (hex) over the names and SHA-256 of the folder's safetensors files, sorted."""
    files = sorted(folder.glob("*.safetensors"))
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shard_of(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it is in."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if not single.exists():
        raise InputError(f"{folder}: neither model.safetensors nor model.safetensors.index.json")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def load_weights(decoder: Decoder, folder: Path) -> None:
    """Fill the float32 ``decoder`` with the weights of the model in ``folder``.

    Raises:
        InputError: missing or corrupt files, a missing tensor, or one of the wrong shape.
    """
    config: DecoderConfig = decoder.config
    try:
        shards = _shard_of(folder)
        handles = {path: safe_open(path, framework="pt") for path in set(shards.values())}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: unreadable weights: {error}") from error

    def read(name: str) -> torch.Tensor:
        return handles[shards[name]].get_tensor(name)  # type: ignore[no-untyped-call]

    def put(target: torch.Tensor, *names: str) -> None:
        missing = [name for name in names if name not in shards]
        if missing:
            raise InputError(f"{folder}: the weights have no tensor {missing[0]}")
        value = torch.cat([read(name) for name in names])
        if value.shape != target.shape:
            raise InputError(
                f"{folder}: {names[0]} has shape {tuple(value.shape)}, "
                f"config.json asks for {tuple(target.shape)}"
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
