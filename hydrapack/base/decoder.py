"""A plain Llama-family decoder whose LoRA weights arrive as inputs.

    logits[1, K, V] = Decoder(tokens[1, S], input_pos[S], rows[K], on, *a, *b)

Shaped for few XNNPACK delegates: the linears, norms and the SwiGLU between two attentions form one
*stage chain* that lowers to one delegate. Only what XNNPACK does not take, or what must lie between
(the adapters' products, rotation, the cache and attention), runs on ExecuTorch's own kernels.
Written with operators and sizes (-1, no x.shape) that need no decomposition, which saves the
exporter a retrace of the whole graph, a third of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from hydrapack.base.config import DecoderConfig, rope_tables
from hydrapack.program.layout import Layout

# Attention reads the cache in steps of this many positions, so that its cost follows the text and
# not the context limit.
CACHE_STEP = 64


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


class Entry(nn.Module):
    """Norm and the fused q, k, v projection of a layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.qkv = nn.Linear(config.dim, width, bias=config.qkv_bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(S, dim) -> normed (S, dim), qkv (S, width)."""
        h = self.norm(x)
        return h, self.qkv(h)


class Mix(nn.Module):
    """Attention output back into the stream, norm, gate and up."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.o = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.gate = nn.Linear(config.dim, config.intermediate, bias=False)
        self.up = nn.Linear(config.dim, config.intermediate, bias=False)

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, delta: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Stream x (S, dim), attention y, adapter's o-update -> x, normed, gate, up."""
        x = x + self.o(y)
        if delta is not None:
            x = x + delta
        h = self.norm(x)
        return x, h, self.gate(h), self.up(h)


class Down(nn.Module):
    """SwiGLU and the down projection, added to the stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.intermediate, config.dim, bias=False)

    def forward(
        self, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> stream (S, dim), the down projection's input (S, intermediate)."""
        inner = gate * torch.sigmoid(gate) * up
        return x + self.down(inner), inner


class Exit(nn.Module):
    """Final norm and the vocabulary matrix."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = RmsNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, dim) -> logits (1, V)."""
        return self.lm_head(self.norm(x))


class Cache(nn.Module):
    """Keys (kv_heads, head_dim, context) and values (kv_heads, context, head_dim) of a layer."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, config: DecoderConfig, context: int) -> None:
        super().__init__()
        heads, dim = config.kv_heads, config.head_dim
        self.register_buffer("keys", torch.zeros(heads, dim, context), persistent=False)
        self.register_buffer("values", torch.zeros(heads, context, dim), persistent=False)


def _sums(
    base: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    return tuple(own + update for own, update in zip(base, updates, strict=True))


def _copies(x: torch.Tensor, base: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    # A branch of a program may not give back what it was given.
    return tuple(tensor.clone() for tensor in base)


class Updates:
    """The adapter of one call: what it adds to the linears of each layer."""

    def __init__(
        self,
        config: DecoderConfig,
        layout: Layout | None,
        counts: torch.Tensor | None,
        adapter: Sequence[torch.Tensor],
    ) -> None:
        self.config, self.layout, self.counts = config, layout, counts
        count = len(layout.a_shapes) if layout else 0
        self.a, self.b = adapter[:count], adapter[count:]

    def add_qkv(self, layer: int, x: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        """Normed stream x (S, dim) -> q, k, v side by side (S, width), updated."""
        names = ("q", "k", "v")
        adapted = self._adapted(names)
        if not adapted:
            return fused

        def side_by_side(
            base: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]
        ) -> Sequence[torch.Tensor]:
            found = dict(zip(adapted, updates, strict=True))
            parts = [
                found[name]
                if name in found
                else base[0].new_zeros(base[0].shape[0], self.config.linear_shape(name)[0])
                for name in names
            ]
            return (base[0] + torch.cat(parts, -1),)

        return self._branch(layer, adapted, x, (fused,), side_by_side)[0]

    def o(self, layer: int, y: torch.Tensor) -> torch.Tensor | None:
        """Attention output y (S, heads * head_dim) -> its update (S, dim), or None."""
        adapted = self._adapted(("o",))
        if not adapted:
            return None

        def nothing(y: torch.Tensor, _: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            return (y.new_zeros(y.shape[0], self.config.dim),)

        return self._branch(layer, adapted, y, (), lambda _, u: u, nothing)[0]

    def add_gate_up(
        self, layer: int, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normed stream x (S, dim) -> gate and up, each (S, intermediate), updated."""
        base = {"gate": gate, "up": up}
        adapted = self._adapted(tuple(base))
        if adapted:
            own = tuple(base[name] for name in adapted)
            found = self._branch(layer, adapted, x, own, _sums)
            base |= dict(zip(adapted, found, strict=True))
        return base["gate"], base["up"]

    def add_down(self, layer: int, x: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """x (S, intermediate) -> the stream (S, dim), updated."""
        adapted = self._adapted(("down",))
        return self._branch(layer, adapted, x, (stream,), _sums)[0] if adapted else stream

    def _adapted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if self.layout is None or self.counts is None:
            return ()
        return tuple(name for name in names if name in self.layout.targets)

    def _branch(
        self,
        layer: int,
        names: tuple[str, ...],
        x: torch.Tensor,
        base: tuple[torch.Tensor, ...],
        join: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], Sequence[torch.Tensor]],
        bare: Callable[[torch.Tensor, Sequence[torch.Tensor]], Sequence[torch.Tensor]] = _copies,
    ) -> tuple[torch.Tensor, ...]:
        """``join`` of the base's tensors and the updates B·(A·x) of ``names``; else ``bare``."""
        assert self.layout is not None and self.counts is not None
        layout, rank, count = self.layout, self.layout.rank, len(base)
        group = layer * len(layout.groups()) + layout.groups().index(names)
        first = layer * len(layout.targets) + layout.targets.index(names[0])

        def updated(x: torch.Tensor, A: torch.Tensor, *rest: torch.Tensor) -> Any:
            z = torch.mm(x, A)
            updates = [
                torch.mm(z[:, j * rank : (j + 1) * rank], B) for j, B in enumerate(rest[count:])
            ]
            return tuple(join(rest[:count], updates))

        def unchanged(x: torch.Tensor, A: torch.Tensor, *rest: torch.Tensor) -> Any:
            return tuple(bare(x, rest[:count]))

        inputs = (x, self.a[group], *base, *self.b[first : first + len(names)])
        if torch.compiler.is_exporting():
            return tuple(torch.cond(self.counts, updated, unchanged, inputs))
        return tuple((updated if bool(self.counts) else unchanged)(*inputs))


