"""``hydrapack unpack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output, print_json
from hydrapack.support.errors import Invalid


def unpack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    task: Annotated[str | None, typer.Option(help="The task to write.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Write every task, to DIR/TASK.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the folders as JSON.")] = False,
) -> None:
    """Write merged heads as standard PEFT LoRA adapters.

    Examples:

        hydrapack unpack bundle --task summary -o summary-merged

        hydrapack unpack bundle --all -o merged --dtype bfloat16
    """
    import hydrapack as hp

    if every == (task is not None):
        raise Invalid("give either --task NAME or --all")
    folders = hp.unpack(bundle, out, task, dtype)
    if as_json:
        print_json({name: str(folder) for name, folder in folders.items()})
        return
    for name, folder in folders.items():
        output().print(f"{name}: {folder}", soft_wrap=True)
