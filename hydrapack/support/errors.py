"""The errors users see: a sentence, and exit code 2 of a command.

The kinds are those of the C++ runtime (docs/runtime-contract.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class HydrapackError(ValueError):
    """Unusable input. The message says what is wrong, in which file and key, and how to mend it.

    Names of parameters stand between backticks (`heads`); a command shows them as its options.
    """

    kind: ClassVar[str] = "Invalid"
    """The name that the C++ runtime has for it."""

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__name__.removesuffix("Failure")


class NotFound(HydrapackError):
    """A file or a task that is not there."""


class Invalid(HydrapackError):
    """A malformed file, an argument out of range, an unknown option."""


class Mismatch(HydrapackError):
    """Files that do not belong together; a size, digest or signature that does not fit."""


class ContextFull(HydrapackError):
    """No room for more tokens."""


class Busy(HydrapackError):
    """In use by another thread."""


class Io(HydrapackError):
    """It is there but cannot be read."""


class RuntimeFailure(HydrapackError):
    """ExecuTorch failed while running, or the program that runs it ended."""


def of_kind(kind: str, message: str) -> HydrapackError:
    """The error of a kind by its name; ``Invalid`` for a name that is none."""
    kinds = {one.kind: one for one in HydrapackError.__subclasses__()}
    return kinds.get(kind, Invalid)(message)


@contextmanager
def reading(path: Path, hint: str = "") -> Iterator[None]:
    """Say why ``path`` cannot be read in the block.

    Raises:
        NotFound, Io: it is not there, or anything else; ``hint`` ends the message.
    """
    try:
        yield
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        kind = NotFound if absent else Io
        raise kind(f"{path}: cannot be read: {error.strerror}{hint}") from error
