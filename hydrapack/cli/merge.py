"""``hydrapack merge``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.errors import InputError
from hydrapack.sizes import parse_size

if TYPE_CHECKING:
    from hydrapack.merge.budget import Choice


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
        typer.Option(help="The most R, rank of a module's shared A; its adapters' by default."),
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
    bits: Annotated[int | None, typer.Option(help="With --budget: one width, 4, 8 or 16.")] = None,
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

        hydrapack merge adapters/* -o bundle --budget 6MB

        hydrapack merge adapters/* -o baseline --method ties --density 0.2
    """
    from hydrapack.adapters.collect import read_adapters
    from hydrapack.bundle import write_bundle
    from hydrapack.merge.adapters import absent_modules, merge_adapters
    from hydrapack.merge.budget import merge_budget

    limit = None if budget is None else parse_size("--budget", budget)
    if limit is None and bits is not None:
        raise InputError("--bits: goes with --budget; without one, give it to hydrapack pack")
    if limit is not None and (heads, output_rank, method) != (None, None, "spectral"):
        raise InputError("--budget: chooses heads, method and --output-rank; leave them out")
    read = read_adapters(adapters, allow_base_mismatch)
    plan = None
    with progress_bar("merging modules") as progress:
        if limit is not None:
            per_task = _weights(weight or [])
            merged, plan = merge_budget(read, limit, rank, bits, seed, per_task, progress)
        else:
            merged = merge_adapters(
                read,
                method,
                heads,
                rank,
                seed,
                progress,
                routing=routing,
                weights=_weights(weight or []),
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
    bits_planned = {name: choice.bits for name, choice in plan.items()} if plan else None
    info = write_bundle(merged, read, out, bits_planned)
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
    if plan:
        console.print(_plan_line(list(plan.values())), soft_wrap=True)
    for task_name, names in absent_modules(read).items():
        console.print(
            f"{task_name}: leaves {len(names)} modules alone that others adapt ({names[0]}, …): "
            "zero updates there",
            soft_wrap=True,
        )
    console.print(f"bundle written to {out}", soft_wrap=True)


def _plan_line(choices: list[Choice]) -> str:
    """How the modules are stored, in words."""
    counts: dict[str, int] = {}
    for choice in choices:
        kind = "a common output basis" if choice.output_rank else "whole heads"
        label = f"{kind} at {choice.bits} bits"
        counts[label] = counts.get(label, 0) + 1
    return "planned: " + ", ".join(f"{n} modules {label}" for label, n in sorted(counts.items()))


def _weights(arguments: list[str]) -> dict[str, float]:
    weights = {}
    for argument in arguments:
        task, _, value = argument.partition("=")
        try:
            weights[task] = float(value)
        except ValueError:
            raise InputError(f"--weight {argument}: give TASK=NUMBER") from None
    return weights
