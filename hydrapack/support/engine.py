"""Where independent pieces of work run: on this machine's threads, or on a Ray cluster.

An engine maps a function over items, in order, each with one thread of torch: results are the same
to the bit wherever they are made, on machines of one kind.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from hydrapack.support.errors import HydrapackError, Invalid, RuntimeFailure
from hydrapack.support.extras import need
from hydrapack.support.threads import in_parallel, one_thread

One = TypeVar("One")
Made = TypeVar("Made")


class Engine(Protocol):
    """``in_parallel``, or what maps as it does.

    For an engine that is not ``in_parallel`` the function, the items and the results can be
    pickled: the function takes nothing along that is large or tells of progress.
    """

    def __call__(
        self, function: Callable[[One], Made], items: Iterable[One], most: int | None = None
    ) -> Iterator[Made]:
        """``function`` of each item, in order; at most so many at a time on this machine."""
        ...


def engine_of(name: str) -> Engine:
    """The engine of that name, local or ray.

    Raises:
        Invalid: another name, or ray is not installed.
    """
    if name == "local":
        return in_parallel
    if name != "ray":
        raise Invalid(f"`engine` {name}: choose local or ray")
    need("ray")
    return on_ray


def on_ray(
    function: Callable[[One], Made], items: Iterable[One], most: int | None = None
) -> Iterator[Made]:
    """``function`` of each item, in order, as tasks of a Ray cluster, one a CPU of it.

    The cluster is the one in use, that of RAY_ADDRESS, or one on this machine that ends with the
    process. ``most`` does not count: what a task takes is the memory of its own worker.

    Raises:
        HydrapackError: what ``function`` raises, or no cluster, or a worker that was lost.
    """
    ray = need("ray")
    _connect(ray)
    run = ray.remote(num_cpus=1)(_with_one_thread)
    shared = ray.put(function)
    room = max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: deque[Any] = deque()
    try:
        for item in items:
            if len(running) == room:
                yield _made(ray, running.popleft())
            running.append(run.remote(shared, item))
        while running:
            yield _made(ray, running.popleft())
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _connect(ray: Any) -> None:
    if ray.is_initialized():
        return
    # Ray reports how it is used to its makers unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise Invalid(f"`engine` ray: no cluster at {where}: {error}") from error


def _with_one_thread(function: Callable[[One], Made], item: One) -> Made:
    with one_thread():
        return function(item)


def _made(ray: Any, task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HydrapackError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        said = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        raise RuntimeFailure(f"`engine` ray: {said}") from error
