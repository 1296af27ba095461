"""Decode cost of an adapter, head swap, prefill, load and export, on real ExecuTorch programs.

    python benchmarks/decode.py --shape smollm2-135m --rank 16
    python benchmarks/decode.py --shape llama-3.2-1b --rank 32

Random weights of the model's shape: they serve for speed, size and memory only. Programs are timed
in one interleaved run, so that the ratios hold where the machine's own speed drifts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

SHAPES = {
    # To see that the benchmarks run; its times say nothing.
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rope_theta": 1e5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}
KINDS = ("plain", "adapted", "fixed", "held")
"""Without an adapter; its matrices inputs; one adapter inside the delegates; A in the program."""
PREFILL, ROUNDS, STEPS, HEADS = 64, 10, 12, 5
TARGETS = ("q", "k", "v", "o")


def config(shape: str):
    from hydrapack.base.config import parse_config

    raw = {"model_type": "llama", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    return parse_config({**raw, **SHAPES[shape]}, shape)


def add_fixed_adapter(decoder, rank: int) -> None:
    """Put one adapter into a quantized decoder, as ExecuTorch's own LoRA export has it.

    As in its examples/models/llama (lora.py, and the filter of source_transformation/quantize.py),
    A and B are linears of their own beside each of the base's, in the same delegate, and float32
    where the base is 8da4w. The scaling is folded into B.
    """
    import torch
    from torch import nn

    model = decoder.config

    class Lora(nn.Module):
        """B A x of each linear that reads x, side by side; nothing of those not adapted."""

        def __init__(self, *names: str) -> None:
            super().__init__()
            adapted = [name for name in names if name in TARGETS]
            assert adapted in ([], list(names)), "a fused linear adapted in part"
            shapes = [model.linear_shape(name) for name in adapted]
            self.lora_a = nn.ModuleList(nn.Linear(d_in, rank, bias=False) for _, d_in in shapes)
            self.lora_b = nn.ModuleList(nn.Linear(rank, d_out, bias=False) for d_out, _ in shapes)

        def forward(self, x):
            parts = [B(A(x)) for A, B in zip(self.lora_a, self.lora_b, strict=True)]
            return torch.cat(parts, -1) if len(parts) > 1 else parts[0] if parts else None

    def plus(y, delta):
        return y if delta is None else y + delta

    class FixedInput(nn.Module):
        def __init__(self, part, *names: str) -> None:
            super().__init__()
            self.part, self.loras = part, nn.ModuleList(Lora(*own.split()) for own in names)

        def forward(self, x):
            h, *products = self.part(x)
            return h, *(plus(y, lora(h)) for y, lora in zip(products, self.loras, strict=True))

    class FixedOutput(nn.Module):
        def __init__(self, part, name: str) -> None:
            super().__init__()
            self.part, self.lora = part, Lora(name)

        def forward(self, x, y, update):
            return self.part(x, y, self.lora(y))

    for chain, fixed, names in (
        ("attention_inputs", FixedInput, ("q k v",)),
        ("attention_outputs", FixedOutput, ("o",)),
        ("mlp_inputs", FixedInput, ("gate", "up")),
        ("mlp_outputs", FixedOutput, ("down",)),
    ):
        parts = getattr(decoder, chain)
        setattr(decoder, chain, nn.ModuleList(fixed(part, *names) for part in parts))


def hold_a(decoder, rank: int) -> None:
    """Put A into a quantized decoder, as 4-bit linears in the chains; only the B's stay inputs.

    There the products with B have their roles swapped, so that XNNPACK streams B: it packs a
    product's right operand at each call, which so is the small activation.
    """
    import torch
    from torch import nn

    from hydrapack.base.integers import integer_linear, to_int4

    model = decoder.config

    class Held(nn.Module):
        """B A x of q, k and v or of o; ``heads`` are the B's of one call, each (1, d_out, rank)."""

        def __init__(self, *names: str) -> None:
            super().__init__()
            shapes = [model.linear_shape(name) for name in names]
            random = [torch.randn(rank, d_in) * 0.02 for _, d_in in shapes]
            self.a = nn.ModuleList(integer_linear(to_int4(a), None) for a in random)
            self.shapes = [(1, d_out, rank) for d_out, _ in shapes]
            self.heads: tuple[torch.Tensor, ...] = ()

        def forward(self, x):
            parts = [
                torch.bmm(B, A(x).permute(1, 0).view(1, rank, -1))
                for A, B in zip(self.a, self.heads, strict=True)
            ]
            whole = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            return whole.view(whole.shape[1], -1).permute(1, 0)

    class HeldInput(nn.Module):
        def __init__(self, part) -> None:
            super().__init__()
            self.part, self.held = part, Held("q", "k", "v")

        def forward(self, x):
            h, qkv = self.part(x)
            return h, qkv + self.held(h)

    class HeldOutput(nn.Module):
        def __init__(self, part) -> None:
            super().__init__()
            self.part, self.held = part, Held("o")

        def forward(self, x, y, update):
            return self.part(x, y, self.held(y))

    inputs = decoder.attention_inputs = nn.ModuleList(map(HeldInput, decoder.attention_inputs))
    outputs = decoder.attention_outputs = nn.ModuleList(map(HeldOutput, decoder.attention_outputs))
    holders = [chain[i].held for i in range(model.layers) for chain in (inputs, outputs)]
    plain = decoder.forward

    def forward(tokens, input_pos, rows, on, *heads):
        given = iter(heads)
        for holder in holders:
            holder.heads = tuple(next(given) for _ in holder.shapes)
        return plain(tokens, input_pos, rows)

    decoder.forward = forward
    heads = [shape for holder in holders for shape in holder.shapes]
    decoder.layout = SimpleNamespace(targets=(), a_shapes=[], b_shapes=heads)


