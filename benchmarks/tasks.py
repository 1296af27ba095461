"""Packages of 5, 50 and 500 tasks measured: size, opening and swap, in Python and C++.

    python benchmarks/tasks.py [HYDRAPACK_RUN]   # the C++ command; Python alone without it

Two-sided, R = 16 and Q = 64 in the 120 modules q,k,v,o of SmolLM2's shape, 8 bits: a head takes
123 kB. The base has that shape too, with a small vocabulary and MLP, so that what N adds shows.
Random weights: they serve for time and size only. A task's first swap checks its head; "with all
heads" opens with ``check_heads``, which reads the whole file. Openings are the least of several,
swaps the median.
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

LAYERS, WIDTH, RANK, OUTPUT_RANK, TARGETS = 30, 576, 16, 64, ["q", "k", "v", "o"]
WIDTHS = {"q": (WIDTH, WIDTH), "k": (WIDTH // 3, WIDTH), "v": (WIDTH // 3, WIDTH)}
WIDTHS |= {"o": (WIDTH, WIDTH)}
SAMPLES = 40


def made_model(folder: Path) -> Path:
    """model.pte of a random Llama, and its tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM

    from hydrapack.base.export import export_base

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    vocabulary = {f"w{i}": i for i in range(300)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    options = {"quant": "fp32", "max_context": 256}
    export_base(str(folder / "base"), folder / "model.pte", RANK, TARGETS, **options)
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


def least(function, rounds: int = 7) -> float:
    """Milliseconds, the least of several: what others take of the machine is left out."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        found.append(1000 * (time.perf_counter() - started))
    return min(found)


def in_python(model: Path, folder: Path, names: list[str]) -> list[str]:
    from hydrapack.device.manifest import read_device_manifest
    from hydrapack.device.session import Session

    cells = [f"{least(lambda: read_device_manifest(folder)):.1f}"]
    for options in ({}, {"check_heads": True}, {"check_digests": False}):
        cells.append(f"{least(lambda o=options: Session(model, folder, **o).close()):.0f}")
    with Session(model, folder) as session:
        drawn = random.Random(0).sample(names, min(SAMPLES, len(names)))
        for _ in ("first", "later"):
            found = []
            for name in drawn:
                session.use(None).use(name)
                found.append(session.stats.swap_ms)
            cells.append(f"{statistics.median(found):.2f}")
    return cells


def in_cpp(command: str, model: Path, folder: Path) -> list[str]:
    cells = []
    for options in ((), ("--check-heads",), ("--no-digests",)):
        run = [command, str(model), str(folder), "--bench", *options]
        shown = [
            json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
            for _ in range(3)
        ]
        cells.append(f"{min(one['load_ms'] for one in shown):.0f}")
        if not options:
            swaps = [min(one[key]["median"] for one in shown) for key in SWAPS]
    return cells + [f"{swap:.2f}" for swap in swaps]


SWAPS = ("first_swap_ms", "swap_ms")
OPENINGS = ["open ms", "with all heads", "without digests", "first swap ms", "later swap ms"]


def row(model: Path, tasks: int, folder: Path, command: str | None) -> str:
    from hydrapack.verification.checks import verify

    started = time.monotonic()
    package = made_package(tasks, folder)
    packing = time.monotonic() - started
    size = (folder / "manifest.json").stat().st_size
    started = time.monotonic()
    assert all(check.passed for check in verify(folder))
    verifying = time.monotonic() - started
    cells = [str(tasks), f"{package.bytes / 1e6:.1f}", f"{size / 1e3:.0f}"]
    cells += [f"{packing:.0f}", f"{verifying:.0f}", *in_python(model, folder, [*package.tasks])]
    if command is not None:
        cells += in_cpp(command, model, folder)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else None
    heads = ["N", "adapters.pte MB", "manifest kB", "pack s", "verify s", "manifest read ms"]
    heads += OPENINGS
    if command is not None:
        heads += [f"C++ {name}" for name in OPENINGS]
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
