"""Where a base model comes from: a Hugging Face folder, a hub id, a GGUF file or the demo's own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hydrapack.base import smollm2
from hydrapack.base.chat import chat_template_of, one_turn
from hydrapack.base.config import DecoderConfig, parse_config, read_config
from hydrapack.base.gguf import Blocks, GgufModel
from hydrapack.program.layout import FUSED
from hydrapack.support.digest import bytes_sha256, file_sha256
from hydrapack.support.errors import HydrapackError, Invalid, reading
from hydrapack.support.extras import need


class Source:
    """A base model's description, weights and tokenizer.

    Attributes:
        name: what model.pte says it was made from.
        path: the folder or GGUF file.
        config: the decoder.
        weights_sha256: identity of the weights, hex.
    """

    def __init__(self, model: str) -> None:
        """Find ``model`` and read its description.

        Args:
            model: a folder with config.json, safetensors and tokenizer.json; a GGUF file; a hub
                id; or ``demo:smollm2-135m-q4_1``.

        Raises:
            HydrapackError: none of these, or an unsupported architecture.
        """
        self.path = _demo_gguf(model) or resolve_model(model)
        self.name = model if not Path(model).exists() else Path(model).absolute().name
        self._gguf = GgufModel(self.path) if self.path.is_file() else None
        if self._gguf is not None:
            self.config: DecoderConfig = parse_config(self._gguf.config(), str(self.path))
        else:
            self.config = read_config(self.path)
            self._files = _Safetensors(self.path)
        self.weights_sha256 = weights_sha256(self.path)

    def __contains__(self, name: str) -> bool:
        return self._stored(name)[0] in (self._gguf or self._files)

    def _stored(self, name: str) -> tuple[str, slice]:
        """The tensor that holds ``name``, and which of its rows."""
        *_, parent, _ = name.split(".")
        target = parent.removesuffix("_proj")
        for fused, parts in FUSED.items():
            if self.config.architecture.fused and target in parts:
                sizes = [self.config.linear_shape(part)[0] for part in parts]
                at = parts.index(target)
                rows = slice(sum(sizes[:at]), sum(sizes[: at + 1]))
                return name.replace(f".{target}_proj.", f".{fused}_proj."), rows
        return name, slice(None)

    def read(self, name: str) -> torch.Tensor:
        """The tensor with that Hugging Face name.

        Raises:
            HydrapackError: it is not there, or cannot be read.
        """
        stored, rows = self._stored(name)
        if name not in self:
            raise Invalid(f"{self.path}: the weights have no tensor {stored}")
        return (self._gguf or self._files).read(stored)[rows]

    def blocks(self, name: str) -> Blocks | None:
        """The tensor's 4-bit blocks, where a GGUF file stores it so."""
        return self._gguf.blocks(name) if self._gguf and name in self._gguf else None

    def chat_template(self, tokenizer_json: bytes) -> str:
        """``{input}`` as the user's turn of a chat, as the tokenizer's own template puts it.

        Empty where it has none, or one that makes something else of a single turn.

        Raises:
            HydrapackError: unreadable.
        """
        template = chat_template_of(self.path) if self._gguf is None else self._gguf.chat_template()
        ids = {"bos_token": self.config.bos_id, "eos_token": (self.config.eos_ids or (-1,))[0]}
        return one_turn(template, tokenizer_json, ids) if template else ""

    def tokenizer(self) -> bytes:
        """The content of the model's tokenizer.json.

        Raises:
            HydrapackError: the model has none, or it cannot be read.
        """
        if self._gguf is not None:
            return self._gguf.tokenizer()
        tokenizer = self.path / "tokenizer.json"
        if not tokenizer.exists():
            raise Invalid(f"{tokenizer}: missing; save it with AutoTokenizer(...).save_pretrained")
        with reading(tokenizer):
            return tokenizer.read_bytes()


class _Safetensors:
    """The safetensors of a folder, one file or several with an index."""

    def __init__(self, folder: Path) -> None:
        try:
            self._shards = _shard_of(folder)
            for path in set(self._shards.values()):
                with safe_open(path, framework="pt"):
                    pass
        except HydrapackError:
            raise
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise Invalid(f"{folder}: unreadable weights: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._shards

    def read(self, name: str) -> torch.Tensor:
        # Opened anew: a file that stays open keeps all that was read of it in memory.
        with safe_open(self._shards[name], framework="pt") as file:
            return file.get_tensor(name)


def _shard_of(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it is in."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if not single.exists():
        raise Invalid(f"{folder}: neither model.safetensors nor model.safetensors.index.json")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _demo_gguf(model: str) -> Path | None:
    return smollm2.gguf_file() if model == smollm2.NAME else None


def resolve_model(model: str) -> Path:
    """A local folder or GGUF file as it is; a hub id downloaded; the demo's model as a folder.

    Raises:
        HydrapackError: no such folder, and the hub does not give the model.
    """
    path = Path(model)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if model == smollm2.NAME:
        return smollm2.base_model_directory()
    if path.exists() or model.startswith(("/", ".", "demo:")) or model.count("/") != 1:
        raise Invalid(
            f"{model}: no such folder, file or model. Give a Hugging Face folder (config.json, "
            "*.safetensors, tokenizer.json), a GGUF file, a hub id such as "
            "meta-llama/Llama-3.2-1B-Instruct, or "
            f"{smollm2.NAME}"
        )
    hub = need("huggingface_hub")
    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(hub.snapshot_download(model, allow_patterns=patterns))
    except Exception as error:  # the hub's own errors are many; all mean the same to the user
        reason = str(error).strip().splitlines()[0]
        raise Invalid(f"{model}: cannot be fetched from the Hugging Face hub: {reason}") from error


def weights_sha256(path: Path) -> str:
    """Identity (hex) of a model's weights.

    Of a folder: SHA-256 over the names and SHA-256 of its safetensors files, sorted. Of a GGUF
    file: its own SHA-256. Of the demo's folder: that of the GGUF file it was converted from.
    """
    if path.is_file():
        return file_sha256(path)
    if path == smollm2.model_folder():
        return smollm2.GGUF_SHA256
    files = sorted(path.glob("*.safetensors"))
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in files]
    return bytes_sha256("".join(lines).encode())
