"""``hydrapack new-adapter``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output


def new_adapter(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The adapter folder to write.")],
) -> None:
    """Write an adapter to train a new task from: A is the bundle's, B is zero.

    Trained with A frozen, the task is added with no merge error where heads are whole.

    Examples:

        hydrapack new-adapter bundle -o adapters/translate
    """
    import hydrapack as hp

    folder = hp.new_adapter(bundle, out)
    output().print(
        f"{folder}: load it with PEFT (is_trainable=True), freeze lora_A (VeRA: lambda_d), train, "
        "save, and hydrapack add it",
        soft_wrap=True,
    )
