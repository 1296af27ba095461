"""8da4w: 4-bit grouped linears with 8-bit dynamic activations, and an 8-bit embedding."""

from __future__ import annotations

import torch
from torch import nn

GROUP_SIZE = 32


class ByteEmbedding(nn.Module):
    """An embedding of int8 rows with one float32 scale each, on ExecuTorch's quantized kernel."""

    rows: torch.Tensor
    scales: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        # Registers the quantized_decomposed operators with torch.
        import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401

        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        rows = (weight / scales[:, None]).round().to(torch.int8)
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (1, S) -> float32 (1, S, dim)."""
        return torch.ops.quantized_decomposed.embedding_byte.dtype(
            self.rows, self.scales, None, -128, 127, tokens, dtype=torch.float32
        )


def quantize_8da4w(decoder: nn.Module) -> None:
    """Quantize every linear and the embedding of ``decoder`` in place."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        weight_granularity=PerGroup(GROUP_SIZE),
    )
    quantize_(decoder, config, lambda module, name: isinstance(module, nn.Linear))
    weight = decoder.get_parameter("embed.weight").detach()
    decoder.embed = ByteEmbedding(weight)
