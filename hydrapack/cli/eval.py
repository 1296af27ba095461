"""``hydrapack eval``."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, progress_bar


def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Tasks and methods.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")],
    cache: Annotated[
        Path | None, typer.Option(help="Directory of cached answers; OUT/cache by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="20 rows a task; hydraopt of 50 steps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Score tasks under every method: one table of storage against quality.

    Writes results.json, results.md and results.png. Answers are cached, so a stopped run continues
    where it was.

    Examples:

        hydrapack eval examples/eval.yaml -o results

        hydrapack eval examples/eval.yaml -o results --quick
    """
    import hydrapack as hp
    from hydrapack.support.extras import need

    need("matplotlib")
    from hydrapack.evaluation.tables import nats_cell

    with progress_bar("evaluating") as progress:
        results = hp.evaluate(config, out, cache, quick=quick, progress=progress)
    if as_json:
        print((out / "results.json").read_text(encoding="utf-8"), end="")
        return
    console = output()
    for group, members in groupby(results, key=lambda result: result.group):
        rows = list(members)
        tasks = list(rows[0].scores)
        table = Table("method", "S %", *tasks, "average", "nats", title=group or None)
        for r in rows:
            scores = (f"{r.scores[task]:.1f}" for task in tasks)
            table.add_row(r.label, f"{r.s_percent:.1f}", *scores, f"{r.average:.1f}", nats_cell(r))
        console.print(table)
    console.print(f"{out}: results.json, results.md, results.png", soft_wrap=True)
