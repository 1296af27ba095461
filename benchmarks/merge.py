"""Merging measured: time, peak memory and errors of the methods.

    python benchmarks/merge.py shapes      # Llama-3.2-1B shapes, made adapters
    python benchmarks/merge.py many        # N = 5 to 1,000 from the disk (20 GB in TMPDIR)
    python benchmarks/merge.py plan        # what a plan weighs of one module, N = 8 to 1,000
    python benchmarks/merge.py ray         # N = 200, 4 layers: two Ray workers against two threads
    python benchmarks/merge.py methods     # spectral against hydraopt on the five example adapters
    python benchmarks/merge.py two-sided   # a common output basis against M heads, at equal size
    python benchmarks/merge.py budget      # the planner against one choice for all modules

Shapes run in a process each; peak memory is above what the imports take. Made adapters are random
with a common start, rank 32: they serve time and memory only.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from hydrapack.support.quiet import silence_libraries

silence_libraries()

ROOT = Path(__file__).parents[1]
WIDTHS = {"q": (2048, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 2048)}
WIDTHS_ALL = {**WIDTHS, "gate": (8192, 2048), "up": (8192, 2048), "down": (2048, 8192)}
LAYERS = 16


def made_adapters(count: int, widths: dict[str, tuple[int, int]], rank: int, layers: int):
    from hydrapack.adapters.adapter import Adapter
    from hydrapack.adapters.update import LoraModule
    from hydrapack.program.layout import module_name

    generator = torch.Generator().manual_seed(0)
    modules: list[dict[str, LoraModule]] = [{} for _ in range(count)]
    for layer in range(layers):
        for target, (d_out, d_in) in widths.items():
            start = torch.randn(rank, d_in, generator=generator)
            for own in modules:
                a = start + 0.3 * torch.randn(rank, d_in, generator=generator)
                b = torch.randn(d_out, rank, generator=generator)
                # As trained adapters are saved: in half precision.
                own[module_name(layer, target)] = LoraModule(a.bfloat16(), b.bfloat16(), 1.0)
    return [
        Adapter(f"t{k}", Path(), "made", rank, float(rank), "0" * 64, own)
        for k, own in enumerate(modules)
    ]


def apart(function, *arguments):
    """The result of ``function`` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_shape(count: int, targets: str, heads: int) -> tuple[float, float, float]:
    from hydrapack.merging.uniform import merge_adapters

    imported = peak_bytes()
    adapters = made_adapters(count, WIDTHS_ALL if targets == "all" else WIDTHS, 32, LAYERS)
    size = sum(m.A.numel() + m.B.numel() for a in adapters for m in a.modules.values()) * 2
    started = time.monotonic()
    merge_adapters(adapters, heads=heads)
    return time.monotonic() - started, (peak_bytes() - imported) / 1e9, size / 1e9


def shapes() -> None:
    print("| N | targets | M | merge s | peak GB above imports | of it the adapters (bf16) |")
    print("|---|---|---|---|---|---|")
    for count, targets, heads in (
        (5, "q,k,v,o", 5),
        (5, "q,k,v,o", 2),
        (5, "all", 5),
        (8, "q,k,v,o", 8),
        (40, "q,k,v,o", 40),
    ):
        seconds, gigabytes, size = apart(time_shape, count, targets, heads)
        print(
            f"| {count} | {targets} | {heads} | {seconds:.1f} | {gigabytes:.2f} | {size:.2f} |",
            flush=True,
        )


DISTINCT = 500
"""Adapters that are written; further ones are links to these, to stay within 20 GB."""


def write_adapters(folder: Path, start: int, count: int) -> list[str]:
    """PEFT folders of adapters as of ``made_adapters``; those before ``start`` are there."""
    from safetensors.torch import save_file

    from hydrapack.program.layout import module_name

    rank, config = 32, {"peft_type": "LORA", "r": 32, "lora_alpha": 32}
    config |= {"base_model_name_or_path": "made", "target_modules": ["q_proj"]}
    common = torch.Generator().manual_seed(0)
    starts = [torch.randn(rank, 2048, generator=common) for _ in range(LAYERS * len(WIDTHS))]
    for k in range(start, count):
        own = folder / f"t{k:04}"
        own.mkdir()
        (own / "adapter_config.json").write_text(json.dumps(config))
        weights = own / "adapter_model.safetensors"
        if k >= DISTINCT:
            weights.hardlink_to(folder / f"t{k - DISTINCT:04}" / weights.name)
            continue
        generator, tensors = torch.Generator().manual_seed(k + 1), {}
        for i, a in enumerate(starts):
            target = list(WIDTHS)[i % len(WIDTHS)]
            name = f"base_model.model.{module_name(i // len(WIDTHS), target)}.lora_"
            a = a + 0.3 * torch.randn(a.shape, generator=generator)
            b = torch.randn(WIDTHS[target][0], rank, generator=generator)
            tensors |= {f"{name}A.weight": a.bfloat16(), f"{name}B.weight": b.bfloat16()}
        save_file(tensors, weights)
    return [str(folder / f"t{k:04}") for k in range(start, count)]


