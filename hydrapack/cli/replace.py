"""``hydrapack replace``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.add import save


def replace(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to replace.")],
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER_DIR", help="Its new PEFT folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Take an adapter of another base.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Give a task of a bundle another head; A and all other heads stay as they are, to the bit.

    Examples:

        hydrapack replace bundle translate adapters/translate-2 -o bundle2
    """
    import hydrapack as hp

    extension = hp.replace(bundle, task, adapter, allow_base_mismatch=allow_base_mismatch)
    save(extension, task, out, as_json)