class Decoder(nn.Module):
    """The base program's ``forward``. ``layout`` None gives a program without adapter inputs.

    Layer by layer, a group of linears with one input at a time: the base's linears run in a chain,
    the head's products beside them, in a branch that a program runs only where ``on`` is 1.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    positions: torch.Tensor
    shut: torch.Tensor
    open: torch.Tensor

    def __init__(self, config: DecoderConfig, layout: Layout | None, context: int) -> None:
        super().__init__()
        self.config, self.layout, self.context = config, layout, context
        self.embed: nn.Module = nn.Embedding(config.vocab_size, config.dim)
        self.entries = nn.ModuleList(Entry(config) for _ in range(config.layers))
        self.mixes = nn.ModuleList(Mix(config) for _ in range(config.layers))
        self.downs = nn.ModuleList(Down(config) for _ in range(config.layers))
        self.exit = Exit(config)
        self.caches = nn.ModuleList(Cache(config, context) for _ in range(config.layers))
        cos, sin = rope_tables(config, context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("positions", torch.arange(context), persistent=False)
        self.register_buffer("shut", torch.tensor(-1e9), persistent=False)
        self.register_buffer("open", torch.tensor(0.0), persistent=False)

    def delegates(self) -> dict[str, str]:
        """Module path -> the delegate it belongs to: a chain runs on until an adapter cuts in."""
        targets = set(self.layout.targets) if self.layout else set()
        chains = {"entries.0": "entry.0"}
        for i in range(self.config.layers):
            follower = f"entries.{i + 1}" if i + 1 < self.config.layers else "exit"
            chains[f"mixes.{i}"] = chain = f"mix.{i}"
            chain = f"down.{i}" if targets & {"gate", "up"} else chain
            chains[f"downs.{i}"] = chain
            chains[follower] = f"next.{i}" if "down" in targets else chain
        return chains

    def forward(
        self,
        tokens: torch.Tensor,
        input_pos: torch.Tensor,
        rows: torch.Tensor,
        on: torch.Tensor | None = None,
        *adapter: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (1, K, V) after each of ``rows``.

        Args:
            tokens: int64 (1, S).
            input_pos: int64 (S,), ascending; the cache holds all positions before the first.
            rows: int64 (K,), which of the S tokens' logits are wanted, from 0.
            on: int64 (), 0 or 1, whether the adapter counts; None for the bare base.
            adapter: float32, the matrices of ``a`` and then of ``b``, as ``Layout`` orders them.
        """
        x = self.embed(tokens)[0]
        heads = self.config.heads + self.config.kv_heads
        # Full size once here, so that every layer multiplies equal shapes, the fast case.
        cos = self.cos[input_pos][:, None].expand(-1, heads, -1).clone()
        sin = self.sin[input_pos][:, None].expand(-1, heads, -1).clone()
        seen = self._positions_seen(input_pos)
        hidden = self.positions[:seen][None, :] > input_pos[:, None]
        mask = torch.where(hidden, self.shut, self.open)
        group = self.config.heads // self.config.kv_heads
        mask = mask[None].expand(group, -1, -1).clone().view(-1, seen)

        # Once here, and not in each of the branches.
        counts = None if on is None else on != 0
        updates = Updates(self.config, self.layout, counts, adapter)
        h, qkv = self.entries[0](x)
        for i in range(self.config.layers):
            qkv = updates.add_qkv(i, h, qkv)
            cache = cast(Cache, self.caches[i])
            y = self._attend(qkv, cache, input_pos, cos, sin, mask, seen)
            if i + 1 == self.config.layers:
                # Only these positions' logits are asked for.
                x, y = x.index_select(0, rows), y.index_select(0, rows)
            x, h, gate, up = self.mixes[i](x, y, updates.o(i, y))
            gate, up = updates.add_gate_up(i, h, gate, up)
            x, inner = self.downs[i](x, gate, up)
            x = updates.add_down(i, inner, x)
            if i + 1 < self.config.layers:
                h, qkv = self.entries[i + 1](x)
        return self.exit(x)[None]

    def forget(self) -> None:
        """Empty the cache, as a program starts with it."""
        for cache in self.caches:
            cast(Cache, cache).keys.zero_()
            cast(Cache, cache).values.zero_()

    def _positions_seen(self, input_pos: torch.Tensor) -> int:
        # The size of the attended part of the cache is read from the data: an unbacked size for
        # torch.export, bounded so that memory can be planned.
        last: int = torch.ops.aten._local_scalar_dense(input_pos[-1])
        seen = (last // CACHE_STEP + 1) * CACHE_STEP
        bounds = (last >= 0, last < self.context, seen >= CACHE_STEP, seen <= self.context)
        for bound in bounds:
            torch._check(bound)  # type: ignore[no-untyped-call]
        return seen

    def _attend(
        self,
        qkv: torch.Tensor,
        cache: Cache,
        input_pos: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        seen: int,
    ) -> torch.Tensor:
        """Rotate, write the cache, attend: qkv (S, width) -> (S, heads * head_dim)."""
        c = self.config
        rotated = (c.heads + c.kv_heads) * c.head_dim
        halves = qkv[:, :rotated].view(-1, c.heads + c.kv_heads, 2, c.head_dim // 2)
        first, second = halves[:, :, 0], halves[:, :, 1]
        qk = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
        query, key = qk[:, : c.heads], qk[:, c.heads :]
        value = qkv[:, rotated:].view(-1, c.kv_heads, c.head_dim)
        cache.keys[:, :, input_pos] = key.permute(1, 2, 0)
        cache.values[:, input_pos] = value.permute(1, 0, 2)

        group = c.heads // c.kv_heads
        query = query.view(-1, c.kv_heads, group, c.head_dim).permute(1, 2, 0, 3).contiguous()
        query = query.view(c.kv_heads, -1, c.head_dim) * c.head_dim**-0.5
        scores = torch.bmm(query, cache.keys[:, :, :seen]) + mask
        weights = torch._softmax(scores, -1, False)
        y = torch.bmm(weights, cache.values[:, :seen])
        y = y.view(c.kv_heads, group, -1, c.head_dim).permute(2, 0, 1, 3)
        return y.contiguous().view(-1, c.heads * c.head_dim)
