"""A merge's modules while it is made: heads that would fill the memory wait in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, cast

import torch

from hydrapack.bundle.merged import Merged, MergedVera
from hydrapack.support.errors import Invalid
from hydrapack.support.stored_tensor import StoredTensor, bytes_of

HELD = 256 << 20
"""Bytes of heads that are kept in memory."""


class HeldModules(Mapping[str, Merged]):
    """Merged modules by name, in the order in which they are added.

    The heads of what comes after the first ``HELD`` bytes lie in a temporary file (``TMPDIR``), and
    are read each time their module is asked for.
    """

    def __init__(self) -> None:
        self._modules: dict[str, Merged] = {}
        self._places: dict[str, StoredTensor] = {}
        self._bytes = 0
        self._file: BinaryIO | None = None

    def add(self, name: str, merged: Merged) -> None:
        """Hold one module more; its tensors lie as if they were read from a bundle."""
        merged = laid(merged)
        self._bytes += merged.heads.nbytes
        if self._bytes > HELD:
            self._places[name] = self._put(merged.heads)
            merged = replace(merged, heads=torch.empty(0))
        self._modules[name] = merged

    def _put(self, heads: torch.Tensor) -> StoredTensor:
        try:
            # Without a name, so that it goes with the process however that ends.
            self._file = self._file or cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
            start = self._file.seek(0, 2)
            self._file.write(bytes_of(heads))
            self._file.flush()
        except OSError as error:
            raise Invalid(
                f"{tempfile.gettempdir()}: cannot be written: {error.strerror}; the heads of this "
                "merge wait there: set TMPDIR to a folder with more room, or take fewer `heads`"
            ) from error
        return StoredTensor(self._file, start, heads.dtype, tuple(heads.shape))

    def __getitem__(self, name: str) -> Merged:
        merged, place = self._modules[name], self._places.get(name)
        return merged if place is None else replace(merged, heads=place.read())

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def unread(self) -> Iterator[tuple[str, Merged]]:
        """As the function of that name."""
        for name, merged in self._modules.items():
            place: Any = self._places.get(name, merged.heads)
            yield name, replace(merged, heads=place)


def unread(modules: Mapping[str, Merged]) -> Iterable[tuple[str, Merged]]:
    """The modules with a ``StoredTensor`` in place of heads that lie in a file."""
    return modules.unread() if isinstance(modules, HeldModules) else modules.items()


def laid(merged: Merged) -> Merged:
    """The module with its tensors in rows, each at the start of a piece of memory of its own.

    The last bits of a sum depend on where its numbers lie: what is packed then has the same bytes,
    whether the bundle was saved in between or not.
    """
    heads = _laid(merged.heads)
    scales = None if merged.scales is None else _laid(merged.scales)
    if isinstance(merged, MergedVera):
        return replace(merged, d=_laid(merged.d), heads=heads, scales=scales)
    U = None if merged.U is None else _laid(merged.U)
    return replace(merged, A=_laid(merged.A), heads=heads, U=U, scales=scales)


def _laid(tensor: torch.Tensor) -> torch.Tensor:
    # torch aligns what it allocates to 64 bytes, as MKL asks for where runs are to agree.
    if tensor.is_contiguous() and tensor.data_ptr() % 64 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
