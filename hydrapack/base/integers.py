"""The base program's weights in fewer bits, as XNNPACK and ExecuTorch's kernels take them.

A quantized linear rounds its input to int8, token by token, and multiplies integers. 4-bit scales
are bfloat16 in XNNPACK, so they are chosen among bfloat16 numbers: what is measured is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from hydrapack.base.decoder import Decoder
from hydrapack.base.gguf import BLOCK, Blocks
from hydrapack.base.gptq import gptq
from hydrapack.base.scheme import BLOCKS, FP32, INT8
from hydrapack.base.source import Source
from hydrapack.program.quantized import nearest_integers
from hydrapack.support.errors import Invalid

GROUP_SIZE = 32
"""Columns that share a scale at 4 bits."""
_PIECE = 1 << 17
"""Values that are rounded together: few enough that they stay in the processor's cache."""
_SHRINKS = torch.linspace(0.6, 1.05, 24).tolist()
EMBEDDING = "model.embed_tokens.weight"
HF_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Integers:
    """A matrix in integers: value = scale of the row's group * integer."""

    values: torch.Tensor
    """int8 (d_out, d_in)."""
    scales: torch.Tensor
    """float32 (d_out, groups), above 0; bfloat16 numbers at 4 bits."""
    bits: int

    def dequantize(self) -> torch.Tensor:
        """float32 (d_out, d_in)."""
        groups = self.values.float().reshape(*self.scales.shape, -1)
        return (groups * self.scales[..., None]).flatten(1)


class ByteEmbedding(nn.Module):
    """An embedding of int8 rows with one float32 scale each, on ExecuTorch's quantized kernel."""

    rows: torch.Tensor
    scales: torch.Tensor

    def __init__(self, stored: Integers) -> None:
        super().__init__()
        # Registers the quantized_decomposed operators with torch.
        import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401

        self.register_buffer("rows", stored.values)
        self.register_buffer("scales", stored.scales[:, 0])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (1, S) -> float32 (1, S, dim)."""
        return torch.ops.quantized_decomposed.embedding_byte.dtype(
            self.rows, self.scales, None, -128, 127, tokens, dtype=torch.float32
        )


class SideBySide(nn.Module):
    """Linears of one input, their outputs side by side: a fused linear of several formats."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(S, d_in) -> (S, sum of d_out)."""
        return torch.cat([part(x) for part in self.parts], -1)


