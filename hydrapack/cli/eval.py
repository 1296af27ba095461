"""``hydrapack eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.schema import json_text


def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Tasks and methods.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")],
    cache: Annotated[
        Path | None, typer.Option(help="Directory of answers already made; OUT/cache by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="20 rows a task; hydraopt of 50 steps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Score tasks under every method: one table of storage against quality.

    Writes results.json, results.md and results.png; answers are cached by the digest of what
    made them, so that a stopped run goes on where it was.

    Examples:

        hydrapack eval examples/eval.yaml -o results

        hydrapack eval examples/eval.yaml -o results --quick
    """
    from hydrapack.evaluate.run import Evaluation
    from hydrapack.evaluate.spec import quick_config, read_config
    from hydrapack.evaluate.tables import by_group, markdown, nats_cell, plot
    from hydrapack.support.atomic import new_file
    from hydrapack.support.extras import need

    need("matplotlib")
    read = read_config(config)
    if quick:
        read = quick_config(read)
    evaluation = Evaluation(read, config.parent, out, cache)
    with progress_bar("evaluating") as progress:
        results = evaluation.run(progress)
    document = evaluation.document(results)
    for name, text in (
        ("results.json", json_text(document)),
        ("results.md", markdown(results)),
    ):
        with new_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    with new_file(out / "results.png") as partial:
        plot(results, partial)
    if as_json:
        print_json(document)
        return
    console = output()
    for group, rows in by_group(results):
        tasks = list(rows[0].scores)
        table = Table("method", "S %", *tasks, "average", "nats", title=group or None)
        for r in rows:
            scores = (f"{r.scores[task]:.1f}" for task in tasks)
            table.add_row(r.label, f"{r.s_percent:.1f}", *scores, f"{r.average:.1f}", nats_cell(r))
        console.print(table)
    console.print(f"{out}: results.json, results.md, results.png", soft_wrap=True)
