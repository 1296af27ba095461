"""``task.json``: what PEFT's own files do not say of a task. Optional, beside the adapter."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from hydrapack.prompts import PLACEHOLDER


class TaskCard(BaseModel):
    """How a task is prompted, and where its adapter comes from."""

    model_config = ConfigDict(extra="forbid")

    prompt_template: str = PLACEHOLDER
    """The prompt, with ``{input}`` once for the task's input."""
    stop: list[str] = []
    """Strings that end an answer, beside the model's own end tokens."""
    language: str | None = None
    """BCP 47 tag of the task's language."""
    license: str | None = None
    """SPDX identifier of the adapter's licence."""
    provenance: dict[str, Any] = {}
    """Anything that says how the adapter was made."""
