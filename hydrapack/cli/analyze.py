"""``hydrapack analyze``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.schema import json_text


def analyze(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, or NAME=DIR.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Take adapters of different bases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print analysis.json.")] = False,
) -> None:
    """How alike adapters are, A against B, and how well a shared A suits them.

    Writes analysis.json, similarity.png (by layer and module) and, with scikit-learn installed,
    tsne.png.

    Examples:

        hydrapack analyze adapters/* -o analysis
    """
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.analysis import plots
    from hydrapack.analysis.similarity import analyze as compare
    from hydrapack.support.atomic import new_directory
    from hydrapack.support.extras import need

    need("matplotlib")
    read = read_adapters(adapters, allow_base_mismatch)
    with progress_bar("comparing modules") as progress:
        found = compare(read, progress)
    document = {
        "advice": found.advice,
        "mean": {k: found.mean(k) for k in ("a_mae", "b_mae", "a_cca", "b_cca")},
        "modules": [asdict(module) for module in found.modules],
        "relative_errors": found.relative_errors,
        "tasks": list(found.tasks),
    }
    with new_directory(out) as partial:
        (partial / "analysis.json").write_text(json_text(document), encoding="utf-8", newline="\n")
        plots.plot_similarity(found, partial / "similarity.png")
        plots.plot_tsne(read, partial / "tsne.png")
    if as_json:
        print_json(document)
        return
    table = Table("", "MAE", "CCA R²")
    for part in "AB":
        low = part.lower()
        table.add_row(part, f"{found.mean(f'{low}_mae'):.3f}", f"{found.mean(f'{low}_cca'):.3f}")
    console = output()
    console.print(table)
    console.print(found.advice, soft_wrap=True)
    console.print(f"{out}: analysis.json, PNGs", soft_wrap=True)
