"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, int, str], None]
"""Called with what is done, of how much in all, and a note."""
Stage = Callable[[str], None]
"""Called with the name of each step."""


def quietly(done: float, total: int, note: str) -> None:
    """Tell nobody of progress."""


def silently(name: str) -> None:
    """Tell nobody of steps."""
