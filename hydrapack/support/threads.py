"""Numbers that do not depend on how many threads the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
