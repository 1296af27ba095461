"""Which bytes of ``adapters.pte`` a task's head has to itself, so that they are checked with it.

A *bank* is a constant of the program with the heads of several modules, one module after the other
and one head after the other, each head of a module as long as its others. The manifest says where
each bank begins, and how many bytes of it a head of each module has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from hydrapack.support.errors import Invalid

Piece = Sequence[int]
"""(number of a bank, bytes of it that a head of the module has)."""


class Described(Protocol):
    """What a manifest says of a module, of either reader."""

    @property
    def heads(self) -> int:
        """That a route may name."""

    @property
    def pieces(self) -> Sequence[Piece]:
        """Of each of them."""


class HeadBytes:
    """Where the heads lie, by what a manifest says."""

    def __init__(self, offsets: Sequence[int], modules: Sequence[Described], size: int) -> None:
        """Args:
        offsets: where in the file each bank begins.
        size: of the file, bytes.

        Raises:
            Invalid: banks that are not there, overlap, or do not lie in the file in their order.
        """
        ends = list(offsets)
        self._first: list[list[tuple[int, int]]] = []
        for module in modules:
            if any(bank >= len(ends) for bank, _ in module.pieces):
                raise Invalid("modules: pieces of a bank that is not there")
            own = []
            for bank, length in module.pieces:
                own.append((ends[bank], length))
                ends[bank] += module.heads * length
            self._first.append(own)
        self.shared = list(zip([0, *ends], [*offsets, size], strict=True))
        """(start, end) of what lies around the banks."""
        if any(start > end for start, end in self.shared):
            raise Invalid("head_banks: do not lie one after the other in the file")

    def of(self, route: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(start, end) of each piece of a route's head."""
        for choice, pieces in zip(route, self._first, strict=True):
            for first, length in pieces:
                start = first + choice * length
                yield start, start + length


def pieces_sha256(data: memoryview, pieces: Iterable[tuple[int, int]]) -> str:
    """SHA-256 (hex) of pieces of a file, one after the other."""
    digest = hashlib.sha256()
    for start, end in pieces:
        digest.update(data[start:end])
    return digest.hexdigest()
