"""Adapters to a bundle: by one method, by a plan, or for the outputs on some text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.base.moments import input_moments
from hydrapack.base.source import resolve_model
from hydrapack.bundle.format import Bundle
from hydrapack.merging.calibrated import merge_calibrated, spans
from hydrapack.merging.modules import absent_modules
from hydrapack.merging.planned import merge_budget, merge_target
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.engine import engine_of
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.sizes import parse_size
from hydrapack.support.texts import read_texts


def merge(
    adapters: Sequence[Adapter | str | Path],
    *,
    method: str = "spectral",
    heads: int | None = None,
    rank: int | None = None,
    budget: int | str | None = None,
    target_error: float | None = None,
    bits: int | None = None,
    objective: str | None = None,
    weights: Mapping[str, float] | None = None,
    calibrate: str | Path | None = None,
    base_model: str | None = None,
    seed: int = 0,
    allow_base_mismatch: bool = False,
    progress: Progress = quietly,
    engine: str = "local",
    **options: Any,
) -> Bundle:
    """Merge adapters into one shared A a module and task heads.

    With ``budget`` or ``target_error`` heads, rank, basis and bits of every module are planned;
    else ``method`` merges all modules alike.

    Args:
        adapters: PEFT folders, as ``DIR`` or ``NAME=DIR``, or adapters that were read.
        method: spectral, two-sided, hydraopt, task-arithmetic, ties, dare or dare-ties.
        heads: M, from 1 to the number of adapters; by default what the method makes by itself.
        rank: the most R of a module's shared A, and the base program's; by default its adapters'
            own, and with a plan the smallest that is nearly as good.
        budget: bytes that ``adapters.pte`` may take, as 400_000 or "400KB".
        target_error: plan the fewest bytes that keep every task's relative error, as packed, at
            or below this; from 0 to 1.
        bits: of a plan, one width for all modules: 4, 8 or 16.
        objective: relative (every task counts alike), absolute or minimax.
        weights: by task, what its squared error counts; 1 where not named.
        calibrate: a text (.txt, a row a line, or .jsonl) to run through the base model: the error
            of outputs is minimised, not of weights.
        base_model: to calibrate with; the adapters' own by default.
        seed: of starts, coefficients and masks.
        allow_base_mismatch: merge adapters of different base models.
        progress: called with modules done, modules in all, and a note.
        engine: where modules are planned and merged: local, on this machine's cores, or ray, on a
            Ray cluster; the bytes are the same.
        options: the method's knobs, by name, as steps=400 of hydraopt.

    Raises:
        HydrapackError: unreadable adapters or ones that do not belong together, and options that
            are out of range or do not go together; ray not installed, or no cluster.

    >>> bundle = hydrapack.merge(["adapters/grammar", "adapters/qa"], heads=2)
    >>> bundle.tasks, bundle.heads
    (('grammar', 'qa'), 2)
    """
    limit = parse_size("`budget`", budget) if isinstance(budget, str) else budget
    _check_plan(limit, target_error, bits, objective, weights, (heads, method, options))
    planned = limit is not None or target_error is not None
    if calibrate is not None and planned:
        raise Invalid("`calibrate`: not with `budget` or `target_error`; give `rank` and `heads`")
    if base_model is not None and calibrate is None:
        raise Invalid("`base_model`: needs `calibrate`")
    where = engine_of(engine)
    texts = None if calibrate is None else read_texts(Path(calibrate))
    read = read_adapters(adapters, allow_base_mismatch)
    if limit is not None:
        chosen = objective or "relative"
        own = dict(weights or {})
        made = merge_budget(read, limit, rank, bits, seed, own, chosen, progress, where)
    elif target_error is not None:
        made = merge_target(read, target_error, rank, bits, seed, progress, where)
    else:
        run: Callable[..., Bundle] = merge_adapters
        if texts is not None:
            run = _calibrated(read, method, texts, base_model, progress)
        made = run(
            read,
            method=method,
            heads=heads,
            rank=rank,
            seed=seed,
            progress=progress,
            objective=objective,
            weights=weights,
            engine=where,
            **options,
        )
    return replace(made, absent=absent_modules(read))


def _check_plan(
    limit: int | None,
    target_error: float | None,
    bits: int | None,
    objective: str | None,
    weights: Mapping[str, float] | None,
    chosen: tuple[int | None, str, Mapping[str, Any]],
) -> None:
    """Refuse what a plan does not take; ``chosen`` are heads, method and its knobs."""
    name = "`budget`" if limit is not None else "`target_error`"
    if limit is None and target_error is None:
        if bits is not None:
            raise Invalid(
                "`bits`: needs `budget` or `target_error`; without them, give it to hydrapack pack"
            )
        return
    if limit is not None and target_error is not None:
        raise Invalid("`budget` and `target_error`: give one of them")
    if chosen != (None, "spectral", {}):
        raise Invalid(f"{name}: chooses heads, method and its options; leave them out")
    if target_error is not None and objective is not None:
        raise Invalid("`objective`: not with `target_error`, which holds every task to one error")
    if target_error is not None and weights:
        raise Invalid("`weights`: not with `target_error`, which holds every task to one error")


def _calibrated(
    adapters: Sequence[Adapter],
    method: str,
    texts: Sequence[str],
    base_model: str | None,
    progress: Progress,
) -> Callable[..., Bundle]:
    """``merge_adapters`` for the error of outputs on the texts."""
    bases = spans(adapters, method)
    folder = resolve_model(base_model or adapters[0].base_model)
    moments = input_moments(folder, texts, bases, progress)
    return partial(merge_calibrated, bases=bases, moments=moments)
