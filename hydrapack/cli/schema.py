"""``hydrapack schema``."""

from __future__ import annotations

from hydrapack.cli.terminal import print_json


def schema() -> None:
    """Print the JSON Schema of manifest.json (also docs/manifest.schema.json).

    Examples:

        hydrapack schema > manifest.schema.json
    """
    from hydrapack.packing.manifest import manifest_schema

    print_json(manifest_schema())
