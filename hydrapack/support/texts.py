"""Rows of text out of a file, a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydrapack.support.errors import Invalid, reading


def read_text(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        HydrapackError: it cannot be read, or is not UTF-8.
    """
    try:
        with reading(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: not UTF-8: {error}") from error


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a UTF-8 file that are not blank, each after its place, ``FILE:NUMBER``.

    Raises:
        HydrapackError: see ``read_text``; or there is no such line.
    """
    lines = enumerate(read_text(path).splitlines(), 1)
    rows = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if not rows:
        raise Invalid(f"{path}: has no text")
    return rows


def json_line(where: str, line: str) -> dict[str, Any]:
    """The JSON object of a line; empty for other JSON.

    Raises:
        Invalid: not JSON.
    """
    try:
        content = json.loads(line)
    except ValueError as error:
        raise Invalid(f"{where}: not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def read_texts(path: Path) -> list[str]:
    """The rows of a text file, a line each, or of a JSONL file.

    JSONL has the text under ``text``, or in two parts under ``input`` and ``output``.

    Raises:
        HydrapackError: unreadable, no rows, or a line that does not fit; names it.
    """
    lines = read_lines(path)
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_row(where, line) for where, line in lines]


def _row(where: str, line: str) -> str:
    content = json_line(where, line)
    if isinstance(content.get("text"), str):
        return content["text"]
    parts = [content.get(key) for key in ("input", "output")]
    if not all(isinstance(part, str) for part in parts):
        raise Invalid(f"{where}: needs a text under 'text', or under 'input' and 'output'")
    return "\n".join(parts)  # type: ignore[arg-type]
