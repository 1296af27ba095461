"""``hydrapack verify``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import as_options, output, print_json, stages


def verify(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="What pack wrote.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ADAPTER_DIR]...", help="Adapters, as for --adapters."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model.pte it will run on: run every head there.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle it was packed from: compare the heads.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(help="The adapters it was merged from, as DIR or TASK=DIR."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Ed25519 public key (PEM) that must have signed it.")
    ] = None,
    max_drift: Annotated[
        float | None,
        typer.Option(
            help="With --model and --adapters: how far a head's output may be from its adapter's, "
            "in nats per token."
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            help="Likewise: share of tokens at which it must prefer its adapter's, as 0.9.",
        ),
    ] = None,
    min_margin_kept: Annotated[
        float | None,
        typer.Option(
            help="Likewise: share of its adapter's margin over the next best token, as 0.8."
        ),
    ] = None,
    max_task_error: Annotated[
        float | None,
        typer.Option(help="Largest relative error, as packed, that a task may have, e.g. 0.7."),
    ] = None,
    newer_than: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE|N",
            help="A package, or its version, that this one's package_version must be above.",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check a package: digests, schema, signature, that it runs and that every head has an effect.

    Exit code 0 if all checks pass, 1 if one fails, 2 for unusable input.

    Examples:

        hydrapack verify package

        hydrapack verify package --model model.pte --adapters runs/*

        hydrapack verify package --model model.pte --max-drift 0.2 --min-top1 0.9 --adapters runs/*

        hydrapack verify package --public-key release.pub.pem --junit verify.xml
    """
    import hydrapack as hp
    from hydrapack.packing.signature import read_public_key
    from hydrapack.support.atomic import new_file
    from hydrapack.support.junit import junit_xml

    # A shell that expands --adapters runs/* leaves all but the first as arguments.
    sources = [*(adapters or []), *(more or [])]
    with stages("verifying") as stage:
        checks = hp.verify(
            package,
            model,
            bundle,
            sources,
            None if public_key is None else read_public_key(public_key),
            max_drift,
            max_task_error,
            stage,
            int(newer_than) if newer_than is not None and newer_than.isdecimal() else newer_than,
            min_top1=min_top1,
            min_margin_kept=min_margin_kept,
        )
    checks = [replace(check, detail=as_options(check.detail)) for check in checks]
    passed = all(check.passed for check in checks)
    if junit is not None:
        with new_file(junit) as partial:
            partial.write_bytes(junit_xml("hydrapack verify", checks))
    if as_json:
        print_json(
            {"checks": [asdict(c) for c in checks], "package": str(package), "passed": passed}
        )
    else:
        table = Table("check", "", "found")
        for check in checks:
            table.add_row(check.name, "pass" if check.passed else "FAIL", check.detail)
        output().print(table)
    if not passed:
        raise typer.Exit(1)
