"""Second moments of the inputs of a model's linears on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hydrapack.base.quality import MAX_TOKENS
from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.threads import one_thread


@one_thread()
def input_moments(
    model: Path,
    texts: Sequence[str],
    bases: Mapping[str, torch.Tensor],
    progress: Progress = quietly,
) -> dict[str, torch.Tensor]:
    """By module name: the mean of (x Q)^T (x Q) over the linear's inputs x, (P, P) float64.

    Args:
        model: a Hugging Face folder.
        texts: a row each; the first 256 tokens of each count.
        bases: by module name, Q (d_in, P) that the inputs are seen in.

    Raises:
        HydrapackError: no such model, a module that it has not or of other width, or no tokens.
    """
    tokenizers, transformers = need("tokenizers", "export"), need("transformers")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    except Exception as error:  # transformers raises whatever its readers do
        raise Invalid(f"{model}: cannot be loaded to calibrate with: {error}") from error
    sums: dict[str, torch.Tensor] = {}
    modules = dict(network.named_modules())
    handles = []
    for name, Q in bases.items():
        linear = modules.get(name)
        width = None if linear is None else getattr(linear, "in_features", None)
        if linear is None or width != len(Q):
            raise Invalid(
                f"{model}: has no linear {name} of {len(Q)} inputs: is it the adapters' base model?"
            )
        sums[name] = torch.zeros(Q.shape[1], Q.shape[1], dtype=torch.float64)
        narrow = Q.float()

        def add(module: Any, inputs: Any, name: str = name, Q: torch.Tensor = narrow) -> None:
            x = inputs[0].flatten(0, -2) @ Q
            sums[name] += (x.T @ x).double()

        handles.append(linear.register_forward_pre_hook(add))
    tokens = 0
    network.eval()
    with torch.inference_mode():
        for done, text in enumerate(texts):
            progress(done, len(texts), "calibrating")
            ids = tokenizer.encode(text).ids[:MAX_TOKENS]
            if ids:
                network(input_ids=torch.tensor([ids]), use_cache=False)
            tokens += len(ids)
    for handle in handles:
        handle.remove()
    if not tokens:
        raise Invalid("`calibrate`: the text has no tokens")
    return {name: total / tokens for name, total in sums.items()}
