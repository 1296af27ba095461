"""The C++ runtime measured: decode, swap, load and memory, against the other ways.

    python benchmarks/runtime.py --shape smollm2-135m --rank 4
    python benchmarks/runtime.py --shape smollm2-135m --ladder 4 8 16 32
    python benchmarks/runtime.py --shape llama-3.2-1b --rank 32 --forms adapted off
    python benchmarks/runtime.py --real   # SmolLM2 and the example adapters: PEFT and llama.cpp

Programs of one shape (8da4w, random weights) are timed interleaved in one process: without adapter,
with one adapter fixed in it, libhydrapack with a head and with none, and a program that holds A
and takes B alone. Where a process puts its memory shifts the ratios by a tenth, so it is started
several times, the programs in random order, and each figure is the median over the starts. --real
compares with PyTorch + PEFT and, where llama-cpp-python is installed, with llama.cpp. Needs what
`make runtime` needs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from decode import SHAPES, export_heads, exported

from hydrapack.support.quiet import silence_libraries

silence_libraries()

ROOT = Path(__file__).parents[1]
PREFILL, ROUNDS, STEPS = 128, 8, 16


def built(folder: Path) -> Path:
    """The native benchmark, compiled."""
    import executorch

    binaries = Path(sys.executable).parent
    cmake, ninja = str(binaries / "cmake"), binaries / "ninja"
    share = Path(executorch.__path__[0]) / "share" / "cmake"
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-Dexecutorch_DIR={share}", "-G", "Ninja"]
    source = ROOT / "benchmarks" / "native"
    configure = [cmake, "-S", source, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *options]
    for command in (configure, [cmake, "--build", folder]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "decode"


def stripped(path: Path) -> int:
    """Bytes of a binary without its symbols."""
    target = path.with_name(path.name + ".stripped")
    subprocess.run(["strip", "-o", target, path], check=True)
    return target.stat().st_size


PLAIN = "(a) no adapter"
FORMS = {
    "fixed": "(b) one adapter fixed",
    "adapted": "(c) a head",
    "off": "(d) no head",
    "held": "(e) A in the program",
}
"""Ways to run an adapter, beside the program that has none."""


def prepared(args: argparse.Namespace, rank: int) -> dict[str, str]:
    """What the native benchmark is told of each form asked for, exported and packed if missing."""
    folder = args.out / f"{args.shape}-r{rank}"
    folder.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys("adapted" if form == "off" else form for form in args.forms)
    programs = exported(folder, ("plain", *names), args.shape, rank, args.context)
    package = folder / "package"
    if not (package / "manifest.json").exists():
        export_heads(args.shape, rank, package)
    sessions = {"adapted": f"@{package}@t1", "off": f"@{package}"}
    cases = {PLAIN: f"{programs['plain']}"}
    for form in args.forms:
        program = programs["adapted" if form == "off" else form]
        cases[FORMS[form]] = f"{program}{sessions.get(form, '')}"
    return cases


def timed(
    args: argparse.Namespace, rounds: int, steps: int, where: dict[str, str], opening: str = "1"
) -> dict:
    """The native benchmark's figures, by name."""
    numbers = [str(PREFILL), str(rounds), str(steps), opening]
    command = [args.out / "native" / "decode", *numbers]
    command += [f"{name}={path}" for name, path in where.items()]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def ladder(args: argparse.Namespace) -> None:
    """Decode and prefill of every form at every rank, over a program without adapter."""
    cases = {}
    for rank in args.ladder:
        for name, program in prepared(args, rank).items():
            cases[name if name == PLAIN else f"{name} R{rank}"] = program
    built(args.out / "native")
    runs = []
    for start in range(args.starts):
        order = random.Random(start).sample(sorted(cases), len(cases))
        runs.append(timed(args, ROUNDS, STEPS, {name: cases[name] for name in order}))
        print(f"start {start + 1} of {args.starts}", file=sys.stderr)

    def ratios(name: str, key: str, part: str | None = None) -> list[float]:
        def of(run: dict, which: str) -> float:
            figure = run[which][key]
            return figure[part] if part else figure

        return [of(run, name) / of(run, PLAIN) for run in runs]

    print(f"$ python benchmarks/runtime.py {' '.join(sys.argv[1:])}\n")
    middle = statistics.median(run[PLAIN]["decode_ms"]["median"] for run in runs)
    print(f"Over {PLAIN} of {middle:.2f} ms, medians over {args.starts} starts; in brackets least")
    print("and most; then of the least times; prefill of 128 tokens.\n")
    print("| R | form | decode | of minima | prefill |\n|---|---|---|---|---|")
    for name in sorted(cases, key=lambda n: (int(n.partition(" R")[2] or 0), n)):
        if name == PLAIN:
            continue
        form, _, rank = name.partition(" R")
        decode = ratios(name, "decode_ms", "median")
        least, prefill = ratios(name, "decode_ms", "min"), ratios(name, "prefill_ms")
        spread = f"{statistics.median(decode):.3f} ({min(decode):.3f} to {max(decode):.3f})"
        rest = f"{statistics.median(least):.3f} | {statistics.median(prefill):.3f}"
        print(f"| {rank} | {form} | {spread} | {rest} |")


