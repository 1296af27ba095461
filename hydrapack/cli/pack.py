"""``hydrapack pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hydrapack.cli.terminal import output, stages
from hydrapack.support.errors import Invalid
from hydrapack.support.sizes import megabytes


def pack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="What merge wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The package directory to write.")],
    bits: Annotated[
        int | None,
        typer.Option(help="Bits per value: 4, 8, 16 or 32; as planned, else 8, by default."),
    ] = None,
    bits_a: Annotated[int | None, typer.Option(help="Bits per value of A.")] = None,
    bits_b: Annotated[int | None, typer.Option(help="Bits per value of B.")] = None,
    group_size: Annotated[int, typer.Option(help="Columns that share a scale at 4 bits.")] = 32,
    fallback: Annotated[
        str, typer.Option(help="What an unknown task gets: error, base, or a task's name.")
    ] = "error",
    model: Annotated[
        Path | None,
        typer.Option(help="The model.pte it will run on: check it, bind the package to it."),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write a model card, README.md.")] = False,
    sbom: Annotated[
        bool, typer.Option("--sbom", help="Write a CycloneDX ML-BOM, sbom.cdx.json.")
    ] = False,
    signing_key: Annotated[
        Path | None, typer.Option(help="Ed25519 private key (PEM): write manifest.sig.")
    ] = None,
    package_version: Annotated[
        int | None, typer.Option(help="A number of yours, from 1, that rises with each release.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="A name of yours, as beta.")] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="With --model: JSON lines with task and input; store what each head answers."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Quantize and serialize a bundle: adapters.pte and manifest.json.

    Examples:

        hydrapack pack bundle -o package

        hydrapack pack bundle -o package --bits 4 --json

        hydrapack pack bundle -o package --package-version 3 --channel beta

        hydrapack pack bundle -o package --model model.pte --card --sbom --signing-key key.pem

        hydrapack pack bundle -o package --model model.pte --golden prompts.jsonl
    """
    import hydrapack as hp
    from hydrapack.packing.manifest import manifest_text

    if golden is not None and model is None:
        raise Invalid("--golden: needs --model, whose answers are stored")
    record = None if golden is None or model is None else hp.golden(model, golden)
    with stages("packing"):
        package = hp.pack(
            bundle,
            out,
            bits,
            bits_a=bits_a,
            bits_b=bits_b,
            group_size=group_size,
            fallback=fallback,
            model=model,
            model_card=card,
            sbom=sbom,
            signing_key=signing_key,
            package_version=package_version,
            channel=channel,
            golden=record,
        )
    manifest = package.manifest
    if as_json:
        print(manifest_text(manifest), end="")
        return
    table = Table("task", "merge error", "packed error")
    for task in manifest.tasks:
        merged, packed = task.merge_relative_error, task.packed_relative_error
        table.add_row(task.name, f"{merged:.4f}", f"{packed:.4f}")
    console = output()
    console.print(table)
    console.print(
        f"{out}: {megabytes(manifest.storage.bytes)}, bits {manifest.bits}, rank {manifest.rank}, "
        f"{manifest.heads} heads; the adapters apart: "
        f"{megabytes(manifest.storage.baseline_bytes)} at 16 bits",
        soft_wrap=True,
    )
