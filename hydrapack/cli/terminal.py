"""Progress on a terminal, silence elsewhere; tables and JSON on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hydrapack.support.progress import Progress as Report
from hydrapack.support.progress import Stage
from hydrapack.support.schema import json_text


def output() -> Console:
    """Standard output; wide where it is no terminal, so that nothing is cut in a log."""
    return Console() if sys.stdout.isatty() else Console(width=120)


KNOBS = (
    "density",
    "distance",
    "init",
    "lr",
    "only_a",
    "output_rank",
    "refit_b",
    "routing",
    "steps",
    "temperature",
)
"""The methods' own options; written out here, since asking the methods would import torch."""
_OPTIONS = {"targets": "--target-modules", "weights": "--weight"}
_OPTIONS |= {name: f"--set {name}" for name in KNOBS}


def as_options(text: str) -> str:
    """A message of the library with its parameters (`heads`) as a command's options (--heads)."""

    def option(match: re.Match[str]) -> str:
        return _OPTIONS.get(match[1], "--" + match[1].replace("_", "-"))

    return re.sub(r"`([a-z_0-9]+)`", option, text)


def print_json(value: Any) -> None:
    """One JSON document on standard output, keys sorted."""
    print(json_text(value), end="")


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; where it is wider than the console, each row is one, so that no figure is cut."""
    plain = [not any(re.search("[a-z]", row[i]) for row in rows) for i in range(len(columns))]
    table = Table()
    for name, figures in zip(columns, plain, strict=True):
        table.add_column(name, no_wrap=figures, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if (
        console.measure(table, options=console.options.update_width(10_000)).minimum
        <= console.width
    ):
        console.print(table)
        return
    for row in rows:
        record = Table(show_header=False)
        record.add_column(no_wrap=True)
        record.add_column(overflow="fold")
        for name, cell in zip(columns, row, strict=True):
            record.add_row(name, cell)
        console.print(record)


@contextmanager
def progress_bar(label: str) -> Iterator[Report]:
    """A bar with the time left on standard error; the block calls it with (done, total, note)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=_console(), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, note: bar.update(
            task, completed=done, total=total, description=f"{label} {note}".rstrip()
        )


@contextmanager
def stages(label: str) -> Iterator[Stage]:
    """A line on standard error with the running step and the time so far."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as line:
        task = line.add_task(label, total=None)
        yield lambda name: line.update(task, description=f"{label}: {name}")


def _console() -> Console:
    # A console that is no terminal still prints a progress's last state: silence it whole.
    return Console(stderr=True, quiet=not sys.stderr.isatty())
