"""``export-base``: a Hugging Face model to ``model.pte`` with its tokenizer beside it."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from hydrapack.atomic import new_file
from hydrapack.base.config import read_config
from hydrapack.base.decoder import CACHE_STEP, Decoder
from hydrapack.base.lower import lower_decoder
from hydrapack.base.quantize import quantize_8da4w
from hydrapack.base.weights import load_weights, resolve_model, weights_sha256
from hydrapack.digest import file_sha256
from hydrapack.errors import InputError

QUANTS = ("8da4w", "fp32")


def export_base(
    model: str,
    output: Path,
    rank: int | None,
    targets: tuple[str, ...] = ("q", "k", "v", "o"),
    quant: str = "8da4w",
    max_context: int = 2048,
    stage: Callable[[str], None] = lambda name: None,
) -> None:
    """Write the adapter-agnostic base program; beside it ``tokenizer.json`` and its description.

    The description, ``<output>.json``, has the program's size, SHA-256 and constants.

    Args:
        model: a Hugging Face folder or hub id.
        output: the .pte to write.
        rank: rank of the adapters it will take; None for a program without adapter inputs.
        targets: adapted linears, of q, k, v, o, gate, up, down.
        quant: ``8da4w`` or ``fp32``.
        max_context: positions in the cache, rounded up to a multiple of 64.
        stage: called with the name of each step.

    Raises:
        InputError: an unusable model, option or target.
    """
    if quant not in QUANTS:
        raise InputError(f"--quant {quant}: choose one of {', '.join(QUANTS)}")
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank}: must be 1 or more")
    folder = resolve_model(model)
    config = read_config(folder)
    if not 1 <= max_context <= config.max_position:
        raise InputError(
            f"--max-context {max_context}: {model} has positions 1 to {config.max_position}"
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        raise InputError(f"{tokenizer}: missing; save it with AutoTokenizer(...).save_pretrained")

    stage("reading weights")
    context = -(-max_context // CACHE_STEP) * CACHE_STEP
    layout = None if rank is None else config.layout(targets, rank)
    decoder = Decoder(config, layout, context)
    load_weights(decoder, folder)
    if quant == "8da4w":
        stage("quantizing")
        with torch.no_grad():
            quantize_8da4w(decoder)
    gc.collect()
    metadata = {
        "get_vocab_size": config.vocab_size,
        "get_max_context_len": context,
        "get_bos_id": config.bos_id,
        "get_eos_ids": list(config.eos_ids),
        "get_adapter_layout": layout.digest if layout else "",
        "get_adapter_rank": rank or 0,
        "get_base_model": model if not Path(model).exists() else Path(model).absolute().name,
        "get_weights_sha256": weights_sha256(folder),
        "get_tokenizer_sha256": file_sha256(tokenizer),
    }
    with new_file(output) as partial:
        lower_decoder(decoder, metadata, partial, stage)
        described = {"bytes": partial.stat().st_size, "sha256": file_sha256(partial), **metadata}
    with new_file(output.parent / "tokenizer.json") as partial:
        shutil.copyfile(tokenizer, partial)
    with new_file(output.with_name(output.name + ".json")) as partial:
        text = json.dumps({**described, "quant": quant}, indent=2, sort_keys=True)
        partial.write_text(text + "\n", encoding="utf-8", newline="\n")
