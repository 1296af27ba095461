"""Token ids to text, piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from hydrapack.adapters.prompt import PLACEHOLDER, check_template, encode_prompt, start_ids
from hydrapack.device.manifest import Task
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import ContextFull, Invalid, Mismatch, NotFound, reading


def load_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """A Hugging Face tokenizer.json.

    Args:
        path: the file.
        sha256: of it, where it is to be compared.

    Raises:
        NotFound, Io: missing, or it cannot be read.
        Mismatch: another SHA-256.
        Invalid: no tokenizer.json.
    """
    if not path.is_file():
        raise NotFound(f"{path}: no such file; give the tokenizer.json of the base model")
    with reading(path):
        data = path.read_bytes()
    if sha256 is not None and bytes_sha256(data) != sha256:
        raise Mismatch(f"{path}: is not the tokenizer that the model was exported with (SHA-256)")
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the binding raises bare Exceptions
        raise Invalid(f"{path}: not a tokenizer.json: {error}") from error


def prompt_ids(
    tokenizer: Tokenizer, task: Task | None, text: str, prompt_template: str | None = None
) -> list[int]:
    """Token ids of the prompt around ``text``: the template given, else the task's, else bare.

    A template says all of its prompt; a bare text begins as the tokenizer has it, with BOS.

    Raises:
        Invalid: a template without its hole, or text that has no UTF-8.
    """
    if prompt_template is not None:
        check_template(prompt_template, "prompt_template")
    template = prompt_template or (task.prompt_template if task else PLACEHOLDER)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"the text has a lone surrogate at character {error.start}") from error
    start = start_ids(tokenizer) if task is None and prompt_template is None else []
    return start + encode_prompt(tokenizer, template, text)


def check_prompt(count: int, taken: int, context: int) -> None:
    """Refuse a prompt of ``count`` tokens that a context with ``taken`` positions cannot hold.

    Raises:
        Invalid: no token.
        ContextFull: too many.
    """
    if count == 0:
        raise Invalid("the prompt is empty: there is nothing to continue")
    if count > context - taken:
        raise ContextFull(f"{count} tokens do not fit: {taken} of {context} are taken")


def stop_ids(tokenizer: Tokenizer, stop: Sequence[str]) -> set[int]:
    """The stop strings that are one token of the vocabulary."""
    found = {tokenizer.token_to_id(text) for text in stop}
    return {i for i in found if i is not None}


class Pieces:
    """The text of tokens as they come, cut before the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._stream = DecodeStream(skip_special_tokens=True)
        # A stop string may come in pieces: text that could begin one is held back.
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What is certain once ``token`` has come; sets ``stopped`` at a stop string."""
        held = self._held + (self._stream.step(self._tokenizer, token) or "")
        ends = [held.index(s) for s in self._stop if s in held]
        self.stopped = bool(ends)
        ready = min(ends) if ends else len(held) - _partial_stop(held, self._stop)
        self._held = "" if ends else held[ready:]
        return held[:ready]

    def rest(self) -> str:
        """What is held back, where no more tokens come."""
        rest, self._held = self._held, ""
        return rest


def _partial_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    return max(
        (n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])),
        default=0,
    )
