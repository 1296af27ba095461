"""The base programs that an evaluation exports, each once, and only its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrapack.base.config import read_config
from hydrapack.base.export import export_base
from hydrapack.program.description import description_path, read_description
from hydrapack.support.errors import Mismatch

CONTEXT = 1024


@dataclass(frozen=True)
class BasePrograms:
    """Of one base model, in one folder, for adapters on the same linears."""

    out: Path
    base_model: str
    folder: Path
    """The base as a Hugging Face folder."""
    weights_sha256: str
    targets: tuple[str, ...]

    def find(self, rank: int, quant: str | None) -> Path:
        """The program for adapters of ``rank``; exported where it is not there yet.

        Raises:
            HydrapackError: it cannot be exported, or the file in its place is another.
        """
        path = self.out / f"model-{quant or 'default'}-r{rank}.pte"
        config = read_config(self.folder)
        # The description is the last that export_base writes, and a session needs it.
        if not (path.exists() and description_path(path).exists()):
            context = min(CONTEXT, config.max_position)
            export_base(self.base_model, path, rank, self.targets, quant, context)
        wanted: dict[str, Any] = {
            "get_weights_sha256": self.weights_sha256,
            "get_adapter_rank": rank,
            "get_adapter_layout": config.layout(self.targets, rank).digest,
        }
        if quant is not None:
            wanted["get_quant"] = quant
        stated = read_description(path)
        for key, value in wanted.items():
            if stated.get(key) != value:
                raise Mismatch(
                    f"{path}: its {key} is {stated.get(key)}, not {value}: it is of another base "
                    "model or evaluation; remove it, or give another `output`"
                )
        return path
