"""All commands, in the order of the work."""

from __future__ import annotations

from typing import Annotated

import typer

from hydrapack.cli.add import add
from hydrapack.cli.analyze import analyze
from hydrapack.cli.apply import apply
from hydrapack.cli.check import check
from hydrapack.cli.demo import demo
from hydrapack.cli.diff import diff
from hydrapack.cli.eval import evaluate
from hydrapack.cli.export_base import export_base
from hydrapack.cli.inspect import inspect
from hydrapack.cli.merge import MergeCommand, merge
from hydrapack.cli.new_adapter import new_adapter
from hydrapack.cli.pack import pack
from hydrapack.cli.remove import remove
from hydrapack.cli.replace import replace
from hydrapack.cli.run import run
from hydrapack.cli.schema import schema
from hydrapack.cli.storage import storage
from hydrapack.cli.tradeoff import tradeoff
from hydrapack.cli.unpack import unpack
from hydrapack.cli.verify import verify
from hydrapack.support.version import __version__

app = typer.Typer(
    name="hydrapack",
    help="Merge many LoRA adapters into one shared A and task heads, packed for ExecuTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hydrapack {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what the libraries underneath print.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    # --verbose is read from the arguments before this module is imported.
    del verbose, version


app.command()(demo)
app.command()(check)
app.command(cls=MergeCommand)(merge)
app.command()(analyze)
app.command()(tradeoff)
app.command()(add)
app.command()(replace)
app.command()(remove)
app.command("new-adapter")(new_adapter)
app.command()(unpack)
app.command()(inspect)
app.command("export-base")(export_base)
app.command()(pack)
app.command()(verify)
app.command()(diff)
app.command()(apply)
app.command()(storage)
app.command()(schema)
app.command()(run)
app.command("eval")(evaluate)