def shapes(args: argparse.Namespace) -> None:
    folder = args.out / f"{args.shape}-r{args.rank}"
    cases = prepared(args, args.rank)
    built(args.out / "native")
    package = folder / "package"
    model = folder / "adapted.pte"
    cache = folder / "weights"
    cache.mkdir(exist_ok=True)

    together, alone, unchecked, kept = [], [], [], []
    timed(args, 1, 4, {"x": cases[FORMS["adapted"]]}, f"CACHE={cache}")
    for start in range(args.starts):
        order = random.Random(start).sample(sorted(cases), len(cases))
        together.append(timed(args, ROUNDS, STEPS, {name: cases[name] for name in order}))
        # Memory and load are of one program alone in a process.
        alone.append({name: timed(args, 1, 4, {"x": cases[name]})["x"] for name in order})
        unchecked.append({name: timed(args, 1, 4, {"x": cases[name]}, "0")["x"] for name in order})
        opening = f"CACHE={cache}"
        kept.append(
            {n: timed(args, 1, 4, {"x": cases[n]}, opening)["x"] for n in order if "@" in cases[n]}
        )
    # All tasks of a package used once: what one task takes, and five.
    swapped = {}
    for count in (1, 5):
        own = folder / f"package{count}"
        if not (own / "manifest.json").exists():
            export_heads(args.shape, args.rank, own, count)
        swapped[count] = timed(args, 1, 4, {"x": f"{model}@{own}@t0"})["x"]["swapped_bytes"]

    def middle(runs: list[dict], name: str, key: str, part: str | None = None) -> float:
        return statistics.median(r[name][key][part] if part else r[name][key] for r in runs)

    print(f"$ python benchmarks/runtime.py {' '.join(sys.argv[1:])}\n")
    print(f"Medians over {args.starts} starts, the programs in random order.\n")
    columns = ["program", "decode ms, median", "min", "ratio of medians", "least", "most"]
    columns += ["prefill ms", "load ms", "digests unchecked", "packed weights kept"]
    columns += ["resident MB loaded", "decoding"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in cases:
        ratios = [
            r[name]["decode_ms"]["median"] / r[PLAIN]["decode_ms"]["median"] for r in together
        ]
        figures = [
            f"{middle(together, name, 'decode_ms', 'median'):.2f}",
            f"{middle(together, name, 'decode_ms', 'min'):.2f}",
            *(f"{ratio:.3f}" for ratio in (statistics.median(ratios), min(ratios), max(ratios))),
            f"{middle(together, name, 'prefill_ms'):.1f}",
            f"{middle(alone, name, 'load_ms'):.1f}",
            f"{middle(unchecked, name, 'load_ms'):.1f}" if "@" in cases[name] else "",
            f"{middle(kept, name, 'load_ms'):.1f}" if "@" in cases[name] else "",
            *(f"{middle(alone, name, f'{k}_bytes') / 1e6:.0f}" for k in ("loaded", "used")),
        ]
        print(f"| {name} | {' | '.join(figures)} |")
    swap, least = (
        middle(together, FORMS["adapted"], "swap_ms", part) for part in ("median", "min")
    )
    vector = json.loads((package / "manifest.json").read_text())
    one = sum(
        d_out * args.rank * len(vector["modules"]) // len(vector["target_shapes"])
        for d_out, _ in vector["target_shapes"]
    )
    print(
        f"resident memory after all heads were used: {swapped[1] / 1e6:.1f} MB with one task, "
        f"{swapped[5] / 1e6:.1f} with five; a head is {one / 1e6:.1f} MB packed, "
        f"{4 * one / 1e6:.1f} dequantized"
    )
    library = args.out / "native" / "runtime" / "libhydrapack_c.so"
    print(f"\nswap: {swap:.2f} ms median, {least:.2f} min", end="")
    if FORMS["fixed"] in cases:
        load = middle(alone, FORMS["fixed"], "load_ms")
        print(f"; loading a program with its adapter inside: {load:.0f} ms", end="")
        print(f", {load / swap:.0f} times the median swap", end="")
    print()
    print(f"libhydrapack_c.so, stripped: {stripped(library):,} bytes")
    programs = {name: Path(case.partition("@")[0]) for name, case in cases.items()}
    sizes = {n: p.stat().st_size for n, p in programs.items()}
    heads = (package / "adapters.pte").stat().st_size
    print(f"files, MB: {', '.join(f'{n} {s / 1e6:.1f}' for n, s in sizes.items())}, ", end="")
    print(f"adapters.pte {heads / 1e6:.1f}")


def real(args: argparse.Namespace) -> None:
    from hydrapack.base import smollm2

    base = smollm2.base_model_directory()
    rows = [peft_rows(base)]
    if find_spec("llama_cpp"):
        rows.append(llama_rows(args.out))
    print("$ python benchmarks/runtime.py --real\n")
    print("| engine | swap or load of an adapter ms | decode ms, median | min | ratio |")
    print("|---|---|---|---|---|")
    for row in (row for group in rows for row in group):
        print("| " + " | ".join(row) + " |")


def row(name: str, swap: str, times: list[float], base: list[float]) -> tuple[str, ...]:
    median, least = statistics.median(times), min(times)
    return name, swap, f"{median:.2f}", f"{least:.2f}", f"{median / statistics.median(base):.3f}"


def peft_rows(base: Path) -> list[tuple[str, ...]]:
    """PyTorch + PEFT in float32: set_adapter, and decode with and without one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapters = sorted((ROOT / "examples" / "adapters").iterdir())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name="0")
    for number, folder in enumerate(adapters[1:], 1):
        model.load_adapter(str(folder), adapter_name=str(number))
    swaps = []
    for number in range(20):
        started = time.perf_counter()
        model.set_adapter(str(number % len(adapters)))
        swaps.append(1000 * (time.perf_counter() - started))

    def steps() -> list[float]:
        times = []
        with torch.no_grad():
            out = model(torch.arange(5, 5 + PREFILL)[None], use_cache=True)
            for _ in range(STEPS):
                started = time.perf_counter()
                out = model(torch.tensor([[5]]), past_key_values=out.past_key_values)
                times.append(1000 * (time.perf_counter() - started))
        return times

    with_adapter, without = [], []
    for _ in range(ROUNDS // 2):
        with_adapter += steps()
        with model.disable_adapter():
            without += steps()
    swap = f"{statistics.median(swaps):.2f} (set_adapter)"
    return [
        row("PyTorch fp32, no adapter", "", without, without),
        row("PyTorch + PEFT fp32", swap, with_adapter, without),
    ]


def llama_rows(out: Path) -> list[tuple[str, ...]]:
    """llama.cpp on SmolLM2's Q4_1 file, with and without --lora."""
    import llama_cpp

    import hydrapack as hp
    from hydrapack.base import smollm2

    model = smollm2.gguf_file()
    bundle = hp.merge([ROOT / "examples" / "adapters" / "grammar"])
    lora = hp.unpack(bundle, out / "gguf", format="gguf", model=model)["grammar"]

    def opened(**options):
        started = time.perf_counter()
        made = llama_cpp.Llama(
            str(model), n_ctx=2048, n_threads=2, n_threads_batch=2, verbose=False, **options
        )
        return made, 1000 * (time.perf_counter() - started)

    plain, plain_load = opened()
    adapted, adapted_load = opened(lora_path=str(lora))

    def steps(llama) -> list[float]:
        llama.reset()
        llama.eval([5] * PREFILL)
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            llama.eval([5])
            times.append(1000 * (time.perf_counter() - started))
        return times

    without, with_adapter = [], []
    for _ in range(ROUNDS):
        without += steps(plain)
        with_adapter += steps(adapted)
    return [
        row("llama.cpp Q4_1, no adapter", f"{plain_load:.0f} (load)", without, without),
        row("llama.cpp Q4_1 with --lora", f"{adapted_load:.0f} (load)", with_adapter, without),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--ladder", type=int, nargs="+", help="ranks, all in one interleaved run")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--starts", type=int, default=5, help="of the process that times")
    parser.add_argument("--real", action="store_true", help="PEFT and llama.cpp on SmolLM2")
    args = parser.parse_args()
    (real if args.real else ladder if args.ladder else shapes)(args)


if __name__ == "__main__":
    main()
