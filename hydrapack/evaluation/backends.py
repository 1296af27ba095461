"""Answers to a task's rows: by PyTorch + PEFT, batched, or by the real package on ExecuTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.prompt import encode_prompt
from hydrapack.support.extras import need

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A (rank, d_in) and B (d_out, rank), scaled, by module name."""


@dataclass
class TorchBackend:
    """A transformers model whose adapted linears are patched with one task's A and B.

    As with PEFT, A and B stay float32 whatever the base's dtype is.
    """

    folder: Path
    batch_size: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        tokenizers, transformers = need("tokenizers", "eval"), need("transformers", "eval")
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype
        )
        self.model.eval()
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
        ids = torch.tensor([[ends[0]] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(len(prompts))
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
            going = (~torch.isin(tokens, torch.tensor(ends))).nonzero()[:, 0]
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
        for name, (A, B) in pairs.items():

            def add(module: Any, inputs: Any, output: Any, A: Any = A, B: Any = B) -> Any:
                return output + (inputs[0].float() @ A.T @ B.T).to(output.dtype)

            hooks.append(self.model.get_submodule(name).register_forward_hook(add))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def executorch_answers(
    model: Path,
    package: Path,
    task: str,
    inputs: Sequence[str],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Greedy answers of a package's head on the ExecuTorch runtime."""
    from hydrapack.device.session import Session

    session = Session(model, package).use(task)
    found = []
    for text in inputs:
        found.append("".join(session.generate(text, max_new_tokens, temperature=0.0)))
        progress(len(found))
    return found


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [text.index(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
