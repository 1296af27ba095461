"""What quantization costs a base: KL divergence and top-1 agreement against float32, on text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hydrapack.base.decoder import Decoder
from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS = (
    "The library opens at nine and closes at six. On Saturdays it stays open until noon, and the "
    "reading room on the second floor is reserved for students who have an exam that week.",
    "Hi Anna, thanks for the quick reply. Tuesday at ten works for me. Could you send the slides "
    "beforehand, so that I can read them on the train?",
    "Water boils at a lower temperature on a mountain, because the air presses less on it. That is "
    "why pasta takes longer to cook up there.",
    "She packed two shirts, a coat, a map and the letter that her brother had sent from Lisbon in "
    "the spring of the year before.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n",
    "Question: Which planet is the largest in the solar system?\nAnswer: Jupiter. It has more than "
    "twice the mass of all the other planets together.",
    "The city council voted seven to two for the new tram line. Work will begin next autumn and is "
    "expected to take three years, at a cost of forty million euros.",
    "To replace the battery, switch the device off, remove the four screws on its back, lift the "
    "cover and pull the white strip slowly to one side.",
)
"""Written for this purpose; about 300 tokens."""
MAX_TOKENS = 256
"""Of a line; what follows is left out."""


@dataclass(frozen=True)
class Quality:
    """A quantized base against its float32 original."""

    kl_nats: float
    """Mean KL divergence of its next-token distributions, nats a token."""
    top1_agreement: float
    """Share of positions where both hold the same token for the likeliest."""
    tokens: int


def encode_rows(tokenizer: Tokenizer, rows: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of each row, at least two, at most ``MAX_TOKENS`` and the context.

    Raises:
        HydrapackError: no row has two tokens.
    """
    most = min(MAX_TOKENS, context)
    ids = [tokenizer.encode(row, add_special_tokens=False).ids[:most] for row in rows]
    ids = [row for row in ids if len(row) > 1]
    if not ids:
        raise Invalid("the text has no row of two or more tokens")
    return ids


@torch.no_grad()
def decoder_logits(decoder: Decoder, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Log-probabilities (S, V) of the next token at every position of each row, in PyTorch.

    Of the bare base model, without an adapter. The decoder's cache is left empty.
    """
    try:
        return [
            decoder(torch.tensor([list(row)]), at := torch.arange(len(row)), at)[0].log_softmax(-1)
            for row in rows
        ]
    finally:
        decoder.forget()


def program_logits(model: Path, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The same of an exported program, token by token as a device decodes."""
    from hydrapack.program.load import execute, forward_inputs, load_program, matrix_shapes

    forward = load_program(model, "forward").method("forward")
    matrices = [torch.zeros(shape) for shape in matrix_shapes(forward.metadata)]
    found = []
    for row in rows:
        steps = []
        for at, token in enumerate(row):
            inputs = forward_inputs([token], [at], [0], False, matrices)
            steps.append(execute(forward, inputs, "forward")[0][0, 0])
        found.append(torch.stack(steps).log_softmax(-1))
    return found


def compare(reference: Sequence[torch.Tensor], logits: Sequence[torch.Tensor]) -> Quality:
    """Log-probabilities (S, V) of each row against those of the reference."""
    nats = same = tokens = 0.0
    for wanted, found in zip(reference, logits, strict=True):
        nats += float((wanted.exp() * (wanted - found)).sum())
        same += float((wanted.argmax(-1) == found.argmax(-1)).sum())
        tokens += len(wanted)
    return Quality(max(nats / tokens, 0.0), same / tokens, int(tokens))
