"""``budgets.toml``: limits on sizes, judged for a release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hydrapack.footprint.report import Report
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.junit import Check
from hydrapack.support.schema import Strict, read_toml
from hydrapack.support.sizes import parse_size, readable

# Compressed download sizes, as Google Play counts them:
# https://support.google.com/googleplay/android-developer/answer/9859372 (read November 2026).
PRESETS = {
    "play-base-module": 200 * 10**6,
    "play-asset-pack": 1500 * 10**6,
    "play-install-time-total": 4 * 10**9,
}


def _size(text: str) -> str:
    try:
        parse_size("size", text)
    except HydrapackError as error:
        raise ValueError(str(error)) from None
    return text


Size = Annotated[str, AfterValidator(_size)]
Measure = Literal["package", "head", "task", "model", "zip", "zstd", "total", "total-zip"]


class Budget(Strict):
    """One limit; ``limit`` or ``preset`` is given."""

    name: str = Field(min_length=1)
    measure: Measure
    """package: all its files; head: one more head; task: package over tasks; model: the base
    program; zip, zstd: the package's download; total, total-zip: with the base program (as it is:
    quantized weights hardly compress)."""
    limit: Size | None = None
    preset: str | None = None
    warn: Size | None = None


class Budgets(Strict):
    """The content of budgets.toml: ``[[budget]]`` tables."""

    budget: list[Budget] = Field(min_length=1)


@dataclass(frozen=True)
class Judged:
    """A budget against a size, in bytes."""

    name: str
    measure: str
    size: int
    limit: int
    warn: int | None

    @property
    def passed(self) -> bool:
        """Whether the size is within the limit."""
        return self.size <= self.limit

    @property
    def warned(self) -> bool:
        """Whether it is within the limit and above the warning level."""
        return self.passed and self.warn is not None and self.size > self.warn

    @property
    def level(self) -> str:
        """``pass``, ``warn`` or ``fail``."""
        return "warn" if self.warned else "pass" if self.passed else "fail"

    @property
    def percent(self) -> float:
        """Of the limit."""
        return 100.0 * self.size / self.limit

    @property
    def share(self) -> str:
        """Size and limit."""
        percent = f"{self.percent:.0f}" if self.percent >= 1 else f"{self.percent:.1g}"
        return f"{readable(self.size)} of {readable(self.limit)} ({percent} %)"

    @property
    def words(self) -> str:
        """The budget in a line."""
        return f"{self.name} {self.share}"

    def check(self) -> Check:
        """For JUnit."""
        level = ", above the warning level" if self.warned else ""
        return Check(self.name, self.passed, f"{self.size:,} of {self.limit:,} bytes{level}")


def read_budgets(path: Path) -> list[Budget]:
    """The budgets of a TOML file.

    Raises:
        HydrapackError: unreadable, no TOML, unknown keys, or a budget without limit or with two.
    """
    budgets = read_toml(path, Budgets).budget
    for budget in budgets:
        if (budget.limit is None) == (budget.preset is None):
            raise Invalid(f"{path}: budget {budget.name!r}: give limit or preset")
        if budget.preset is not None and budget.preset not in PRESETS:
            raise Invalid(
                f"{path}: budget {budget.name!r}: preset {budget.preset!r}: choose one of "
                f"{', '.join(PRESETS)}"
            )
    return budgets


def judge(budgets: list[Budget], report: Report) -> list[Judged]:
    """Every budget against ``report``.

    Raises:
        HydrapackError: a measure that the report does not have.
    """
    judged = []
    for budget in budgets:
        size = _measure(budget, report)
        limit = PRESETS[budget.preset] if budget.preset else parse_size("limit", budget.limit or "")
        warn = None if budget.warn is None else parse_size("warn", budget.warn)
        judged.append(Judged(budget.name, budget.measure, size, limit, warn))
    return judged


def _measure(budget: Budget, report: Report) -> int:
    found: dict[str, int | None] = {
        "package": report.bytes,
        "head": report.head_bytes,
        "task": -(-report.bytes // report.tasks),
        "model": report.model_bytes,
        "zip": report.zip_bytes,
        "zstd": report.zstd_bytes,
        "total": None if report.model_bytes is None else report.bytes + report.model_bytes,
        "total-zip": None
        if report.model_bytes is None or report.zip_bytes is None
        else report.zip_bytes + report.model_bytes,
    }
    size = found[budget.measure]
    if size is None:
        need = {"zip": "a package", "zstd": "a package, and zstandard (hydrapack[report])"}
        raise Invalid(
            f"budget {budget.name!r}: measure {budget.measure!r} needs "
            f"{need.get(budget.measure, 'a package and `model` model.pte')}"
        )
    return size
