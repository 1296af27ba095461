"""JSON files with a pydantic model: strict, and one clear line when they do not fit."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hydrapack.support.errors import Invalid, reading
from hydrapack.support.texts import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 64 << 20
MAX_DEPTH = 64

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""

# A string is one match, so that the brackets in it are not counted.
# One that nothing closes is a match too: no text is looked at twice.
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{\]}]', re.DOTALL)


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def utf8_at_most(most: int) -> Callable[[str], str]:
    """A validator of texts: at most so many bytes of UTF-8."""

    def check(text: str) -> str:
        if len(text.encode()) > most:
            raise ValueError(f"is longer than {most:,} bytes")
        return text

    return check


def read_bytes(path: Path, hint: str = "") -> bytes:
    """The content of a JSON file; ``hint`` ends the error of a file not there.

    Raises:
        HydrapackError: it cannot be read, or is larger than any such file is.
    """
    with reading(path, hint):
        # The size first: nothing of an absurd file is read. A file may grow meanwhile.
        large = path.stat().st_size > MAX_BYTES
        with path.open("rb") as file:
            data = b"" if large else file.read(MAX_BYTES + 1)
    if large or len(data) > MAX_BYTES:
        raise Invalid(f"{path}: larger than {MAX_BYTES:,} bytes; no such file is that large")
    return data


def read_model(path: Path, kind: type[Model], hint: str = "") -> Model:
    """The JSON file at ``path`` as ``kind``; ``hint`` ends the error of a file not there.

    Raises:
        HydrapackError: unreadable, or not as ``kind`` asks; names the file and the key.
    """
    data = read_bytes(path, hint)
    with fitting(path):
        return kind.model_validate_json(data)


def read_toml(path: Path, kind: type[Model]) -> Model:
    """The TOML file at ``path`` as ``kind``.

    Raises:
        HydrapackError: unreadable, no TOML, or not as ``kind`` asks; names the file and the key.
    """
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path}: not TOML: {error}") from error
    with fitting(path):
        return kind.model_validate(content)


def parse_json(data: bytes, where: Path) -> dict[str, Any]:
    """The JSON object in ``data``, as RFC 8259 has it and no wider.

    UTF-8 without a byte order mark; no NaN, infinity or number beyond a double; no key twice, no
    lone surrogate, and no nesting deeper than 64.

    Raises:
        Invalid: anything else; names ``where``.
    """
    if len(data) > MAX_BYTES:
        raise Invalid(f"{where}: larger than {MAX_BYTES:,} bytes; no such file is that large")
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            # As json does by itself, where no number can be beyond a double: 300 digits in a row
            # are 14 of every 19th character.
            parse_int=_integer if re.search(r"[0-9]{14}", text[::19]) else None,
        )
        if re.search(r"\\u[dD]", text):
            # A lone surrogate has no UTF-8.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Invalid(f"{where}: is not JSON: a lone surrogate") from None
    except UnicodeDecodeError as error:
        raise Invalid(f"{where}: is not UTF-8 at byte {error.start}") from error
    except ValueError as error:  # JSONDecodeError among them
        raise Invalid(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Invalid(f"{where}: the file is no JSON object")
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif bracket in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}… is too large")
    return value


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def json_text(value: Any) -> str:
    """The one way hydrapack writes JSON: keys sorted, two spaces, UTF-8, a newline at the end."""
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``json_text(value)``."""
    path.write_text(json_text(value), encoding="utf-8", newline="\n")


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn pydantic's complaints in the block into one line that names the file and the key.

    Raises:
        Invalid: the first of them.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise Invalid(f"{path}: {where}: {first['msg']}") from error
