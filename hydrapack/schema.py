"""JSON files with a pydantic model: strict, and one clear line when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hydrapack.errors import InputError

MAX_BYTES = 64 << 20

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, kind: type[Model], hint: str = "") -> Model:
    """The JSON file at ``path`` as ``kind``; ``hint`` ends the error of a file not there.

    Raises:
        InputError: unreadable, or not as ``kind`` asks; names the file and the key.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes; no such file is that large")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except ValidationError as error:
        raise misfit(path, error) from error


def misfit(path: Path, error: ValidationError) -> InputError:
    """The first of pydantic's complaints as one line that names the file and the key."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return InputError(f"{path}: {where}: {first['msg']}")
