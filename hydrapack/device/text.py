"""Token ids to text, piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from hydrapack.errors import InputError
from hydrapack.pack.manifest import ManifestTask


def load_tokenizer(path: Path) -> Tokenizer:
    """A Hugging Face tokenizer.json.

    Raises:
        InputError: missing, or not one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the tokenizer.json of the base model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exceptions
        raise InputError(f"{path}: not a tokenizer.json: {error}") from error


def stop_ids(tokenizer: Tokenizer, task: ManifestTask | None) -> set[int]:
    """The task's stop strings that are one special token."""
    found = {tokenizer.token_to_id(text) for text in (task.stop if task else [])}
    return {i for i in found if i is not None}


def pieces(tokenizer: Tokenizer, ids: Iterable[int], stop: Sequence[str]) -> Iterator[str]:
    """The text of ``ids`` as it comes, cut before the first stop string."""
    stream = DecodeStream(skip_special_tokens=True)
    # A stop string may come in pieces: text that could begin one is held back.
    held = ""
    for token in ids:
        held += stream.step(tokenizer, token) or ""
        ends = [held.index(s) for s in stop if s in held]
        if ends:
            held = held[: min(ends)]
            break
        ready = len(held) - _partial_stop(held, stop)
        if ready:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held


def _partial_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    return max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )
