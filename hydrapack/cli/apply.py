"""``hydrapack apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output


def apply(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The package it was made from.")],
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="What diff wrote.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="The package directory to write; may be OLD.")
    ],
    public_key: Annotated[
        Path | None, typer.Option(help="Ed25519 public key (PEM) that must have signed it.")
    ] = None,
) -> None:
    """Make a new package of an old one and a patch, whole or not at all.

    Examples:

        hydrapack apply release-1 1-to-2.patch -o release-2 --public-key key.pub.pem
    """
    import hydrapack as hp
    from hydrapack.packing.signature import read_public_key

    key = None if public_key is None else read_public_key(public_key)
    made = hp.apply(old, patch, out, public_key=key)
    output().print(f"{made}: {', '.join(hp.Package.load(made).tasks)}", soft_wrap=True)
