"""``export-base``: a base model to ``model.pte`` with its tokenizer beside it."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydrapack.base.attention import CACHE_STEP
from hydrapack.base.calibrate import Calibration, calibrated, generate_rows
from hydrapack.base.decoder import Decoder
from hydrapack.base.integers import quantize_decoder
from hydrapack.base.quality import (
    TEXTS,
    Quality,
    compare,
    decoder_logits,
    encode_rows,
    program_logits,
)
from hydrapack.base.scheme import INT4, choose_quant, scheme_of
from hydrapack.base.source import Source
from hydrapack.base.weights import load_quantized, load_weights
from hydrapack.bundle.format import Bundle
from hydrapack.program.description import description_path
from hydrapack.program.layout import layout_of, parse_targets
from hydrapack.support.atomic import new_file
from hydrapack.support.digest import bytes_sha256, file_sha256
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.progress import Stage, silently
from hydrapack.support.schema import write_json
from hydrapack.support.texts import read_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_CONTEXT = 2048
SELF = "self"
"""In place of a file to calibrate with: text that the model writes."""


@dataclass(frozen=True)
class ExportedBase:
    """What ``export_base`` wrote."""

    path: Path
    bytes: int
    quant: str
    why: str
    """Why this quantization, where it was chosen here; empty where the caller named it."""
    scheme: dict[str, str]
    """Format by kind of weight."""
    calibration: Calibration | None
    quality: Quality | None
    """Of the program against float32, where a report was asked for."""

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "path": str(self.path)}


def export_base(
    model: str | Path,
    output: str | Path,
    rank: int | None = None,
    targets: str | Sequence[str] | None = None,
    quant: str | None = None,
    max_context: int | None = None,
    stage: Stage = silently,
    *,
    bundle: Bundle | str | Path | None = None,
    lm_head: str | None = None,
    calibrate: str | None = None,
    report: bool = False,
    text: str | Path | None = None,
) -> ExportedBase:
    """Write the adapter-agnostic base program; beside it ``tokenizer.json`` and its description.

    The description, ``<output>.json``, has the program's size, SHA-256 and constants.

    Args:
        model: a Hugging Face folder, a GGUF file, a hub id, or ``demo:smollm2-135m-q4_1``.
        output: the .pte to write.
        rank: rank of the adapters it will take; None, and no ``bundle``, for a program without
            adapter inputs.
        targets: adapted linears, of q, k, v, o, gate, up, down, and qkv and gate_up of adapters
            that fuse them; those of attention by default.
        bundle: a merge, in memory or saved, to take rank and targets from.
        quant: one of ``scheme.QUANTS``; by default what suits the model (``choose_quant``).
        max_context: positions in the cache, rounded up to a multiple of 64; 2048 by default, or
            what the model has.
        stage: called with the name of each step.
        lm_head: ``int8`` or ``int4`` for the vocabulary matrix, in place of the scheme's own.
        calibrate: a text or JSONL file, or ``self`` for text that the model writes: fit int4 values
            to it by GPTQ, kept only if it lowers the KL divergence on held-out rows.
        report: measure the program against float32, on ``text`` or on a few lines of our own.

    Raises:
        HydrapackError: an unusable model, option, target or text.

    >>> made = hydrapack.export_base("tiny-llama", "model.pte", rank=4, max_context=64)
    >>> made.quant
    '8da8w'
    """
    need("executorch")
    from hydrapack.base.lower import lower_decoder

    model, output = str(model), Path(output)
    if bundle is not None:
        if rank is not None or targets is not None:
            raise Invalid("`bundle`: gives the rank and the target modules; leave those out")
        merged = Bundle.of(bundle)
        rank, targets = merged.rank, layout_of(merged.shapes, merged.rank).targets
    adapted = parse_targets(targets) if targets else None
    if rank is not None and rank < 1:
        raise Invalid(f"`rank` {rank}: must be 1 or more")
    if text is not None and not report:
        raise Invalid("`text`: needs `report`")
    texts = None
    if report:
        texts = read_texts(Path(text)) if text else list(TEXTS)
    calibration_texts = read_texts(Path(calibrate)) if calibrate not in (None, SELF) else None
    if quant is not None:
        scheme_of(quant, lm_head)
    source = Source(model)
    config, why = source.config, ""
    if quant is None:
        quant, why = choose_quant(config, lambda: _has_blocks(source))
    scheme = scheme_of(quant, lm_head)
    if quant == "gguf" and not _has_blocks(source):
        raise Invalid(f"`quant` gguf: {model} is no GGUF file with blocks of Q4_0, Q4_1 or Q4_K")
    if calibrate is not None and INT4 not in scheme.values():
        raise Invalid(f"`calibrate`: fits int4 values, and `quant` {quant} has none")
    if max_context is None:
        max_context = min(DEFAULT_CONTEXT, config.max_position)
    if not 1 <= max_context <= config.max_position:
        raise Invalid(
            f"`max_context` {max_context}: {model} has positions 1 to {config.max_position}"
        )
    context = -(-max_context // CACHE_STEP) * CACHE_STEP
    layout = None if rank is None else config.layout(adapted or config.targets, rank)
    # Before the weights: reading a GGUF file's takes half a gigabyte.
    tokenizer_json = source.tokenizer()
    chat_template = source.chat_template(tokenizer_json)
    stage("reading weights")
    decoder = Decoder(config, layout, context)
    tokenizer = _tokenizer(tokenizer_json, model)
    rows = encode_rows(tokenizer, texts, context) if texts else []
    fit = encode_rows(tokenizer, calibration_texts, context) if calibration_texts else None
    del tokenizer  # Of 150,000 tokens, 125 MB.
    # What is measured or fitted needs the whole model in float32.
    whole = bool(rows) or calibrate is not None
    if whole:
        load_weights(decoder, source)
    if rows:
        stage("measuring float32")
    reference = decoder_logits(decoder, rows)
    calibration = None
    if calibrate is None:
        stage("quantizing")
        quantized = quantize_decoder if whole else load_quantized
        formats = quantized(decoder, scheme, source)
    else:
        stage("calibrating")
        decoder, formats, calibration = calibrated(decoder, scheme, fit or generate_rows(decoder))
    gc.collect()
    metadata = {
        "get_vocab_size": config.vocab_size,
        "get_max_context_len": context,
        "get_bos_id": config.bos_id,
        "get_eos_ids": list(config.eos_ids),
        "get_adapter_layout": layout.digest if layout else "",
        "get_adapter_rank": rank or 0,
        "get_adapter_shapes": layout.text if layout else "",
        "get_base_model": source.name,
        "get_chat_template": chat_template,
        "get_quant": quant,
        "get_quant_scheme": json.dumps(formats, sort_keys=True),
        "get_weights_sha256": source.weights_sha256,
        "get_tokenizer_sha256": bytes_sha256(tokenizer_json),
    }
    quality = None
    with new_file(output) as partial:
        lower_decoder(decoder, metadata, partial, stage)
        size, digest = partial.stat().st_size, file_sha256(partial)
        if rows:
            stage("measuring the program")
            quality = compare(reference, program_logits(partial, rows))
    with new_file(output.parent / "tokenizer.json") as partial:
        partial.write_bytes(tokenizer_json)
    described = {"bytes": size, "sha256": digest, **metadata, "get_quant_scheme": formats}
    with new_file(description_path(output)) as partial:
        write_json(partial, described)
    return ExportedBase(output, size, quant, why, formats, calibration, quality)


def _tokenizer(content: bytes, model: str) -> Tokenizer:
    tokenizers = need("tokenizers", "export")
    try:
        found: Tokenizer = tokenizers.Tokenizer.from_buffer(content)
        return found
    except Exception as error:  # the binding raises bare Exceptions
        raise Invalid(f"{model}: its tokenizer.json cannot be read: {error}") from error


def _has_blocks(source: Source) -> bool:
    return any(source.blocks(f"model.layers.0.mlp.{name}_proj.weight") for name in ("gate", "up"))
