"""Several threads, and numbers that do not depend on how many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

THREADS = torch.get_num_threads()
"""As many as torch takes by itself: OMP_NUM_THREADS, or the cores."""

One = TypeVar("One")
Made = TypeVar("Made")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as a context or a decorator; the caller's number is set back after.

    A sum that several threads share is added up in another order, so its last bits, and the bytes
    of what is written from it, would differ between machines.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(
    function: Callable[[One], Made], items: Iterable[One], most: int | None = None
) -> Iterator[Made]:
    """``function`` of each item, in order, on so many threads, each with one thread of torch.

    Threads are ``THREADS``, or ``most`` if that is less; no more results than threads are made
    ahead of whoever takes them.
    """
    count = THREADS if most is None else min(most, THREADS)
    if count < 2:
        yield from map(function, items)
        return
    running: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                if len(running) == count:
                    yield running.popleft().result()
                running.append(pool.submit(function, item))
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
