"""Progress on a terminal, silence elsewhere; tables and JSON on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
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
