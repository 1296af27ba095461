"""SHA-256 of files, read in pieces."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hydrapack.support.errors import reading


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def is_file(path: Path, size: int, sha256: str | None) -> bool:
    """Whether the file has this size and, where one is given, this SHA-256.

    Raises:
        NotFound, Io: it is not there, or cannot be read.
    """
    with reading(path):
        # The size first: nothing of an absurd file is read.
        same = path.stat().st_size == size
        return same and (sha256 is None or file_sha256(path) == sha256)


def bytes_sha256(data: bytes | memoryview) -> str:
    """SHA-256 (hex) of bytes."""
    return hashlib.sha256(data).hexdigest()
