"""``hydrapack export-base``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hydrapack.cli.terminal import output, print_json, stages
from hydrapack.support.errors import Invalid
from hydrapack.support.sizes import megabytes

if TYPE_CHECKING:
    from hydrapack.base.export import ExportedBase


def export_base(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a GGUF file, or a hub id.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The .pte to write.")],
    rank: Annotated[int | None, typer.Option(help="Rank of the adapters that it will run.")] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="Adapted linears, of q,k,v,o,gate,up,down, or qkv and gate_up where adapters fuse "
            "them; those of attention by default."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Take rank and adapted linears from this bundle."),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(help="8da4w, 8da8w, mixed, gguf or fp32; by default what suits the model."),
    ] = None,
    lm_head: Annotated[
        str | None, typer.Option(help="int8 or int4 for the vocabulary matrix alone.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Text to fit 4-bit values to: a .txt or .jsonl file, or self."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Positions the cache holds; 2048 by default.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Measure the program against float32.")
    ] = False,
    text: Annotated[
        Path | None, typer.Option(help="With --report: a .txt or .jsonl file to measure on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a base model once; every package of the same layout runs on it.

    Next to the program it writes tokenizer.json and model.pte.json: the program's size, SHA-256
    and constants.

    --quant: 8da4w has int4 linears (a scale for 32 columns) and an int8 vocabulary matrix; mixed
    has int8 for v, o and down too; 8da8w is int8 throughout; gguf keeps a GGUF file's own 4-bit
    blocks (Q4_0, Q4_1, Q4_K) and makes the rest int8. Activations are int8. By default a
    GGUF file with such blocks gets gguf, a model below 0.5 G parameters 8da8w, others 8da4w.

    Examples:

        hydrapack export-base demo:smollm2-135m-q4_1 -o model.pte --rank 16 --report

        hydrapack export-base ./Llama-3.2-1B-Instruct -o model.pte --bundle bundle

        hydrapack export-base ./Llama-3.2-1B-Instruct -o model.pte --rank 32 --max-context 4096

        hydrapack export-base llama-3.2-1b-q4_0.gguf -o model.pte --rank 32

        hydrapack export-base ./Llama-3.2-1B-Instruct -o model.pte --rank 32 --calibrate self
    """
    import hydrapack as hp

    if rank is None and bundle is None:
        raise Invalid("give --rank, or --bundle with the directory that merge wrote")
    started = time.monotonic()
    with stages("exporting") as stage:
        made = hp.export_base(
            model,
            out,
            rank,
            target_modules,
            quant,
            max_context,
            stage,
            bundle=bundle,
            lm_head=lm_head,
            calibrate=calibrate,
            report=report,
            text=text,
        )
    seconds = time.monotonic() - started
    if as_json:
        print_json({**made.as_json(), "seconds": round(seconds, 1)})
    else:
        _print(output(), made, seconds)


def _print(console: Console, made: ExportedBase, seconds: float) -> None:
    why = f" ({made.why})" if made.why else ""
    size = megabytes(made.bytes)
    console.print(f"{made.path}: {size}, {made.quant}{why}, in {seconds:.0f} s", soft_wrap=True)
    kinds: dict[str, list[str]] = {}
    for kind, stored in made.scheme.items():
        kinds.setdefault(stored, []).append(kind)
    for stored, names in sorted(kinds.items()):
        console.print(f"  {stored}: {', '.join(names)}", soft_wrap=True)
    if made.calibration is not None:
        kept = made.calibration
        console.print(
            f"  GPTQ {'kept' if kept.kept else 'left out'}: on held-out rows "
            f"{kept.with_gptq.kl_nats:.4f} nats a token from float32 with it, "
            f"{kept.without.kl_nats:.4f} without",
            soft_wrap=True,
        )
    if made.quality is not None:
        console.print(
            f"  {made.quality.kl_nats:.4f} nats a token from float32, the same likeliest token at "
            f"{100 * made.quality.top1_agreement:.1f} % of {made.quality.tokens} positions",
            soft_wrap=True,
        )
