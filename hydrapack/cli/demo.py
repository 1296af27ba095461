"""``hydrapack demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, stages
from hydrapack.support.extras import need
from hydrapack.support.sizes import megabytes, parse_size


def demo(
    budget: Annotated[
        str, typer.Option(metavar="SIZE", help="Size of the package to plan.")
    ] = "400KB",
    heads: Annotated[
        int | None, typer.Option(help="Whole heads in place of a plan; 5 with --bits alone.")
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help="Bits per value in place of a plan; 8 with --heads alone."),
    ] = None,
    row: Annotated[int, typer.Option(min=0, help="Which held-out row to answer.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep bundle and package here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """The whole job on SmolLM2-135M and five real adapters: merge, pack, run, compare.

    Downloads the model once (98 MB); the exported base program is cached.

    Examples:

        hydrapack demo

        hydrapack demo --heads 5 --bits 8 --row 7
    """
    for module in ("executorch", "tokenizers", "gguf", "transformers", "peft"):
        need(module, "demo")
    from hydrapack.demo.job import run_demo

    with stages("demo") as stage:
        result = run_demo(parse_size("--budget", budget), heads, bits, row, out, stage)
    if as_json:
        print_json(result.as_json())
        return
    console = output()
    answers = Table("task", "input", "base model", "own adapter (PyTorch)", "head (ExecuTorch)")
    for answer in result.answers:
        answers.add_row(answer.task, answer.input, answer.base, answer.adapter, answer.head)
    answers.show_lines = True
    console.print(answers)
    storage = Table("stored", "parameters", "bytes", "S %")
    for line in result.storage:
        s = f"{100 * line.parameters / result.storage[0].parameters:.1f}"
        storage.add_row(line.name, f"{line.parameters:,}", megabytes(line.bytes), s)
    console.print(storage)
    console.print(
        f"base program {result.base_program}; {result.same_answers} of {len(result.answers)} "
        f"answers are the adapter's own, word for word",
        soft_wrap=True,
    )
    console.print(
        f"head swap {result.swap_ms:.2f} ms, decode {result.decode_rate:.0f} tokens/s, "
        f"{result.seconds:.0f} s in all; base program and package: {result.folder}",
        soft_wrap=True,
    )
