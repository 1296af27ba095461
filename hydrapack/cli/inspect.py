"""``hydrapack inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json


def inspect(
    path: Annotated[Path, typer.Argument(help="Adapter folder, bundle, package or .pte.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what an artifact is and what it holds.

    Examples:

        hydrapack inspect bundle

        hydrapack inspect package/adapters.pte --json
    """
    import hydrapack as hp

    facts = hp.describe(path)
    if as_json:
        print_json(facts)
        return
    console = output()
    table = Table(show_header=False)
    for key, value in facts.items():
        if key not in ("tasks", "files", "sources"):
            table.add_row(key, _short(value))
    console.print(table)
    for key in ("tasks", "files", "sources"):
        if rows := facts.get(key):
            every = {name: None for row in rows for name in row}
            hidden = ("card", "prompt_template", "source", "generation")
            names = [name for name in every if name not in hidden]
            listed = Table(*names)
            for row in rows:
                listed.add_row(*(_short(row.get(name, "")) for name in names))
            console.print(listed)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    if isinstance(value, list) and len(value) > 8:
        return f"{', '.join(map(str, sorted(set(value))))} ({len(value)} entries)"
    return str(value)
