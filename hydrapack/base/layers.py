"""The parts of a decoder between two attentions, each in a delegate of XNNPACK when lowered."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from hydrapack.base.config import DecoderConfig


def linear(d_in: int, d_out: int, bias: bool = False) -> nn.Linear:
    """Weights not set yet: memory that nothing is written to costs none."""
    return nn.Linear(d_in, d_out, bias=bias, device="meta").to_empty(device="cpu")


class RmsNorm(nn.Module):
    """Root-mean-square norm; the mean is a product with a row of 1/d, which XNNPACK takes."""

    average: torch.Tensor

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("average", torch.full((1, dim), 1.0 / dim), persistent=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(S, dim) -> (S, dim)."""
        mean_square = F.linear(x * x, self.average)
        return x * torch.rsqrt(mean_square + self.eps) * self.weight


class AttentionInput(nn.Module):
    """Norm and the fused q, k, v projection of a layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.qkv = linear(config.dim, width, bias=config.architecture.qkv_bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, dim) -> normed (S, dim), qkv (S, width)."""
        h = self.norm(x)
        return h, self.qkv(h)


class Residual(nn.Module):
    """A linear, o or down, whose output is added to the stream."""

    def __init__(self, config: DecoderConfig, d_in: int) -> None:
        super().__init__()
        self.linear = linear(d_in, config.dim)
        post = config.architecture.post_norms
        self.norm = RmsNorm(config.dim, config.norm_eps) if post else None

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, update: torch.Tensor | None
    ) -> torch.Tensor:
        """Stream x (S, dim), y (S, d_in), the adapter's update (S, dim) -> stream."""
        if self.norm is None:
            x = x + self.linear(y)
            return x if update is None else x + update
        h = self.linear(y)
        return x + self.norm(h if update is None else h + update)


class MlpInput(nn.Module):
    """Norm, gate and up of a layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.gate = linear(config.dim, config.intermediate)
        self.up = linear(config.dim, config.intermediate)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(S, dim) -> normed (S, dim), gate and up (S, intermediate)."""
        h = self.norm(x)
        return h, self.gate(h), self.up(h)


class GatedActivation(nn.Module):
    """SwiGLU, or GeGLU with the tanh form of GELU: x * sigmoid(2 * sqrt(2 / pi) * (x + c x^3))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gelu = config.activation == "gelu_pytorch_tanh"

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Each (S, intermediate)."""
        if not self.gelu:
            return gate * torch.sigmoid(gate) * up
        slope = 2 * math.sqrt(2 / math.pi)
        return gate * torch.sigmoid(gate * (gate * gate * (0.044715 * slope) + slope)) * up


class Output(nn.Module):
    """Final norm and the vocabulary matrix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.lm_head = linear(config.dim, config.vocab_size)
        self.cap = config.logit_cap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(K, dim) -> logits (K, V)."""
        logits = self.lm_head(self.norm(x))
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
