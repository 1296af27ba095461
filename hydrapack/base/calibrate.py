"""GPTQ for the base program: the inputs of every linear on some text, and whether it helps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from hydrapack.base.decoder import Decoder
from hydrapack.base.integers import linears, quantize_decoder
from hydrapack.base.quality import Quality, compare, decoder_logits
from hydrapack.support.errors import Invalid
from hydrapack.support.threads import one_thread

HOLD_OUT = 4
"""Every so many rows one is kept back, to judge by."""
SELF_ROWS, SELF_TOKENS = 20, 96


@dataclass(frozen=True)
class Calibration:
    """The quality on held-out rows without GPTQ and with it, and whether it was kept."""

    without: Quality
    with_gptq: Quality
    kept: bool


def split_rows(rows: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows to fit to and rows to judge by.

    Raises:
        HydrapackError: too few rows for both.
    """
    if len(rows) < HOLD_OUT:
        raise Invalid(f"`calibrate`: needs {HOLD_OUT} rows of text or more, has {len(rows)}")
    held = list(rows[HOLD_OUT - 1 :: HOLD_OUT])
    return [row for i, row in enumerate(rows) if i % HOLD_OUT != HOLD_OUT - 1], held


@one_thread()
@torch.no_grad()
def generate_rows(decoder: Decoder) -> list[list[int]]:
    """Text that the model itself writes, sampled at temperature 1, to calibrate without data.

    The first token of each row is drawn from all of the vocabulary, as in data-free distillation
    (LLM-QAT, https://arxiv.org/abs/2305.17888), then the model goes on.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(decoder.config.vocab_size, (SELF_ROWS,), generator=generator)
    length = min(SELF_TOKENS, decoder.context)
    only, rows = torch.tensor([0]), []
    for token in first.tolist():
        row = [token]
        while len(row) < length:
            logits = decoder(torch.tensor([row[-1:]]), torch.tensor([len(row) - 1]), only)
            weights = logits[0, 0].softmax(-1)
            row.append(int(torch.multinomial(weights, 1, generator=generator)))
            if row[-1] in decoder.config.eos_ids:
                break
        if len(row) > 1:
            rows.append(row)
    decoder.forget()
    return rows


@torch.no_grad()
def input_products(decoder: Decoder, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    """By a linear's path: the sum of x x^T (d_in, d_in) over its inputs x on the rows."""
    products: dict[str, torch.Tensor] = {}
    handles = []
    for path, _, _ in linears(decoder):

        def add(module: nn.Module, inputs: Any, path: str = path) -> None:
            x = inputs[0].flatten(0, -2)
            products[path] = products.get(path, 0) + x.T @ x

        module = cast(nn.Linear, decoder.get_submodule(path))
        handles.append(module.register_forward_pre_hook(add))
    try:
        decoder_logits(decoder, rows)
    finally:
        for handle in handles:
            handle.remove()
    return products


@one_thread()
def calibrated(
    decoder: Decoder,
    scheme: Mapping[str, str],
    rows: Sequence[list[int]],
) -> tuple[Decoder, dict[str, str], Calibration]:
    """The decoder quantized with GPTQ, or without where that is nearer to float32 on held-out rows.

    Returns:
        the quantized decoder, its formats by kind, and what decided.

    Raises:
        HydrapackError: too few rows.
    """
    fit, held = split_rows(rows)
    reference = decoder_logits(decoder, held)
    products = input_products(decoder, fit)
    plain = copy.deepcopy(decoder)
    formats = quantize_decoder(plain, scheme)
    without = compare(reference, decoder_logits(plain, held))
    quantize_decoder(decoder, scheme, hessians=products)
    with_gptq = compare(reference, decoder_logits(decoder, held))
    kept = with_gptq.kl_nats < without.kl_nats
    return (decoder if kept else plain), formats, Calibration(without, with_gptq, kept)
