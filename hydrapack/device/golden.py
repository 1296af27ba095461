"""Golden outputs: what each head said when it was packed, replayed where it runs.

``golden.json`` holds for each task some prompts, the first greedy tokens after each on the base
that the package was packed for, and each token's margin: how far its logit lies above the next.
A replay feeds the golden tokens (teacher forcing), so that one near tie that falls otherwise does
not change what follows. A token of a margin below ``near_tie`` may differ: kernels of another
processor round otherwise in the last bits, and where an activation lies between two 8-bit levels,
by a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field

from hydrapack.device.manifest import DeviceManifest, Read
from hydrapack.device.opening import check_file
from hydrapack.packing.manifest import GOLDEN, MANIFEST
from hydrapack.support.errors import Invalid, NotFound
from hydrapack.support.schema import fitting, parse_json, read_bytes

Id = Annotated[int, Field(ge=0, lt=1 << 31)]


class GoldenPrompt(Read):
    """One prompt, whole, as token ids, and what came after it."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=65536)]
    tokens: Annotated[list[Id], Field(min_length=1, max_length=4096)]
    margins: list[Annotated[float, Field(ge=0)]]
    """Of each of ``tokens``, in logits."""


class GoldenTask(Read):
    """A task's prompts."""

    name: str
    prompts: Annotated[list[GoldenPrompt], Field(min_length=1, max_length=65536)]


class Golden(Read):
    """The content of golden.json."""

    schema_version: Literal[1]
    near_tie: Annotated[float, Field(ge=0)]
    tasks: Annotated[list[GoldenTask], Field(min_length=1, max_length=65536)]


@dataclass(frozen=True)
class Difference:
    """A clear token that came out otherwise."""

    task: str
    prompt: int
    """Its place among the task's, from 0."""
    token: int
    """Its place in the answer, from 0."""
    expected: int
    found: int
    margin: float
    """Of the expected one, when it was packed."""


@dataclass(frozen=True)
class SelfTest:
    """What a replay found."""

    tasks: tuple[str, ...]
    """That were replayed."""
    tokens: int
    """Compared, of all tasks."""
    near_ties: int
    """Other tokens at margins below the bound, which pass."""
    differences: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        """Whether no clear token differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """JSON form, which hydrapack-run prints too; ``tasks`` says of each whether it passes."""
        failed = {one.task for one in self.differences}
        tasks = {name: name not in failed for name in self.tasks}
        return {**asdict(self), "passed": self.passed, "tasks": tasks}

    def __str__(self) -> str:
        """One line."""
        if self.passed:
            return f"{self.tokens} golden tokens as packed, {self.near_ties} near ties apart"
        first = self.differences[0]
        tasks = ", ".join(sorted({one.task for one in self.differences}))
        return (
            f"{len(self.differences)} of {self.tokens} golden tokens differ, of {tasks}; first: "
            f"task {first.task!r}, prompt {first.prompt}, token {first.token} is {first.found}, "
            f"not {first.expected} (margin {first.margin:.2f})"
        )


def read_golden(package: Path, manifest: DeviceManifest, check_digest: bool = True) -> Golden:
    """The golden outputs of a package, compared with its manifest.

    Raises:
        NotFound: the package has none.
        Invalid, Mismatch: malformed, or not the file that the manifest describes.
    """
    path = package / GOLDEN
    stated = next((file for file in manifest.files if file.name == GOLDEN), None)
    if stated is None:
        raise NotFound(f"{package}: has no golden outputs: pack it with `golden`")
    check_file(path, stated.bytes, stated.sha256, check_digest, MANIFEST)
    with fitting(path):
        golden = Golden.model_validate(parse_json(read_bytes(path), path))
    names = {task.name for task in manifest.tasks}
    for task in golden.tasks:
        if task.name not in names:
            raise Invalid(f"{path}: task {task.name!r} is not in the package")
        for prompt in task.prompts:
            if len(prompt.margins) != len(prompt.tokens):
                raise Invalid(f"{path}: task {task.name!r}: not a margin for each token")
    return golden


class Runs(Protocol):
    """What a replay needs of a session."""

    def use(self, task: str | None) -> object:
        """Swap to a head, or to the bare base."""

    def forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Append ids; logits (V,) of the next token."""


def replay(session: Runs, golden: Golden) -> SelfTest:
    """Run every prompt under its head and compare; the session is on the bare base afterwards."""
    tokens, near_ties, differences = 0, 0, []
    for task in golden.tasks:
        for number, prompt in enumerate(task.prompts):
            step = prompt.ids
            session.use(task.name)
            for place, (expected, margin) in enumerate(
                zip(prompt.tokens, prompt.margins, strict=True)
            ):
                found = int(session.forward(step).argmax())
                tokens, step = tokens + 1, [expected]
                if found == expected:
                    continue
                if margin < golden.near_tie:
                    near_ties += 1
                else:
                    differences.append(
                        Difference(task.name, number, place, expected, found, margin)
                    )
    session.use(None)
    names = tuple(task.name for task in golden.tasks)
    return SelfTest(names, tokens, near_ties, tuple(differences))
