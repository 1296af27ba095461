"""The grid of methods and tasks, with every answer cached by the digest of what made it."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hydrapack import __version__
from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.atomic import new_file
from hydrapack.base.config import read_config as read_model_config
from hydrapack.base.export import export_base
from hydrapack.base.weights import resolve_model, weights_sha256
from hydrapack.bundle import read_bundle, write_bundle
from hydrapack.errors import InputError
from hydrapack.evaluate import metrics
from hydrapack.evaluate.backends import Pairs, PeftBackend, executorch_answers
from hydrapack.evaluate.config import EvalConfig, MethodConfig, Row, TaskConfig, read_rows
from hydrapack.layout import parse_targets
from hydrapack.merge.adapters import Merge, merge_adapters
from hydrapack.merge.budget import merge_budget
from hydrapack.merge.module import MergedModule
from hydrapack.pack.package import write_package
from hydrapack.prompts import check_template
from hydrapack.quantize import Rounding, round_module
from hydrapack.sizes import parse_size

CONTEXT = 1024
Progress = Callable[[float, int, str], None]


@dataclass
class Result:
    """One row of the table."""

    label: str
    method: str
    backend: str
    heads: int | None
    bits: int
    s_percent: float
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Of the merge."""
    peak_bytes: int = 0
    """Resident memory of the process when the merge was done."""

    @property
    def average(self) -> float:
        """Mean over the tasks."""
        return sum(self.scores.values()) / len(self.scores)

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "average": self.average}


@dataclass(frozen=True)
class _Case:
    method: MethodConfig
    heads: int | None
    label: str


