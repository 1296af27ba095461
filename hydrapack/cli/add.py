"""``hydrapack add``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hydrapack.cli.terminal import output, print_json, print_table

if TYPE_CHECKING:
    from hydrapack.merging.add import Extension


def add(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER_DIR", help="A PEFT folder, or NAME=DIR.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    budget: Annotated[
        str | None,
        typer.Option(
            help="What adapters.pte may take, as 400KB: where a head more does not fit, the task "
            "shares the nearest ones, or takes columns of A and U that cost least elsewhere."
        ),
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Add an adapter of another base.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Add a task to a bundle; A and all existing heads stay the same, to the bit.

    With a budget that no head more fits, all tasks may give up some columns: the table says what
    each loses, of its update.

    Examples:

        hydrapack add bundle adapters/translate -o bundle2

        hydrapack add bundle adapters/translate -o bundle2 --budget 400KB
    """
    import hydrapack as hp

    extension = hp.add(bundle, adapter, budget=budget, allow_base_mismatch=allow_base_mismatch)
    save(extension, extension.bundle.tasks[-1], out, as_json)


def save(extension: Extension, task: str, out: Path, as_json: bool) -> None:
    """Write the bundle and say what its new head is worth."""
    made = extension.bundle
    made.save(out)
    if as_json:
        print_json(
            {
                "advice": extension.advice,
                "own_head_relative_error": extension.own_head_relative_error,
                "relative_error": extension.relative_error,
                "remerge_relative_error": extension.remerge_relative_error,
                "s_percent": made.s_percent,
                "task": task,
                "way": extension.way,
                "weighed": extension.weighed,
            }
        )
        return
    console = output()
    console.print(
        f"{task}: relative error {extension.relative_error:.4f}; {made.heads} heads,"
        f" S = {made.s_percent:.1f} %; bundle written to {out}",
        soft_wrap=True,
    )
    if extension.advice:
        console.print(extension.advice, soft_wrap=True)
    if extension.weighed:
        losses = {w + " *" * (w == extension.way): e for w, e in extension.weighed.items()}
        rows = [[name, *(f"{e[name]:.4f}" for e in losses.values())] for name in made.tasks]
        print_table(console, ["loses by", *losses], rows)
