"""Releases one after the other: what a package takes now against those before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hydrapack.footprint.report import Report, storage
from hydrapack.support.schema import read_model
from hydrapack.support.sizes import readable


class Release(BaseModel):
    """What is kept of a release: a package's report, or what ``storage --json`` printed of one."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)

    name: str
    bytes: int = Field(ge=1)
    tasks: int = Field(ge=1)
    head_bytes: int = Field(ge=0)
    task_names: tuple[str, ...]

    @property
    def bytes_per_task(self) -> float:
        """Bytes over tasks."""
        return self.bytes / self.tasks


def read_release(path: Path) -> Release:
    """A release by its package or bundle, or by the JSON that ``storage --json`` printed of it.

    Raises:
        HydrapackError: neither.
    """
    if path.is_file():
        return read_model(path, Release).model_copy(update={"name": path.stem})
    report = storage(path)
    return Release.model_validate({**report.as_json(), "name": _short(report.name)})


def _short(name: str) -> str:
    return name.removesuffix("/package") or name


@dataclass(frozen=True)
class Growth:
    """A release against the one before."""

    old: Release | Report
    new: Report

    @property
    def percent(self) -> float:
        """Of the old bytes."""
        return 100.0 * (self.new.bytes - self.old.bytes) / self.old.bytes

    @property
    def added(self) -> list[str]:
        """Tasks that are new."""
        return sorted(set(self.new.task_names) - set(self.old.task_names))

    @property
    def removed(self) -> list[str]:
        """Tasks that are gone."""
        return sorted(set(self.old.task_names) - set(self.new.task_names))

    def as_json(self) -> dict[str, object]:
        """JSON form."""
        old, new = self.old, self.new
        return {
            "added_tasks": self.added,
            "bytes": new.bytes - old.bytes,
            "bytes_per_task": new.bytes_per_task - old.bytes_per_task,
            "head_bytes": new.head_bytes - old.head_bytes,
            "old_bytes": old.bytes,
            "percent": self.percent,
            "removed_tasks": self.removed,
        }

    def lines(self) -> list[str]:
        """What changed, in words."""
        old, new = self.old, self.new
        lines = [
            f"package: {old.bytes:,} -> {new.bytes:,} bytes ({self.percent:+.1f} %)",
            f"bytes a task: {old.bytes_per_task:,.0f} -> {new.bytes_per_task:,.0f}",
            f"one head: {old.head_bytes:,} -> {new.head_bytes:,} bytes",
        ]
        for label, names in (("added tasks", self.added), ("removed tasks", self.removed)):
            if names:
                lines.append(f"{label}: {', '.join(names)}")
        return lines

    @property
    def line(self) -> str:
        """The same in a line."""
        parts = [f"{readable(self.old.bytes)} → {readable(self.new.bytes)} ({self.percent:+.1f} %)"]
        parts += [f"new: {', '.join(self.added)}"] if self.added else []
        parts += [f"gone: {', '.join(self.removed)}"] if self.removed else []
        return "; ".join(parts)
