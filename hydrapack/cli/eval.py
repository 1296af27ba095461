"""``hydrapack eval``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, print_json, progress_bar
from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from hydrapack.evaluation.cases import Result
    from hydrapack.support.junit import Check


def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Tasks and methods.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")],
    cache: Annotated[
        Path | None, typer.Option(help="Directory of answers already made; OUT/cache by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="20 rows a task; hydraopt of 50 steps.")
    ] = False,
    gate: Annotated[
        Path | None, typer.Option(help="gates.toml: exit code 1 if a score is too low.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="With --gate: results.json of the last release.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the gates as JUnit XML.")] = None,
    engine: Annotated[
        str, typer.Option(help="Where PyTorch answers: local, or ray, a Ray cluster.")
    ] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Score tasks under every method: one table of storage against quality.

    Writes results.json, results.md and results.png. Answers are cached, so a stopped run continues
    where it was.

    Exit code 0, 1 if a gate fails, 2 for unusable input.

    Examples:

        hydrapack eval examples/eval.yaml -o results

        hydrapack eval examples/eval.yaml -o results --quick

        hydrapack eval eval.yaml -o results --gate gates.toml --against last/results.json
    """
    import hydrapack as hp
    from hydrapack.support.atomic import new_file
    from hydrapack.support.extras import need
    from hydrapack.support.junit import junit_xml
    from hydrapack.support.schema import parse_json

    need("matplotlib")
    if gate is None and (against or junit):
        raise Invalid("--against and --junit: go with --gate")
    if junit is not None:
        need("junitparser")
    from hydrapack.evaluation import gates

    limits = gates.read_gates(gate) if gate else []
    baseline = gates.read_scores(against) if against else None

    def judged(document: dict[str, Any]) -> list[Check]:
        return gates.judge(limits, document, gate, baseline, against) if gate else []

    with progress_bar("evaluating") as progress:
        # A gate that cannot be judged is said before hours of answers.
        results = hp.evaluate(
            config, out, cache, quick=quick, before=judged, progress=progress, engine=engine
        )
    table = out / "results.json"
    document = parse_json(table.read_bytes(), table)
    checks = judged(document)
    if junit is not None:
        with new_file(junit) as partial:
            partial.write_bytes(junit_xml("hydrapack eval", checks))
    if as_json:
        print_json({**document, **({"gates": [asdict(c) for c in checks]} if gate else {})})
    else:
        _print_tables(results, checks)
        output().print(f"{out}: results.json, results.md, results.png", soft_wrap=True)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


def _print_tables(results: list[Result], checks: list[Check]) -> None:
    from hydrapack.evaluation.tables import by_group, nats_cell

    console = output()
    for group, rows in by_group(results):
        tasks = list(rows[0].scores)
        table = Table("method", "S %", *tasks, "average", "nats", title=group or None)
        for r in rows:
            scores = (f"{r.scores[task]:.1f}" for task in tasks)
            table.add_row(r.label, f"{r.s_percent:.1f}", *scores, f"{r.average:.1f}", nats_cell(r))
        console.print(table)
    if checks:
        gates = Table("gate", "", "found")
        for check in checks:
            gates.add_row(check.name, "pass" if check.passed else "FAIL", check.detail)
        console.print(gates)
