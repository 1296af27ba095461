"""The files of an adapter folder: weights, whole or in shards, and what is no adapter at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from hydrapack.adapters.peft_config import CONFIG, shown
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import Invalid, NotFound
from hydrapack.support.stored_tensor import StoredTensor, places, readable

WEIGHTS, INDEX = "adapter_model.safetensors", "adapter_model.safetensors.index.json"
_LFS = b"version https://git-lfs.github.com/spec/"
_MAX_INDEX = 64 << 20

OTHER_FORMATS: dict[str, str] = {
    "adapters.safetensors": "mlx-lm's",
    "adapters.npz": "mlx's",
    "pytorch_lora_weights.safetensors": "diffusers'",
    "adapter_0.pt": "torchtune's",
}
"""Weights by the names that other libraries give them."""


def check_folder(folder: Path) -> None:
    """Refuse what is no adapter folder, and say what it seems to be.

    Raises:
        HydrapackError: no folder, or none with an adapter's configuration.
    """
    wanted = "give the folder that PEFT's save_pretrained wrote"
    if folder.is_file():
        raise Invalid(f"{folder}: not an adapter folder but a file; {wanted}, as {folder.parent}")
    if not folder.is_dir():
        hub = ""
        if len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists():
            hub = f"; a hub id is not downloaded: hf download {folder} --local-dir {folder.name}"
        raise NotFound(f"{folder}: not an adapter folder: it does not exist; {wanted}{hub}")
    if (folder / CONFIG).exists():
        check_content(folder / CONFIG, (folder / CONFIG).read_bytes()[:1024])
        return
    inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if inner:
        raise Invalid(
            f"{folder}: not an adapter folder, but it holds {len(inner)}: give "
            + ", ".join(str(path) for path in inner[:3])
        )
    others = [name for name in OTHER_FORMATS if (folder / name).exists()]
    if others:
        raise Invalid(
            f"{folder}: not an adapter folder: {others[0]} is {OTHER_FORMATS[others[0]]}; convert "
            "the adapter to PEFT's format"
        )
    loose = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (it has {loose[0]}, perhaps of kohya or ComfyUI: convert it)" if loose else ""
    raise Invalid(f"{folder}: not an adapter folder, it has no {CONFIG}{found}; {wanted}")


@dataclass(frozen=True)
class Weights:
    """An adapter's weights, as read to be checked, and where they lie."""

    path: Path
    """Of the file, or the index of its shards; for messages."""
    digest: str
    """SHA-256 (hex) of the file, or of the shards one after another."""
    tensors: dict[str, torch.Tensor]
    """By key, float8 as float32."""
    places: dict[str, StoredTensor]
    """By key."""


def read_weights(folder: Path) -> Weights:
    """The weights of an adapter folder.

    Raises:
        HydrapackError: missing, corrupt, or something else under their name.
    """
    path = folder / WEIGHTS
    if path.exists():
        data = _read(path)
        return Weights(path, bytes_sha256(data), *_tensors(path, data))
    if (folder / INDEX).exists():
        return _read_shards(folder / INDEX)
    if (folder / "adapter_model.bin").exists():
        raise Invalid(
            f"{folder / 'adapter_model.bin'}: pickled weights are not read; load the adapter "
            "with PeftModel.from_pretrained and save it again with save_pretrained, which "
            f"writes {WEIGHTS}"
        )
    shards = sorted(folder.glob("adapter_model-*.safetensors"))
    if shards:
        raise Invalid(f"{folder / INDEX}: missing, and the weights are in shards: {shards[0]}")
    for name, whose in OTHER_FORMATS.items():
        if (folder / name).exists():
            raise Invalid(
                f"{folder / name}: {whose} weights, and no {WEIGHTS} beside them; convert the "
                "adapter to PEFT's format"
            )
    raise NotFound(f"{path}: missing; {folder} is not a complete PEFT adapter")


def _read_shards(index: Path) -> Weights:
    data = _read(index)[:_MAX_INDEX]
    try:
        content = json.loads(data)
        names = content["weight_map"]
        shards = sorted(set(names.values()))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"{index}: is no index of shards with a weight_map") from error
    tensors: dict[str, torch.Tensor] = {}
    lie: dict[str, StoredTensor] = {}
    digest = hashlib.sha256()
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable():
            raise Invalid(f"{index}: weight_map: {shown(shard)} is no file beside it")
        path = index.parent / shard
        if not path.is_file():
            raise NotFound(f"{path}: missing; {index.name} names it: download all shards")
        data = _read(path)
        digest.update(data)
        found, there = _tensors(path, data)
        for key in found:
            if names.get(key) != shard:
                raise Invalid(f"{path}: key {key!r} is not where {index.name} has it")
        tensors |= found
        lie |= there
    missing = sorted(set(names) - set(tensors))
    if missing:
        raise Invalid(f"{index}: weight_map: {missing[0]!r} is not in {names[missing[0]]}")
    return Weights(index, digest.hexdigest(), tensors, lie)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Invalid(f"{path}: cannot be read: {error.strerror or error}") from error
    check_content(path, data[:1024])
    return data


def check_content(path: Path, start: bytes) -> None:
    """Refuse a file that was not downloaded, by its first bytes.

    Raises:
        HydrapackError: a Git LFS pointer or a web page.
    """
    if start.startswith(_LFS):
        raise Invalid(
            f"{path}: is a Git LFS pointer, not the file itself; run git lfs install and git lfs "
            "pull in the clone"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Invalid(
            f"{path}: is a web page (HTML), not the file itself; download it by its 'resolve' "
            "address or with hf download"
        )


def _tensors(path: Path, data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, StoredTensor]]:
    try:
        tensors = load(data)
    except KeyError as error:
        raise Invalid(f"{path}: values of type {error} are not read; save as float32") from error
    except (SafetensorError, ValueError, RuntimeError, TypeError) as error:
        why = " ".join(str(error).split())
        raise Invalid(f"{path}: corrupt or truncated safetensors: {why}") from error
    lie = places(path, data, tensors)
    return {key: readable(tensor) for key, tensor in tensors.items()}, lie
