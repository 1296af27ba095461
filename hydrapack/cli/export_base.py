"""``hydrapack export-base``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from hydrapack.cli.terminal import output, print_json, stages
from hydrapack.sizes import megabytes


def export_base(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or hub id.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The .pte to write.")],
    rank: Annotated[int, typer.Option(help="Rank of the adapters it will take.")],
    target_modules: Annotated[
        str, typer.Option(help="Adapted linears, of q,k,v,o,gate,up,down.")
    ] = "q,k,v,o",
    quant: Annotated[str, typer.Option(help="8da4w or fp32.")] = "8da4w",
    max_context: Annotated[int, typer.Option(help="Positions the cache holds.")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a base model once; every package of the same layout runs on it.

    Writes the program and, beside it, tokenizer.json and the program's size, SHA-256 and
    constants (model.pte.json).

    Examples:

        hydrapack export-base HuggingFaceTB/SmolLM2-135M-Instruct -o model.pte --rank 16

        hydrapack export-base ./Llama-3.2-1B-Instruct -o model.pte --rank 32 --max-context 4096
    """
    from hydrapack.base.export import export_base as export
    from hydrapack.layout import parse_targets

    started = time.monotonic()
    with stages("exporting") as stage:
        export(model, out, rank, parse_targets(target_modules), quant, max_context, stage)
    seconds = time.monotonic() - started
    size = out.stat().st_size
    if as_json:
        print_json({"bytes": size, "path": str(out), "quant": quant, "seconds": round(seconds, 1)})
    else:
        output().print(f"{out}: {megabytes(size)}, {quant}, in {seconds:.0f} s", soft_wrap=True)
