"""``hydrapack diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The package that devices have.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The package they are to have.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The patch file to write.")],
    signing_key: Annotated[
        Path | None, typer.Option(help="Ed25519 private key (PEM) to sign the patch with.")
    ] = None,
) -> None:
    """Write what turns one package into another: of a task more, its head and little else.

    Examples:

        hydrapack diff release-1 release-2 -o 1-to-2.patch --signing-key key.pem
    """
    import hydrapack as hp

    patch = hp.diff(old, new, out, signing_key=signing_key)
    whole = sum(path.stat().st_size for path in new.iterdir())
    output().print(f"{patch}: {patch.stat().st_size:,} bytes; {new} has {whole:,}", soft_wrap=True)
