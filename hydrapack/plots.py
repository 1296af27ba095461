"""PNG plots; matplotlib comes with the extra ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydrapack.errors import InputError
from hydrapack.merge.tradeoff import Point


def require_matplotlib() -> None:
    """Check for it before long work.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'hydrapack[report]'") from None


def plot_trade_off(points: Sequence[Point], rank: int, bits: int, target: Path) -> None:
    """Bytes against error: a line for each M over the ranks at ``bits``, the baselines as marks.

    Args:
        rank: the adapters' own, marked on each line.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    curves = [p for p in points if p.method == "spectral" and p.bits == bits]
    for heads in sorted({p.heads for p in curves}):
        line = sorted((p for p in curves if p.heads == heads), key=lambda p: p.rank)
        (drawn,) = axes.plot(
            [p.bytes / 1e6 for p in line], [p.relative_error for p in line], label=f"M = {heads}"
        )
        own = [p for p in line if p.rank == rank]
        axes.plot(
            [p.bytes / 1e6 for p in own],
            [p.relative_error for p in own],
            "o",
            color=drawn.get_color(),
        )
    basis = [p for p in points if p.method == "two-sided" and p.bits == bits]
    axes.plot(
        [p.bytes / 1e6 for p in basis],
        [p.relative_error for p in basis],
        "o--",
        color="black",
        label="two-sided, along Q",
    )
    others = [p for p in points if p.method not in ("spectral", "two-sided")]
    for marker, point in zip("sDv^P*X", others, strict=False):
        label = f"{point.method}, {point.bits} bit"
        axes.plot(point.bytes / 1e6, point.relative_error, marker, label=label, color="0.3")
    axes.set_xlabel(f"MB (lines: {bits} bits a value, along the rank; dots: rank {rank})")
    axes.set_ylabel("relative error of the updates")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    # Without the version that matplotlib would note, the same points give the same bytes.
    figure.savefig(target, metadata={"Software": None})
    pyplot.close(figure)
