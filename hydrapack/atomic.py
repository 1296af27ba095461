"""Outputs appear whole or not at all: written beside the target, then renamed onto it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydrapack.errors import InputError


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``target`` when the block ends without an exception.

    An existing ``target`` is replaced, its old content removed after the rename.

    Raises:
        InputError: the target cannot be written (no space, no permission, a file in the way).
    """
    target = target.absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, a directory is to be written there")
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _os_errors(target):
            yield partial
            partial.chmod(0o777 & ~_umask())
            if target.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
                target.rename(old / "old")
                partial.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The path of a temporary file that becomes ``target`` when the block ends without exception.

    Raises:
        InputError: the target cannot be written.
    """
    target = target.absolute()
    if target.is_dir():
        raise InputError(f"{target}: is a directory, a file is to be written there")
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    partial = Path(name)
    try:
        with _os_errors(target):
            yield partial
            partial.chmod(0o666 & ~_umask())
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _os_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
