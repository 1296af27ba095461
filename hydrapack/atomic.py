"""Outputs appear whole or not at all: written beside the target, then renamed onto it."""

from __future__ import annotations

import ctypes
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

    A ``target`` that is a symbolic link stays one; what it points to is written.

    An existing ``target`` is replaced in one step, its old content removed after.

    Raises:
        InputError: the target cannot be written (no space, no permission, a file in the way).
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, a directory is to be written there")
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _os_errors(target):
            yield partial
            partial.chmod(0o777 & ~_umask())
            if not target.exists():
                partial.rename(target)
            elif not _exchange(partial, target):
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
                target.rename(old / "old")
                partial.rename(target)
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The path of a temporary file that becomes ``target`` when the block ends without exception.

    Raises:
        InputError: the target cannot be written.
    """
    target = target.resolve()
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


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, so that a kill in between cannot leave neither; False if the
    system cannot (then two renames have to do).
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


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
