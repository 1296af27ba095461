"""Attention with its cache, on ExecuTorch's own kernels: where a token stands and what it sees."""

from __future__ import annotations

import torch
from torch import nn

from hydrapack.base.config import SLIDING, DecoderConfig, rope_tables

# Attention reads the cache in steps of this many positions, so that its cost follows the text and
# not the context limit.
CACHE_STEP = 64


class Positions(nn.Module):
    """Rotation and mask of the layers of one kind of attention."""

    cos: torch.Tensor
    sin: torch.Tensor
    positions: torch.Tensor
    shut: torch.Tensor
    open: torch.Tensor

    def __init__(self, config: DecoderConfig, attention: str, context: int) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.window = config.window if attention == SLIDING else None
        cos, sin = rope_tables(config, attention, context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("positions", torch.arange(context), persistent=False)
        self.register_buffer("shut", torch.tensor(-1e9), persistent=False)
        self.register_buffer("open", torch.tensor(0.0), persistent=False)

    def forward(
        self, input_pos: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """(S,) -> cos and sin (S, heads, rotated / 2), mask (group * S, seen), positions seen."""
        heads = self.config.heads + self.config.kv_heads
        # Full size once here, so that every layer multiplies equal shapes, the fast case.
        cos = self.cos[input_pos][:, None].expand(-1, heads, -1).clone()
        sin = self.sin[input_pos][:, None].expand(-1, heads, -1).clone()
        seen = self._seen(input_pos)
        masked = self.positions[:seen][None, :] > input_pos[:, None]
        if self.window is not None and self.window < self.context:
            left = self.positions[:seen][None, :] <= input_pos[:, None] - self.window
            masked = masked | left
        mask = torch.where(masked, self.shut, self.open)
        group = self.config.heads // self.config.kv_heads
        return cos, sin, mask[None].expand(group, -1, -1).clone().view(-1, seen), seen

    def _seen(self, input_pos: torch.Tensor) -> int:
        # The size of the attended part of the cache is read from the data: an unbacked size for
        # torch.export, bounded so that memory can be planned.
        last: int = torch.ops.aten._local_scalar_dense(input_pos[-1])
        seen = (last // CACHE_STEP + 1) * CACHE_STEP
        bounds = (last >= 0, last < self.context, seen >= CACHE_STEP, seen <= self.context)
        for bound in bounds:
            torch._check(bound)  # type: ignore[no-untyped-call]
        return seen


class Attention(nn.Module):
    """Rotation, cache and attention of a layer.

    The cache: keys (kv_heads, head_dim, context) and values (kv_heads, context, head_dim).
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__()
        self.config = config
        heads, dim = config.kv_heads, config.head_dim
        self.register_buffer("keys", torch.zeros(heads, dim, context), persistent=False)
        self.register_buffer("values", torch.zeros(heads, context, dim), persistent=False)
        if config.architecture.qk_norms:
            # A row a head of q and then of k.
            self.norm = nn.Parameter(torch.ones(config.heads + heads, dim))

    def forward(
        self,
        qkv: torch.Tensor,
        input_pos: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        seen: int,
    ) -> torch.Tensor:
        """Projections qkv (S, width), and what ``Positions`` gives -> (S, heads * head_dim)."""
        c = self.config
        rotated = (c.heads + c.kv_heads) * c.head_dim
        qk = self._rotate(self._normed(qkv[:, :rotated]), cos, sin)
        query, key = qk[:, : c.heads], qk[:, c.heads :]
        value = qkv[:, rotated:].view(-1, c.kv_heads, c.head_dim)
        # By the operator: an assignment drops the first dimension of a single head's values, and
        # ExecuTorch's kernel then takes the next one for it.
        put = torch.ops.aten.index_put_
        put(self.keys, [None, None, input_pos], key.permute(1, 2, 0))
        put(self.values, [None, input_pos], value.permute(1, 0, 2))

        group = c.heads // c.kv_heads
        query = query.view(-1, c.kv_heads, group, c.head_dim).permute(1, 2, 0, 3).contiguous()
        query = query.view(c.kv_heads, -1, c.head_dim) * (c.query_scale / (c.score_cap or 1))
        scores = torch.bmm(query, self.keys[:, :, :seen])
        if c.score_cap is not None:
            scores = torch.tanh(scores) * c.score_cap
        weights = torch._softmax(scores + mask, -1, False)
        y = torch.bmm(weights, self.values[:, :seen])
        y = y.view(c.kv_heads, group, -1, c.head_dim).permute(2, 0, 1, 3)
        return y.contiguous().view(-1, c.heads * c.head_dim)

    def _normed(self, qk: torch.Tensor) -> torch.Tensor:
        if not self.config.architecture.qk_norms:
            return qk
        heads = qk.view(-1, *self.norm.shape)
        mean_square = torch.mean(heads * heads, -1, True)
        heads = heads * torch.rsqrt(mean_square + self.config.norm_eps)
        # As rows and a vector: ExecuTorch's fast product.
        return heads.view(-1, self.norm.numel()) * self.norm.view(-1)

    def _rotate(self, qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The first dimensions of each head, all or some: -> (S, heads, head_dim)."""
        count, dim, half = (
            self.config.heads + self.config.kv_heads,
            self.config.head_dim,
            cos.shape[-1],
        )
        rest: list[torch.Tensor] = []
        if 2 * half < dim:
            qk = qk.view(-1, count, dim)
            qk, rest = qk[:, :, : 2 * half], [qk[:, :, 2 * half :]]
        halves = qk.view(-1, count, 2, half)
        first, second = halves[:, :, 0], halves[:, :, 1]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], -1)
