"""What a merge minimises, by what it costs the model: KL divergence from each task's own adapter.

python benchmarks/objective.py [--set five|languages] [--rows 20]

Next-token distributions of the base model with each task's own adapter against those with its
merged head, on held-out rows (prompt and reference answer), float32, mean nats a token. Compared
are the objectives, one norm for all modules of a task against one a module, shared heads with and
without a factor for each task, and merges calibrated on text (the lines of this repository's docs)
with plain ones. Nothing is chosen on these rows: they are the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.prompt import encode_prompt
from hydrapack.adapters.update import inner_product
from hydrapack.base.moments import input_moments
from hydrapack.base.source import resolve_model
from hydrapack.bundle.format import Bundle
from hydrapack.evaluation.backends import TorchBackend
from hydrapack.evaluation.spec import read_rows
from hydrapack.merging.calibrated import merge_calibrated, spans
from hydrapack.merging.method import MergeOptions, divided, with_sizes
from hydrapack.merging.modules import merge_modules, module_seed
from hydrapack.merging.objective import task_sizes
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.progress import quietly

REPOSITORY = Path(__file__).parent.parent
SETS = {
    "five": ("adapters", ["grammar", "qa", "reply", "summary", "tone"]),
    "languages": (
        "adapters-r4",
        [
            f"{task}{language}"
            for task in ("reply", "summary")
            for language in ("", "-de", "-fr", "-it")
        ],
    ),
}
TEXT_LINES = 200


def per_module(adapters: Sequence[Adapter], options: MergeOptions, output_rank: int = 0) -> Bundle:
    """The relative merge with a norm of its own for each module and task."""

    def merge(name: str, updates):  # type: ignore[no-untyped-def]
        norms = [
            float(inner_product(A, B, A, B)) ** 0.5 or 1.0
            for A, B in (u.factors() for u in updates)
        ]
        own = replace(options, seed=module_seed(0, name))
        sized = divided(updates, norms)
        if output_rank:
            merged = merge_two_sided(sized, own, output_rank)
        else:
            merged = merge_spectral(sized, own)
        return with_sizes(merged, updates, norms)

    return merge_modules(adapters, merge, "per module", "relative", options.rank, 0, quietly)


def without_factors(adapters: Sequence[Adapter], heads: int) -> Bundle:
    """The relative merge by weights alone: tasks that share a head have it at one size."""
    sizes = task_sizes(adapters)
    weights = {a.task: (max(sizes) / n) ** 2 for a, n in zip(adapters, sizes, strict=True)}
    return merge_adapters(adapters, heads=heads, objective="absolute", weights=weights)


class Judge:
    """The base model with one task's A and B, on that task's rows."""

    def __init__(self, adapters: Sequence[Adapter], tasks: Sequence[str], rows: int) -> None:
        self.backend = TorchBackend(resolve_model("demo:smollm2-135m-q4_1"), 1)
        self.adapters = adapters
        self.rows: dict[str, list[list[int]]] = {}
        for adapter, task in zip(adapters, tasks, strict=True):
            data = read_rows(REPOSITORY / f"examples/data/heldout/{task}.jsonl", rows)
            self.rows[adapter.task] = [
                encode_prompt(self.backend.tokenizer, adapter.settings.prompt_template, row.input)
                + self.backend.tokenizer.encode(row.outputs[0], add_special_tokens=False).ids
                for row in data
            ]
        self.own = [
            self._log_probabilities(a, {n: m.factors() for n, m in a.modules.items()})
            for a in adapters
        ]

    def _log_probabilities(
        self, adapter: Adapter, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> list[torch.Tensor]:
        narrow = {name: (A.float(), B.float()) for name, (A, B) in pairs.items()}
        with self.backend._patched(narrow), torch.inference_mode():
            return [
                self.backend.model(torch.tensor([ids])).logits[0].log_softmax(-1)
                for ids in self.rows[adapter.task]
            ]

    def kl(self, merge: Bundle) -> list[float]:
        """Nats a token from the task's own adapter, by task."""
        found = []
        for k, adapter in enumerate(self.adapters):
            pairs = {
                name: (module.shared(), module.head(module.assignment[k]))
                for name, module in merge.modules.items()
            }
            total, tokens = 0.0, 0
            for own, new in zip(self.own[k], self._log_probabilities(adapter, pairs), strict=True):
                total += float((own.exp() * (own - new)).sum())
                tokens += len(own)
            found.append(total / tokens)
        return found


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=sorted(SETS), default="five")
    parser.add_argument("--rows", type=int, default=20)
    arguments = parser.parse_args()
    folder, tasks = SETS[arguments.set]
    adapters = read_adapters([str(REPOSITORY / "examples" / folder / task) for task in tasks])
    judge, count = Judge(adapters, tasks, arguments.rows), len(adapters)
    lines = [
        line
        for page in sorted((REPOSITORY / "docs").glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
        if len(line) > 40
    ][:TEXT_LINES]
    bases = spans(adapters)
    moments = input_moments(resolve_model("demo:smollm2-135m-q4_1"), lines, bases)
    ways: dict[str, Callable[[], Bundle]] = {}
    for size in (2, 3, 4, 6):
        shape = {"rank": size, "output_rank": size}
        label = f"two-sided R=Q={size}"
        for objective in ("absolute", "relative", "minimax"):
            ways[f"{label}, {objective}"] = lambda s=shape, o=objective: merge_adapters(
                adapters, "two-sided", objective=o, **s
            )
        ways[f"{label}, relative, a norm a module"] = lambda s=size: per_module(
            adapters, MergeOptions(count, s), s
        )
        ways[f"{label}, relative, calibrated"] = lambda s=shape: merge_calibrated(
            adapters, bases, moments, "two-sided", **s
        )
    own = max(a.rank for a in adapters)
    for heads in (1, 2, 3):
        label = f"spectral M={heads}"
        for objective in ("absolute", "relative", "minimax"):
            ways[f"{label}, {objective}"] = lambda h=heads, o=objective: merge_adapters(
                adapters, heads=h, objective=o
            )
        ways[f"{label}, relative, no factors"] = lambda h=heads: without_factors(adapters, h)
        ways[f"{label}, relative, a norm a module"] = lambda h=heads: per_module(
            adapters, MergeOptions(h, own)
        )
    print(f"| merge | {' | '.join(a.task for a in adapters)} | mean KL | worst error |", flush=True)
    print("|---" + "|---:" * (count + 2) + "|", flush=True)
    for label, make in ways.items():
        merge = make()
        nats = judge.kl(merge)
        cells = [f"{n:.3f}" for n in [*nats, sum(nats) / count]]
        worst = max(merge.relative_errors.values())
        print(f"| {label} | {' | '.join(cells)} | {worst:.3f} |", flush=True)


if __name__ == "__main__":
    main()
