"""Whole adapters, module by module, through one merge method."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import Update, VeraModule, difference_norm
from hydrapack.bundle.format import Bundle, BundleInfo, BundleTask, describe_source
from hydrapack.bundle.merged import Merged, Objective, in_one_piece, stored_values
from hydrapack.merging.elementwise import elementwise
from hydrapack.merging.hydraopt import assign_hydraopt, merge_hydraopt
from hydrapack.merging.method import MergeMethod, MergeOptions, divided, with_sizes
from hydrapack.merging.objective import OBJECTIVES, ROUNDS, reweigh, task_sizes
from hydrapack.merging.spectral import assign, joint, merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.merging.vera import merge_vera
from hydrapack.support.errors import Invalid
from hydrapack.support.sizes import parse_size
from hydrapack.support.texts import read_texts
from hydrapack.support.threads import one_thread
from hydrapack.support.version import __version__

METHODS: dict[str, MergeMethod] = {
    "spectral": merge_spectral,
    "hydraopt": merge_hydraopt,
    "task-arithmetic": elementwise("task-arithmetic"),
    "ties": elementwise("ties"),
    "dare": elementwise("dare"),
    "dare-ties": elementwise("dare-ties"),
    "two-sided": merge_two_sided,
}
VERA_METHODS: dict[str, Any] = {
    **{name: method for name, method in METHODS.items() if name != "two-sided"},
    "spectral": merge_vera,
}
_MANY = ("spectral", "hydraopt", "two-sided")
ROUTINGS = ("per-module", "global")


Progress = Callable[[float, int, str], None]


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
    routing: str = "per-module",
    weights: Mapping[str, float] | None = None,
    calibrate: str | Path | None = None,
    base_model: str | None = None,
    seed: int = 0,
    allow_base_mismatch: bool = False,
    progress: Progress = lambda done, total, note: None,
    **options: Any,
) -> Bundle:
    """Merge adapters into one shared A a module and task heads.

    With ``budget`` or ``target_error`` heads, rank, basis and bits of every module are planned;
    else ``method`` merges all modules alike.

    Args:
        adapters: PEFT folders, as ``DIR`` or ``NAME=DIR``, or adapters that were read.
        method: spectral, two-sided, hydraopt, task-arithmetic, ties, dare or dare-ties.
        heads: M, from 1 to the number of adapters; see ``merge_adapters`` for the default.
        rank: the most R of a module's shared A, and the base program's; by default its adapters'
            own, and with a plan the smallest that is nearly as good.
        budget: bytes that ``adapters.pte`` may take, as 400_000 or "400KB".
        target_error: plan the fewest bytes that keep every task's relative error, as packed, at
            or below this; from 0 to 1.
        bits: of a plan, one width for all modules: 4, 8 or 16.
        objective: relative (every task counts alike), absolute or minimax.
        routing: per-module, or global for one head a task in all modules.
        weights: by task, what its squared error counts; 1 where not named.
        calibrate: a text (.txt, a row a line, or .jsonl) to run through the base model: the error
            of outputs is minimised, not of weights.
        base_model: to calibrate with; the adapters' own by default.
        seed: of starts, coefficients and masks.
        allow_base_mismatch: merge adapters of different base models.
        progress: called with modules done, modules in all, and a note.
        options: the method's own, see ``merge_adapters``.

    Raises:
        HydrapackError: unreadable adapters or ones that do not belong together, and options that
            are out of range or do not go together.

    >>> bundle = hydrapack.merge(["adapters/grammar", "adapters/qa"], heads=2)
    >>> bundle.tasks, bundle.heads
    (('grammar', 'qa'), 2)
    """
    from hydrapack.merging.plan import merge_budget, merge_target

    limit = parse_size("`budget`", budget) if isinstance(budget, str) else budget
    _check_plan(
        limit,
        target_error,
        bits,
        objective,
        weights,
        (heads, options.get("output_rank"), method),
    )
    planned = limit is not None or target_error is not None
    if calibrate is not None and planned:
        raise Invalid("`calibrate`: not with `budget` or `target_error`; give `rank` and `heads`")
    if base_model is not None and calibrate is None:
        raise Invalid("`base_model`: goes with `calibrate`")
    texts = None if calibrate is None else read_texts(Path(calibrate))
    read = read_adapters(adapters, allow_base_mismatch)
    if limit is not None:
        chosen = objective or "relative"
        own = dict(weights or {})
        made = merge_budget(read, limit, rank, bits, seed, own, chosen, progress)
    elif target_error is not None:
        made = merge_target(read, target_error, rank, bits, seed, progress)
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
            routing=routing,
            weights=weights,
            **options,
        )
    return replace(made, absent=absent_modules(read))


def _check_plan(
    limit: int | None,
    target_error: float | None,
    bits: int | None,
    objective: str | None,
    weights: Mapping[str, float] | None,
    chosen: tuple[int | None, int | None, str],
) -> None:
    """Refuse what a plan does not take; ``chosen`` are heads, output rank and method."""
    name = "`budget`" if limit is not None else "`target_error`"
    if limit is None and target_error is None:
        if bits is not None:
            raise Invalid(
                "`bits`: goes with `budget` or `target_error`; without them, give it to hydrapack "
                "pack"
            )
        return
    if limit is not None and target_error is not None:
        raise Invalid("`budget` and `target_error`: give one of them")
    if chosen != (None, None, "spectral"):
        raise Invalid(f"{name}: chooses heads, method and `output_rank`; leave them out")
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
    from hydrapack.base.moments import input_moments
    from hydrapack.base.source import resolve_model
    from hydrapack.merging.calibrated import merge_calibrated, spans

    bases = spans(adapters, method)
    folder = resolve_model(base_model or adapters[0].base_model)
    moments = input_moments(folder, texts, bases, progress)
    return partial(merge_calibrated, bases=bases, moments=moments)


@one_thread()
def merge_adapters(
    adapters: Sequence[Adapter],
    method: str = "spectral",
    heads: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    progress: Callable[[float, int, str], None] = lambda done, total, note: None,
    *,
    objective: str | None = None,
    routing: str = "per-module",
    weights: Mapping[str, float] | None = None,
    output_rank: int | None = None,
    density: float = 0.5,
    only_a: bool = False,
    refit_b: bool = False,
    distance: str = "mae",
    steps: int = 200,
    learning_rate: float = 0.05,
    temperature: float = 1.0,
    init: str = "adapters",
) -> Bundle:
    """Merge ``adapters`` with ``method``.

    Args:
        heads: M from 1 to N; by default N for spectral and with ``only_a``, else 1.
        rank: the most R of a module's shared A, which has no more rows than its updates span
            together; by default each module's own largest rank.
        progress: called with modules done, modules in all and a note (HydraOpt's loss).
        objective: ``relative`` (each task's error over its own size), ``absolute``, or ``minimax``
            (the least error of the worst task); relative by default for spectral and two-sided,
            absolute for hydraopt, which does not take minimax. Other methods have none.
        routing: with M < N, ``per-module`` lets a task use another head in each module,
            ``global`` gives it one for all.
        weights: of the tasks' squared errors, by task, on top of the objective's; 1 where not
            named.
        output_rank: two-sided's Q, columns of the common output basis; twice the rank by default.
        density: share of values that ties, dare and dare-ties keep.
        only_a: merge A alone by one of the elementwise methods, every task keeping its B.
        refit_b: with ``only_a``, the least-squares B for the merged A instead.
        distance, steps, learning_rate, temperature, init: of hydraopt, see ``MergeOptions``.

    Raises:
        HydrapackError: no adapters, an unknown method, or options the method cannot take.
    """
    check_any(adapters)
    if method not in METHODS:
        raise Invalid(f"`method` {method}: choose one of {', '.join(METHODS)}")
    methods = VERA_METHODS if adapters[0].kind == "VERA" else METHODS
    if method not in methods:
        raise Invalid(f"`method` {method}: not for VeRA; choose one of {', '.join(methods)}")
    count = len(adapters)
    heads = heads if heads is not None else (count if method in _MANY or only_a else 1)
    asked, rank = rank, rank if rank is not None else max(a.rank for a in adapters)
    for flag, value in (
        ("`steps`", steps),
        ("`learning_rate`", learning_rate),
        ("`temperature`", temperature),
    ):
        if not (math.isfinite(value) and value > 0):
            raise Invalid(f"{flag} {value:g}: must be above 0")
    if rank < 1:
        raise Invalid(f"`rank` {rank}: must be 1 or more")
    if output_rank is not None and (method != "two-sided" or output_rank < 1):
        raise Invalid(f"`output_rank` {output_rank}: 1 or more, with `method` two-sided")
    if method == "two-sided" and heads != count:
        raise Invalid(f"`heads` {heads}: two-sided keeps a small head a task; leave it out")
    _check(method, heads, count, routing, density, only_a, refit_b)
    minimised = check_objective(method, objective)
    own_weights = task_weights(adapters, weights or {})
    options = MergeOptions(
        heads=heads,
        rank=rank,
        seed=seed,
        weights=own_weights,
        output_rank=output_rank or 0,
        density=density,
        only_a=only_a,
        refit_b=refit_b,
        distance=distance,
        steps=steps,
        learning_rate=learning_rate,
        temperature=temperature,
        init=init,
    )
    label, round_number = _label(method, only_a, refit_b), 0
    sizes = None
    if minimised in ("relative", "minimax"):
        sizes = task_sizes(adapters, distance if method == "hydraopt" else "fro")
    rounds = ROUNDS if minimised == "minimax" else 1

    def solve(weights: tuple[float, ...]) -> tuple[list[float], Bundle]:
        nonlocal round_number
        before, round_number = round_number / rounds, round_number + 1

        def report(done: float, total: int, note: str) -> None:
            progress(before * total + done / rounds, total, note)

        weighed = replace(options, weights=weights)
        kind = _Kind(method, label, minimised, methods[method])
        made = _merge_once(adapters, kind, weighed, sizes, routing, asked, report)
        return list(made.relative_errors.values()), made

    if minimised == "minimax":
        return reweigh(solve, own_weights, rounds)[1]
    return solve(own_weights)[1]


def check_objective(method: str, asked: str | None) -> Objective | None:
    """The objective that is asked for, or the method's own; None for a method without one.

    Raises:
        HydrapackError: an unknown one, or one that the method does not take.
    """
    named = next((one for one in OBJECTIVES if one == asked), None)
    if asked != named:
        raise Invalid(f"`objective` {asked}: choose one of {', '.join(OBJECTIVES)}")
    if method not in _MANY:
        if asked is not None:
            raise Invalid(f"`objective` {asked}: {method} minimises no error; leave it out")
        return None
    if method == "hydraopt" and asked == "minimax":
        raise Invalid("`objective` minimax: hydraopt takes relative or absolute")
    return named or ("absolute" if method == "hydraopt" else "relative")


@dataclass(frozen=True)
class _Kind:
    """A method, and what a bundle notes of it."""

    name: str
    label: str
    objective: Objective | None
    method: MergeMethod


def _merge_once(
    adapters: Sequence[Adapter],
    kind: _Kind,
    options: MergeOptions,
    sizes: Sequence[float] | None,
    routing: str,
    rank: int | None,
    progress: Callable[[float, int, str], None],
) -> Bundle:
    """One pass over the modules; ``rank`` is the one that was asked for."""
    names, seed = module_names(adapters), options.seed
    if routing == "global" and options.heads < len(adapters):
        modules = [divided(module_updates(adapters, module), sizes) for module in names]
        found = _one_route(modules, kind.name, options, progress)
        options = replace(options, assignment=found)
    done = 0

    def merge(module: str, updates: Sequence[Update]) -> Merged:
        nonlocal done
        report, done = _reporter(progress, done, len(names)), done + 1
        own = replace(
            options,
            rank=module_rank(updates, rank),
            seed=module_seed(seed, module),
            report=report,
        )
        merged = kind.method(divided(updates, sizes), own)
        return with_sizes(merged, updates, sizes)

    return merge_modules(adapters, merge, kind.label, kind.objective, options.rank, seed, progress)


@one_thread()
def merge_modules(
    adapters: Sequence[Adapter],
    merge: Callable[[str, Sequence[Update]], Merged],
    label: str,
    objective: Objective | None,
    rank: int,
    seed: int,
    progress: Callable[[float, int, str], None],
    bits: Mapping[str, int] | None = None,
) -> Bundle:
    """Every module by ``merge`` (its name, the tasks' updates), with what it costs and saves.

    Args:
        label: what the bundle calls the method.
        bits: by module, the bits a value that a plan gives it.
    """
    modules: dict[str, Merged] = {}
    module_errors: dict[str, list[float]] = {}
    squared = [[0.0, 0.0] for _ in adapters]
    names = module_names(adapters)
    for done, name in enumerate(names):
        progress(done, len(names), "")
        updates = module_updates(adapters, name)
        modules[name] = merged = merge(name, updates)
        if not all(bool(torch.isfinite(t).all()) for t in merged.tensors.values()):
            raise Invalid(f"{name}: the merged values pass single precision; is an alpha wrong?")
        errors, shared = [], merged.shared()
        for k, update in enumerate(updates):
            head = merged.head(merged.assignment[k])
            difference, own = difference_norm(update, shared, head)
            squared[k][0] += difference**2
            squared[k][1] += own**2
            errors.append(difference / own if own else difference)
        module_errors[name] = errors
    progress(len(names), len(names), "")
    tasks = [
        BundleTask(
            name=adapter.task,
            route=[module.assignment[k] for module in modules.values()],
            relative_error=math.sqrt(lost / own) if own else math.sqrt(lost),
            card=adapter.card,
            source=describe_source(adapter),
            task_type=adapter.task_type,
        )
        for k, (adapter, (lost, own)) in enumerate(zip(adapters, squared, strict=True))
    ]
    info = BundleInfo(
        hydrapack_version=__version__,
        adapter_type="vera" if adapters[0].kind == "VERA" else "lora",
        base_model=adapters[0].base_model,
        base_revision=adapters[0].revision,
        method=label,
        objective=objective,
        seed=seed,
        heads=max(len(m.heads) for m in modules.values()),
        rank=rank,
        modules=names,
        module_errors=module_errors,
        bits=None if bits is None else {name: bits[name] for name in names},
        tasks=tasks,
        parameters=stored_values(modules.values()),
        baseline_parameters=sum(a.parameters for a in adapters),
    )
    return Bundle(info, {name: in_one_piece(module) for name, module in modules.items()})


def check_any(adapters: Sequence[Adapter]) -> None:
    """Refuse an empty merge.

    Raises:
        HydrapackError: no adapters, or one that adapts nothing.
    """
    if not adapters:
        raise Invalid("no adapters given: a merge takes one or more")
    for adapter in adapters:
        if not adapter.modules:
            raise Invalid(f"{adapter.folder}: adapts no module")


def module_names(adapters: Sequence[Adapter]) -> list[str]:
    """Every module that some adapter has, sorted."""
    return sorted({name for adapter in adapters for name in adapter.modules})


def module_updates(adapters: Sequence[Adapter], name: str) -> list[Update]:
    """Each task's update of the module; rank 0 where a task leaves it alone."""
    absent = next(a.modules[name] for a in adapters if name in a.modules).absent()
    return [adapter.modules.get(name, absent) for adapter in adapters]


def module_rank(updates: Sequence[Update], asked: int | None = None) -> int:
    """R of one module: ``asked``, cut to what its updates can span together, or the largest own.

    VeRA's is given by its frozen A and B.
    """
    first = updates[0]
    if isinstance(first, VeraModule):
        return asked or len(first.d)
    ranks = [u.rank for u in updates]
    return max(ranks) if asked is None else min(asked, sum(ranks), first.shape[1])


def _one_route(
    modules: Sequence[Sequence[Update]],
    method: str,
    options: MergeOptions,
    progress: Callable[[float, int, str], None],
) -> tuple[int, ...]:
    if method == "hydraopt" and options.init != "spectral":
        total = len(modules)

        def report(share: float, loss: float) -> None:
            progress(share * total, total, f"routing, loss {loss:.4f}")

        return assign_hydraopt(modules, replace(options, report=report))
    return assign([joint(updates) for updates in modules], options)


def _reporter(
    progress: Callable[[float, int, str], None], done: int, total: int
) -> Callable[[float, float], None]:
    return lambda share, loss: progress(done + share, total, f"loss {loss:.4f}")


def module_seed(seed: int, name: str) -> int:
    """The seed of one module: another for each, so that random masks differ."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big")


def absent_modules(adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """By task: the modules that other tasks adapt and this one does not (zero updates)."""
    every = {name for adapter in adapters for name in adapter.modules}
    absent = {a.task: sorted(every - set(a.modules)) for a in adapters}
    return {task: names for task, names in absent.items() if names}


def _label(method: str, only_a: bool, refit_b: bool) -> str:
    return method + (" (A only" + (", B refitted)" if refit_b else ")") if only_a else "")


def _check(
    method: str,
    heads: int,
    count: int,
    routing: str,
    density: float,
    only_a: bool,
    refit_b: bool,
) -> None:
    if not 1 <= heads <= count:
        raise Invalid(f"`heads` {heads}: must be from 1 to the number of adapters, {count}")
    if routing not in ROUTINGS:
        raise Invalid(f"`routing` {routing}: choose one of {', '.join(ROUTINGS)}")
    if not 0 < density < 1:
        raise Invalid(f"`density` {density}: must lie between 0 and 1")
    if refit_b and not only_a:
        raise Invalid("`refit_b`: goes with `only_a`")
    if method in _MANY:
        if only_a:
            raise Invalid("`only_a`: goes with task-arithmetic, ties, dare and dare-ties")
    elif heads != (count if only_a else 1):
        made = f"{count} heads with `only_a`, one for each task" if only_a else "one head"
        raise Invalid(f"`heads` {heads}: {method} makes {made}; leave `heads` out")


def task_weights(adapters: Sequence[Adapter], weights: Mapping[str, float]) -> tuple[float, ...]:
    """Weights in task order, 1 where not named.

    Raises:
        HydrapackError: an unknown task or a weight that is not above 0.
    """
    tasks = [a.task for a in adapters]
    for name, weight in weights.items():
        if name not in tasks:
            raise Invalid(f"`weights` {name}: no such task; there are {', '.join(tasks)}")
        if not (math.isfinite(weight) and weight > 0):
            raise Invalid(f"`weights` {name}={weight:g}: must be above 0")
    return tuple(weights.get(task, 1.0) for task in tasks)
