"""Digests by which each task's head is checked alone: made of the program as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hydrapack.packing.head_bytes import HeadBytes, pieces_sha256
from hydrapack.packing.manifest import HeadBanks, ManifestContent
from hydrapack.support.stored_tensor import bytes_of


@dataclass(frozen=True)
class Bank:
    """A constant of the program that holds heads."""

    values: torch.Tensor
    lengths: dict[int, int]
    """By the number of a module, bytes of one of its heads; in this order they lie in it."""


def found_in(data: bytes, banks: Sequence[Bank], others: Sequence[torch.Tensor]) -> dict[int, Bank]:
    """The banks by where they begin in a program.

    One that is not found exactly once is left out, and so is one that is equal to some other
    constant: ExecuTorch stores equal constants once, and its bytes would not be the heads' alone.

    Args:
        data: the program.
        others: all constants that are no banks.
    """
    every = [bytes(bytes_of(bank.values.contiguous())) for bank in banks]
    known = [bytes(bytes_of(other.contiguous())) for other in others] + every
    found = {}
    for bank, values in zip(banks, every, strict=True):
        at = data.find(values)
        once = at >= 0 and data.find(values, at + 1) < 0
        if once and sum(len(other) == len(values) and other == values for other in known) == 1:
            found[at] = bank
    return dict(sorted(found.items()))


def with_head_digests(
    manifest: ManifestContent, found: Mapping[int, Bank], adapters: Path
) -> ManifestContent:
    """The manifest with where the heads lie, and digests that they are checked by one at a time."""
    if not found:
        return manifest
    banks = list(found.values())
    modules = [
        module.model_copy(
            update={"pieces": [[n, b.lengths[i]] for n, b in enumerate(banks) if i in b.lengths]}
        )
        for i, module in enumerate(manifest.modules)
    ]
    data = memoryview(adapters.read_bytes())
    heads = HeadBytes(list(found), modules, len(data))
    tasks = [
        task.model_copy(update={"head_sha256": pieces_sha256(data, heads.of(task.route))})
        for task in manifest.tasks
    ]
    shared = pieces_sha256(data, heads.shared)
    head_banks = HeadBanks(offsets=list(found), shared_sha256=shared)
    update = {"modules": modules, "tasks": tasks, "head_banks": head_banks}
    return manifest.model_copy(update=update)