class Evaluation:
    """One evaluation: its files, its model and what has been answered already."""

    def __init__(self, config: EvalConfig, folder: Path, out: Path) -> None:
        """Read all inputs.

        Args:
            folder: what the config's paths are relative to.
            out: where answers are cached and results written.

        Raises:
            InputError: adapters, rows or a model that cannot be read.
        """
        self.config, self.out = config, out
        self.cache = out / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        names = [f"{task.name}={folder / task.adapter}" for task in config.tasks]
        self.adapters: list[Adapter] = read_adapters(names)
        self.rows: dict[str, list[Row]] = {
            task.name: read_rows(folder / task.data, config.rows) for task in config.tasks
        }
        self.model_folder = resolve_model(config.base_model)
        self.weights = weights_sha256(self.model_folder)
        self._backend: PeftBackend | None = None
        self._packed: tuple[_Case, Path] | None = None
        for task, adapter in zip(config.tasks, self.adapters, strict=True):
            check_template(self._template(task, adapter), f"task {task.name!r}: prompt_template")

    def run(self, progress: Progress = lambda done, total, note: None) -> list[Result]:
        """Every row of the table; what an earlier run answered is not answered again.

        Raises:
            InputError: a method or option that cannot be taken.
        """
        cases = [case for method in self.config.methods for case in _cases(method)]
        total, results = len(cases) * len(self.config.tasks), []
        for number, case in enumerate(cases):
            done = number * len(self.config.tasks)
            progress(done, total, case.label)
            results.append(self._row(case, done, total, progress))
        progress(total, total, "")
        return results

    def _row(self, case: _Case, done: int, total: int, progress: Progress) -> Result:
        method, result = case.method, _empty(case)
        merge: Merge | None = None
        if method.method not in ("zero-shot", "own"):
            started = time.monotonic()
            merge = self._merge(case)
            result.seconds = round(time.monotonic() - started, 3)
            result.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            result.s_percent = merge.s_percent
        for index, task in enumerate(self.config.tasks):
            note = f"{case.label}, {task.name}"

            def report(share: float, index: int = index, note: str = note) -> None:
                progress(done + index + share, total, note)

            result.scores[task.name] = self._score(task, index, case, merge, report)
        return result

    def _merge(self, case: _Case) -> Merge:
        m = case.method
        if m.budget is not None:
            return merge_budget(
                self.adapters, parse_size("budget", m.budget), m.rank, seed=self.config.seed
            )[0]
        return merge_adapters(
            self.adapters,
            m.method,
            case.heads,
            m.rank,
            self.config.seed,
            output_rank=m.output_rank,
            only_a=m.only_a,
            distance=m.distance,
            steps=m.steps,
            temperature=m.temperature,
            init=m.init,
        )

    def _score(
        self,
        task: TaskConfig,
        index: int,
        case: _Case,
        merge: Merge | None,
        report: Callable[[float], None],
    ) -> float:
        rows, adapter = self.rows[task.name], self.adapters[index]
        pairs = self._pairs(index, case, merge)
        template = self._template(task, adapter)
        key = _digest(
            {
                "backend": case.method.backend,
                "bits": case.method.bits if case.method.backend == "executorch" else 0,
                "inputs": [row.input for row in rows],
                "max_new_tokens": task.max_new_tokens,
                "pairs": _tensors_digest(pairs),
                "stop": adapter.card.stop,
                "template": template,
                "weights": self.weights,
            }
        )
        path = self.cache / f"{key}.json"
        if path.exists():
            answers = json.loads(path.read_text(encoding="utf-8"))
        else:
            inputs = [row.input for row in rows]
            answers = self._answers(task, index, case, merge, pairs, inputs, template, report)
            with new_file(path) as partial:
                partial.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
        return metrics.score(
            task.metric, answers, [row.outputs for row in rows], [row.input for row in rows]
        )

    def _answers(
        self,
        task: TaskConfig,
        index: int,
        case: _Case,
        merge: Merge | None,
        pairs: Pairs,
        inputs: list[str],
        template: str,
        report: Callable[[float], None],
    ) -> list[str]:
        def progress(done: int) -> None:
            report(done / len(inputs))

        if case.method.backend == "executorch":
            if merge is None:
                raise InputError(f"{case.label}: the executorch backend runs merged methods")
            package = self._package(case, merge)
            model = self._program(merge.rank)
            return executorch_answers(
                model, package, task.name, inputs, task.max_new_tokens, progress
            )
        if self._backend is None:
            self._backend = PeftBackend(self.model_folder, self.config.batch_size)
        stop = self.adapters[index].card.stop
        return self._backend.answers(inputs, template, stop, task.max_new_tokens, pairs, progress)

    def _pairs(self, index: int, case: _Case, merge: Merge | None) -> Pairs:
        if case.method.method == "zero-shot":
            return {}
        if merge is None:
            own = self.adapters[index].modules
            factors = {name: module.factors() for name, module in own.items()}
            return {name: (A.float(), B.float()) for name, (A, B) in factors.items()}
        pairs = {}
        rounding = Rounding(case.method.bits, case.method.bits)
        for name, module in merge.modules.items():
            if isinstance(module, MergedModule) and case.method.bits != 32:
                module = round_module(module, rounding)
            pairs[name] = (module.shared(), module.head(module.assignment[index]))
        return pairs

    def _package(self, case: _Case, merge: Merge) -> Path:
        # A case's tasks come one after the other: one package serves them all.
        if self._packed is not None and self._packed[0] is case:
            return self._packed[1]
        folder = self.out / "packages" / _digest({"label": case.label})[:16]
        write_bundle(merge, self.adapters, folder / "bundle")
        write_package(read_bundle(folder / "bundle"), folder / "package", case.method.bits)
        self._packed = case, folder / "package"
        return folder / "package"

    def _program(self, rank: int) -> Path:
        path = self.out / f"model-r{rank}.pte"
        if not path.exists():
            short = {n.rsplit(".", 1)[-1] for a in self.adapters for n in a.modules}
            context = min(CONTEXT, read_model_config(self.model_folder).max_position)
            export_base(
                self.config.base_model, path, rank, parse_targets(short), max_context=context
            )
        return path

    def _template(self, task: TaskConfig, adapter: Adapter) -> str:
        return task.prompt_template or adapter.card.prompt_template

    def document(self, results: Sequence[Result]) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "base_model": self.config.base_model,
            "correction_edits": "errant" if metrics.errant_is_there() else "word difference",
            "metrics": {task.name: task.metric for task in self.config.tasks},
            "results": [result.as_json() for result in results],
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "seed": self.config.seed,
            "versions": {
                "hydrapack": __version__,
                **{name: version(name) for name in ("executorch", "torch", "transformers")},
            },
            "weights_sha256": self.weights,
        }


def _cases(method: MethodConfig) -> list[_Case]:
    made = []
    counts: list[int | None] = [*method.heads] if method.heads else [None]
    for heads in counts:
        label = method.method + (" (A only)" if method.only_a else "")
        label += f" M={heads}" if heads else ""
        label += f" {method.budget}" if method.budget else ""
        label += f" Q={method.output_rank}" if method.output_rank else ""
        label += f" R={method.rank}" if method.rank else ""
        if method.method == "hydraopt":
            label += f" {method.distance}" if method.distance != "mae" else ""
            label += f" from {method.init}" if method.init != "adapters" else ""
            label += f" t={method.temperature:g}" if method.temperature != 1.0 else ""
        label += f", {method.bits} bits" if method.bits != 32 else ""
        label += ", ExecuTorch" if method.backend == "executorch" else ""
        made.append(_Case(method, heads, label))
    return made


def _empty(case: _Case) -> Result:
    return Result(
        label=case.label,
        method=case.method.method,
        backend=case.method.backend,
        heads=case.heads,
        bits=case.method.bits,
        s_percent={"zero-shot": 0.0}.get(case.method.method, 100.0),
    )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensors_digest(pairs: Pairs) -> str:
    digest = hashlib.sha256()
    for name in sorted(pairs):
        digest.update(name.encode())
        for tensor in pairs[name]:
            digest.update(tensor.float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
