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
    format: Annotated[
        str, typer.Option(help="peft, ptd (ExecuTorch) or gguf (llama.cpp).")
    ] = "peft",
    model: Annotated[
        Path | None,
        typer.Option(help="For gguf, the base: its folder, its config.json or a GGUF file."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the folders as JSON.")] = False,
) -> None:
    """Write merged heads as adapters of their own, for PEFT, ExecuTorch or llama.cpp.

    Examples:

        hydrapack unpack bundle --task summary -o summary-merged

        hydrapack unpack bundle --all -o merged --dtype bfloat16

        hydrapack unpack bundle --all -o adapters --format ptd --dtype float16

        hydrapack unpack bundle --all -o loras --format gguf --model Llama-3.2-1B-Instruct.gguf
    """
    import hydrapack as hp

    if every == (task is not None):
        raise Invalid("give either --task NAME or --all")
    folders = hp.unpack(bundle, out, task, dtype, format, model)
    if as_json:
        print_json({name: str(folder) for name, folder in folders.items()})
        return
    for name, folder in folders.items():
        output().print(f"{name}: {folder}", soft_wrap=True)