def time_many(folders: list[str], options: dict[str, object], out: str | None):
    """Seconds, CPU seconds and peak bytes above the imports; bytes of the saved bundle."""
    import hydrapack

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    merge, imported = hydrapack.merge, peak_bytes()
    started, before = time.monotonic(), spent()
    made = merge(folders, **options)
    size = 0
    if out is not None:
        made.save(out)
        size = sum(file.stat().st_size for file in Path(out).iterdir())
    seconds, cpu = time.monotonic() - started, spent() - before
    return seconds, cpu, peak_bytes() - imported, size


def many() -> None:
    """From the folders to the bundle, saved where the disk has room for it."""
    print("| N | heads | s | CPU s | CPU s a task | peak MB above imports | bundle MB |")
    print("|---|---|---|---|---|---|---|")
    times: dict[str, list[tuple[int, float]]] = {}
    kinds = (
        ("M = N", {}, 1000),
        ("two-sided", {"method": "two-sided"}, 1000),
        ("M = 4", {"heads": 4}, 200),
    )
    with tempfile.TemporaryDirectory(prefix="hydrapack-many-") as temporary:
        folders: list[str] = []
        for label, options, most in kinds:
            for count in [n for n in (5, 8, 40, 200, 1000) if n <= most]:
                if count > len(folders):
                    folders += write_adapters(Path(temporary), len(folders), count)
                out = f"{temporary}/bundle" if count <= DISTINCT or label != "M = N" else None
                seconds, cpu, peak, size = apart(time_many, folders[:count], options, out)
                shutil.rmtree(f"{temporary}/bundle", ignore_errors=True)
                times.setdefault(label, []).append((count, cpu))
                print(
                    f"| {count} | {label} | {seconds:.1f} | {cpu:.1f} | {cpu / count:.2f} | "
                    f"{peak / 1e6:.0f} | {f'{size / 1e6:.0f}' if size else 'not saved'} |",
                    flush=True,
                )
    for label, found in times.items():
        print_slopes(label, found)


def print_slopes(label: str, found: list[tuple[int, float]]) -> None:
    """``found`` are (N, CPU seconds)."""
    slopes = [
        f"N^{math.log(more / less) / math.log(high / low):.2f} from {low} to {high}"
        for (low, less), (high, more) in itertools.pairwise(found)
    ]
    print(f"\n{label}: CPU seconds grow as {', '.join(slopes)}.")


def time_plan(count: int) -> tuple[float, float]:
    """CPU seconds and peak memory above the adapters' of one module's candidates."""
    from hydrapack.merging.candidates import candidates
    from hydrapack.merging.method import MergeOptions
    from hydrapack.merging.plan import PLANNED_BITS

    torch.set_num_threads(1)
    adapters = made_adapters(count, {"q": WIDTHS["q"]}, 32, 1)
    updates = [module for adapter in adapters for module in adapter.modules.values()]
    held, started = peak_bytes(), time.process_time()
    candidates(updates, MergeOptions(count, 32, 0, (1.0,) * count), PLANNED_BITS)
    return time.process_time() - started, peak_bytes() - held


def plan() -> None:
    print("| N | CPU s | CPU ms a task | peak MB |\n|---|---|---|---|")
    found = []
    for count in (8, 40, 200, 1000):
        seconds, peak = apart(time_plan, count)
        found.append((count, seconds))
        cells = f"{seconds:.1f} | {1000 * seconds / count:.0f} | {peak / 1e6:.0f}"
        print(f"| {count} | {cells} |", flush=True)
    print_slopes("a plan of one module (2048 x 2048, rank 32)", found)


