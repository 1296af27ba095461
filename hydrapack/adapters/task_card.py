"""``task.json``: what PEFT's own files do not say of a task. Optional, beside the adapter."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from hydrapack.prompts import PLACEHOLDER
from hydrapack.schema import Strict


class Generation(Strict):
    """How an answer is generated where the caller does not say."""

    max_new_tokens: int = Field(default=128, ge=1, le=1 << 20)
    temperature: float = Field(default=0.0, ge=0, le=100)
    """0 is greedy."""
    top_k: int = Field(default=0, ge=0, le=1 << 20)
    """Tokens to choose among; 0 for all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Least probability mass of the tokens to choose among."""


class TaskCard(Strict):
    """How a task is prompted, and where its adapter comes from."""

    prompt_template: str = PLACEHOLDER
    """The prompt, with ``{input}`` once for the task's input."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end an answer, beside the model's own end tokens."""
    generation: Generation = Field(default_factory=Generation)
    language: str | None = None
    """BCP 47 tag of the task's language."""
    license: str | None = None
    """SPDX identifier of the adapter's licence."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Anything that says how the adapter was made."""
