"""``hydrapack merge``."""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

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
    heads: Annotated[int | None, typer.Option(help="M, heads; one per task by default.")] = None,
    rank: Annotated[
        int | None, typer.Option(help="Largest rank of A; the adapters' own by default.")
    ] = None,
    method: Annotated[
        str, typer.Option(show_default=False, help="One of those above; spectral by default.")
    ] = "spectral",
    knobs: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An option of the method, or the seed."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="relative, absolute, or minimax (the worst task).")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=WEIGHT", help="How much a task's error counts; 1 by default."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan the least error in this size, e.g. 800KB."),
    ] = None,
    target_error: Annotated[
        float | None,
        typer.Option(metavar="E", help="Plan the fewest bytes for this error, e.g. 0.5."),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="With a plan: 4, 8 or 16 for every module.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Minimise the error of outputs on this text."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Model to calibrate with; the adapters' by default.")
    ] = None,
    max_task_error: Annotated[
        float | None, typer.Option(metavar="E", help="Exit code 1 if a task's error is above this.")
    ] = None,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Merge adapters of different bases.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Where modules are merged: local, or ray, a Ray cluster.")
    ] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Merge LoRA adapters into one shared A and task heads. No data, no base model.

    --budget and --target-error plan heads, rank and bits of every module. Without them one method
    merges all modules alike: METHODS.

    Examples:

        hydrapack merge adapters/* -o bundle --heads 2

        hydrapack merge gc=runs/7 sr=runs/9 -o bundle --budget 400KB --max-task-error 0.7

        hydrapack merge adapters/* -o bundle --method two-sided --rank 4 --calibrate text.txt

        hydrapack merge adapters/* -o baseline --method ties --set density=0.2
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
            weights=_weights(weight or []),
            calibrate=calibrate,
            base_model=base_model,
            allow_base_mismatch=allow_base_mismatch,
            progress=progress,
            engine=engine,
            **_knobs(knobs or []),
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
            f"{task_name}: does not adapt {len(names)} modules that others adapt ({names[0]}, …); "
            "its updates there are zero",
            soft_wrap=True,
        )
    console.print(f"bundle written to {out}", soft_wrap=True)


class MergeCommand(TyperCommand):
    """Its help lists the methods with their options, which only then are imported."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, METHODS in it replaced."""
        from hydrapack.merging.methods import METHODS

        listed = ", ".join(method.signature for method in METHODS)
        self.help = (self.help or "").replace("METHODS", listed)
        super().format_help(ctx, formatter)


def _check_errors(merged: Bundle, limit: float | None) -> None:
    """Warn of lost tasks, and end with exit code 1 if an error is above ``limit``."""
    errors = merged.relative_errors
    for task in merged.lost:
        print(
            f"hydrapack: warning: task {task!r} is lost: its relative error is {errors[task]:.2f}, "
            "where 1 means no adapter at all; give more --heads, --rank or --budget, or try "
            "--objective minimax",
            file=sys.stderr,
        )
    above = [task for task, error in errors.items() if limit is not None and error > limit]
    if above:
        found = ", ".join(f"{task} {errors[task]:.4f}" for task in above)
        print(f"hydrapack: --max-task-error {limit:g}: exceeded by {found}", file=sys.stderr)
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


def _knobs(arguments: list[str]) -> dict[str, Any]:
    import hydrapack as hp

    knobs: dict[str, Any] = {}
    taken = set(signature(hp.merge).parameters) - {"seed"}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if not separator or name in knobs:
            raise Invalid(f"--set {argument}: give NAME=VALUE, each name once")
        if name in taken:
            raise Invalid(f"--set {argument}: is no option of a method, but of the command")
        knobs[name] = value
    if "seed" in knobs:
        try:
            knobs["seed"] = int(knobs["seed"])
        except ValueError:
            raise Invalid(f"--set seed={knobs['seed']}: must be a whole number") from None
    return knobs


def _weights(arguments: list[str]) -> dict[str, float]:
    weights = {}
    for argument in arguments:
        task, _, value = argument.partition("=")
        try:
            weights[task] = float(value)
        except ValueError:
            raise Invalid(f"--weight {argument}: give TASK=NUMBER") from None
    return weights
