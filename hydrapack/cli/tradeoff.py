"""``hydrapack tradeoff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.sizes import megabytes


def tradeoff(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, or NAME=DIR.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory for tradeoff.json, .png.")],
    ranks: Annotated[
        str | None,
        typer.Option(help="Ranks, e.g. 8,16; 1/4 to 2 times the adapters' by default."),
    ] = None,
    bits: Annotated[str, typer.Option(help="Bits per value, of 4,8,16,32.")] = "4,8,16",
    objective: Annotated[
        str, typer.Option(help="relative (every task counts the same) or absolute.")
    ] = "relative",
    seed: Annotated[int, typer.Option(help="Seed of the starts when heads are shared.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Take adapters of different bases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the points as JSON.")] = False,
) -> None:
    """Bytes, error and decode cost of every M, rank and bit width, next to the baselines.

    100 % is the size of the separate adapters in half precision (PEFT's files). S % counts values,
    whatever their bits. Each token reads A and B at the base program's rank, in float32.

    Examples:

        hydrapack tradeoff adapters/* -o tradeoff

        hydrapack tradeoff adapters/* -o tradeoff --ranks 8,16,24,32 --bits 8
    """
    import hydrapack as hp

    need("matplotlib")
    with progress_bar("factorizing modules") as progress:
        made = hp.tradeoff(
            adapters,
            _numbers("--ranks", ranks) if ranks else None,
            _numbers("--bits", bits),
            objective=objective,
            seed=seed,
            allow_base_mismatch=allow_base_mismatch,
            progress=progress,
        )
    made.save(out)
    if as_json:
        print_json(made.as_json())
        return
    table = Table("method", "M", "rank", "Q", "bits", "bytes", "% of fp16", "S %", "error", "worst")
    table.add_column("read a token")
    for p in made.points:
        if p.method != "spectral" or p.rank == made.rank or ranks:
            table.add_row(
                p.method,
                str(p.heads),
                str(p.rank),
                str(p.output_rank or ""),
                str(p.bits),
                megabytes(p.bytes),
                f"{p.percent_of_fp16:.1f}",
                f"{p.s_percent:.1f}",
                f"{p.relative_error:.4f}",
                f"{p.worst_error:.4f}",
                megabytes(p.decode_bytes),
            )
    console = output()
    console.print(table)
    console.print(f"{len(made.points)} points: {out}/tradeoff.json, tradeoff.png", soft_wrap=True)


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise Invalid(f"{flag} {text}: give numbers, as 8,16") from None
