"""``hydrapack merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, or NAME=DIR.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    heads: Annotated[
        int | None, typer.Option(help="M, heads to keep; as many as adapters by default.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="R, rank of the shared A; the adapters' own by default.")
    ] = None,
    method: Annotated[str, typer.Option(help="spectral or task-arithmetic.")] = "spectral",
    seed: Annotated[int, typer.Option(help="Seed of the starts when heads are shared.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Merge adapters of different bases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge LoRA adapters into one shared A and task heads. No data, no base model.

    Examples:

        hydrapack merge adapters/* -o bundle

        hydrapack merge gc=runs/7 sr=runs/9 qa=runs/12 -o bundle --heads 2
    """
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.bundle import write_bundle
    from hydrapack.merge.adapters import merge_adapters

    read = read_adapters(adapters, allow_base_mismatch)
    with progress_bar("merging modules") as progress:
        merged = merge_adapters(read, method, heads, rank, seed, progress)
    info = write_bundle(merged, read, out)
    if as_json:
        print_json({**info.model_dump(exclude={"module_errors"}), "s_percent": info.s_percent})
        return
    table = Table("task", "heads used", "relative error")
    for task in info.tasks:
        used = ", ".join(map(str, sorted(set(task.route))))
        table.add_row(task.name, used, f"{task.relative_error:.4f}")
    console = output()
    console.print(table)
    console.print(
        f"{len(info.modules)} modules, M = {info.heads} heads of {len(info.tasks)}, "
        f"rank {info.rank}, {info.method}: S = {info.s_percent:.1f} % of the adapters' parameters"
    )
    console.print(f"bundle written to {out}", soft_wrap=True)
