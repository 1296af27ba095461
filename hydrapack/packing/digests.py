"""``digests.json``: SHA-256 of each module's matrices in ``adapters.pte``, to name a damaged one.

It is read only where ``adapters.pte`` is not what the manifest says: opening takes no longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hydrapack.packing.adapter_program import Lowered, Shared
from hydrapack.packing.banks import Head, TwoSidedBank
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.schema import Digest, Strict, json_text, read_model
from hydrapack.support.stored_tensor import bytes_of

DIGESTS = "digests.json"
Place = Annotated[int, Field(ge=0)]


class Stored(Strict):
    """Where a matrix lies in the file: its integers and its scales."""

    pieces: list[tuple[Place, Place]]
    """First byte, and bytes."""
    sha256: Digest
    """Of the pieces, one after the other."""

    def within(self, data: bytes) -> str:
        """SHA-256 of what lies there."""
        return bytes_sha256(b"".join(data[at : at + size] for at, size in self.pieces))


class Digests(Strict):
    """The content of digests.json."""

    tensors: dict[str, Stored]
    """By name, as in the bundle."""


def digests_text(lowered: Lowered, names: Sequence[str], adapters: Path) -> str:
    """The content of digests.json.

    Args:
        names: of the modules, in packing order.
        adapters: the ``adapters.pte`` just written.
    """
    data = adapters.read_bytes()
    tensors = {}
    for bank, own in _banks(lowered, names):
        buffers = {buffer for slabs in bank.slabs for buffer, _, _ in slabs}
        starts = {buffer: data.index(bytes_of(bank.get_buffer(buffer))) for buffer in buffers}
        for name, slabs in zip(own, bank.slabs, strict=True):
            pieces = []
            for buffer, first, rows in slabs:
                step = bank.get_buffer(buffer)[:1].nbytes
                pieces.append((starts[buffer] + first * step, rows * step))
            found = Stored.model_construct(pieces=pieces, sha256="")
            tensors[name] = {"pieces": pieces, "sha256": found.within(data)}
    return json_text({"tensors": tensors})


def _banks(lowered: Lowered, names: Sequence[str]) -> Iterator[tuple[Any, list[str]]]:
    """The program's banks, each with the names of its matrices."""
    shared: Any = lowered.shared
    head: Any = lowered.head
    if not isinstance(shared, Shared) or not isinstance(head, Head):
        yield shared.A, ["vera_A"]
        yield shared.d, [f"{name}.d" for name in names]
        yield head.B, ["vera_B"]
        yield head, [f"{name}.b" for name in names]
        return
    for bank, own in zip(shared.children(), shared.names, strict=True):
        yield bank, [f"{name}.A" for name in own]
    for number, bank in enumerate(head.banks):
        own = [names[i] for i in head.get_buffer(f"members_{number}").tolist()]
        if isinstance(bank, TwoSidedBank):
            yield bank.U, [f"{name}.U" for name in own]
            yield bank.core, [f"{name}.C" for name in own]
        else:
            yield bank, [f"{name}.B" for name in own]


def damage(adapters: Path, digests: Path) -> str:
    """Which matrices of ``adapters`` are not as stated, in words.

    Raises:
        HydrapackError: ``digests`` is malformed, or one of them cannot be read.
    """
    stated = read_model(digests, Digests).tensors
    data = adapters.read_bytes()
    lost = [name for name, one in stated.items() if one.within(data) != one.sha256]
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return f"{', '.join(lost[:3]) or 'its program'}{more} changed"
