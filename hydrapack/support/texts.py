"""Rows of text out of a file, a line each."""

from __future__ import annotations

import json
from pathlib import Path

from hydrapack.support.errors import Invalid, unreadable


def read_texts(path: Path) -> list[str]:
    """The rows of a text file, a line each, or of a JSONL file.

    JSONL has the text under ``text``, or in two parts under ``input`` and ``output``.

    Raises:
        HydrapackError: unreadable, no rows, or a line that does not fit; names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path}: cannot be read: {error}") from error
    rows = [
        _row(line, f"{path}:{number}") if path.suffix == ".jsonl" else line
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise Invalid(f"{path}: has no text")
    return rows


def _row(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise Invalid(f"{where}: not JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        return content["text"]
    parts = [content.get(key) for key in ("input", "output")] if isinstance(content, dict) else [0]
    if not all(isinstance(part, str) for part in parts):
        raise Invalid(f"{where}: needs a text under 'text', or under 'input' and 'output'")
    return "\n".join(parts)  # type: ignore[arg-type]
