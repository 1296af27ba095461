"""Tensors that stay in a file until they are asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import Mismatch, reading

_NAMES = {torch.float32: "F32", torch.int64: "I64"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read anew each time, so that memory does not grow with their number."""

    file: Path | BinaryIO
    start: int
    """Byte of the file where it begins."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stamp: tuple[int, int] | None = None
    """Size and time of the file when it was checked; it must not have changed since."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, float8 as float32.

        Raises:
            HydrapackError: the file was changed or removed in the meantime.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        room = bytes_of(tensor)
        with self._opened() as handle:
            done = 0
            while done < len(room):
                read = os.preadv(handle, [room[done:]], self.start + done)
                if not read:
                    raise Mismatch(f"{self.file}: was cut while it was in use; run again")
                done += read
        return readable(tensor)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        if not isinstance(self.file, Path):
            yield self.file.fileno()
            return
        with reading(self.file, "; it was there before"):
            handle = os.open(self.file, os.O_RDONLY)
        try:
            if self.stamp not in (None, stamp_of(handle)):
                raise Mismatch(f"{self.file}: was changed while it was in use; run again")
            yield handle
        finally:
            os.close(handle)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, float8 as float32: torch has no isfinite, minimum or product of it."""
    return tensor.float() if "float8" in str(tensor.dtype) else tensor


def stamp_of(file: Path | int) -> tuple[int, int]:
    """Size and time by which a changed file is known.

    Raises:
        OSError: it is not there.
    """
    found = os.fstat(file) if isinstance(file, int) else file.stat()
    return found.st_size, found.st_mtime_ns


def places(path: Path, data: bytes, tensors: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Where each tensor lies in the safetensors file ``path``, whose bytes are ``data``."""
    # The place holds in any process, wherever that works.
    stamp, path = stamp_of(path), path.absolute()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: StoredTensor(
            path, start + header[name]["data_offsets"][0], t.dtype, tuple(t.shape), stamp
        )
        for name, t in tensors.items()
    }


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor | StoredTensor]
) -> tuple[str, dict[str, str]]:
    """Write a safetensors file with one tensor in memory at a time: the library's own bytes.

    Returns:
        SHA-256 (hex) of the file, and of each tensor's bytes by name.
    """
    # As the library: the widest type first, then by name; the header ends at a multiple of 8.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        offsets, shape = [start, end], list(tensor.shape)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest, own = hashlib.sha256(), {}
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for name in order:
            tensor = tensors[name]
            values = tensor.read() if isinstance(tensor, StoredTensor) else tensor.contiguous()
            file.write(bytes_of(values))
            digest.update(bytes_of(values))
            own[name] = bytes_sha256(bytes_of(values))
    return digest.hexdigest(), own
