"""The swap measured: head(route) of adapters.pte at every width, of whole heads and of U C.

    python benchmarks/swap.py

Llama-3.2-1B shapes, rank 32, q,k,v,o, five tasks, random weights (they serve for time and size
only). Swaps of all programs are interleaved; outputs are compared with the eager program's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from decode import bundle_of

from hydrapack.support.quiet import silence_libraries

silence_libraries()

WIDTHS = {"q": (2048, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 2048)}
LAYERS, RANK, TASKS, ROUNDS = 16, 32, 5, 40


def made_bundle(output_rank: int):
    """Random modules with a head a task; with ``output_rank`` as U C."""
    from hydrapack.bundle.merged import MergedModule
    from hydrapack.program.layout import module_name

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    modules = {}
    tasks = tuple(range(TASKS))
    for layer in range(LAYERS):
        for target, (d_out, d_in) in WIDTHS.items():
            A = normal(RANK, d_in) / d_in**0.5
            if output_rank:
                U, C = normal(d_out, output_rank) / d_out**0.5, normal(TASKS, output_rank, RANK)
                module = MergedModule(A, C, tasks, U)
            else:
                module = MergedModule(A, normal(TASKS, d_out, RANK), tasks)
            modules[module_name(layer, target)] = module
    return bundle_of(modules, RANK, TASKS)


def main() -> None:
    from hydrapack.bundle.stored import store
    from hydrapack.packing.adapter_program import lower_adapters
    from hydrapack.packing.manifest import ADAPTERS
    from hydrapack.packing.package import pack
    from hydrapack.program.layout import layout_of
    from hydrapack.program.load import execute, load_program
    from hydrapack.program.quantized import Precision

    print("$ python benchmarks/swap.py\n")
    print(f"{torch.get_num_threads()} cores, Llama-3.2-1B shape, rank {RANK}, {TASKS} tasks\n")
    rows, heads = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for output_rank in (0, RANK, 2 * RANK):
            bundle = made_bundle(output_rank)
            layout = layout_of(bundle.shapes, RANK)
            for bits in (4, 8, 16):
                folder = Path(scratch) / f"{output_rank}-{bits}"
                storage = pack(bundle, folder, bits).manifest.storage
                method = load_program(folder / ADAPTERS, "head").method("head")
                stored = {n: store(m, Precision(bits, bits)) for n, m in bundle.modules.items()}
                routes = [torch.full((len(layout.modules()),), k) for k in range(TASKS)]
                eager = lower_adapters(layout, stored, Path(scratch) / "again.pte")
                equal = all(
                    torch.equal(execute(method, [route], "head")[0], eager.b(route))
                    for route in routes
                )
                key = (output_rank, bits)
                heads[key] = (method, routes)
                rows.append((key, storage.bytes, storage.tensor_bytes, equal))
        times: dict[tuple[int, int], list[float]] = {key: [] for key in heads}
        for number in range(ROUNDS):
            for key, (method, routes) in heads.items():
                started = time.perf_counter()
                execute(method, [routes[number % TASKS]], "head")
                times[key].append(1000 * (time.perf_counter() - started))
    print(
        "| heads | bits | adapters.pte MB | over its integers kB | swap ms, min | median | eager |"
    )
    print("|---|---|---|---|---|---|---|")
    for (output_rank, bits), size, least, equal in rows:
        kind = f"U C, Q = {output_rank}" if output_rank else "whole"
        took = times[output_rank, bits]
        print(
            f"| {kind} | {bits} | {size / 1e6:.2f} | {(size - least) / 1e3:.0f} | "
            f"{min(took):.2f} | {statistics.median(took):.2f} | {'equal' if equal else 'differs'} |"
        )


if __name__ == "__main__":
    main()
