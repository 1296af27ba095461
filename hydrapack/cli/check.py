"""``hydrapack check``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import as_options, output, print_json, progress_bar


def check(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, or NAME=DIR.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="The base: model.pte, or a config.json or the folder with one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Will these adapters merge, pack and run? Before anything is merged, a line for each question.

    Exit code 0, with warnings too; 1 if something would be refused; 2 for unusable input.

    Examples:

        hydrapack check adapters/* --model model.pte

        hydrapack check grammar=runs/17 qa=runs/18 --model Llama-3.2-1B/config.json --json
    """
    import hydrapack as hp

    with progress_bar("comparing modules") as progress:
        findings = hp.check(adapters, model, progress)
    findings = [replace(finding, detail=as_options(finding.detail)) for finding in findings]
    passed = all(finding.level != "fail" for finding in findings)
    if as_json:
        print_json({"findings": [asdict(f) for f in findings], "passed": passed})
    else:
        table = Table("question", "", "found")
        for finding in findings:
            level = "FAIL" if finding.level == "fail" else finding.level
            table.add_row(finding.name, level, finding.detail)
        output().print(table)
    if not passed:
        raise typer.Exit(1)
