"""``task.json``: what PEFT's own files do not say of a task. Optional, beside the adapter."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from hydrapack.prompts import PLACEHOLDER
from hydrapack.schema import Strict


class TaskCard(Strict):
    """How a task is prompted, and where its adapter comes from."""

    prompt_template: str = PLACEHOLDER
    """The prompt, with ``{input}`` once for the task's input."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end an answer, beside the model's own end tokens."""
    language: str | None = None
    """BCP 47 tag of the task's language."""
    license: str | None = None
    """SPDX identifier of the adapter's licence."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Anything that says how the adapter was made."""
