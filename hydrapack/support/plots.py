"""matplotlib, drawing into files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydrapack.support.extras import need


def pyplot() -> Any:
    """matplotlib.pyplot.

    Raises:
        Invalid: matplotlib is not installed.
    """
    need("matplotlib").use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_png(figure: Any, target: Path) -> None:
    """Write the figure and close it; the same figure gives the same bytes."""
    # Without the version that matplotlib would note.
    figure.savefig(target, metadata={"Software": None})
    pyplot().close(figure)
