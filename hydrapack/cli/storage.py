"""``hydrapack storage``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydrapack.cli.terminal import output, print_json, print_table
from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from hydrapack.footprint.report import Report
    from hydrapack.footprint.summary import Point, Scores, Summary


def storage(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PACKAGE|BUNDLE]...", help="What to measure.")
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Compute from shapes: llama-3.2-1b, llama-3.2-3b, gemma-2-2b, gemma-3-270m, "
            "gemma-3-1b, phi-3.5-mini, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-3b, qwen3-0.6b, "
            "qwen3-1.7b, qwen3-4b, smollm2-135m, smollm2-360m, smollm2-1.7b, tinyllama-1.1b, or a "
            "Hugging Face config.json."
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
        list[Path] | None,
        typer.Option(
            help="Earlier releases, the oldest first: packages, or what --json printed of them."
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="results.json of hydrapack eval: show what it scored.")
    ] = None,
    row: Annotated[
        str | None, typer.Option(help="With --scores: the table's row; else its only merge.")
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="tradeoff.json: show the package on the curve.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print ten lines of Markdown, for a pull request.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page of a release meeting.")] = None,
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

        hydrapack storage package --html page.html --scores results.json --against 1.0.json
    """
    import hydrapack as hp
    from hydrapack.footprint import page, render
    from hydrapack.footprint.budgets import judge, read_budgets
    from hydrapack.footprint.growth import read_release
    from hydrapack.footprint.report import planned
    from hydrapack.footprint.summary import Summary
    from hydrapack.footprint.summary import markdown as as_markdown
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
    if (limits or against or scores or curve) and len(reports) != 1:
        raise Invalid("--budgets, --against, --scores and --curve: of one package at a time")
    judged = judge(limits, reports[0]) if limits else []
    releases = [read_release(path) for path in against or []]
    found = _scores(scores, row, reports[0].task_names)
    summary = Summary(reports[0], judged, releases, found, _points(curve))
    _write(html, lambda: page.html(summary, reports[1:]))
    _write(csv, lambda: render.comma_separated(reports))
    _write(junit, lambda: junit_xml("hydrapack storage", [j.check() for j in judged]).decode())
    if as_json:
        print_json(_document(reports, summary))
    elif markdown:
        print("\n".join(as_markdown(replace(summary, report=each)) for each in reports), end="")
    else:
        _print_tables(reports, summary)
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


def _scores(path: Path | None, row: str | None, tasks: Sequence[str]) -> Scores | None:
    from hydrapack.evaluation.gates import read_scores
    from hydrapack.footprint.summary import Scores

    if path is None:
        if row is not None:
            raise Invalid("--row: goes with --scores")
        return None
    read = read_scores(path)
    merged = {task: read.row(task, row, path) for task in tasks}
    own = {task: each.scores[task] for task in tasks for each in read.own(task)}
    return Scores(
        label=next(iter(merged.values())).label,
        merged={task: each.scores[task] for task, each in merged.items()},
        own=own if len(own) == len(tasks) else {},
    )


def _points(path: Path | None) -> list[Point]:
    from hydrapack.footprint.summary import read_points

    return [] if path is None else read_points(path)


def _document(reports: list[Report], summary: Summary) -> dict[str, Any]:
    """One report's facts on top, or the sums over several, which stand under ``reports``."""
    if len(reports) == 1:
        document = reports[0].as_json()
    else:
        keys = ("parameters", "bytes", "baseline_parameters", "baseline_bytes", "tasks")
        document = {key: sum(getattr(report, key) for report in reports) for key in keys}
        document["s_percent"] = 100.0 * document["parameters"] / document["baseline_parameters"]
        document["reports"] = [report.as_json() for report in reports]
    if summary.judged:
        own = ("limit", "measure", "name", "passed", "size", "warned")
        document["budgets"] = [{key: getattr(one, key) for key in own} for one in summary.judged]
    if summary.growth:
        document["against"] = summary.growth.as_json()
    return document


def _print_tables(reports: list[Report], summary: Summary) -> None:
    from hydrapack.footprint import render

    console = output()
    tables = [(render.COLUMNS, render.rows(reports))]
    if summary.judged:
        tables.append((render.BUDGET_COLUMNS, render.budget_rows(summary.judged)))
    tables.append((render.BASELINE_COLUMNS, render.baseline_rows(reports)))
    for columns, body in tables:
        print_table(console, columns, body)
    for line in summary.growth.lines() if summary.growth else []:
        console.print(line, soft_wrap=True)
