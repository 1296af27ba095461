"""What a session asks of its package and its prompt, whichever runtime answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from tokenizers import Tokenizer

from hydrapack.device.answer import Answer, Stats, Turns
from hydrapack.device.manifest import DeviceManifest, Task
from hydrapack.device.options import Options, resolve
from hydrapack.device.text import check_prompt, prompt_ids

Self = TypeVar("Self", bound="Asking")


class Asking(ABC):
    """The tasks of a package, the one in use, and how an answer begins."""

    manifest: DeviceManifest | None
    """None without a package."""
    tokenizer: Tokenizer
    max_context: int | None
    """Positions; None where nothing says."""
    stats: Stats
    _turns: Turns
    _task: Task | None = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End the answer being made and let go of the programs. More than once is fine."""

    @abstractmethod
    def _swap(self, task: str | None) -> None:
        """End the answer being made; the task of what follows. For who holds the session."""

    @abstractmethod
    def _begin(self, ids: Sequence[int], options: Options, lookup: bool) -> Answer:
        """The answer to a prompt that fits. For who holds the session."""

    @property
    def tasks(self) -> list[str]:
        """Names of the package's tasks; none without a package."""
        return [task.name for task in self.manifest.tasks] if self.manifest else []

    @property
    def task(self) -> str | None:
        """The task in use; None for the bare base model."""
        return self._task.name if self._task else None

    def use(self: Self, task: str | None) -> Self:
        """Swap to the head of ``task``, or to the bare base model; resets the position.

        A name the package does not have gets what its manifest's ``fallback`` says. A swap that
        fails leaves the bare base model.

        A cache filled under another head would be wrong, so the next prompt starts at 0.

        Raises:
            NotFound: the package has no such task, or there is no package.
            RuntimeFailure: the head does not run.
        """
        with self._turns.hold():
            self._swap(task)
        return self

    def generate(
        self,
        text: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        prompt_template: str | None = None,
        *,
        task: str | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: Sequence[str] | None = None,
        lookup: bool = False,
    ) -> Answer:
        """Answer ``text`` piece by piece, from a fresh position; None is the task's own.

        What can be refused is refused here; the model runs as the pieces are asked for.

        Args:
            text: the task's input.
            max_new_tokens: at most so many; also ends at a stop string, an end token, or when
                the context is full.
            temperature: 0 for greedy.
            seed: of the draws at a temperature above 0, from 0 to 2^64 - 1.
            prompt_template: in place of the task's own.
            task: swap to its head first, as ``use`` does; by default the one in use answers.
            top_k: tokens to draw among; 0 for all.
            top_p: least share of the weight of those to draw among.
            stop: strings that end the answer, in place of the task's own.
            lookup: guess tokens from the text so far and check several a call (``Lookup``).

        Raises:
            NotFound: the package has no such task.
            Invalid: an option out of range, an empty prompt, or a closed session.
            ContextFull: the prompt does not fit the context.
        """
        with self._turns.hold():
            if task is not None and task != self.task:
                self._swap(task)
            used = self._task
            options = resolve(used, max_new_tokens, temperature, top_k, top_p, stop, seed)
            ids = prompt_ids(self.tokenizer, used, text, prompt_template)
            check_prompt(len(ids), 0, self.max_context or len(ids))
            return self._begin(ids, options, lookup)
