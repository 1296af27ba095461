"""Bytes of updates: four releases of made adapters at SmolLM2-135M's shapes, two kinds of heads.

python benchmarks/updates.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import hydrapack as hp
from hydrapack.adapters.update import LoraModule
from hydrapack.program.layout import module_name

LAYERS, RANK = 30, 16
SHAPES = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}


def adapter(task: str, seed: int) -> hp.Adapter:
    """Random updates that share the start of A, as adapters of one seed do."""
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    modules = {}
    for layer in range(LAYERS):
        for target, (d_out, d_in) in SHAPES.items():
            a = torch.randn(RANK, d_in, generator=start)
            a += 0.1 * torch.randn(RANK, d_in, generator=own)
            b = torch.randn(d_out, RANK, generator=own)
            modules[module_name(layer, target)] = LoraModule(a / d_in**0.5, b)
    return hp.Adapter(task, Path(task), "made", RANK, RANK, f"{seed:064x}", modules)


def story(folder: Path, **options: object) -> None:
    """Print a row for each release: its bytes, its patch's, and those of the head that is new."""
    tasks = [adapter(f"task{k}", k) for k in range(1, 6)]
    first = hp.merge(tasks[:3], **options)  # type: ignore[arg-type]
    more = hp.add(first, tasks[3]).bundle
    other = hp.replace(more, "task1", tasks[4]).bundle
    bundles = {"three tasks": first, "add one": more, "replace one": other}
    bundles["remove one"] = hp.remove(other, "task2")
    packages = [
        hp.pack(bundle, folder / str(k), package_version=k)
        for k, bundle in enumerate(bundles.values(), 1)
    ]
    head = packages[1].manifest.storage.tensor_bytes - packages[0].manifest.storage.tensor_bytes
    for number, (name, package) in enumerate(zip(bundles, packages, strict=True)):
        whole = sum(path.stat().st_size for path in package.folder.iterdir())
        if number == 0:
            print(f"| {name} | {whole:,} | | |")
            continue
        patch = hp.diff(packages[number - 1].folder, package.folder, folder / "patch")
        least = 0 if name == "remove one" else head
        print(f"| {name} | {whole:,} | {patch.stat().st_size:,} | {least:,} |")


if __name__ == "__main__":
    for label, options in (
        ("whole heads", {}),
        ("two-sided, Q = 16", {"method": "two-sided", "output_rank": 16}),
    ):
        print(f"\n{label}\n\n| release | package | patch | the new head |\n|---|---|---|---|")
        with tempfile.TemporaryDirectory() as made:
            story(Path(made), **options)
