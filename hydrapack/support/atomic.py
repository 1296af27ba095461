"""Outputs appear whole or not at all: written beside the target, then renamed onto it.

A temporary name is ``.NAME.hydrapack-`` and eight characters, with the target's suffix, and is
locked (flock) for as long as its writer lives. What a killed run left is not locked: the next run
of the same target takes the lock and removes it. A file system without locks keeps such leftovers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydrapack.support.errors import Invalid

_TRIES = 100


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``target`` when the block ends without an exception.

    A ``target`` that is a symbolic link stays one; what it points to is written.

    An existing ``target`` is replaced in one step, its old content removed after.

    Raises:
        HydrapackError: the target cannot be written (no space, no permission, a file in the way).
    """
    target = target.resolve()
    if _is_other(target):
        raise Invalid(f"{target}: is a file, a directory is to be written there")
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial, lock = _locked(target, directory=True)
    try:
        with _os_errors(target):
            yield partial
            partial.chmod(0o777 & ~_umask())
            _put(partial, target)
            # Not before: an old content moved away may be the only whole one.
            _sweep(target, "old-")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The path of a temporary file that becomes ``target`` when the block ends without exception.

    It has the target's suffix, for writers that tell the format by it.

    Raises:
        HydrapackError: the target cannot be written.
    """
    target = target.resolve()
    if target.is_dir():
        raise Invalid(f"{target}: is a directory, a file is to be written there")
    with _os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial, lock = _locked(target, directory=False)
    try:
        with _os_errors(target):
            yield partial
            partial.chmod(0o666 & ~_umask())
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        os.close(lock)


def sync(path: Path) -> None:
    """Bring a file or a directory to the disk, so that a loss of power does not lose it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(target: Path, directory: bool, kind: str = "") -> tuple[Path, int]:
    """A new temporary name of the target's, and the open file by which it is locked."""
    prefix = f".{target.name}.hydrapack-{kind}"
    while True:
        if directory:
            partial = Path(tempfile.mkdtemp(target.suffix, prefix, target.parent))
        else:
            handle, name = tempfile.mkstemp(target.suffix, prefix, target.parent)
            os.close(handle)
            partial = Path(name)
        # Before it is locked another run may take it for a leftover.
        try:
            lock = _open(partial)
        except FileNotFoundError:
            continue
        if not _lock(lock, wait=True) or _is(partial, lock):
            return partial, lock
        os.close(lock)


def _sweep(target: Path, kind: str = "") -> None:
    """Remove what killed runs of the target left; what a live one writes is locked."""
    name, suffix = re.escape(target.name), re.escape(target.suffix)
    made = re.compile(rf"\.{name}\.hydrapack-{kind}[a-z0-9_]{{8}}{suffix}")
    try:
        found = [path for path in target.parent.iterdir() if made.fullmatch(path.name)]
    except OSError:
        return  # A directory that may be written, not listed.
    for path in found:
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            continue
        try:
            lock = _open(path)
        except OSError:
            continue  # Gone, or another user's.
        if _lock(lock) and _is(path, lock):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        os.close(lock)


def _open(path: Path) -> int:
    # NFS locks only what is open for writing, which a directory cannot be.
    return os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)


def _lock(handle: int, wait: bool = False) -> bool:
    """Whether this process has locked the open file; False too where the file system cannot."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _is_other(target: Path) -> bool:
    """Whether something that is no directory stands there.

    One look, not two: another run may move its directory away in between.
    """
    try:
        return not stat.S_ISDIR(target.stat().st_mode)
    except OSError:
        return False


def _is(path: Path, handle: int) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except OSError:
        return False


def _put(partial: Path, target: Path) -> None:
    """Move a directory to ``target``, which it replaces; another run may do so meanwhile."""
    for _ in range(_TRIES):
        try:
            partial.rename(target)  # Where there is none yet, or an empty one.
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _exchange(partial, target) or _replace(partial, target):
            return
    raise OSError(errno.EBUSY, "other runs write it at the same time")


def _replace(partial: Path, target: Path) -> bool:
    """Two renames, where the system has no exchange; False if another run came between."""
    old, lock = _locked(target, directory=True, kind="old-")
    try:
        target.rename(old / "old")
        try:
            partial.rename(target)
        except OSError:
            (old / "old").rename(target)
            raise
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY):
            raise
        return False
    finally:
        shutil.rmtree(old, ignore_errors=True)
        os.close(lock)
    return True


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
        raise Invalid(f"{target}: cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
