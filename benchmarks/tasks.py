"""Packages of 5, 50 and 500 tasks measured: size, opening and swap, in Python and C++.

    python benchmarks/tasks.py [HYDRAPACK_RUN]   # the C++ command; Python alone without it

Two-sided, R = 32 and Q = 64 in 64 modules, 8 bits, as of q,k,v,o of a 1B model, so a task's C's and
route have their real size; the base is a random Llama of 16 layers and 256 columns, so that what N
adds shows. Random weights: they serve for time and size only.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from decode import bundle_of

from hydrapack.support.quiet import silence_libraries

silence_libraries()

LAYERS, WIDTH, RANK, OUTPUT_RANK, SWAPS = 16, 256, 32, 64, 100
WIDTHS = {"q": (WIDTH, WIDTH), "k": (WIDTH // 2, WIDTH), "v": (WIDTH // 2, WIDTH)}
WIDTHS |= {"o": (WIDTH, WIDTH)}


def made_model(folder: Path) -> Path:
    """model.pte of a random Llama, and its tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    from hydrapack.base.export import export_base

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    vocabulary = {f"w{i}": i for i in range(300)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    export_base(str(folder / "base"), folder / "model.pte", RANK, quant="fp32", max_context=256)
    return folder / "model.pte"


def made_package(tasks: int, folder: Path):
    """The package of so many random tasks."""
    from hydrapack.bundle.merged import MergedModule
    from hydrapack.packing.package import pack
    from hydrapack.program.layout import module_name

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    modules = {}
    for layer in range(LAYERS):
        for target, (d_out, d_in) in WIDTHS.items():
            U, C = normal(d_out, OUTPUT_RANK) / d_out**0.5, normal(tasks, OUTPUT_RANK, RANK)
            A = normal(RANK, d_in) / d_in**0.5
            modules[module_name(layer, target)] = MergedModule(A, C, tuple(range(tasks)), U)
    return pack(bundle_of(modules, RANK, tasks), folder, 8)


def timed(function, rounds: int) -> float:
    """Milliseconds, the median."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def row(model: Path, tasks: int, folder: Path, command: str | None) -> str:
    from hydrapack.device.manifest import read_device_manifest
    from hydrapack.device.session import Session
    from hydrapack.verification.checks import verify

    started = time.monotonic()
    package = made_package(tasks, folder)
    packing = time.monotonic() - started
    size = (folder / "manifest.json").stat().st_size
    read = timed(lambda: read_device_manifest(folder), 5)
    opening = timed(lambda: Session(model, folder).close(), 5)
    without = timed(lambda: Session(model, folder, check_digests=False).close(), 5)
    names = list(package.tasks)
    draw = random.Random(0)
    with Session(model, folder) as session:
        swap = timed(lambda: session.use(draw.choice(names)), SWAPS)
    started = time.monotonic()
    assert all(check.passed for check in verify(folder, model))
    verifying = time.monotonic() - started
    cells = [tasks, f"{package.bytes / 1e6:.1f}", f"{size / 1e3:.0f}", f"{packing:.1f}"]
    cells += [f"{verifying:.1f}", f"{read:.1f}", f"{opening:.0f}", f"{without:.0f}", f"{swap:.2f}"]
    if command is not None:
        for options in ((), ("--no-digests",)):
            run = [command, str(model), str(folder), "--bench", *options]
            shown = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
            cells.append(f"{shown['load_ms']:.0f}")
        cells.append(f"{shown['swap_ms']['median']:.2f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else None
    heads = ["N", "adapters.pte MB", "manifest kB", "pack s", "verify s", "manifest read ms"]
    heads += ["open ms", "open, no digests ms", "swap ms"]
    if command is not None:
        heads += ["C++ open ms", "C++ open, no digests ms", "C++ swap ms"]
    print("$ python benchmarks/tasks.py" + (" hydrapack-run" if command else "") + "\n")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        model = made_model(Path(scratch))
        for tasks in (5, 50, 500):
            print(row(model, tasks, Path(scratch) / str(tasks), command), flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\nCPU {used.ru_utime + used.ru_stime:.0f} s, peak {used.ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main()
