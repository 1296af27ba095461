"""An evaluation from its YAML to its results on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydrapack.evaluation.cases import Result, unanswered
from hydrapack.evaluation.run import Evaluation
from hydrapack.evaluation.spec import quick_config, read_config
from hydrapack.evaluation.tables import markdown, plot
from hydrapack.support.atomic import new_file
from hydrapack.support.engine import engine_of
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.schema import write_json


def evaluate(
    config: str | Path,
    target: str | Path,
    cache: str | Path | None = None,
    *,
    quick: bool = False,
    before: Callable[[dict[str, Any]], object] | None = None,
    progress: Progress = quietly,
    engine: str = "local",
) -> list[Result]:
    """Score tasks under every method: results.json, results.md and results.png in ``target``.

    Args:
        config: the YAML of the evaluation (docs/evaluation.md).
        target: the directory for the results, programs and packages.
        cache: of answers that were made already; ``target/cache`` by default.
        quick: 20 rows a task, and 50 steps of hydraopt.
        before: called before the first answer with results.json as it will be, every score 0; what
            it raises ends the evaluation early.
        progress: called with tasks done, tasks in all, and a note.
        engine: where PyTorch answers: local, or ray, a Ray cluster that shares these folders.

    Returns:
        a row of the table each.

    Raises:
        HydrapackError: an unreadable file, or a method or option that cannot be taken.

    >>> results = hydrapack.evaluate("eval.yaml", "results")
    >>> [result.label for result in results]
    ['own', 'spectral M=1']
    """
    need("matplotlib")
    config, target, where = Path(config), Path(target), engine_of(engine)
    read = read_config(config)
    if engine == "ray" and read.device != "cpu":
        raise Invalid(f"`engine` ray: answers on CPUs; leave device: {read.device} out of {config}")
    evaluation = Evaluation(
        quick_config(read) if quick else read,
        config.parent,
        target,
        None if cache is None else Path(cache),
    )
    if before is not None:
        before(evaluation.document(unanswered(evaluation.cases(), evaluation.groups)))
    results = evaluation.run(progress, where)
    with new_file(target / "results.json") as partial:
        write_json(partial, evaluation.document(results))
    with new_file(target / "results.md") as partial:
        partial.write_text(markdown(results), encoding="utf-8", newline="\n")
    with new_file(target / "results.png") as partial:
        plot(results, partial)
    return results
