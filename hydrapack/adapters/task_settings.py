"""``task.json``: what PEFT's own files do not say of a task. Optional, beside the adapter."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hydrapack.adapters.prompt import PLACEHOLDER
from hydrapack.support.schema import Strict, utf8_at_most

TASK_FILE = "task.json"
MAX_TEXT = 1 << 20
"""Bytes of UTF-8 of a template, a stop string or a language."""

MaxNewTokens = Annotated[int, Field(ge=1, le=1 << 20)]
Temperature = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=0, le=1 << 20)]
TopP = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, AfterValidator(utf8_at_most(MAX_TEXT))]
Stop = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=65536)]


class Generation(Strict):
    """How an answer is generated where the caller does not say."""

    max_new_tokens: MaxNewTokens = 128
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_k: TopK = 0
    """Tokens to choose among; 0 for all."""
    top_p: TopP = 1.0
    """Least probability mass of the tokens to choose among."""


_URL = re.compile(r"[a-z][a-z0-9+.-]*://(git@)?[^\s/@]+(/\S*)?")


def _public_url(text: str) -> str:
    if not _URL.fullmatch(text) or len(text) > 1000:
        # It is published with the package, and so would a password or token be.
        raise ValueError("must be a URL, as https://host/owner/name, without a user or password")
    return text


Url = Annotated[str, AfterValidator(_public_url)]
Revision = Annotated[str, Field(min_length=1, max_length=200)]


class Source(Strict):
    """Where an adapter was published."""

    url: Url
    revision: Revision | None = None
    """A commit or tag of it."""


class TaskSettings(Strict):
    """How a task is prompted, and where its adapter comes from."""

    prompt_template: Text = PLACEHOLDER
    """The prompt, with ``{input}`` once for the task's input."""
    stop: Stop = Field(default_factory=list)
    """Strings that end an answer, beside the model's own end tokens."""
    generation: Generation = Field(default_factory=Generation)
    language: Text | None = None
    """BCP 47 tag of the task's language."""
    license: str | None = None
    """SPDX identifier of the adapter's licence."""
    source: Source | None = Field(default=None, exclude_if=lambda source: source is None)
    """Where the adapter was published; of a folder in the Hugging Face cache, by default, that."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Anything that says how the adapter was made."""
