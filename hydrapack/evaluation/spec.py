"""The YAML of an evaluation, and the JSONL of its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hydrapack.base.scheme import QUANTS
from hydrapack.bundle.merged import Objective
from hydrapack.evaluation.metrics import METRICS
from hydrapack.merging.method import Knobs
from hydrapack.merging.methods import find_method
from hydrapack.program.quantized import BitWidth
from hydrapack.support.errors import HydrapackError, Invalid
from hydrapack.support.extras import need
from hydrapack.support.schema import Strict, fitting
from hydrapack.support.sizes import parse_size
from hydrapack.support.texts import json_line, read_lines, read_text


class TaskConfig(Strict):
    """One task: its adapter, its rows, how it is scored."""

    name: str = Field(min_length=1)
    adapter: str
    """PEFT folder, relative to the YAML."""
    data: str
    """JSONL of ``input`` and ``output`` or ``outputs``, relative to the YAML."""
    metric: str
    prompt_template: str | None = None
    """In place of the adapter's task.json."""
    max_new_tokens: int = Field(default=64, ge=1)


class MethodConfig(BaseModel):
    """One row of the table, or one for each M of ``heads``.

    Other keys are the method's own options, as steps of hydraopt.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    method: str
    """zero-shot, own (each task's adapter), or a method of ``hydrapack merge``."""
    heads: list[Annotated[int, Field(ge=1)] | Literal["N"]] | None = None
    """Each M; N is the number of the group's tasks. An M above it is left out."""
    objective: Objective | None = None
    """Of ``hydrapack merge``; the method's own by default."""
    rank: int | None = None
    bits: BitWidth = 32
    """Rounded as the packer does; 32 is not rounded, or with a budget planned by module."""
    budget: str | None = None
    """In place of heads and the method's own options, with spectral: a size, as 2MB."""
    backend: Literal["peft", "executorch"] = "peft"
    program: str | None = None
    """``--quant`` of the executorch backend's base program; what suits the base by default."""

    @property
    def options(self) -> dict[str, Any]:
        """The method's own, as given."""
        return dict(self.model_extra or {})

    @property
    def own(self) -> Any:
        """The method's own, all of them; none where nothing is merged.

        Raises:
            Invalid: an unknown method or option, or a value out of range.
        """
        if self.method in ("zero-shot", "own"):
            if self.options:
                raise Invalid(f"{self.method} takes no {', '.join(self.options)}: leave it out")
            return Knobs()
        return find_method(self.method).own(self.options)


class EvalConfig(Strict):
    """The whole evaluation."""

    base_model: str
    rows: int | None = Field(default=None, ge=1)
    """The first so many rows of each task; all by default."""
    batch_size: int = Field(default=32, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base model with the peft backend; A and B are float32."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of the peft backend's answers; merges are on the CPU. GPUs answer a little differently."""
    seed: int = 0
    tasks: list[TaskConfig] = Field(min_length=1)
    groups: dict[str, list[str]] = Field(default_factory=dict)
    """Names of the tasks that are merged together, a table each; all of them by default."""
    methods: list[MethodConfig] = Field(min_length=1)

    @property
    def precision(self) -> str:
        """What of PyTorch's arithmetic an answer depends on."""
        return self.dtype if self.device == "cpu" else f"{self.dtype} on {self.device}"


@dataclass(frozen=True)
class Row:
    """One test row."""

    input: str
    outputs: tuple[str, ...]


def read_config(path: Path) -> EvalConfig:
    """The evaluation of a YAML file.

    Raises:
        HydrapackError: unreadable, not YAML, or a key that does not fit; names it.
    """
    yaml = need("yaml")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise Invalid(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    with fitting(path):
        config = EvalConfig.model_validate(content)
    names = [task.name for task in config.tasks]
    if len(set(names)) != len(names):
        raise Invalid(f"{path}: tasks: a name twice")
    for group, members in config.groups.items():
        unknown = [name for name in members if name not in names]
        if unknown or not members or len(set(members)) != len(members):
            raise Invalid(
                f"{path}: groups: {group!r}: name each of one or more tasks once; unknown: "
                f"{', '.join(unknown) or 'none'}"
            )
    for method in config.methods:
        if method.budget is None:
            continue
        parse_size(f"{path}: methods: budget", method.budget)
        if (method.heads, method.options, method.method) != (None, {}, "spectral"):
            raise Invalid(
                f"{path}: methods: budget {method.budget}: chooses heads and all else, with "
                "method spectral; leave them out"
            )
    for method in config.methods:
        try:
            _ = method.own
        except HydrapackError as error:
            raise Invalid(f"{path}: methods: {error}") from error
        if method.program not in (None, *QUANTS):
            raise Invalid(f"{path}: program {method.program!r}: choose one of {', '.join(QUANTS)}")
        rounded = method.bits != 32 or method.budget is not None
        if rounded and method.method == "zero-shot":
            raise Invalid(f"{path}: methods: zero-shot stores nothing: leave bits out")
        if rounded and method.method == "own" and method.backend == "peft":
            raise Invalid(
                f"{path}: methods: own, {method.bits} bits: adapters are rounded where they are "
                "packed; give backend: executorch, or leave bits out"
            )
    for task in config.tasks:
        if task.metric not in METRICS:
            raise Invalid(
                f"{path}: task {task.name!r}: metric {task.metric!r}: choose one of "
                f"{', '.join(METRICS)}"
            )
    return config


def quick_config(config: EvalConfig) -> EvalConfig:
    """The same evaluation on 20 rows a task, with at most 50 steps of hydraopt."""
    methods = [
        method.model_copy(update={"steps": min(50, method.own.steps)})
        if hasattr(method.own, "steps")
        else method
        for method in config.methods
    ]
    return config.model_copy(update={"rows": min(20, config.rows or 20), "methods": methods})


def read_rows(path: Path, limit: int | None) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        HydrapackError: unreadable, empty, or a line that does not fit; names the line.
    """
    return [_row(where, line) for where, line in read_lines(path)][:limit]


def _row(where: str, line: str) -> Row:
    content = json_line(where, line)
    if not isinstance(content.get("input"), str):
        raise Invalid(f"{where}: needs a text under 'input'")
    outputs = content.get("outputs", [content.get("output")])
    fits = isinstance(outputs, list) and outputs and all(isinstance(o, str) for o in outputs)
    if not fits or ("outputs" in content and "output" in content):
        raise Invalid(f"{where}: needs a text under 'output', or a list of them under 'outputs'")
    return Row(content["input"], tuple(outputs))
