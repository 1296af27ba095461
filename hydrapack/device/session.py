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

from hydrapack.adapters.task_card import Generation
from hydrapack.device.text import load_tokenizer, pieces, stop_ids
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
        self.tokenizer = load_tokenizer(Path(tokenizer or model.parent / "tokenizer.json"))
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
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        prompt_template: str | None = None,
    ) -> Iterator[str]:
        """Answer ``text`` piece by piece, from a fresh position.

        Args:
            text: the task's input.
            max_new_tokens: at most so many; also ends at a stop string, an end token, or when
                the context is full. The task's own default if None.
            temperature: 0 for greedy; the task's own default if None.
            seed: of the sampling at a temperature above 0.
            prompt_template: in place of the task's own.

        Raises:
            InputError: the prompt does not fit the context.
        """
        self.reset()
        task = self._task
        template = prompt_template or (task.prompt_template if task else PLACEHOLDER)
        ids = encode_prompt(self.tokenizer, template, text)
        options = task.generation if task else Generation()
        if temperature is not None:
            options = options.model_copy(update={"temperature": temperature})
        generator = torch.Generator().manual_seed(seed)
        limit = options.max_new_tokens if max_new_tokens is None else max_new_tokens
        tokens = self.generate_ids(ids, limit, options, generator)
        return pieces(self.tokenizer, tokens, task.stop if task else [])

    def generate_ids(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        options: Generation | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Token ids after ``ids``, up to an end token (not given) or the limits."""
        ends = self._eos_ids | stop_ids(self.tokenizer, self._task)
        options = options or Generation()
        started = time.perf_counter()
        logits = self.forward(ids)
        self.stats.prefill_ms, self.stats.prefill_tokens = _ms_since(started), len(ids)
        self.stats.decode_ms, self.stats.decode_tokens = 0.0, 0
        for index in range(max_new_tokens):
            token = _pick(logits, options, generator)
            if token in ends:
                return
            yield token
            if index + 1 == max_new_tokens or self.position >= self.max_context:
                return
            started = time.perf_counter()
            logits = self.forward([token])
            self.stats.decode_ms += _ms_since(started)
            self.stats.decode_tokens += 1


def _pick(logits: torch.Tensor, options: Generation, generator: torch.Generator | None) -> int:
    """The next token: greedy at temperature 0, else drawn among top_k and top_p."""
    if options.temperature == 0:
        return int(logits.argmax())
    count = options.top_k or len(logits)
    values, ids = logits.topk(min(count, len(logits)))
    weights = torch.softmax(values / options.temperature, -1)
    # Those before which less than top_p has come.
    weights = weights * (weights.cumsum(-1) - weights < options.top_p)
    return int(ids[torch.multinomial(weights, 1, generator=generator)])


def _input_size(method: Any, index: int) -> int:
    return int(method.metadata.input_tensor_meta(index).sizes()[0])


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)
