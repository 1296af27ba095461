"""A plain decoder of Llama's family whose LoRA weights arrive as inputs.

    logits[1, K, V] = Decoder(tokens[1, S], input_pos[S], rows[K], on, *a, *b)

Shaped for few XNNPACK delegates: the linears, norms and the activation between two attentions form
one *stage chain* that lowers to one delegate. Only what XNNPACK does not take, or what must lie
between (the adapters' products, rotation, the cache, attention), runs on ExecuTorch's own kernels.
Written with operators and sizes (-1, no x.shape) that need no decomposition, which saves the
exporter a retrace of the whole graph, a third of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from hydrapack.base.attention import Attention, Positions
from hydrapack.base.config import DecoderConfig
from hydrapack.base.layers import AttentionInput, GatedActivation, MlpInput, Output, Residual
from hydrapack.program.layout import Layout


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
        adapted = self._adapted(("qkv", "q", "k", "v"))
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
                for name in ("q", "k", "v")
            ]
            return (base[0] + torch.cat(parts, -1),)

        join = _sums if adapted == ("qkv",) else side_by_side
        return self._branch(layer, adapted, x, (fused,), join)[0]

    def add_gate_up(
        self, layer: int, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normed stream x (S, dim) -> gate and up, each (S, intermediate), updated."""
        adapted = self._adapted(("gate_up", "gate", "up"))
        if not adapted:
            return gate, up
        base = {"gate": gate, "up": up}

        def halves(
            base: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]
        ) -> Sequence[torch.Tensor]:
            width = self.config.intermediate
            return _sums(base, (updates[0][:, :width], updates[0][:, width:]))

        fused = adapted == ("gate_up",)
        names = tuple(base) if fused else adapted
        own = tuple(base[name] for name in names)
        found = self._branch(layer, adapted, x, own, halves if fused else _sums)
        base |= dict(zip(names, found, strict=True))
        return base["gate"], base["up"]

    def of(self, name: str, layer: int, y: torch.Tensor) -> torch.Tensor | None:
        """Input y (S, d_in) of the linear o or down -> its update (S, dim), or None."""
        adapted = self._adapted((name,))
        if not adapted:
            return None

        def nothing(y: torch.Tensor, _: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            return (y.new_zeros(y.shape[0], self.config.dim),)

        return self._branch(layer, adapted, y, (), lambda _, u: u, nothing)[0]

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

    def __init__(self, config: DecoderConfig, layout: Layout | None, context: int) -> None:
        super().__init__()
        self.config, self.layout, self.context = config, layout, context
        count, width = config.layers, config.heads * config.head_dim
        self.positions = nn.ModuleDict(
            {kind: Positions(config, kind, context) for kind in dict.fromkeys(config.attention)}
        )
        self.embed: nn.Module = nn.Embedding(config.vocab_size, config.dim, device="meta")
        self.embed.to_empty(device="cpu")
        self.attention_inputs = nn.ModuleList(AttentionInput(config) for _ in range(count))
        self.attention_outputs = nn.ModuleList(Residual(config, width) for _ in range(count))
        self.mlp_inputs = nn.ModuleList(MlpInput(config) for _ in range(count))
        self.activations = nn.ModuleList(GatedActivation(config) for _ in range(count))
        self.mlp_outputs = nn.ModuleList(
            Residual(config, config.intermediate) for _ in range(count)
        )
        self.output = Output(config)
        self.attentions = nn.ModuleList(Attention(config, context) for _ in range(count))

    def delegates(self) -> dict[str, str]:
        """Module path -> the delegate it belongs to: a chain runs on until an adapter cuts in."""
        targets = set(self.layout.targets) if self.layout else set()
        chains = {"attention_inputs.0": "first"}
        for i in range(self.config.layers):
            follower = f"attention_inputs.{i + 1}" if i + 1 < self.config.layers else "output"
            chain = f"attention.{i}"
            chains |= dict.fromkeys((f"attention_outputs.{i}", f"mlp_inputs.{i}"), chain)
            chain = f"mlp.{i}" if targets & {"gate_up", "gate", "up"} else chain
            chains[f"activations.{i}"] = chain
            chain = f"down.{i}" if "down" in targets else chain
            chains |= dict.fromkeys((f"mlp_outputs.{i}", follower), chain)
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
        seen = {kind: positions(input_pos) for kind, positions in self.positions.items()}
        # Once here, and not in each of the branches.
        counts = None if on is None else on != 0
        updates = Updates(self.config, self.layout, counts, adapter)
        for i, kind in enumerate(self.config.attention):
            h, qkv = self.attention_inputs[i](x)
            qkv = updates.add_qkv(i, h, qkv)
            y = self.attentions[i](qkv, input_pos, *seen[kind])
            if i + 1 == self.config.layers:
                # Only these positions' logits are asked for.
                x, y = x.index_select(0, rows), y.index_select(0, rows)
            x = self.attention_outputs[i](x, y, updates.of("o", i, y))
            h, gate, up = self.mlp_inputs[i](x)
            gate, up = updates.add_gate_up(i, h, gate, up)
            inner = self.activations[i](gate, up)
            x = self.mlp_outputs[i](x, inner, updates.of("down", i, inner))
        return self.output(x)[None]

    def forget(self) -> None:
        """Empty the cache, as a program starts with it."""
        for attention in self.attentions:
            cast(Attention, attention).keys.zero_()
            cast(Attention, attention).values.zero_()
