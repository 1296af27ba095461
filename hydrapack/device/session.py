"""Generation on the ExecuTorch runtime, with heads swapped per task.

session = Session("model.pte", "package")
session.use("summary")
for text in session.generate("Long text ..."):
    print(text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from hydrapack.device.answer import Answer, Stats, Turns
from hydrapack.device.golden import SelfTest, read_golden, replay
from hydrapack.device.lookup import Lookup
from hydrapack.device.manifest import Task
from hydrapack.device.opening import open_files
from hydrapack.device.options import Options, resolve
from hydrapack.device.programs import Programs
from hydrapack.device.sampler import Sampler
from hydrapack.device.text import Pieces, check_prompt, prompt_ids, stop_ids
from hydrapack.support.errors import Mismatch


class Session:
    """One base program and one package; the position, the cache and the head are its state.

    A second thread that calls it meanwhile gets ``Busy``.

    >>> with hydrapack.Session("model.pte", "package") as session:
    ...     answer = session.generate("He go to school.", max_new_tokens=4, task="grammar")
    ...     text = "".join(answer)
    >>> session.tasks, answer.finish in ("stop", "length")
    (['grammar', 'qa'], True)
    """

    def __init__(
        self,
        model: str | Path,
        package: str | Path,
        tokenizer: str | Path | None = None,
        *,
        check_digests: bool = True,
        public_key: str | None = None,
        self_test: bool = False,
    ) -> None:
        """Check that the files belong together, and load both programs.

        Args:
            model: ``model.pte`` of ``hydrapack export-base``.
            package: the directory ``hydrapack pack`` wrote.
            tokenizer: ``tokenizer.json``; the one beside the model by default.
            check_digests: compare every file with its SHA-256; sizes are compared anyway.
            public_key: Ed25519, 64 hex digits, that must have signed the package.
            self_test: replay the package's golden outputs before anything else.

        Raises:
            HydrapackError: files missing, malformed, or of another rank, layout, base or digest;
                golden outputs that are missing or, here, others (Mismatch).
        """
        started = time.perf_counter()
        model = Path(model)
        beside = Path(tokenizer or model.parent / "tokenizer.json")
        opened = open_files(model, Path(package), beside, check_digests, public_key)
        self.manifest, self.tokenizer = opened.manifest, opened.tokenizer
        self._model = opened.model
        self._programs = Programs(opened.model, opened.adapters, len(self.manifest.modules))
        self.max_context = self._programs.max_context
        self.stats = Stats(load_ms=_ms_since(started))
        self.position = 0
        self._task: Task | None = None
        self._turns = Turns(self.stats)
        self.package, self._check_digests = Path(package), check_digests
        if self_test and not (found := self.self_test()).passed:
            self.close()
            raise Mismatch(f"{package}: fails its self-test on this device: {found}")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the answer being made and let go of the programs. More than once is fine.

        Raises:
            Busy: another thread is in the session.
        """
        if hasattr(self, "_programs"):
            with self._turns.hold():
                self._turns.close()
                del self._programs, self._model

    @property
    def tasks(self) -> list[str]:
        """Names of the package's tasks."""
        return [task.name for task in self.manifest.tasks]

    @property
    def task(self) -> str | None:
        """The task in use; None for the bare base model."""
        return self._task.name if self._task else None

    def use(self, task: str | None) -> Session:
        """Swap to the head of ``task``, or to the bare base model; resets the position.

        A name the package does not have gets what its manifest's ``fallback`` says. A swap that
        fails leaves the bare base model.

        A cache filled under another head would be wrong, so the next prompt starts at 0.

        Raises:
            NotFound: the package has no such task.
            RuntimeFailure: the head does not run.
        """
        with self._turns.hold():
            self._swap(task)
        return self

    def _swap(self, task: str | None) -> None:
        self._start_over()
        started = time.perf_counter()
        self._programs.unbind()
        self._task = None
        chosen = None if task is None else self.manifest.find(task)
        if chosen is not None:
            self._programs.bind(chosen.route)
            self._task = chosen
        self.stats.swap_ms = _ms_since(started)

    def set_vectors(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Run under any packed adapter until the next ``use``; resets the position.

        Raises:
            Invalid: vectors of another size or type than the program takes.
        """
        with self._turns.hold():
            self._start_over()
            self._programs.bind_vectors(a, b)

    def model_constant(self, method: str) -> Any:
        """The value of a constant method of model.pte.

        Raises:
            Invalid: it does not have it.
        """
        return self._model.constant(method)

    def reset(self) -> None:
        """Forget the text so far."""
        with self._turns.hold():
            self._start_over()

    def encode(self, text: str) -> list[int]:
        """Token ids of the task's prompt around ``text`` (the bare text with no task).

        Raises:
            Invalid: the text has no UTF-8.
        """
        with self._turns.hold():
            return prompt_ids(self.tokenizer, self._task, text)

    def forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Append ``ids`` to the text; float32 logits (V,) of the next token.

        Raises:
            Invalid: no ids, or some not in the vocabulary.
            ContextFull: more than the context holds.
            RuntimeFailure: the program fails.
        """
        with self._turns.hold():
            self._turns.end()
            return self._append(ids)

    def self_test(self) -> SelfTest:
        """Replay the package's golden outputs; the bare base model is in use afterwards.

        Raises:
            NotFound: the package has none (``pack --golden``).
            Invalid, Mismatch: a golden.json that is malformed or not the package's.
        """
        return replay(self, read_golden(self.package, self.manifest, self._check_digests))

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
            Invalid: an option out of range, or an empty prompt.
            ContextFull: the prompt does not fit the context.
        """
        with self._turns.hold():
            if task is not None and task != self.task:
                self._swap(task)
            used = self._task
            options = resolve(used, max_new_tokens, temperature, top_k, top_p, stop, seed)
            ids = prompt_ids(self.tokenizer, used, text, prompt_template)
            check_prompt(len(ids), 0, self.max_context)
            self._start_over()
            guesses = Lookup(ids) if lookup else None
            return self._turns.begin(
                self._tokens(ids, options, guesses), Pieces(self.tokenizer, options.stop)
            )

    def _start_over(self) -> None:
        self._turns.end()
        self.position = 0

    def _tokens(
        self, ids: Sequence[int], options: Options, guesses: Lookup | None
    ) -> Generator[int, None, str]:
        """Token ids after ``ids``; returns why no more come."""
        ends = self._programs.eos_ids | stop_ids(self.tokenizer, options.stop)
        sampler, stats = Sampler(options.seed), self.stats
        started = time.perf_counter()
        logits = self._append(ids)
        stats.prefill_ms, stats.prefill_tokens = _ms_since(started), len(ids)
        stats.decode_ms, stats.decode_tokens, stats.decode_calls = 0.0, 0, 0
        for made in count(1):
            token = sampler.pick(logits.numpy(), options.temperature, options.top_k, options.top_p)
            if token in ends:
                return "stop"
            yield token
            if made == options.max_new_tokens:
                return "length"
            if self.position >= self.max_context:
                return "context"
            started = time.perf_counter()
            logits = self._next(token, guesses, options.max_new_tokens - made - 1)
            stats.decode_ms += _ms_since(started)
            stats.decode_tokens += 1
        raise AssertionError("count() has no end")

    def _next(self, token: int, guesses: Lookup | None, useful: int) -> torch.Tensor:
        """Logits (V,) after ``token``; at most ``useful`` guesses can be of use."""
        known = None if guesses is None else guesses.known(token)
        if known is not None:
            self.position += 1
            return known
        self.stats.decode_calls += 1
        if guesses is None:
            return self._append([token])
        room = self.max_context - self.position - 1
        guessed = guesses.guess(token, min(useful, room, self._programs.max_rows - 1))
        ids = [token, *guessed]
        logits = self._programs.run(ids, self.position, len(ids))
        # What was guessed wrong is in the cache, behind the position, where nothing reads it.
        self.position += 1
        return guesses.found(guessed, logits)

    def _append(self, ids: Sequence[int]) -> torch.Tensor:
        check_prompt(len(ids), self.position, self.max_context)
        logits = self._programs.run(ids, self.position)
        self.position += len(ids)
        return logits[0]


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