def calls(path: Path) -> tuple[int, int]:
    """Delegates of the program's forward, and calls of kernels outside them."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    (forward,) = (plan for plan in program.execution_plan if plan.name == "forward")
    instructions = [i.instr_args for chain in forward.chains for i in chain.instructions]
    return len(forward.delegates), sum(type(i).__name__ == "KernelCall" for i in instructions)


def check_fixed(programs: dict[str, Path]) -> None:
    """The fixed program's adapter must lie wholly inside the plain program's delegates."""
    plain, fixed = calls(programs["plain"]), calls(programs["fixed"])
    if plain != fixed:
        raise SystemExit(
            f"{programs['fixed']}: not as wanted, (delegates, kernel calls) are {fixed}, in "
            f"{programs['plain']} {plain}; delete both to export them anew"
        )


def export(shape: str, rank: int, context: int, out: Path, kind: str) -> None:
    """Export one program of random weights, of a kind of ``KINDS``; write what it took as JSON."""
    import torch

    from hydrapack.base.decoder import Decoder
    from hydrapack.base.integers import quantize_decoder
    from hydrapack.base.lower import lower_decoder
    from hydrapack.base.scheme import scheme_of
    from hydrapack.support.digest import file_sha256

    torch.manual_seed(0)
    started = time.monotonic()
    model = config(shape)
    layout = model.layout(TARGETS, rank) if kind == "adapted" else None
    decoder = Decoder(model, layout, context)

    def random(path: str, names: tuple[str, ...]) -> None:
        decoder.get_parameter(f"{path}.weight").detach().normal_(0, 0.02)

    # Matrix by matrix, as export-base reads them.
    quantize_decoder(decoder, scheme_of("8da4w"), fill=random)
    if kind == "fixed":
        add_fixed_adapter(decoder, rank)
    if kind == "held":
        hold_a(decoder, rank)
    metadata = {
        "get_vocab_size": model.vocab_size,
        "get_max_context_len": context,
        "get_eos_ids": list(model.eos_ids),
        "get_adapter_layout": layout.digest if layout else "",
        "get_adapter_rank": rank if layout else 0,
    }
    lower_decoder(decoder, metadata, out)
    took = {
        "seconds": round(time.monotonic() - started, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "mb": round(out.stat().st_size / 1e6, 1),
    }
    out.with_suffix(".json").write_text(json.dumps(took))
    # What the C++ runtime compares with the program's digest.
    described = {"bytes": out.stat().st_size, "sha256": file_sha256(out), **metadata}
    out.with_name(out.name + ".json").write_text(json.dumps(described))


def bundle_of(modules, rank: int, count: int):
    """A bundle of made modules, a head for each of ``count`` tasks."""
    from hydrapack.adapters.task_settings import TaskSettings
    from hydrapack.bundle.format import Bundle, BundleInfo, BundleTask, SourceAdapter

    names = sorted(modules)
    source = SourceAdapter(digest="0" * 64, rank=rank, alpha=1.0, parameters=1)
    tasks = [
        BundleTask(
            name=f"t{k}",
            route=[k] * len(names),
            relative_error=0.0,
            settings=TaskSettings(),
            source=source,
        )
        for k in range(count)
    ]
    info = BundleInfo(
        hydrapack_version="0",
        base_model="made",
        method="random",
        seed=0,
        heads=count,
        rank=rank,
        modules=names,
        module_errors={},
        tasks=tasks,
        parameters=1,
        baseline_parameters=1,
    )
    return Bundle(info, {name: modules[name] for name in names})


def export_heads(shape: str, rank: int, out: Path, count: int = HEADS) -> dict[str, float]:
    """Pack random heads at 8 bits."""
    import torch

    from hydrapack.bundle.merged import MergedModule
    from hydrapack.packing.package import pack

    layout = config(shape).layout(TARGETS, rank)
    generator = torch.Generator().manual_seed(0)
    modules = {}
    for name in layout.modules():
        d_out, d_in = dict(layout.shapes)[name.rsplit(".", 1)[1].removesuffix("_proj")]
        a = torch.randn(rank, d_in, generator=generator) * 0.02
        heads = torch.randn(count, d_out, rank, generator=generator) * 0.02
        modules[name] = MergedModule(a, heads, tuple(range(count)))
    started = time.monotonic()
    manifest = pack(bundle_of(modules, rank, count), out).manifest
    seconds = round(time.monotonic() - started, 1)
    return {"pack_seconds": seconds, "adapters_mb": round(manifest.storage.bytes / 1e6, 2)}


def measure(programs: dict[str, Path], package: Path, context: int) -> dict[str, object]:
    """Interleaved decode times and swap times, in ms."""
    import executorch.kernels.quantized  # noqa: F401
    import torch
    from executorch.runtime import Runtime

    from hydrapack.packing.manifest import read_manifest
    from hydrapack.program.layout import a_matrices, b_matrices
    from hydrapack.program.load import execute, forward_inputs

    runtime = Runtime.get()
    loads, methods, kept = {}, {}, []
    for name, path in programs.items():
        started = time.perf_counter()
        program = runtime.load_program(path)
        methods[name] = program.load_method("forward")
        loads[name] = round(time.perf_counter() - started, 2)
        kept.append(program)
    adapters = runtime.load_program(package / "adapters.pte")
    layout = read_manifest(package).layout
    a = a_matrices(execute(adapters.load_method("shared"), [], "shared")[0], layout.a_shapes)
    head = adapters.load_method("head")
    swaps = []
    tasks = read_manifest(package).tasks
    for k in range(40):
        route = torch.tensor(tasks[k % len(tasks)].route)
        started = time.perf_counter()
        b = b_matrices(execute(head, [route], "head")[0], layout.b_shapes)
        swaps.append(1e3 * (time.perf_counter() - started))
    cases = {
        "no adapter in the program": (methods["plain"], False, []),
        "no head": (methods["adapted"], False, [*a, *b]),
        "a head (A and B inputs)": (methods["adapted"], True, [*a, *b]),
    }
    prefill, times = {}, {name: [] for name in cases}
    for name, (method, *adapter) in cases.items():
        for _ in range(2):
            started = time.perf_counter()
            text = range(PREFILL)
            execute(method, forward_inputs(text, text, [PREFILL - 1], *adapter), name)
            prefill[name] = round(1e3 * (time.perf_counter() - started), 1)
    for _ in range(ROUNDS):
        for name, (method, *adapter) in cases.items():
            for step in range(STEPS):
                inputs = forward_inputs([5], [PREFILL + step], [0], *adapter)
                started = time.perf_counter()
                execute(method, inputs, name)
                times[name].append(1e3 * (time.perf_counter() - started))
    base = times["no adapter in the program"]
    return {
        "load_s": loads,
        "swap_ms": {"min": round(min(swaps), 2), "median": round(statistics.median(swaps), 2)},
        f"prefill_{PREFILL}_ms": prefill,
        "decode_ms": {
            name: {
                "median": round(statistics.median(t), 2),
                "min": round(min(t), 2),
                "ratio_median": round(statistics.median(t) / statistics.median(base), 3),
                "ratio_min": round(min(t) / min(base), 3),
            }
            for name, t in times.items()
        },
        "context": context,
    }


def exported(
    folder: Path, names: tuple[str, ...], shape: str, rank: int, context: int
) -> dict[str, Path]:
    """The programs in ``folder``, exported if missing; the plain one beside it serves all ranks."""
    programs = {name: folder / f"{name}.pte" for name in names}
    programs["plain"] = folder.parent / f"{shape}-plain.pte"
    for name, path in programs.items():
        if not path.exists():
            # A process of its own, so that the peak memory is the export's.
            command = [sys.executable, __file__, "--shape", shape, "--rank", str(rank)]
            command += ["--context", str(context), "--export", name, "--out", str(path)]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if "fixed" in programs:
        check_fixed(programs)
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--export", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        export(args.shape, args.rank, args.context, args.out, args.export)
        return
    folder = args.out / f"{args.shape}-r{args.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    programs = exported(folder, ("plain", "adapted"), args.shape, args.rank, args.context)
    result: dict[str, object] = {
        name: json.loads(path.with_suffix(".json").read_text()) for name, path in programs.items()
    }
    result.update(export_heads(args.shape, args.rank, folder / "package"))
    result.update(measure(programs, folder / "package", args.context))
    print(f"$ python benchmarks/decode.py {' '.join(sys.argv[1:])}")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
