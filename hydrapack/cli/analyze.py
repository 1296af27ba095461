"""``hydrapack analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.extras import need


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
    """How similar adapters are, A against B, and how well a shared A suits them.

    Writes analysis.json, similarity.png (by layer and module) and, with scikit-learn installed,
    tsne.png.

    Examples:

        hydrapack analyze adapters/* -o analysis
    """
    import hydrapack as hp

    need("matplotlib")
    with progress_bar("comparing modules") as progress:
        found = hp.analyze(adapters, allow_base_mismatch=allow_base_mismatch, progress=progress)
    found.save(out)
    if as_json:
        print_json(found.as_json())
        return
    table = Table("", "MAE", "CCA R²")
    for part in "AB":
        low = part.lower()
        table.add_row(part, f"{found.mean(f'{low}_mae'):.3f}", f"{found.mean(f'{low}_cca'):.3f}")
    console = output()
    console.print(table)
    console.print(found.advice, soft_wrap=True)
    console.print(f"{out}: analysis.json, PNGs", soft_wrap=True)
