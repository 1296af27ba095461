"""The errors users see: a sentence, and exit code 2 of a command.

The kinds are those of the C++ runtime (docs/runtime-contract.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class HydrapackError(ValueError):
    """Unusable input. The message says what is wrong, in which file and key, and how to mend it.

    Names of parameters stand between backticks (`heads`); a command shows them as its options.
    """

    kind: ClassVar[str] = "Invalid"


class NotFound(HydrapackError):
    """A file or a task that is not there."""

    kind = "NotFound"


class Invalid(HydrapackError):
    """A malformed file, an argument out of range, an unknown option."""

    kind = "Invalid"


class Mismatch(HydrapackError):
    """Files that do not belong together; a size, digest or signature that does not fit."""

    kind = "Mismatch"


class ContextFull(HydrapackError):
    """No room for more tokens."""

    kind = "ContextFull"


class Busy(HydrapackError):
    """In use by another thread."""

    kind = "Busy"


class Io(HydrapackError):
    """It is there but cannot be read."""

    kind = "Io"


class RuntimeFailure(HydrapackError):
    """ExecuTorch failed while running, or the program that runs it ended."""

    kind = "Runtime"


_KINDS = {k.kind: k for k in (NotFound, Invalid, Mismatch, ContextFull, Busy, Io, RuntimeFailure)}


def of_kind(kind: str, message: str) -> HydrapackError:
    """The error of a kind by its name; ``Invalid`` for a name that is none."""
    return _KINDS.get(kind, Invalid)(message)


def unreadable(path: Path, error: OSError, hint: str = "") -> HydrapackError:
    """Why ``path`` cannot be read: not there (NotFound), or anything else (Io)."""
    absent = isinstance(error, FileNotFoundError | NotADirectoryError)
    return (NotFound if absent else Io)(f"{path}: cannot be read: {error.strerror}{hint}")
