"""Answers to a task's rows: by PyTorch + PEFT, batched, or by the real package on ExecuTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hydrapack.adapters.prompt import encode_prompt
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from hydrapack.device.session import Session

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A (rank, d_in) and B (d_out, rank), scaled, by module name."""


@dataclass
class TorchBackend:
    """A transformers model whose adapted linears are patched with one task's A and B.

    As with PEFT, A and B stay float32 whatever the base's dtype is.

    Raises:
        Invalid: no such device here.
    """

    folder: Path
    batch_size: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        tokenizers, transformers = need("tokenizers", "eval"), need("transformers", "eval")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise Invalid("device: cuda: PyTorch finds no such GPU here; leave it out")
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype
        )
        self.model.eval().to(self.device)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        # transformers 5.24 renamed it.
        named = inspect.signature(self.model.forward).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"

    def answers(
        self,
        inputs: Sequence[str],
        template: str,
        stop: Sequence[str],
        max_new_tokens: int,
        pairs: Pairs,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Greedy answers, in the order of ``inputs``; no pairs is the bare base model."""
        ends = self._end_ids(stop)
        prompts = [encode_prompt(self.tokenizer, template, text) for text in inputs]
        # Alike lengths together: less padding. The order is fixed, hence the batches are.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        found = [""] * len(prompts)
        with self._patched(pairs), torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for index, ids in zip(
                    batch,
                    self._generate([prompts[i] for i in batch], ends, max_new_tokens),
                    strict=True,
                ):
                    text = self.tokenizer.decode(ids, skip_special_tokens=True)
                    found[index] = _cut(text, stop)
                progress(start + len(batch))
        return found

    def nats(
        self,
        rows: Sequence[tuple[str, str]],
        template: str,
        end: Sequence[int],
        pairs: Pairs,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[float, int]:
        """How unlikely the right answers are: nats, summed, and of how many tokens.

        Args:
            rows: inputs and right answers.
            end: ids after an answer, which count too (``end_ids``).
            pairs: as of ``answers``.
        """
        told = [_ids(self.tokenizer, template, text, answer, end) for text, answer in rows]
        told.sort(key=lambda row: (len(row[0]) + len(row[1]), row))
        total = 0.0
        with self._patched(pairs), torch.inference_mode():
            for start in range(0, len(told), self.batch_size):
                batch = told[start : start + self.batch_size]
                width = max(len(prompt) + len(ids) for prompt, ids in batch)
                # Padding at the right: causal attention keeps it out of every real position.
                padded = [p + ids + ids[:1] * (width - len(p) - len(ids)) for p, ids in batch]
                keep = width + 1 - min(len(prompt) for prompt, _ in batch)
                logits = self.model(
                    input_ids=torch.tensor(padded, device=self.device),
                    use_cache=False,
                    logits_to_keep=keep,
                ).logits
                for row, (prompt, ids) in zip(logits, batch, strict=True):
                    first = len(prompt) - 1 - (width - keep)
                    total += _nats(row[first : first + len(ids)], ids)
                progress(start + len(batch))
        return total, sum(len(ids) for _, ids in told)

    def _end_ids(self, stop: Sequence[str]) -> list[int]:
        own = self.model.generation_config.eos_token_id
        eos = own if isinstance(own, list) else [own]
        named = [self.tokenizer.token_to_id(text) for text in stop]
        return sorted({i for i in [*eos, *named] if i is not None})

    def _generate(
        self, prompts: list[list[int]], ends: list[int], max_new_tokens: int
    ) -> list[list[int]]:
        """Greedy decoding of a batch, padded at the left; a finished row leaves the batch."""
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = torch.tensor([[ends[0]] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device
        )
        end = torch.tensor(ends, device=self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(len(prompts), device=self.device)
        for _ in range(max_new_tokens):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: cache},
            ).logits[:, -1]
            tokens = logits.argmax(-1)
            going = (~torch.isin(tokens, end)).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < len(rows):
                cache.batch_select_indices(going)
                rows, mask, tokens = rows[going], mask[going], tokens[going]
                positions = positions[going]
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return answers

    @contextmanager
    def _patched(self, pairs: Pairs) -> Iterator[None]:
        """x @ A.T @ B.T is added to linears' outputs, as PEFT's LoRA layer does."""
        hooks = []
        for name, factors in pairs.items():
            A, B = (factor.to(self.device) for factor in factors)

            def add(module: Any, inputs: Any, output: Any, A: Any = A, B: Any = B) -> Any:
                return output + (inputs[0].float() @ A.T @ B.T).to(output.dtype)

            hooks.append(self.model.get_submodule(name).register_forward_hook(add))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def executorch_answers(
    session: Session,
    inputs: Sequence[str],
    template: str,
    stop: Sequence[str],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Greedy answers of the head in use on the ExecuTorch runtime."""
    found = []
    for text in inputs:
        answer = session.generate(text, max_new_tokens, 0.0, prompt_template=template, stop=stop)
        found.append("".join(answer))
        progress(len(found))
    return found


def executorch_nats(
    session: Session,
    rows: Sequence[tuple[str, str]],
    template: str,
    end: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[float, int]:
    """As ``TorchBackend.nats``, under the head in use on the ExecuTorch runtime."""
    total, tokens, most = 0.0, 0, int(session.model_constant("get_max_rows"))
    for done, (text, answer) in enumerate(rows, 1):
        prompt, ids = _ids(session.tokenizer, template, text, answer, end)
        # The last token needs no room; what the context cannot hold beside it is left out.
        ids = ids[: session.max_context - len(prompt) + 1]
        session.reset()
        logits = [session.forward(prompt)[None]]
        for start in range(0, len(ids) - 1, most):
            part = ids[:-1][start : start + most]
            logits.append(session.forward(part, len(part)))
        total += _nats(torch.cat(logits), ids)
        tokens += len(ids)
        progress(done)
    return total, tokens


def end_ids(tokenizer: Tokenizer, stop: Sequence[str], eos: Sequence[int]) -> list[int]:
    """What ends a right answer: the first stop string that is a token, else the model's own end."""
    named = [tokenizer.token_to_id(text) for text in stop]
    return [i for i in [*named, *eos] if i is not None][:1]


def _ids(
    tokenizer: Tokenizer, template: str, text: str, answer: str, end: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the answer with its end."""
    prompt = encode_prompt(tokenizer, template, text)
    return prompt, [*tokenizer.encode(answer, add_special_tokens=False).ids, *end]


def _nats(logits: torch.Tensor, ids: Sequence[int]) -> float:
    """Summed negative log-likelihood of ids; each row of logits (len(ids), V) is of the next."""
    target = torch.tensor(ids, device=logits.device)
    return float(torch.nn.functional.cross_entropy(logits.double(), target, reduction="sum"))


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
