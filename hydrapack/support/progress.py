"""How long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, int, str], None]
"""Called with what is done, of how much in all, and a note."""
Stage = Callable[[str], None]
"""Called with the name of each step."""


def quietly(done: float, total: int, note: str) -> None:
    """Tell nobody of progress."""


def part(progress: Progress, start: float, size: float) -> Progress:
    """The progress of a part of the work.

    Args:
        progress: of the whole.
        start: where the part begins, and ``size``, how much of the whole it is; 0 to 1.
    """
    return lambda done, total, note: progress(start * total + size * done, total, note)


def silently(name: str) -> None:
    """Tell nobody of steps."""
