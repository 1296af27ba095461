"""Generation on the ExecuTorch runtime, with heads swapped per task.

session = Session("model.pte", "package")
session.use("summary")
for text in session.generate("Long text ..."):
    print(text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from hydrapack.errors import InputError
from hydrapack.pack.manifest import ADAPTERS, Manifest, ManifestTask, read_package
from hydrapack.prompts import PLACEHOLDER, encode_prompt
from hydrapack.pte import constant, constants, load_method, load_program


@dataclass
class Stats:
    """Times of the last swap and generation, in ms, and token counts."""

    load_ms: float = 0.0
    swap_ms: float = 0.0
    prefill_ms: float = 0.0
    prefill_tokens: int = 0
    decode_ms: float = 0.0
    decode_tokens: int = 0

    @property
    def prefill_rate(self) -> float:
        """Tokens a second."""
        return 1000 * self.prefill_tokens / self.prefill_ms if self.prefill_ms else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second."""
        return 1000 * self.decode_tokens / self.decode_ms if self.decode_ms else 0.0


class Session:
    """One base program and one package; the position, the cache and the head are its state.

    Not for use by two threads at once.
    """

    def __init__(
        self, model: str | Path, package: str | Path, tokenizer: str | Path | None = None
    ) -> None:
        """Load both programs.

        Args:
            model: ``model.pte`` of ``hydrapack export-base``.
            package: the directory ``hydrapack pack`` wrote.
            tokenizer: ``tokenizer.json``; the one beside the model by default.

        Raises:
            InputError: missing or malformed files, or a model of another rank or layout.
        """
        started = time.perf_counter()
        self.manifest: Manifest = read_package(Path(package))
        model = Path(model)
        self._model = load_program(model, "forward")
        self._adapters = load_program(Path(package) / ADAPTERS, "head")
        self._check_layout(model)
        self.max_context = int(constant(self._model, "get_max_context_len"))
        self._eos_ids = {int(i) for i in constants(self._model, "get_eos_ids")}
        self._forward = load_method(self._model, "forward")
        self._head = load_method(self._adapters, "head")
        self._shared = self._a = load_method(self._adapters, "shared").execute([])[0]
        self._b = torch.zeros(_input_size(self._forward, 3))
        self.tokenizer = _load_tokenizer(Path(tokenizer or model.parent / "tokenizer.json"))
        self.stats = Stats(load_ms=_ms_since(started))
        self.position = 0
        self._task: ManifestTask | None = None
        self.use(None)

    def _check_layout(self, model: Path) -> None:
        rank = int(constant(self._model, "get_adapter_rank"))
        if rank != self.manifest.rank:
            raise InputError(
                f"{model} takes adapters of rank {rank}, the package has rank "
                f"{self.manifest.rank}: export the base with --rank {self.manifest.rank}, or merge "
                f"with --rank {rank}"
            )
        digest = str(constant(self._model, "get_adapter_layout"))
        if digest != self.manifest.layout_digest:
            targets = ",".join(self.manifest.target_modules)
            raise InputError(
                f"{model} has another adapter layout than the package (base model "
                f"{self.manifest.base_model.id!r}, target modules {targets}): export that base "
                f"with "
                f"--target-modules {targets}"
            )
        stored = str(constant(self._adapters, "get_adapter_layout"))
        if stored != digest:
            raise InputError(f"{ADAPTERS}: has another adapter layout than its manifest")

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

        A name the package does not have gets what its manifest's ``fallback`` says.

        A cache filled under another head would be wrong, so the next prompt starts at 0.

        Raises:
            InputError: the package has no such task.
        """
        chosen = None if task is None else self.manifest.task(task)
        started = time.perf_counter()
        if chosen is None:
            # A zero b makes every update zero, whatever a is.
            self._b = torch.zeros_like(self._b)
        else:
            self._b = self._head.execute([torch.tensor(chosen.route)])[0]
        self.stats.swap_ms = _ms_since(started)
        self._a, self._task = self._shared, chosen
        self.reset()
        return self

    def set_vectors(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Run under any packed adapter until the next ``use``; resets the position.

        Raises:
            InputError: vectors of another size than the program takes.
        """
        if a.shape != self._shared.shape or b.shape != self._b.shape:
            raise InputError("the vectors a and b have another size than the program takes")
        self._a, self._b = a.contiguous(), b.contiguous()
        self.reset()

    def model_constant(self, method: str) -> Any:
        """The value of a constant method of model.pte.

        Raises:
            InputError: it does not have it.
        """
        return constant(self._model, method)

    def reset(self) -> None:
        """Forget the text so far."""
        self.position = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of the task's prompt around ``text`` (the bare text with no task)."""
        template = self._task.prompt_template if self._task else PLACEHOLDER
        return encode_prompt(self.tokenizer, template, text)

    def forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Append ``ids`` to the text; float32 logits (V,) of the next token.

        Raises:
            InputError: no ids, or more than the context holds.
        """
        count = len(ids)
        if count == 0:
            raise InputError("the prompt is empty: there is nothing to go on from")
        if count > self.max_context - self.position:
            raise InputError(
                f"{count} tokens do not fit: {self.position} of {self.max_context} are taken"
            )
        logits = None
        # The program takes at most context - 1 positions a call.
        for start in range(0, count, self.max_context - 1):
            part = list(ids[start : start + self.max_context - 1])
            positions = torch.arange(self.position, self.position + len(part))
            logits = self._forward.execute([torch.tensor([part]), positions, self._a, self._b])[0]
            self.position += len(part)
        assert logits is not None
        return logits[0, 0]

    def generate(
        self,
        text: str,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        prompt_template: str | None = None,
    ) -> Iterator[str]:
        """Answer ``text`` piece by piece, from a fresh position.

        Args:
            text: the task's input.
            max_new_tokens: at most so many; also ends at a stop string, an end token, or when
                the context is full.
            temperature: 0 for greedy.
            seed: of the sampling at a temperature above 0.
            prompt_template: in place of the task's own.

        Raises:
            InputError: the prompt does not fit the context.
        """
        self.reset()
        template = prompt_template or (self._task.prompt_template if self._task else PLACEHOLDER)
        ids = encode_prompt(self.tokenizer, template, text)
        stop = self._task.stop if self._task else []
        generator = torch.Generator().manual_seed(seed)
        stream = DecodeStream(skip_special_tokens=True)
        # A stop string may come in pieces: text that could begin one is held back.
        held = ""
        for token in self.generate_ids(ids, max_new_tokens, temperature, generator):
            held += stream.step(self.tokenizer, token) or ""
            ends = [held.index(s) for s in stop if s in held]
            if ends:
                held = held[: min(ends)]
                break
            ready = len(held) - _partial_stop(held, stop)
            if ready:
                yield held[:ready]
                held = held[ready:]
        if held:
            yield held

    def generate_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Token ids after ``ids``, up to an end token (not given) or the limits."""
        stop_ids = self._stop_ids()
        started = time.perf_counter()
        logits = self.forward(ids)
        self.stats.prefill_ms, self.stats.prefill_tokens = _ms_since(started), len(ids)
        self.stats.decode_ms, self.stats.decode_tokens = 0.0, 0
        for index in range(max_new_tokens):
            if temperature > 0:
                weights = torch.softmax(logits / temperature, -1)
                token = int(torch.multinomial(weights, 1, generator=generator))
            else:
                token = int(logits.argmax())
            if token in stop_ids:
                return
            yield token
            if index + 1 == max_new_tokens or self.position >= self.max_context:
                return
            started = time.perf_counter()
            logits = self.forward([token])
            self.stats.decode_ms += _ms_since(started)
            self.stats.decode_tokens += 1

    def _stop_ids(self) -> set[int]:
        """End tokens of the model, and the task's stop strings that are one special token."""
        stop = self._task.stop if self._task else []
        own = {self.tokenizer.token_to_id(text) for text in stop}
        return self._eos_ids | {i for i in own if i is not None}


def _partial_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    return max(
        (n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])),
        default=0,
    )


def _input_size(method: Any, index: int) -> int:
    return int(method.metadata.input_tensor_meta(index).sizes()[0])


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the tokenizer.json of the base model")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exceptions
        raise InputError(f"{path}: not a tokenizer.json: {error}") from error


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