class BlockLinear(nn.Module):
    """A linear whose 4-bit blocks have offsets: integers as XNNPACK takes them, plus offsets.

    x W^T = x Q^T + s O^T, where s (S, d_in / BLOCK) are the sums of x over each block, themselves a
    product with a constant of ones.
    """

    sums: torch.Tensor

    def __init__(self, integers: nn.Module, offsets: torch.Tensor) -> None:
        super().__init__()
        d_out, count = offsets.shape
        ones = torch.eye(count).repeat_interleave(BLOCK, 1)
        self.integers = integers
        self.register_buffer("sums", ones, persistent=False)
        self.offsets = nn.Linear(count, d_out, bias=False)
        self.offsets.weight = nn.Parameter(offsets, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(S, d_in) -> (S, d_out)."""
        return self.integers(x) + self.offsets(F.linear(x, self.sums))


def _in_pieces(
    rounded: Callable[[torch.Tensor], Integers],
) -> Callable[[torch.Tensor], Integers]:
    """A few rows at a time: rounding takes several times the memory of what it rounds."""

    @wraps(rounded)
    def whole(weight: torch.Tensor) -> Integers:
        parts = [rounded(p) for p in torch.split(weight, max(1, _PIECE // weight.shape[1]))]
        values, scales = torch.cat([p.values for p in parts]), torch.cat([p.scales for p in parts])
        return Integers(values, scales, parts[0].bits)

    return whole


@_in_pieces
def to_int8(weight: torch.Tensor) -> Integers:
    """(d_out, d_in) as int8 from -127 to 127 with one scale a row."""
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return Integers((weight / scales).round().to(torch.int8), scales, 8)


@_in_pieces
def to_int4(weight: torch.Tensor) -> Integers:
    """(d_out, d_in) as int4 from -8 to 7, a scale for each ``GROUP_SIZE`` columns.

    Each scale is the one of least squared error among two dozen around largest value / 7.

    Raises:
        HydrapackError: a width that ``GROUP_SIZE`` does not divide.
    """
    if weight.shape[1] % GROUP_SIZE:
        raise Invalid(
            f"a linear with {weight.shape[1]} inputs: 4 bits need a multiple of {GROUP_SIZE}; use "
            "`quant` 8da8w"
        )
    groups = weight.float().reshape(len(weight), -1, GROUP_SIZE)
    largest = groups.abs().amax(-1, keepdim=True)
    tried = (bf16_scales(largest * shrink / 7) for shrink in _SHRINKS)
    values, scales = nearest_integers(groups, tried, -8, 7)
    return Integers(values.flatten(1).to(torch.int8), scales[..., 0], 4)


def bf16_scales(scales: torch.Tensor) -> torch.Tensor:
    """The nearest bfloat16 numbers, as float32; 1 in place of what is too small to divide by."""
    near = scales.to(torch.bfloat16).float()
    return torch.where(near < 1e-30, torch.ones_like(near), near)


def linears(decoder: Decoder) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Path of each linear in the decoder, its kinds, and its parts' Hugging Face names.

    The largest comes first, while there is the most memory for what rounding it takes.
    """
    head = EMBEDDING if decoder.config.tied_embeddings else "lm_head.weight"
    yield "output.lm_head", ("lm_head",), (head,)
    for i in range(decoder.config.layers):
        for path, kinds in (
            (f"attention_inputs.{i}.qkv", ("q", "k", "v")),
            (f"attention_outputs.{i}.linear", ("o",)),
            (f"mlp_inputs.{i}.gate", ("gate",)),
            (f"mlp_inputs.{i}.up", ("up",)),
            (f"mlp_outputs.{i}.linear", ("down",)),
        ):
            names = tuple(f"model.layers.{i}.{HF_NAMES[kind]}.weight" for kind in kinds)
            yield path, kinds, names


@torch.no_grad()
def quantize_decoder(
    decoder: Decoder,
    scheme: Mapping[str, str],
    source: Source | None = None,
    hessians: Mapping[str, torch.Tensor] | None = None,
    fill: Callable[[str, tuple[str, ...]], None] = lambda path, names: None,
) -> dict[str, str]:
    """Put ``decoder``'s weights into the scheme's formats, in place.

    Args:
        scheme: format by kind, of ``scheme_of``.
        source: where 4-bit blocks come from; a tensor that has none becomes int8.
        hessians: by a linear's path, (d_in, d_in) of its inputs' products; its int4 values are then
            fitted to them (GPTQ).
        fill: called with path and names of each matrix, as of ``linears``, before it is rounded.

    Returns:
        The formats by kind as they became: ``blocks, int8`` where layers differ.
    """
    found: dict[str, set[str]] = {kind: set() for kind in scheme}
    fill("embed", (EMBEDDING,))
    tied: Integers | None = None
    if scheme["embed"] == INT8:
        table = to_int8(decoder.get_parameter("embed.weight").detach())
        decoder.embed = ByteEmbedding(table)
        if decoder.config.tied_embeddings and not decoder.config.architecture.scaled_embedding:
            tied = table
    found["embed"].add(scheme["embed"])
    for path, kinds, names in list(linears(decoder)):
        if tied is not None and kinds == ("lm_head",) and scheme["lm_head"] == INT8:
            # The same integers, held once.
            found["lm_head"].add(INT8)
            _replace(decoder, path, integer_linear(tied, None))
            continue
        fill(path, names)
        formats = [scheme[kind] for kind in kinds]
        blocks = [source.blocks(name) if source else None for name in names]
        if BLOCKS in formats and None in blocks:
            formats = [INT8 if f == BLOCKS else f for f in formats]
        for kind, chosen in zip(kinds, formats, strict=True):
            found[kind].add(chosen)
        linear = cast(nn.Linear, decoder.get_submodule(path))
        rows = [decoder.config.linear_shape(k)[0] if k != "lm_head" else -1 for k in kinds]
        hessian = hessians.get(path) if hessians else None
        _replace(decoder, path, _stored(linear, rows, formats, blocks, hessian))
    return {kind: ", ".join(sorted(formats)) for kind, formats in found.items()}


def _stored(
    linear: nn.Linear,
    rows: list[int],
    formats: list[str],
    blocks: list[Blocks | None],
    hessian: torch.Tensor | None,
) -> nn.Module:
    """The linear in its formats: one module where all its rows have one, else side by side."""
    weight, bias = linear.weight.detach(), linear.bias
    if len(set(formats)) == 1:
        if formats[0] == FP32:
            return linear
        if formats[0] == BLOCKS:
            whole = [block for block in blocks if block is not None]
            return _block_linear(_joined(whole), bias)
        return integer_linear(_rounded(weight, formats[0], hessian), bias)
    parts: list[nn.Module] = []
    biases = [None] * len(rows) if bias is None else torch.split(bias.detach(), rows)
    for own, kind, own_bias in zip(torch.split(weight, rows), formats, biases, strict=True):
        parts.append(integer_linear(_rounded(own, kind, hessian), own_bias))
    return SideBySide(parts)


def _rounded(weight: torch.Tensor, kind: str, hessian: torch.Tensor | None) -> Integers:
    if kind == INT8:
        return to_int8(weight)
    if hessian is None:
        return to_int4(weight)
    values, scales = gptq(weight, hessian, GROUP_SIZE, lambda w: to_int4(w).scales[:, 0])
    return Integers(values, scales, 4)


def _joined(blocks: list[Blocks]) -> Blocks:
    return Blocks(
        torch.cat([b.levels for b in blocks]),
        torch.cat([b.scales for b in blocks]),
        torch.cat([b.offsets for b in blocks]),
    )


def _block_linear(blocks: Blocks, bias: torch.Tensor | None) -> BlockLinear:
    """The blocks' integers as they are; what a scale loses as bfloat16 goes into the offset."""
    levels = blocks.levels.float().reshape(*blocks.scales.shape, BLOCK) - 8
    # A block without a scale holds its offset alone.
    levels = levels * (blocks.scales > 1e-30)[..., None]
    integers = Integers(levels.flatten(1).to(torch.int8), bf16_scales(blocks.scales), 4)
    lost = (blocks.scales - integers.scales) * levels.mean(-1)
    return BlockLinear(integer_linear(integers, bias), blocks.offsets + lost)


def integer_linear(integers: Integers, bias: torch.Tensor | None) -> nn.Module:
    """A linear over torchao's tensor, which lowers to XNNPACK's dynamically quantized product."""
    from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8TensorActivationQuantization as Activation,
    )

    d_out, d_in = integers.values.shape
    stored = IntxUnpackedToInt8Tensor(
        integers.values,
        integers.scales,
        torch.zeros(integers.scales.shape, dtype=torch.int8),
        torch.int4 if integers.bits == 4 else torch.int8,  # type: ignore[attr-defined]
        (1, d_in // integers.scales.shape[1]),
        torch.float32,
        Activation.INT8_ASYM_PER_TOKEN,
    )
    linear = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(stored, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def _replace(decoder: Decoder, path: str, module: nn.Module) -> None:
    parent, name = path.rsplit(".", 1)
    setattr(decoder.get_submodule(parent), name, module)
