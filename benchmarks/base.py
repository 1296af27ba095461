"""What each quantization of the base program costs: bytes, KL divergence, agreement, decode time.

    python benchmarks/base.py
    python benchmarks/base.py --model ./Llama-3.2-1B-Instruct --rank 32 --quant 8da4w --quant 8da8w

Exports every program with `export-base --report` (those already in --out are kept), then times them
interleaved in one process of the C++ runtime, started several times with the programs in random
order. Needs what `make runtime` needs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from hydrapack.support.quiet import silence_libraries

silence_libraries()

from runtime import PREFILL, ROUNDS, STEPS, built  # noqa: E402

ROOT = Path(__file__).parents[1]
QUANTS = ("fp32", "8da8w", "gguf", "mixed", "8da4w", "8da4w+self")


def exported(model: str, rank: int, context: int, folder: Path, quants: list[str]) -> dict:
    """What export-base --report said of each program, by name; "+self" is --calibrate self."""
    found = {}
    for name in quants:
        own = folder / name
        said = own / "report.json"
        if not said.exists():
            own.mkdir(parents=True, exist_ok=True)
            quant, _, text = name.partition("+")
            command = [
                sys.executable,
                "-m",
                "hydrapack",
                "export-base",
                model,
                "--report",
                "--json",
            ]
            command += ["-o", own / "model.pte", "--rank", str(rank), "--max-context", str(context)]
            command += ["--quant", quant, *(["--calibrate", text] if text else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            said.write_text(done.stdout)
        found[name] = json.loads(said.read_text())
    return found


def packed(rank: int, model: Path, folder: Path) -> Path:
    """The example adapters in one package of the program's rank."""
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.demo.job import example_adapters
    from hydrapack.merging.uniform import merge_adapters
    from hydrapack.packing.package import pack

    adapters = read_adapters(example_adapters())
    merge_adapters(adapters, rank=rank).save(folder / "bundle")
    pack(folder / "bundle", folder / "package", model=model)
    return folder / "package"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo:smollm2-135m-q4_1")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--quant", action="append", help=f"by default {', '.join(QUANTS)}")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    args = parser.parse_args()
    folder = args.out / "base"
    names = args.quant or list(QUANTS)
    reports = exported(args.model, args.rank, args.context, folder, names)
    models = {name: folder / name / "model.pte" for name in names}
    package = packed(args.rank, models[names[0]], folder)
    decode = built(args.out / "native")
    runs = []
    for start in range(args.starts):
        order = random.Random(start).sample(names, len(names))
        cases = [f"{name}={models[name]}@{package}@grammar" for name in order]
        command = [decode, str(PREFILL), str(ROUNDS), str(STEPS), "1", *cases]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(run.stdout.splitlines()[-1]))
    print(f"$ python benchmarks/base.py {' '.join(sys.argv[1:])}\n")
    print(f"Times are medians over {args.starts} starts, the programs in random order.\n")
    columns = ["program", "MB", "nats a token from float32", "same likeliest token, %"]
    columns += ["decode ms, median", "min", "ratio of medians", "prefill ms", "load ms"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in names:
        quality = reports[name]["quality"]
        ratios = [r[name]["decode_ms"]["median"] / r[names[0]]["decode_ms"]["median"] for r in runs]
        figures = [
            f"{reports[name]['bytes'] / 1e6:.1f}",
            f"{quality['kl_nats']:.4f}",
            f"{100 * quality['top1_agreement']:.1f}",
            *(
                f"{statistics.median(r[name]['decode_ms'][k] for r in runs):.2f}"
                for k in ("median", "min")
            ),
            f"{statistics.median(ratios):.3f}",
            *(
                f"{statistics.median(r[name][k] for r in runs):.1f}"
                for k in ("prefill_ms", "load_ms")
            ),
        ]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
