"""How an answer is generated: what the caller says, else the task, else the bare defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, ValidationError

from hydrapack.adapters.task_settings import Generation as Defaults
from hydrapack.adapters.task_settings import Stop
from hydrapack.device.manifest import Generation, Task
from hydrapack.support.errors import Invalid


class Options(Generation):
    """Every option with its value; ranges as in the manifest."""

    stop: Stop
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]


def resolve(
    task: Task | None,
    max_new_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    stop: Sequence[str] | None,
    seed: int,
) -> Options:
    """The options of one answer; None is the task's own.

    Raises:
        Invalid: one is out of range.
    """
    values = (task.generation if task else Defaults()).model_dump()
    said = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    values |= {key: value for key, value in said.items() if value is not None}
    if stop is None:
        stop = task.stop if task else []
    # A text is a sequence of texts too.
    listed = stop if isinstance(stop, str) else list(stop)
    try:
        return Options.model_validate({**values, "stop": listed, "seed": seed})
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
