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
from hydrapack.device.asking import Asking
from hydrapack.device.golden import SelfTest, read_golden, replay
from hydrapack.device.lookup import Lookup
from hydrapack.device.manifest import find_task
from hydrapack.device.opening import open_files
from hydrapack.device.options import Options
from hydrapack.device.programs import Programs
from hydrapack.device.sampler import Sampler
from hydrapack.device.text import Pieces, check_prompt, prompt_ids, stop_ids
from hydrapack.program.load import runtime
from hydrapack.support.errors import Invalid, Mismatch, NotFound


class Session(Asking):
    """One base program and perhaps a package; position, cache and head are its state.

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
        package: str | Path | None = None,
        tokenizer: str | Path | None = None,
        *,
        check_digests: bool = True,
        check_heads: bool = False,
        public_key: str | None = None,
        self_test: bool = False,
    ) -> None:
        """Check that the files belong together, and load both programs.

        Args:
            model: ``model.pte`` of ``hydrapack export-base``.
            package: the directory ``hydrapack pack`` wrote; None for the bare base model alone.
            tokenizer: ``tokenizer.json``; the one beside the model by default.
            check_digests: compare every file with its SHA-256; sizes are compared anyway. A task's
                head is compared when it is first used.
            check_heads: compare all heads here, which reads the whole of ``adapters.pte``.
            public_key: Ed25519, 64 hex digits, that must have signed the package.
            self_test: replay the package's golden outputs before anything else.

        Raises:
            HydrapackError: files missing, malformed, or of another rank, layout, base or digest;
                golden outputs that are missing or, here, others (Mismatch).
        """
        runtime()  # Its import is no part of the load.
        started = time.perf_counter()
        model = Path(model)
        beside = Path(tokenizer or model.parent / "tokenizer.json")
        folder = None if package is None else Path(package)
        opened = open_files(model, folder, beside, check_digests, check_heads, public_key)
        self.manifest, self.tokenizer = opened.manifest, opened.tokenizer
        self._model, self._heads = opened.model, opened.heads
        modules = len(self.manifest.modules) if self.manifest else 0
        self._programs = Programs(opened.model, opened.adapters, modules)
        self.max_context: int = self._programs.max_context
        self.stats = Stats(load_ms=_ms_since(started))
        self.position = 0
        self._turns = Turns(self.stats)
        self.package, self._check_digests = folder, check_digests
        if self_test and not (found := self.self_test()).passed:
            self.close()
            raise Mismatch(f"{package}: fails its self-test on this device: {found}")

    def close(self) -> None:
        """End the answer being made and let go of the programs. More than once is fine.

        Raises:
            Busy: another thread is in the session.
        """
        if hasattr(self, "_programs"):
            with self._turns.hold():
                self._turns.close()
                del self._programs, self._model, self._heads

    @property
    def chat_template(self) -> str | None:
        """``{input}`` as a turn of the model's own chat; a ``prompt_template`` of ``generate``.

        None where the model's tokenizer has no chat template.
        """
        name = "get_chat_template"
        known = name in self._model.method_names
        return str(self._model.constant(name)) or None if known else None

    def _swap(self, task: str | None) -> None:
        self._start_over()
        started = time.perf_counter()
        self._programs.unbind()
        self._task = None
        chosen = find_task(self.manifest, task)
        if chosen is not None:
            if self._heads is not None:
                self._heads.check(chosen)
            self._programs.bind(chosen.route)
            self._task = chosen
        self.stats.swap_ms = _ms_since(started)

    def set_vectors(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Run under any packed adapter until the next ``use``; resets the position.

        Raises:
            Invalid: vectors of another size or type than the program takes, or no package.
        """
        with self._turns.hold():
            if self.manifest is None:
                raise Invalid("the vectors a and b have the sizes of a package, and there is none")
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
        """Token ids of the task's prompt around ``text``; with no task, of the text after BOS.

        Raises:
            Invalid: the text has no UTF-8.
        """
        with self._turns.hold():
            return prompt_ids(self.tokenizer, self._task, text)

    def forward(self, ids: Sequence[int], rows: int | None = None) -> torch.Tensor:
        """Append ``ids`` to the text; float32 logits (V,) of the next token.

        Args:
            rows: logits (rows, V) after the last so many of the ids, all of one call of the
                program: at most its get_max_rows, and no more ids than its get_max_seq_len.

        Raises:
            Invalid: no ids, or some not in the vocabulary, or more rows than a call gives.
            ContextFull: more than the context holds.
            RuntimeFailure: the program fails.
        """
        with self._turns.hold():
            self._turns.end()
            if rows is None:
                return self._append(ids)[0]
            most = min(len(ids), self._programs.max_rows)
            if not 1 <= rows <= most or len(ids) > self._programs.max_seq:
                raise Invalid(f"`rows` {rows}: must be from 1 to {most} of one call's tokens")
            return self._append(ids, rows)

    def self_test(self) -> SelfTest:
        """Replay the package's golden outputs; the bare base model is in use afterwards.

        Raises:
            NotFound: the package has none (``pack --golden``), or there is no package.
            Invalid, Mismatch: a golden.json that is malformed or not the package's.
        """
        if self.package is None or self.manifest is None:
            raise NotFound("the golden outputs are of a package, and the session has none")
        return replay(self, read_golden(self.package, self.manifest, self._check_digests))

    def _begin(self, ids: Sequence[int], options: Options, lookup: bool) -> Answer:
        self._start_over()
        tokens = self._tokens(ids, options, Lookup(ids) if lookup else None)
        return self._turns.begin(tokens, Pieces(self.tokenizer, options.stop))

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
        logits = self._append(ids)[0]
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
            return self._append([token])[0]
        room = self.max_context - self.position - 1
        guessed = guesses.guess(token, min(useful, room, self._programs.max_rows - 1))
        ids = [token, *guessed]
        logits = self._programs.run(ids, self.position, len(ids))
        # What was guessed wrong is in the cache, behind the position, where nothing reads it.
        self.position += 1
        return guesses.found(guessed, logits)

    def _append(self, ids: Sequence[int], rows: int = 1) -> torch.Tensor:
        """Logits (rows, V) after the last of ``ids``."""
        check_prompt(len(ids), self.position, self.max_context)
        logits = self._programs.run(ids, self.position, rows)
        self.position += len(ids)
        return logits


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
