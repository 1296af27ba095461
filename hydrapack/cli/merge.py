"""``hydrapack merge``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.errors import Invalid
from hydrapack.support.sizes import megabytes

if TYPE_CHECKING:
    from hydrapack.bundle.format import Bundle


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER_DIR...", help="PEFT folders, or NAME=DIR.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The bundle directory to write.")],
    heads: Annotated[
        int | None, typer.Option(help="M, heads to keep; as many as adapters by default.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="The most R, rank of a module's shared A, and the base program's; its adapters' "
            "by default, and with a plan the smallest that is nearly as good."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="spectral, two-sided, hydraopt, task-arithmetic, ties, dare, dare-ties."),
    ] = "spectral",
    output_rank: Annotated[
        int | None,
        typer.Option(help="two-sided's Q, columns of the common U; twice the rank by default."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Plan heads, rank and bits of each module for an adapters.pte of at most this "
            "size, as 6MB, 800KB or bytes.",
        ),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Plan the fewest bytes that keep every task's relative error, as packed, at or "
            "below this, as 0.5.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help="With --budget or --target-error: one width, 4, 8 or 16."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="What spectral, two-sided and plans minimise: relative (every task counts alike; "
            "the default), absolute (large updates count more), minimax (the worst task's error). "
            "hydraopt takes absolute, its default, and relative."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text (.txt, a row a line, or .jsonl) to run through the base model: minimise "
            "the error of outputs, not of weights. With spectral and two-sided.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="With --calibrate: the base model; the adapters' own by default."),
    ] = None,
    max_task_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Exit code 1 and no bundle if a task's relative error is above this.",
        ),
    ] = None,
    routing: Annotated[
        str, typer.Option(help="Shared heads: per-module, or global (one head for all modules).")
    ] = "per-module",
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=WEIGHT", help="Weight of a task's error; 1 by default."),
    ] = None,
    density: Annotated[
        float, typer.Option(help="Share of values ties, dare and dare-ties keep.")
    ] = 0.5,
    only_a: Annotated[
        bool, typer.Option("--only-a", help="Merge A alone, every task keeps its own B.")
    ] = False,
    refit_b: Annotated[
        bool, typer.Option("--refit-b", help="With --only-a: least-squares B for the merged A.")
    ] = False,
    distance: Annotated[str, typer.Option(help="hydraopt's loss: mae, fro, mse or cs.")] = "mae",
    steps: Annotated[int, typer.Option(help="hydraopt's AdamW steps, at most.")] = 200,
    lr: Annotated[float, typer.Option(help="hydraopt's learning rate, relative.")] = 0.05,
    temperature: Annotated[
        float, typer.Option(help="hydraopt's softmax temperature; it falls to a twentieth.")
    ] = 1.0,
    init: Annotated[
        str, typer.Option(help="hydraopt's start: adapters, spectral or random.")
    ] = "adapters",
    seed: Annotated[int, typer.Option(help="Seed of starts, coefficients and dare.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Merge adapters of different bases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge LoRA adapters into one shared A and task heads. No data, no base model.

    Examples:

        hydrapack merge adapters/* -o bundle

        hydrapack merge gc=runs/7 sr=runs/9 qa=runs/12 -o bundle --heads 2

        hydrapack merge adapters/* -o bundle --budget 400KB --max-task-error 0.7

        hydrapack merge adapters/* -o bundle --target-error 0.5

        hydrapack merge adapters/* -o bundle --method two-sided --rank 4 --calibrate text.txt

        hydrapack merge adapters/* -o baseline --method ties --density 0.2
    """
    import hydrapack as hp

    if max_task_error is not None and not max_task_error >= 0:
        raise Invalid(f"--max-task-error {max_task_error:g}: must be 0 or more")
    with progress_bar("merging modules") as progress:
        merged = hp.merge(
            adapters,
            method=method,
            heads=heads,
            rank=rank,
            budget=budget,
            target_error=target_error,
            bits=bits,
            objective=objective,
            routing=routing,
            weights=_weights(weight or []),
            calibrate=calibrate,
            base_model=base_model,
            seed=seed,
            allow_base_mismatch=allow_base_mismatch,
            progress=progress,
            output_rank=output_rank,
            density=density,
            only_a=only_a,
            refit_b=refit_b,
            distance=distance,
            steps=steps,
            learning_rate=lr,
            temperature=temperature,
            init=init,
        )
    _check_errors(merged, max_task_error)
    info = merged.save(out)
    if info.s_percent > 100:
        print(
            f"hydrapack: warning: S = {info.s_percent:.1f} %: the bundle holds more values than "
            "the adapters apart; give a smaller --rank, fewer --heads or a --budget",
            file=sys.stderr,
        )
    if as_json:
        print_json({**info.model_dump(exclude={"module_errors"}), "s_percent": info.s_percent})
        return
    table = Table("task", "heads used", "relative error")
    for task in info.tasks:
        used = ", ".join(map(str, sorted(set(task.route))))
        table.add_row(task.name, used, f"{task.relative_error:.4f}")
    console = output()
    console.print(table)
    console.print(
        f"{len(info.modules)} modules, M = {info.heads} heads of {len(info.tasks)}, "
        f"rank {info.rank}, {info.method}: S = {info.s_percent:.1f} % of the adapters' parameters"
    )
    if merged.planned_bytes is not None:
        console.print(_plan_line(merged, merged.planned_bytes), soft_wrap=True)
    for task_name, names in merged.absent.items():
        console.print(
            f"{task_name}: leaves {len(names)} modules alone that others adapt ({names[0]}, …): "
            "zero updates there",
            soft_wrap=True,
        )
    console.print(f"bundle written to {out}", soft_wrap=True)


def _check_errors(merged: Bundle, limit: float | None) -> None:
    """Warn of lost tasks, and end with exit code 1 if an error is above ``limit``."""
    errors = merged.relative_errors
    for task in merged.lost:
        print(
            f"hydrapack: warning: task {task!r} is lost: its relative error is {errors[task]:.2f}, "
            "and 1 is that of no adapter; give more --heads, --rank or --budget, or --objective "
            "minimax",
            file=sys.stderr,
        )
    above = [task for task, error in errors.items() if limit is not None and error > limit]
    if above:
        found = ", ".join(f"{task} {errors[task]:.4f}" for task in above)
        print(f"hydrapack: --max-task-error {limit:g}: above it are {found}", file=sys.stderr)
        raise typer.Exit(1)


def _plan_line(bundle: Bundle, size: int) -> str:
    """How the modules are stored, in words."""
    counts: dict[str, int] = {}
    for name, bits in (bundle.info.bits or {}).items():
        kind = "a common output basis" if "U" in bundle.modules[name].tensors else "whole heads"
        label = f"{kind} at {bits} bits"
        counts[label] = counts.get(label, 0) + 1
    kinds = ", ".join(f"{n} modules {label}" for label, n in sorted(counts.items()))
    return (
        f"planned: {kinds}; at most {megabytes(size)} packed, on a base program of "
        f"export-base --rank {bundle.rank}"
    )


def _weights(arguments: list[str]) -> dict[str, float]:
    weights = {}
    for argument in arguments:
        task, _, value = argument.partition("=")
        try:
            weights[task] = float(value)
        except ValueError:
            raise Invalid(f"--weight {argument}: give TASK=NUMBER") from None
    return weights
