"""``model.pte.json``: what export-base says of a base program, beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydrapack.support.schema import parse_json, read_bytes


def description_path(model: Path) -> Path:
    """Where the description of a base program is."""
    return model.with_name(model.name + ".json")


def read_description(model: Path) -> dict[str, Any]:
    """Bytes, SHA-256 and constants of a base program, as stated.

    Raises:
        HydrapackError: missing or damaged.
    """
    path = description_path(model)
    found: dict[str, Any] = parse_json(
        read_bytes(path, "; export-base writes it beside the model"), path
    )
    return found
