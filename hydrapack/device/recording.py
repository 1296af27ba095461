"""Golden outputs as ``pack`` stores them: what each head says on the base it is packed for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydrapack.device.session import Session
from hydrapack.support.errors import Invalid
from hydrapack.support.schema import json_text
from hydrapack.support.texts import json_line, read_lines

TOKENS = 8
"""After each prompt."""
NEAR_TIE = 0.25
"""Logits: a token that leads by less may come out otherwise elsewhere."""


def golden(model: str | Path, prompts: str | Path) -> Callable[[Path], str]:
    """What ``pack(golden=...)`` takes: from a package, the text of its golden.json.

    Args:
        model: the model.pte that answers.
        prompts: JSON lines with ``task`` and ``input``; each task has one or more.

    Raises:
        HydrapackError: ``prompts`` cannot be read; the rest when it is called: a task without a
            prompt or with none that has a clear token, a task that the package does not have, a
            prompt that does not fit.

    >>> record = hydrapack.golden("model.pte", "prompts.jsonl")
    >>> proven = hydrapack.pack("bundle", "proven", model="model.pte", golden=record)
    >>> hydrapack.Session("model.pte", "proven").self_test().passed
    True
    """
    model, where = Path(model), Path(prompts)
    inputs = _read_inputs(where)

    def record(package: Path) -> str:
        with Session(model, package) as session:
            for name in inputs:
                if name not in session.tasks:
                    raise Invalid(f"{where}: task {name!r} is not in the package")
            tasks = []
            for name in session.tasks:
                if name not in inputs:
                    raise Invalid(f"{where}: has no line of task {name!r}; give each task one")
                tasks.append({"name": name, "prompts": _answers(session, name, inputs[name])})
                _check_clear(tasks[-1], where)
        return json_text({"near_tie": NEAR_TIE, "schema_version": 1, "tasks": tasks})

    return record


def _check_clear(task: dict[str, Any], where: Path) -> None:
    if max(max(prompt["margins"]) for prompt in task["prompts"]) < NEAR_TIE:
        raise Invalid(
            f"{where}: task {task['name']!r}: every token after these inputs is nearly tied with "
            f"another (below {NEAR_TIE:g} logits): they would show nothing; take other inputs"
        )


def _read_inputs(path: Path) -> dict[str, list[str]]:
    inputs: dict[str, list[str]] = {}
    for where, line in read_lines(path):
        row = json_line(where, line)
        task, text = row.get("task"), row.get("input")
        if not isinstance(task, str) or not isinstance(text, str):
            raise Invalid(f"{where}: needs texts under 'task' and 'input'")
        inputs.setdefault(task, []).append(text)
    return inputs


def _answers(session: Session, task: str, inputs: list[str]) -> list[dict[str, Any]]:
    found = []
    for text in inputs:
        ids = session.use(task).encode(text)
        if not ids or len(ids) + TOKENS > session.max_context:
            raise Invalid(
                f"task {task!r}: a golden input takes {len(ids)} tokens, and {TOKENS} more must "
                f"fit the context of {session.max_context}"
            )
        step, tokens, margins = ids, list[int](), list[float]()
        for _ in range(TOKENS):
            logits = session.forward(step)
            best, second = logits.topk(2).values.tolist()
            tokens.append(int(logits.argmax()))
            margins.append(round(best - second, 4))
            step = tokens[-1:]
        found.append({"ids": ids, "margins": margins, "tokens": tokens})
    return found
