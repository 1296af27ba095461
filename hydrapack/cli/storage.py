"""``hydrapack storage``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydrapack.cli.terminal import output, print_json, print_table
from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from hydrapack.footprint.budgets import Judged
    from hydrapack.footprint.render import Growth
    from hydrapack.footprint.report import Report


def storage(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PACKAGE|BUNDLE]...", help="What to measure.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Compute from shapes: llama-3.2-1b, -3b; qwen2.5-0.5b, -1.5b, -3b; qwen3-0.6b, "
            "-1.7b, -4b; gemma-2-2b; gemma-3-270m, -1b; phi-3.5-mini; smollm2-135m, -360m, -1.7b; "
            "tinyllama-1.1b; or a Hugging Face config.json."
        ),
    ] = None,
    rank: Annotated[int, typer.Option(help="With --layout: the adapters' rank.")] = 32,
    tasks: Annotated[int, typer.Option(help="With --layout: N, the adapters.")] = 5,
    heads: Annotated[
        int | None, typer.Option(help="With --layout: M, heads; N by default.")
    ] = None,
    adapter_type: Annotated[str, typer.Option(help="With --layout: lora or vera.")] = "lora",
    bits: Annotated[int, typer.Option(help="With --layout: bits per value.")] = 16,
    target_modules: Annotated[
        str | None, typer.Option(help="With --layout: as q,v; else the paper's for the model.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The base program, for totals and baselines.")
    ] = None,
    budgets: Annotated[
        Path | None, typer.Option(help="budgets.toml: exit code 1 if one is exceeded.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The last release's package: show what grew.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, for a pull-request comment.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page with charts.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the budgets as JUnit XML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Parameters, bytes and S % of packages, bundles or a plan, compared with separate adapters.

    Exit code 0, 1 if a budget is exceeded, 2 for unusable input.

    Examples:

        hydrapack storage package

        hydrapack storage --layout llama-3.2-1b --rank 32 --tasks 5 --heads 2

        hydrapack storage package --model model.pte --budgets budgets.toml --against old/package

        hydrapack storage package --markdown > comment.md
    """
    import hydrapack as hp
    from hydrapack.footprint import render
    from hydrapack.footprint.budgets import judge, read_budgets
    from hydrapack.footprint.report import planned
    from hydrapack.support.junit import junit_xml

    if (layout is None) == (not paths):
        raise Invalid("give packages or bundles, or --layout (--help has examples)")
    limits = read_budgets(budgets) if budgets else []
    if junit is not None and not limits:
        raise Invalid("--junit: needs --budgets")
    if layout is not None:
        count = tasks if heads is None else heads
        reports = [planned(layout, rank, tasks, count, adapter_type, bits, target_modules)]
    else:
        reports = [hp.storage(path, model) for path in paths or []]
    if (limits or against) and len(reports) != 1:
        raise Invalid("--budgets and --against: judge one package at a time")
    judged = judge(limits, reports[0]) if limits else []
    growth = render.Growth(hp.storage(against), reports[0]) if against else None
    _write(html, lambda: render.html(reports, judged, growth))
    _write(csv, lambda: render.comma_separated(reports))
    _write(junit, lambda: junit_xml("hydrapack storage", [j.check() for j in judged]).decode())
    if as_json:
        print_json(_document(reports, judged, growth))
    elif markdown:
        print(render.markdown(reports, judged, growth), end="")
    else:
        _print_tables(reports, judged, growth)
    for line in render.warnings(reports):
        print(f"hydrapack: warning: {line}", file=sys.stderr)
    if any(not one.passed for one in judged):
        raise typer.Exit(1)


def _write(path: Path | None, text: Any) -> None:
    from hydrapack.support.atomic import new_file

    if path is not None:
        content = text()
        with new_file(path) as partial:
            partial.write_text(content, encoding="utf-8", newline="\n")


def _document(reports: list[Report], judged: list[Judged], growth: Growth | None) -> dict[str, Any]:
    """One report's facts on top, or the sums over several, which stand under ``reports``."""
    if len(reports) == 1:
        document = reports[0].as_json()
    else:
        keys = ("parameters", "bytes", "baseline_parameters", "baseline_bytes", "tasks")
        document = {key: sum(getattr(report, key) for report in reports) for key in keys}
        document["s_percent"] = 100.0 * document["parameters"] / document["baseline_parameters"]
        document["reports"] = [report.as_json() for report in reports]
    if judged:
        own = ("limit", "measure", "name", "passed", "size", "warned")
        document["budgets"] = [{key: getattr(one, key) for key in own} for one in judged]
    if growth:
        document["against"] = growth.as_json()
    return document


def _print_tables(reports: list[Report], judged: list[Judged], growth: Growth | None) -> None:
    from hydrapack.footprint import render

    console = output()
    tables = [(render.COLUMNS, render.rows(reports))]
    if judged:
        tables.append((render.BUDGET_COLUMNS, render.budget_rows(judged)))
    tables.append((render.BASELINE_COLUMNS, render.baseline_rows(reports)))
    for columns, body in tables:
        print_table(console, columns, body)
    for line in growth.lines() if growth else []:
        console.print(line, soft_wrap=True)
