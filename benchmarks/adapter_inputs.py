"""What an adapter costs per token, by the way it enters the base program.

    python benchmarks/adapter_inputs.py

Four layers of the Llama-3.2-1B shape, 8da4w, rank 32 on q,k,v,o, random weights: for speed only.
All programs are timed in one interleaved run. The project ships 'A and B inputs, fp32'.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from decode import TARGETS, config
from torch import nn

from hydrapack.base import lower
from hydrapack.base.decoder import Decoder
from hydrapack.base.quantize import quantize_decoder
from hydrapack.base.scheme import scheme_of

LAYERS, RANK, CONTEXT, PREFILL, ROUNDS, STEPS = 4, 32, 2048, 64, 12, 12
LIB = torch.library.Library("quantized_decomposed", "FRAGMENT")


class Variant(Decoder):
    """A decoder whose adapter products differ; ``product`` is x @ matrix."""

    def pieces(self, a, b, layer, names):
        heads = [self.layout.head_b(b, layer, name) for name in names]
        return self.layout.shared_a(a, layer, names), heads

    def _updates(self, x, layer, group, a, b):
        names = tuple(n for n in group if n in self.layout.targets)
        if not names:
            return {}
        shared, heads = self.pieces(a, b, layer, names)
        z = torch.mm(x, shared)
        return {n: torch.mm(z[:, j * RANK : (j + 1) * RANK], heads[j]) for j, n in enumerate(names)}


class Half(Variant):
    """float16 inputs, widened in the program."""

    def pieces(self, a, b, layer, names):
        shared, heads = super().pieces(a, b, layer, names)
        return shared.to(torch.float32), [h.to(torch.float32) for h in heads]


class FixedA(Variant):
    """A as constants of the program, B as input."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        fixed = torch.randn(self.layout.a_size) * 0.02
        for layer in range(LAYERS):
            for group in self.layout.groups():
                matrix = self.layout.shared_a(fixed, layer, group).clone()
                self.register_buffer(f"fixed_{layer}_{group[0]}", matrix)

    def pieces(self, a, b, layer, names):
        _, heads = super().pieces(a, b, layer, names)
        return self.get_buffer(f"fixed_{layer}_{names[0]}"), heads


class Product(nn.Module):
    """A linear whose weight (d_out, d_in) is an input: XNNPACK's dynamic weights."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight)


class Dynamic(Variant):
    """Both products in XNNPACK, which packs the weights at each call."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.products = nn.ModuleList(Product() for _ in range(4 * LAYERS * 4))
        self.used = self.taken = 0

    def delegates(self) -> dict[str, str]:
        return super().delegates() | {
            f"products.{i}": f"products.{i}" for i in range(len(self.products))
        }

    def _updates(self, x, layer, group, a, b):
        names = tuple(n for n in group if n in self.layout.targets)
        if not names:
            return {}
        if layer == 0 and names[0] == "q":
            self.used = self.taken = 0
        # XNNPACK wants (d_out, d_in): random values may as well be read as if they lay that way.
        parts = self.layout.shared_a(a, layer, names).view(len(names) * RANK, -1).split(RANK)
        updates = {}
        for name, part in zip(names, parts, strict=True):
            d_out = dict(self.layout.shapes)[name][0]
            head = b[self.taken : self.taken + d_out * RANK].view(d_out, RANK)
            self.taken += d_out * RANK
            z = self.products[self.used](x, part)
            updates[name] = self.products[self.used + 1](z, head)
            self.used += 2
        return updates


class Bytes(Variant):
    """int8 inputs with their scales at the end, by ExecuTorch's mixed_mm kernel."""

    def _updates(self, x, layer, group, a, b):
        names = tuple(n for n in group if n in self.layout.targets)
        if not names:
            return {}
        shared, heads = self.pieces(a, b, layer, names)
        ones = self.get_buffer(f"ones_{shared.shape[0]}")
        z = torch.ops.quantized_decomposed.mixed_mm(x, shared, ones, None)
        ones = self.get_buffer(f"ones_{RANK}")
        return {
            n: torch.ops.quantized_decomposed.mixed_mm(
                z[:, j * RANK : (j + 1) * RANK], heads[j], ones, None
            )
            for j, n in enumerate(names)
        }

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        for size in {RANK, *(s[1] for _, s in self.layout.shapes)}:
            self.register_buffer(f"ones_{size}", torch.ones(size))


@torch.library.register_fake("quantized_decomposed::mixed_mm")
def _(x, weight, scales, zero_points):
    return x.new_empty(x.shape[0], weight.shape[1])


VARIANTS = {
    "no adapter": (Decoder, None),
    "A and B inputs, fp32": (Decoder, torch.float32),
    "A and B inputs, fp16": (Half, torch.float16),
    "A and B inputs, int8 (mixed_mm)": (Bytes, torch.int8),
    "A and B inputs, XNNPACK dynamic weights": (Dynamic, torch.float32),
    "A fixed, B input, fp32": (FixedA, torch.float32),
}


def export(kind: type[Decoder], dtype: torch.dtype | None, path: Path) -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(config("llama-3.2-1b"), layers=LAYERS)
    decoder = kind(model, model.layout(TARGETS, RANK) if dtype else None, CONTEXT)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
        quantize_decoder(decoder, scheme_of("8da4w"))
    zeros = torch.zeros
    stock = lower.ChainPartitioner

    def partitioner(delegates):
        made = stock(delegates)
        if kind is Dynamic:
            dynamic = lower.XnnpackPartitioner(force_non_static_weights_for_f32_linear=True)
            made.target_partitioner_configs = dynamic.target_partitioner_configs
        return made

    lower.ChainPartitioner = partitioner
    if dtype:
        torch.zeros = lambda *s, **k: zeros(*s, **({"dtype": dtype} | k))
    try:
        lower.lower_decoder(decoder, {}, path)
    finally:
        torch.zeros, lower.ChainPartitioner = zeros, stock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    layout = dataclasses.replace(config("llama-3.2-1b"), layers=LAYERS).layout(TARGETS, RANK)
    programs = {}
    for index, (name, (kind, dtype)) in enumerate(VARIANTS.items()):
        path = args.out / f"inputs-{index}.pte"
        if not path.exists():
            export(kind, dtype, path)
        program = Runtime.get().load_program(path)
        extra = []
        if dtype:
            for size in (layout.a_size, layout.b_size):
                values = torch.randn(size)
                extra.append((values * (10 if dtype == torch.int8 else 0.02)).to(dtype))
        programs[name] = (program, program.load_method("forward"), extra, [])
    for _ in range(ROUNDS):
        for _, method, extra, times in programs.values():
            for step in range(STEPS):
                inputs = [torch.tensor([[5]]), torch.tensor([PREFILL + step]), *extra]
                started = time.perf_counter()
                method.execute(inputs)
                times.append(1e3 * (time.perf_counter() - started))
    print(f"$ python benchmarks/adapter_inputs.py {' '.join(sys.argv[1:])}\n")
    print("| adapter | median ms | min ms | median, ratio | min, ratio |\n|---|---|---|---|---|")
    base = programs["no adapter"][3]
    for name, (_, _, _, times) in programs.items():
        median, low = statistics.median(times), min(times)
        ratios = f"{median / statistics.median(base):.3f} | {low / min(base):.3f}"
        print(f"| {name} | {median:.2f} | {low:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
