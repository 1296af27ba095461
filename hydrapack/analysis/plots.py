"""The plots of a trade-off and of an analysis, as PNG."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydrapack.adapters.adapter import Adapter
from hydrapack.analysis.findings import Point, Similarity
from hydrapack.support.plots import pyplot, save_png


def plot_tradeoff(points: Sequence[Point], rank: int, bits: int, target: Path) -> None:
    """Bytes against error: a line for each M over the ranks at ``bits``, the baselines as marks.

    Args:
        rank: the adapters' own, marked on each line.
    """
    figure, axes = pyplot().subplots(figsize=(8, 5), dpi=120)
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
    shades = sorted({p.rank for p in basis})
    for number, own_rank in enumerate(shades):
        line = [p for p in basis if p.rank == own_rank]
        axes.plot(
            [p.bytes / 1e6 for p in line],
            [p.relative_error for p in line],
            "o--",
            color=str(0.6 * (len(shades) - 1 - number) / max(len(shades) - 1, 1)),
            label=f"two-sided, R = {own_rank}, along Q",
        )
    others = [p for p in points if p.method not in ("spectral", "two-sided")]
    for marker, point in zip("sDv^P*X", others, strict=False):
        label = f"{point.method}, {point.bits} bit"
        axes.plot(point.bytes / 1e6, point.relative_error, marker, label=label, color="0.3")
    axes.set_xlabel(f"MB (lines: {bits} bits a value, along the rank; dots: rank {rank})")
    axes.set_ylabel("relative error, root mean square of the tasks")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    save_png(figure, target)


def plot_similarity(modules: Sequence[Similarity], target: Path) -> None:
    """A and B by layer, a line for each target: mean absolute error and CCA's R^2."""
    figure, grid = pyplot().subplots(2, 2, figsize=(10, 7), dpi=120, sharex=True)
    for row, (kind, label) in enumerate((("mae", "relative MAE"), ("cca", "CCA R²"))):
        for column, part in enumerate("ab"):
            axes = grid[row][column]
            lines: dict[str, list[tuple[int, float]]] = {}
            for index, module in enumerate(modules):
                numbers = [int(n) for n in module.module.split(".") if n.isdigit()]
                layer = numbers[0] if numbers else index
                short = module.module.rsplit(".", 1)[-1]
                value = getattr(module, f"{part}_{kind}")
                lines.setdefault(short, []).append((layer, value))
            for short, points in sorted(lines.items()):
                axes.plot(*zip(*sorted(points), strict=True), ".-", label=short)
            axes.set_title(f"{part.upper()}, {label}")
            axes.grid(alpha=0.3)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("layer")
    grid[0][0].legend(fontsize="small")
    figure.tight_layout()
    save_png(figure, target)


def plot_tsne(adapters: Sequence[Adapter], target: Path) -> None:
    """t-SNE of A and B of all layers, a colour for each task; nothing without scikit-learn.

    Of the target that most modules have, so that all points are of one shape.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return
    import numpy

    shapes = Counter(
        (name.rsplit(".", 1)[-1], m.shape, m.rank)
        for a in adapters
        for name, m in a.modules.items()
    )
    chosen = max(sorted(shapes), key=lambda key: shapes[key])
    figure, grid = pyplot().subplots(1, 2, figsize=(11, 5), dpi=120)
    for part, axes in enumerate(grid):
        points, owners = [], []
        for number, adapter in enumerate(adapters):
            for name, module in sorted(adapter.modules.items()):
                if (name.rsplit(".", 1)[-1], module.shape, module.rank) == chosen:
                    points.append(module.factors()[part].float().flatten().numpy())
                    owners.append(number)
        if len(points) < 3:
            continue
        stack = numpy.stack(points)
        # scikit-learn divides by the points' spread, and dies where they are all one.
        if not numpy.ptp(stack, axis=0).max() > 1e-6 * abs(stack).max():
            continue
        near = min(30.0, (len(points) - 1) / 3)
        flat = TSNE(perplexity=near, random_state=0, init="pca").fit_transform(
            stack / abs(stack).max()
        )
        for number, adapter in enumerate(adapters):
            own = flat[numpy.array(owners) == number]
            axes.scatter(own[:, 0], own[:, 1], s=10, label=adapter.task)
        axes.set_title(f"{'AB'[part]} of {chosen[0]}")
    # A panel of points that are all one, or of fewer than three, is empty.
    drawn = [axes for axes in grid if axes.has_data()]
    if drawn:
        drawn[0].legend(fontsize="small")
    figure.tight_layout()
    save_png(figure, target)
