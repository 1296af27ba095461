"""How a merge method describes itself, and what it takes and gives for one module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
from pydantic import TypeAdapter, ValidationError

from hydrapack.adapters.update import Update, inner_product
from hydrapack.bundle.merged import Merged, MergedVera, Objective
from hydrapack.support.errors import Invalid


def divided(updates: Sequence[Update], sizes: Sequence[float] | None) -> Sequence[Update]:
    """Each task's update over its size, where there are sizes."""
    if sizes is None:
        return updates
    return [update.times(1 / size) for update, size in zip(updates, sizes, strict=True)]


def with_sizes(merged: Merged, updates: Sequence[Update], sizes: Sequence[float] | None) -> Merged:
    """A merge of ``divided(updates, sizes)`` as one of ``updates`` themselves; it is used up.

    Where every task has a head of its own, the heads are multiplied; else every task gets a factor,
    its size times what brings its head nearest to its update (least squares).
    """
    if sizes is None:
        return merged
    count = len(sizes)
    if merged.assignment == tuple(range(count)):
        # In place: of a thousand tasks the heads are large.
        for head, size in zip(merged.heads, sizes, strict=True):
            head.copy_(head.double() * size)
        return merged
    shared = merged.shared().double()
    found = []
    for update, head, size in zip(updates, merged.assignment, sizes, strict=True):
        own_a, own_b = update.factors()
        B = merged.head(head).double()
        energy = float(inner_product(shared, B, shared, B))
        cross = float(inner_product(own_a, own_b, shared, B))
        found.append(cross / energy if energy > 0 else size)
    return replace(
        merged,
        assignment=tuple(range(count)),
        scales=torch.tensor(found, dtype=torch.float32),
        of=merged.assignment,
    )


@dataclass(frozen=True)
class MergeOptions:
    """What every method is told of one module."""

    head_count: int
    """M."""
    rank: int
    """R of the shared A."""
    seed: int = 0
    weights: tuple[float, ...] | None = None
    """Per task, in task order; all 1 by default."""
    assignment: tuple[int, ...] | None = None
    """Each task's head, where it is settled beforehand (one route for all modules)."""
    report: Callable[[float, float], None] = lambda share, loss: None
    """Called with the share of the work done and the loss, by methods that take steps."""

    def weight(self, task: int) -> float:
        """The weight of a task's squared error."""
        return 1.0 if self.weights is None else self.weights[task]


@dataclass(frozen=True)
class Knobs:
    """A method's own options, with their defaults; a method that has some derives from it."""

    def default_heads(self, tasks: int) -> tuple[int, str]:
        """How many heads the method makes of so many tasks by itself, and that in words."""
        return tasks, f"{tasks} heads, one for each task"

    @property
    def note(self) -> str:
        """What follows the method's name in a bundle."""
        return ""

    @property
    def one_route(self) -> bool:
        """Whether a task has one head in all modules, where heads are shared."""
        return False

    @property
    def measure(self) -> str:
        """The distance in which the relative objective takes a task's size, see ``task_sizes``."""
        return "fro"


@dataclass(frozen=True)
class Shared(Knobs):
    """Of methods whose tasks may share heads."""

    routing: str = "per-module"
    """Where heads are shared: per-module, or global for one head a task in all modules."""

    def __post_init__(self) -> None:
        choose("routing", self.routing, ("per-module", "global"))

    @property
    def one_route(self) -> bool:
        """Whether a task has one head in all modules, where heads are shared."""
        return self.routing == "global"


# A method maps the tasks' updates of one module, with its knobs, to the merged module.
Merger = Callable[[Sequence[Any], MergeOptions, Any], Merged]


@dataclass(frozen=True)
class Method:
    """A merge method as its file describes it."""

    name: str
    paper: str
    """Where it is from."""
    merge: Merger
    vera: Merger | None
    """The same for VeRA's updates; None where it does not take them."""
    knobs: type[Knobs] = Knobs
    shares: bool = False
    """Whether it takes M < N, and how its heads are assigned is its own to say."""
    objectives: tuple[Objective, ...] = ()
    """That it minimises, its default first; none for a method that minimises no error."""
    calibrates: bool = False
    """Whether its best A lies in the span of the tasks' A's, as calibration needs it."""
    route: Callable[[Iterable[Sequence[Any]], MergeOptions, Any], tuple[int, ...]] | None = None
    """One route for all modules, of methods with ``shares``."""

    @property
    def signature(self) -> str:
        """The name, with its knobs and their defaults in brackets."""
        knobs = [
            field.name if field.default is None else f"{field.name}={field.default}"
            for field in fields(self.knobs)
        ]
        return f"{self.name} ({', '.join(knobs)})" if knobs else self.name

    def own(self, given: Mapping[str, Any]) -> Any:
        """The method's knobs, ``given`` by name; texts are read as the values they spell.

        Raises:
            Invalid: a name that is none of them, or a value out of range.
        """
        names = [field.name for field in fields(self.knobs)]
        for name in given:
            if name not in names:
                has = f"; it has {', '.join(names)}" if names else ""
                raise Invalid(f"`{name}`: {self.name} has no such option{has}")
        try:
            return TypeAdapter(self.knobs).validate_python(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":
                raise first["ctx"]["error"] from None
            raise Invalid(f"`{first['loc'][0]}` {first['input']}: {first['msg']}") from error

    def head_count(self, asked: int | None, tasks: int, own: Knobs) -> int:
        """M: what is asked for, or what the method makes by itself.

        Raises:
            Invalid: out of range, or not what the method makes.
        """
        made, words = own.default_heads(tasks)
        if asked is None:
            return made
        if not self.shares and asked != made:
            raise Invalid(f"`heads` {asked}: {self.name} makes {words}; leave `heads` out")
        if not 1 <= asked <= tasks:
            raise Invalid(f"`heads` {asked}: must be from 1 to the number of adapters, {tasks}")
        return asked

    def objective(self, asked: str | None) -> Objective | None:
        """What is asked for, or the method's own; None for a method that minimises no error.

        Raises:
            Invalid: an unknown one, or one that the method does not take.
        """
        if asked is None:
            return self.objectives[0] if self.objectives else None
        every = get_args(Objective)
        if asked not in every:
            raise Invalid(f"`objective` {asked}: choose one of {', '.join(every)}")
        if not self.objectives:
            raise Invalid(f"`objective` {asked}: {self.name} minimises no error; leave it out")
        for one in self.objectives:
            if one == asked:
                return one
        known = " or ".join(sorted(self.objectives, reverse=True))
        raise Invalid(f"`objective` {asked}: {self.name} takes {known}")


def choose(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of those known.

    Raises:
        Invalid: naming the parameter.
    """
    if value not in known:
        raise Invalid(f"`{name}` {value}: choose one of {', '.join(known)}")


def fit_head(update: Update, merged: Merged) -> torch.Tensor:
    """The head, as ``merged.heads`` holds one, that comes nearest to the update; float64.

    Least squares: through the pseudo-inverse of A (and of U), or row by row for VeRA's b.
    """
    A, B = update.factors()
    if isinstance(merged, MergedVera):
        return merged.nearest(A, B)
    head = B @ (A @ torch.linalg.pinv(merged.shared().double()))
    return head if merged.U is None else torch.linalg.pinv(merged.U.double()) @ head
