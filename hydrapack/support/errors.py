"""The errors users see: a sentence, and exit code 2.

The kinds are those of the C++ runtime (docs/runtime-contract.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class InputError(Exception):
    """Unusable input. The message says what is wrong, in which file and key, and how to mend it."""

    kind: ClassVar[str] = "Invalid"


class NotFound(InputError):
    """A file or a task that is not there."""

    kind = "NotFound"


class Invalid(InputError):
    """A malformed file, an argument out of range, an unknown option."""

    kind = "Invalid"


class Mismatch(InputError):
    """Files that do not belong together; a size, digest or signature that does not fit."""

    kind = "Mismatch"


class ContextFull(InputError):
    """No room for more tokens."""

    kind = "ContextFull"


class Busy(InputError):
    """In use by another thread."""

    kind = "Busy"


class Io(InputError):
    """It is there but cannot be read."""

    kind = "Io"


class RuntimeFailure(InputError):
    """ExecuTorch failed while running, or the program that runs it ended."""

    kind = "Runtime"


_KINDS = {k.kind: k for k in (NotFound, Invalid, Mismatch, ContextFull, Busy, Io, RuntimeFailure)}


def of_kind(kind: str, message: str) -> InputError:
    """The error of a kind by its name; ``Invalid`` for a name that is none."""
    return _KINDS.get(kind, Invalid)(message)


def unreadable(path: Path, error: OSError, hint: str = "") -> InputError:
    """Why ``path`` cannot be read: not there (NotFound), or anything else (Io)."""
    absent = isinstance(error, FileNotFoundError | NotADirectoryError)
    return (NotFound if absent else Io)(f"{path}: cannot be read: {error.strerror}{hint}")
