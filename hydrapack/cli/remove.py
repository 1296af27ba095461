"""``hydrapack remove``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output, print_json


def remove(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to take out.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Take a task out of a bundle; A and all other heads stay as they are, to the bit.

    Examples:

        hydrapack remove bundle translate -o bundle2
    """
    import hydrapack as hp

    made = hp.remove(bundle, task)
    made.save(out)
    if as_json:
        print_json({"heads": made.heads, "s_percent": made.s_percent, "tasks": made.tasks})
        return
    output().print(
        f"{task}: taken out; {len(made.tasks)} tasks, {made.heads} heads,"
        f" S = {made.s_percent:.1f} %; bundle written to {out}",
        soft_wrap=True,
    )
