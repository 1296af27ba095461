"""The table as Markdown, and S % against the average as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydrapack.evaluate.run import Result
from hydrapack.plots import require_matplotlib


def markdown(results: Sequence[Result]) -> str:
    """A row for each result: method, S %, a column a task, the average, the merge's seconds."""
    tasks = list(results[0].scores)
    lines = [
        "| method | S % | " + " | ".join(tasks) + " | average | merge s |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for r in results:
        scores = " | ".join(f"{r.scores[task]:.1f}" for task in tasks)
        seconds = f"{r.seconds:.1f}" if r.seconds else ""
        lines.append(f"| {r.label} | {r.s_percent:.1f} | {scores} | {r.average:.1f} | {seconds} |")
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], target: Path) -> None:
    """S % against the average: a line for each method over its heads (the paper's Fig. 1)."""
    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    lines: dict[tuple[str, str, int], list[Result]] = {}
    for r in results:
        lines.setdefault((r.method, r.backend, r.bits), []).append(r)
    for (method, backend, bits), members in lines.items():
        label = method + ("" if bits == 32 else f", {bits} bits")
        label += ", ExecuTorch" if backend == "executorch" else ""
        members = sorted(members, key=lambda r: r.s_percent)
        style = "o-" if len(members) > 1 else "D"
        axes.plot([r.s_percent for r in members], [r.average for r in members], style, label=label)
    axes.set_xlabel("S, % of all adapters' parameters")
    axes.set_ylabel("average score")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(target, metadata={"Software": None})
    pyplot.close(figure)
