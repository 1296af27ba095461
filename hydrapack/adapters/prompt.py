"""Prompt templates: the text around a task's input, and how both become token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydrapack.support.errors import Invalid

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLACEHOLDER = "{input}"


def check_template(template: str, where: str) -> None:
    """Refuse a template that does not hold ``{input}`` exactly once.

    Raises:
        Invalid: naming ``where`` (a file and key).
    """
    if template.count(PLACEHOLDER) != 1:
        raise Invalid(
            f"{where}: the prompt template must hold {PLACEHOLDER} exactly once, "
            f"it holds it {template.count(PLACEHOLDER)} times: {template!r}"
        )


def encode_prompt(tokenizer: Tokenizer, template: str, text: str) -> list[int]:
    """Token ids of ``template`` with ``text`` in place of ``{input}``.

    Special tokens are recognised in the template only: a user's text cannot close its own turn.
    """
    before, after = template.split(PLACEHOLDER)
    tokenizer.encode_special_tokens = False
    head = tokenizer.encode(before, add_special_tokens=False).ids
    tail = tokenizer.encode(after, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    body = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return head + body + tail


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before any text, as transformers has it: BOS, or nothing."""
    made = tokenizer.encode("a")
    return made.ids[: [*made.special_tokens_mask, 0].index(0)]
