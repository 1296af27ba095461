"""Which format each kind of weight of the base program has."""

from __future__ import annotations

from collections.abc import Callable

from hydrapack.base.config import DecoderConfig
from hydrapack.support.errors import Invalid

KINDS = ("q", "k", "v", "o", "gate", "up", "down", "lm_head", "embed")
"""The weights of a decoder: seven linears a layer, the vocabulary matrix and the embedding."""
FP32, INT8, INT4, BLOCKS = "fp32", "int8", "int4", "blocks"
"""float32; int8 with a scale a row; int4 with a scale for every 32 columns; a GGUF file's own 4-bit
blocks, with an offset each. Activations of the last three are int8, scaled token by token."""
QUANTS = ("8da4w", "8da8w", "mixed", "gguf", "fp32")
SMALL_PARAMETERS = 500_000_000
"""Below so many parameters 4-bit linears lose too much of the model (docs/measurements.md)."""

_WIDE = ("v", "o", "down", "lm_head", "embed")


def scheme_of(quant: str, lm_head: str | None = None) -> dict[str, str]:
    """The format of each of ``KINDS``; ``gguf`` is settled tensor by tensor (``blocks`` here).

    Args:
        quant: one of ``QUANTS``.
        lm_head: ``int8`` or ``int4`` for the vocabulary matrix, in place of the scheme's own.

    Raises:
        HydrapackError: an unknown name, or ``lm_head`` with fp32.
    """
    if quant not in QUANTS:
        raise Invalid(f"`quant` {quant}: choose one of {', '.join(QUANTS)}")
    if quant == "fp32":
        if lm_head is not None:
            raise Invalid("`lm_head`: needs a quantized base, not `quant` fp32")
        return dict.fromkeys(KINDS, FP32)
    linear = {"8da4w": INT4, "8da8w": INT8, "mixed": INT4, "gguf": BLOCKS}[quant]
    scheme = dict.fromkeys(KINDS, linear) | {"lm_head": INT8, "embed": INT8}
    if quant == "mixed":
        scheme |= dict.fromkeys(_WIDE, INT8)
    if lm_head is not None:
        if lm_head not in (INT8, INT4):
            raise Invalid(f"`lm_head` {lm_head}: choose int8 or int4")
        scheme["lm_head"] = lm_head
    return scheme


def choose_quant(config: DecoderConfig, has_blocks: Callable[[], bool]) -> tuple[str, str]:
    """The scheme that suits a base, and why in a few words.

    Args:
        has_blocks: whether the model is a GGUF file with 4-bit blocks.
    """
    if has_blocks():
        return "gguf", "the file's own 4-bit blocks, not rounded again"
    count = parameters(config)
    if count < SMALL_PARAMETERS:
        return "8da8w", f"{count / 1e6:.0f} M parameters: 4 bits would cost a small model too much"
    return "8da4w", f"{count / 1e9:.1f} G parameters"


def parameters(config: DecoderConfig) -> int:
    """Weights of the decoder's linears and its embedding (a tied lm_head counts once)."""
    shapes = (config.linear_shape(kind) for kind in KINDS[:7])
    linears = config.layers * sum(rows * columns for rows, columns in shapes)
    return linears + (1 if config.tied_embeddings else 2) * config.vocab_size * config.dim