def time_engine(folders: list[str], engine: str) -> tuple[float, float, float, str]:
    """Seconds to a first, small merge and of the whole one; CPU seconds; the bundle's digest."""
    import psutil

    import hydrapack

    def spent() -> float:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        times = [process.cpu_times() for process in processes]
        return sum(used.user + used.system for used in times)

    started = time.monotonic()
    hydrapack.merge(folders[:2], engine=engine)
    ready, before = time.monotonic(), spent()
    made = hydrapack.merge(folders, engine=engine)
    done, cpu = time.monotonic(), spent() - before
    with tempfile.TemporaryDirectory() as out:
        digest = made.save(f"{out}/bundle").tensors_sha256
    return ready - started, done - ready, cpu, digest


def ray(layers: int = 4, count: int = 200) -> None:
    global LAYERS
    LAYERS = layers
    print("| engine | s to a merge of two | s, N = 200 | CPU s | bundle SHA-256 |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="hydrapack-ray-") as temporary:
        folders = write_adapters(Path(temporary), 0, count)
        for engine in ("local", "ray", "local", "ray"):
            first, seconds, cpu, digest = apart(time_engine, folders, engine)
            print(
                f"| {engine} | {first:.1f} | {seconds:.1f} | {cpu:.1f} | {digest[:12]}… |",
                flush=True,
            )


def example_adapters():
    from hydrapack.adapters.collect import read_adapters

    return read_adapters(sorted(map(str, (ROOT / "examples" / "adapters").iterdir())))


def errors(adapters, merged) -> tuple[float, float]:
    """Squared error over the updates' squares, and mean absolute error over theirs."""
    sums = [0.0] * 4
    for name, module in merged.modules.items():
        for k, adapter in enumerate(adapters):
            update = adapter.modules[name]
            A, B = update.factors()
            whole = B @ A
            rest = whole - module.head(module.assignment[k]).double() @ module.shared().double()
            for i, value in enumerate(
                (rest.square().sum(), whole.square().sum(), rest.abs().sum(), whole.abs().sum())
            ):
                sums[i] += float(value)
    return sums[0] / sums[1], sums[2] / sums[3]


def methods(every: int = 6) -> None:
    import dataclasses

    from hydrapack.merging.uniform import merge_adapters

    adapters = example_adapters()
    names = sorted(adapters[0].modules)[::every]
    adapters = [dataclasses.replace(a, modules={n: a.modules[n] for n in names}) for a in adapters]
    merge_adapters(adapters)
    print(f"{len(names)} of the {every * len(names)} modules")
    print("| M | method | start | s | times spectral | squared error | MAE |")
    print("|---|---|---|---|---|---|---|")
    for heads in range(1, len(adapters) + 1):
        base = 0.0
        for method, options in (
            ("spectral", {}),
            ("hydraopt", {"distance": "mae", "init": "adapters"}),
            ("hydraopt", {"distance": "mae", "init": "random"}),
            ("hydraopt", {"distance": "mae", "init": "spectral"}),
            ("hydraopt", {"distance": "fro", "init": "adapters"}),
        ):
            seconds = math.inf
            for _ in range(3 if method == "spectral" else 1):
                started = time.monotonic()
                merged = merge_adapters(adapters, method, heads, **options)
                seconds = min(seconds, time.monotonic() - started)
            base = base or seconds
            square, absolute = errors(adapters, merged)
            print(
                f"| {heads} | {method} {options.get('distance', '')} | {options.get('init', '')} | "
                f"{seconds:.2f} | {seconds / base:.0f} | {square:.4f} | {absolute:.4f} |",
                flush=True,
            )


def planted(count: int, groups: int, d: int = 512, rank: int = 16):
    """Updates that share half of A, and half of B within a group."""
    from hydrapack.adapters.update import LoraModule

    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    start, common = normal(rank, d), [normal(d, rank) for _ in range(groups)]
    return [
        LoraModule(start + 0.5 * normal(rank, d), common[k % groups] + normal(d, rank), 1.0)
        for k in range(count)
    ]


def square(updates, merged) -> float:
    from hydrapack.adapters.update import difference_norm

    return sum(
        difference_norm(u, merged.shared(), merged.head(a))[0] ** 2
        for u, a in zip(updates, merged.assignment, strict=True)
    )


def two_sided() -> None:
    from hydrapack.adapters.update import difference_norm
    from hydrapack.merging.method import MergeOptions
    from hydrapack.merging.spectral import merge_spectral
    from hydrapack.merging.two_sided import merge_two_sided

    adapters = example_adapters()
    cases = {
        "five examples, every 6th module": [
            [a.modules[n] for a in adapters] for n in sorted(adapters[0].modules)[::6]
        ],
        "N = 8 made, 3 groups": [planted(8, 3)],
        "N = 8 made, no groups": [planted(8, 8)],
        "N = 40 made, 5 groups": [planted(40, 5)],
    }
    print("Relative error at equal stored values; R is the adapters' rank 16 in both, Q what fits.")
    print("| adapters | M | values | M heads | two-sided, R = 16 | Q |")
    print("|---|---|---|---|---|---|")
    for label, modules in cases.items():
        count = len(modules[0])
        for heads in [m for m in (1, 2, 3, 4, 5, 8, 20, 40) if m <= count]:
            whole = lost = lost_two = 0.0
            values, width = 0, 0
            for updates in modules:
                d_out, d_in = updates[0].shape
                whole += sum(
                    difference_norm(u, torch.zeros(1, d_in), torch.zeros(d_out, 1))[1] ** 2
                    for u in updates
                )
                lost += square(updates, merge_spectral(updates, MergeOptions(heads, 16)))
                stored = 16 * d_in + heads * 16 * d_out
                width = min((stored - 16 * d_in) // (d_out + count * 16), 16 * count)
                options = MergeOptions(count, 16)
                lost_two += square(updates, merge_two_sided(updates, options, width))
                values += stored
            print(
                f"| {label} | {heads} | {values:,} | {math.sqrt(lost / whole):.3f} | "
                f"{math.sqrt(lost_two / whole):.3f} | {width} |",
                flush=True,
            )


def budget() -> None:
    """The planner against the best single choice for all modules, at equal bytes.

    Errors are root mean squares of the tasks' relative errors, of the rounded modules. The single
    choice is the best of every M, R, Q and width whose bytes are at most the plan's.
    """
    from hydrapack.merging.plan import PLANNED_BITS, Planner, Request
    from hydrapack.merging.planned import merge_plan, rounded_errors

    adapters = example_adapters()
    count, request = len(adapters), Request(adapters)
    weights = (1.0,) * count
    planner = Planner(request, weights)
    every = [
        {(c.head_count, c.rank, c.output_rank, c.bits): c for c in found}
        for found in planner.found.values()
    ]
    shared = set.intersection(*(set(found) for found in every))
    uniform = {
        key: (sum(f[key].bytes for f in every), sum(f[key].error for f in every)) for key in shared
    }
    print("| MB | adapters.pte | R | planned: error | foretold | worst task |", end="")
    print(" modules U C | bits 4 / 8 / 16 | single choice | foretold error |")
    print("|---" * 10 + "|")
    for limit in (0.12, 0.25, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0):
        plan = planner.within(int(limit * 1e6))
        merged = merge_plan(request, plan, weights)
        errors = rounded_errors(adapters, merged)
        chosen = list(plan.choices.values())
        held = sum(c.bytes for c in chosen)
        fits = [(error, key) for key, (size, error) in uniform.items() if size <= held]
        cells = [f"{math.sqrt(min(fits)[0] / count):.4f}"] if fits else [""]
        if fits:
            heads, rank, width, bits = min(fits)[1]
            kind = f"R {rank}, Q {width}" if width else f"M {heads}, R {rank}"
            cells = [f"{kind}, {bits} bits", *cells]
        else:
            cells = ["", *cells]
        kinds = [sum(c.bits == b for c in chosen) for b in PLANNED_BITS]
        print(
            f"| {limit} | {plan.bytes:,} | {plan.rank} | "
            f"{math.sqrt(sum(e**2 for e in errors) / count):.4f} | "
            f"{math.sqrt(plan.error / count):.4f} | {max(errors):.4f} | "
            f"{sum(c.output_rank > 0 for c in chosen)} | {' / '.join(map(str, kinds))} | "
            f"{cells[0]} | {cells[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["shapes", "many", "plan", "methods", "two-sided", "budget"]
    for name in wanted:
        print(f"\n$ python benchmarks/merge.py {name}\n", flush=True)
        print(json.dumps({"cores": torch.get_num_threads(), "torch": torch.__version__}), "\n")
        {
            "shapes": shapes,
            "many": many,
            "plan": plan,
            "ray": ray,
            "methods": methods,
            "two-sided": two_sided,
            "budget": budget,
        }[name]()
