"""VeRA on the device: size, error of rounding, time to pack, open, swap and decode.

    python benchmarks/vera.py [--rank 256]

SmolLM2-135M's shape, q,k,v,o, PEFT's default rank 256, five tasks, A and B drawn as PEFT does and
random vectors: they serve for size, rounding and time only. Swaps at 4, 8 and 16 bits are
interleaved, and so is decoding on the C++ runtime, in several starts. Needs what `make runtime`
needs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from decode import bundle_of, config, exported

import runtime
from hydrapack.support.quiet import silence_libraries

silence_libraries()

SHAPE, TASKS, ROUNDS = "smollm2-135m", 5, 40


def made_bundle(rank: int):
    """Random modules, a vector b a task."""
    from hydrapack.bundle.merged import MergedVera

    layout = config(SHAPE).layout(("q", "k", "v", "o"), rank)
    shapes = dict(layout.shapes)
    generator = torch.Generator().manual_seed(0)

    def uniform(rows: int, columns: int) -> torch.Tensor:
        bound = (6 / columns) ** 0.5
        return bound * (2 * torch.rand(rows, columns, generator=generator) - 1)

    widest_out, widest_in = map(max, zip(*shapes.values(), strict=True))
    A, B = uniform(rank, widest_in), uniform(widest_out, rank)
    modules = {}
    for name in layout.modules():
        d_out, d_in = shapes[name.rsplit(".", 1)[-1].removesuffix("_proj")]
        d = 0.1 + 0.05 * torch.randn(rank, generator=generator)
        b = 0.1 * torch.randn(TASKS, d_out, generator=generator)
        modules[name] = MergedVera(d, b, tuple(range(TASKS)), A[:, :d_in], B[:d_out])
    bundle = bundle_of(modules, rank, TASKS)
    apart = TASKS * sum(rank + module.shape[0] for module in modules.values())
    update = {"adapter_type": "vera", "baseline_parameters": apart}
    return replace(bundle, info=bundle.info.model_copy(update=update))


def decode_rows(args: argparse.Namespace, programs: dict[str, Path], package: Path) -> list[str]:
    """Decode, prefill and swap of the 8-bit package in C++, over a program without adapters."""
    runtime.built(args.out / "native")
    adapted = programs["adapted"]
    cases = {
        runtime.PLAIN: f"{programs['plain']}",
        runtime.FORMS["adapted"]: f"{adapted}@{package}@t1",
        runtime.FORMS["off"]: f"{adapted}@{package}",
    }
    runs = []
    for start in range(args.starts):
        names = random.Random(start).sample(sorted(cases), len(cases))
        runs.append(runtime.timed(args, ROUNDS // 5, 16, {name: cases[name] for name in names}))
    rows = ["| program | decode ms, median | min | ratio of medians | least | most | prefill ms |"]
    rows.append("|---|---|---|---|---|---|---|")
    base = [run[runtime.PLAIN]["decode_ms"]["median"] for run in runs]
    for name in cases:
        own = [run[name]["decode_ms"] for run in runs]
        ratios = [o["median"] / b for o, b in zip(own, base, strict=True)]
        prefill = statistics.median(run[name]["prefill_ms"] for run in runs)
        times = [statistics.median(o[part] for o in own) for part in ("median", "min")]
        spread = [statistics.median(ratios), min(ratios), max(ratios)]
        cells = [f"{t:.2f}" for t in times] + [f"{r:.3f}" for r in spread] + [f"{prefill:.1f}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    swaps = [run[runtime.FORMS["adapted"]]["swap_ms"] for run in runs]
    least, middle = (statistics.median(swap[part] for swap in swaps) for part in ("min", "median"))
    return [*rows, f"\nswap in C++: {middle:.2f} ms median, {least:.2f} min"]


def main() -> None:
    from hydrapack.packing.manifest import ADAPTERS
    from hydrapack.packing.package import pack
    from hydrapack.program.load import execute, load_program

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=runtime.ROOT / "build" / "bench")
    parser.add_argument("--starts", type=int, default=5, help="of the process that decodes")
    args = parser.parse_args()
    print(f"{SHAPE} shape, rank {args.rank}, {TASKS} tasks, {torch.get_num_threads()} threads\n")
    bundle, rows, heads = made_bundle(args.rank), {}, {}
    folder = args.out / f"{SHAPE}-r{args.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    programs = exported(folder, ("plain", "adapted"), SHAPE, args.rank, args.context)
    with tempfile.TemporaryDirectory() as scratch:
        for bits in (4, 8, 16):
            folder = Path(scratch) / str(bits)
            started = time.perf_counter()
            manifest = pack(bundle, folder, bits).manifest
            packed = time.perf_counter() - started
            program = load_program(folder / ADAPTERS, "head")
            heads[bits] = program.method("head")
            shared = program.method("shared")
            started = time.perf_counter()
            execute(shared, [], "shared")
            opened = time.perf_counter() - started
            error = max(task.packed_relative_error for task in manifest.tasks)
            rows[bits] = (manifest.storage, error, packed, 1000 * opened)
        times: dict[int, list[float]] = {bits: [] for bits in heads}
        route = torch.zeros(len(manifest.modules), dtype=torch.int64)
        for number in range(ROUNDS):
            for bits, head in heads.items():
                started = time.perf_counter()
                execute(head, [route + number % TASKS], "head")
                times[bits].append(1000 * (time.perf_counter() - started))
        decoded = decode_rows(args, programs, Path(scratch) / "8")
    print(
        "| bits | adapters.pte kB | over its integers kB | % of fp16 | rounding error | pack s |",
        end="",
    )
    print(" shared ms | swap ms, min | median |")
    print("|---|---|---|---|---|---|---|---|---|")
    for bits, (stored, error, packed, opened) in rows.items():
        frame = stored.bytes - stored.tensor_bytes
        print(
            f"| {bits} | {stored.bytes / 1e3:.0f} | {frame / 1e3:.0f} "
            f"| {100 * stored.bytes / stored.baseline_bytes:.1f} | {error:.4f} | {packed:.0f} "
            f"| {opened:.0f} | {min(times[bits]):.1f} | {statistics.median(times[bits]):.1f} |"
        )
    print("\n" + "\n".join(decoded))


if __name__ == "__main__":
    main()
