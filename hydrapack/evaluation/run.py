"""The grid of methods and tasks, with every answer cached by the digest of what made it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.prompt import check_template
from hydrapack.base.config import read_config as read_model_config
from hydrapack.base.source import resolve_model, weights_sha256
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import Merged, MergedModule, stored_values
from hydrapack.bundle.stored import StoredModule, store
from hydrapack.evaluation import metrics
from hydrapack.evaluation.backends import (
    Pairs,
    TorchBackend,
    end_ids,
    executorch_answers,
    executorch_nats,
)
from hydrapack.evaluation.cases import Case, Result, cases
from hydrapack.evaluation.memory import PeakMemory
from hydrapack.evaluation.programs import BasePrograms
from hydrapack.evaluation.spec import EvalConfig, Row, TaskConfig, read_rows
from hydrapack.merging.planned import merge_budget
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.program.description import read_description
from hydrapack.program.layout import parse_targets
from hydrapack.program.quantized import SCALE_BYTES, Precision
from hydrapack.support.atomic import new_file
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.engine import Engine
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Progress, quietly
from hydrapack.support.sizes import parse_size
from hydrapack.support.threads import in_parallel, one_thread
from hydrapack.support.version import __version__

if TYPE_CHECKING:
    from hydrapack.device.session import Session


class Evaluation:
    """One evaluation: its files, its model and what has been answered already."""

    def __init__(
        self, config: EvalConfig, folder: Path, out: Path, cache: Path | None = None
    ) -> None:
        """Read all inputs.

        Args:
            folder: what the config's paths are relative to.
            out: where programs and packages are written.
            cache: where answers are kept; ``out/cache`` by default.

        Raises:
            HydrapackError: adapters, rows or a model that cannot be read.
        """
        self.config, self.out = config, out
        self.cache = cache or out / "cache"
        self._inputs = _inputs(config, folder, out, self.cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        names = [f"{task.name}={folder / task.adapter}" for task in config.tasks]
        self.adapters: dict[str, Adapter] = {
            task.name: _with_template(adapter, task)
            for adapter, task in zip(read_adapters(names), config.tasks, strict=True)
        }
        self.groups = config.groups or {"": [task.name for task in config.tasks]}
        self.rows: dict[str, list[Row]] = {
            task.name: read_rows(folder / task.data, config.rows) for task in config.tasks
        }
        self.model_folder = resolve_model(config.base_model)
        if not self.model_folder.is_dir():
            raise Invalid(
                f"{self.model_folder}: eval answers with PyTorch too: give a folder, a "
                "hub id or demo:smollm2-135m-q4_1"
            )
        self.weights = weights_sha256(self.model_folder)
        short = {n.rsplit(".", 1)[-1] for a in self.adapters.values() for n in a.modules}
        self._backend: TorchBackend | None = None
        self._programs = BasePrograms(
            out, config.base_model, self.model_folder, self.weights, parse_targets(short)
        )
        self._opened: tuple[tuple[Case, str], Session] | None = None
        self._modules: dict[str, Merged] = {}
        self._alone: dict[tuple[str, int], Bundle] = {}
        self._tasks = {task.name: task for task in config.tasks}

    def run(self, progress: Progress = quietly, engine: Engine = in_parallel) -> list[Result]:
        """Every row of the table; what an earlier run answered is not answered again.

        Args:
            engine: runs the rows that PyTorch answers. ``in_parallel`` stands for one row after
                another, on all cores; the device's rows are always answered so.

        Raises:
            HydrapackError: a method or option that cannot be taken.
        """
        rows = self.cases()
        total = sum(len(self.groups[case.group]) for case in rows)
        apart = [c for c in rows if engine is not in_parallel and c.method.backend != "executorch"]
        made = engine(partial(_row_of, *self._inputs), apart)
        done, results = 0, []
        for case in rows:
            progress(done, total, _where(case))
            row = next(made) if case in apart else self.row(case, done, total, progress)
            results.append(row)
            done += len(self.groups[case.group])
        progress(total, total, "")
        return results

    def cases(self) -> list[Case]:
        """The table's rows, group by group."""
        return [
            case
            for group, names in self.groups.items()
            for method in self.config.methods
            for case in cases(group, len(names), method)
        ]

    def row(self, case: Case, done: int, total: int, progress: Progress) -> Result:
        """One row; ``done`` tasks of ``total`` were answered before."""
        method, names, where = case.method, self.groups[case.group], _where(case)
        progress(done, total, f"{where}, merging")
        result = Result(
            group=case.group,
            label=case.label,
            method=method.method,
            backend=method.backend,
            heads=case.heads,
            bits="planned" if case.planned else method.bits,
            s_percent=0.0,
            objective=method.objective,
        )
        merge: Bundle | None = None
        if method.method == "own":
            result.s_percent = 100.0
            result.stored_bytes = sum(self._own_bytes(case, name) for name in names)
        elif method.method != "zero-shot":
            started = time.monotonic()
            with PeakMemory() as peak:
                merge = self._merge(case)
            result.merge_seconds = round(time.monotonic() - started, 3)
            result.merge_peak_bytes = peak.bytes
            result.s_percent = merge.s_percent
            result.relative_errors = merge.relative_errors
            # Once for all tasks of a case: the search for 4-bit scales takes seconds.
            stored = _stored(merge)
            result.stored_bytes = sum(_bytes(module) for module in stored.values())
            self._modules = {
                name: module.dequantize() if isinstance(module, StoredModule) else module
                for name, module in stored.items()
            }
        for index, name in enumerate(names):

            def report(share: float, index: int = index, name: str = name) -> None:
                progress(done + index + share, total, f"{where}, {name}")

            self._score(self._tasks[name], index, case, merge, report, result)
        return result

    def _merge(self, case: Case) -> Bundle:
        m = case.method
        adapters = [self.adapters[name] for name in self.groups[case.group]]
        if m.budget is not None:
            limit, bits = parse_size("budget", m.budget), None if case.planned else m.bits
            return merge_budget(
                adapters, limit, m.rank, bits, self.config.seed, objective=m.objective or "relative"
            )
        merge = merge_adapters(
            adapters,
            m.method,
            case.heads,
            m.rank,
            self.config.seed,
            objective=m.objective,
            **m.options,
        )
        if m.bits != 32 and not all(isinstance(x, MergedModule) for x in merge.modules.values()):
            raise Invalid(f"{case.label}: VeRA's vectors are not rounded; leave bits out")
        return merge.with_bits(m.bits)

    def _score(
        self,
        task: TaskConfig,
        index: int,
        case: Case,
        merge: Bundle | None,
        report: Callable[[float], None],
        result: Result,
    ) -> None:
        """Add the task's figures to the result."""
        rows, settings = self.rows[task.name], self.adapters[task.name].settings
        pairs = self._pairs(task.name, index, case, merge)
        on_device = case.method.backend == "executorch"
        bundle = self._served(task.name, case, merge)
        what = {
            "backend": case.method.backend,
            "base": self._program_sha256(case, bundle) if on_device else self.config.precision,
            "bits": self._packed_bits(case, bundle),
            "inputs": [row.input for row in rows],
            "pairs": _tensors_digest(pairs),
            "stop": settings.stop,
            "template": settings.prompt_template,
            "weights": self.weights,
        }
        inputs = [row.input for row in rows]
        told = [(row.input, row.outputs[0]) for row in rows]

        def progress(done: int) -> None:
            report(done / len(rows))

        def answers() -> dict[str, Any]:
            asked = (inputs, settings.prompt_template, settings.stop, task.max_new_tokens)
            if on_device:
                session = self._session(task.name, case, bundle)
                return {"answers": executorch_answers(session, *asked, progress)}
            return {"answers": self._torch().answers(*asked, pairs, progress)}

        def nats() -> dict[str, Any]:
            session = self._session(task.name, case, bundle) if on_device else None
            tokenizer = session.tokenizer if session else self._torch().tokenizer
            end = end_ids(tokenizer, settings.stop, read_model_config(self.model_folder).eos_ids)
            if session:
                found = executorch_nats(session, told, settings.prompt_template, end, progress)
            else:
                found = self._torch().nats(told, settings.prompt_template, end, pairs, progress)
            return {"nats": found[0], "tokens": found[1]}

        made = self._kept({**what, "max_new_tokens": task.max_new_tokens}, answers)
        likely = self._kept({**what, "references": [answer for _, answer in told]}, nats)
        references = [row.outputs for row in rows]
        result.scores[task.name] = metrics.score(task.metric, made["answers"], references, inputs)
        result.nats[task.name] = likely["nats"] / max(likely["tokens"], 1)
        result.answer_seconds += made["seconds"]

    def _kept(self, what: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an earlier run made of the same, or make it and keep it, with its seconds."""
        path = self.cache / f"{_digest(what)}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        started = time.monotonic()
        made = make()
        made["seconds"] = round(time.monotonic() - started, 3)
        with new_file(path) as partial:
            partial.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        return made

    def _torch(self) -> TorchBackend:
        if self._backend is None:
            dtype = getattr(torch, self.config.dtype)
            self._backend = TorchBackend(
                self.model_folder, self.config.batch_size, dtype, self.config.device
            )
        return self._backend

    @one_thread()
    def _pairs(self, name: str, index: int, case: Case, merge: Bundle | None) -> Pairs:
        if case.method.method == "zero-shot":
            return {}
        if merge is None:
            own = self.adapters[name].modules
            factors = {key: module.factors() for key, module in own.items()}
            return {key: (A.float(), B.float()) for key, (A, B) in factors.items()}
        return {
            key: (module.shared(), module.head(module.assignment[index]))
            for key, module in self._modules.items()
        }

    @staticmethod
    def _packed_bits(case: Case, bundle: Bundle | None) -> int | dict[str, int]:
        """What the answers' digest holds of the package's bits: PEFT's pairs are rounded."""
        if case.method.backend != "executorch" or bundle is None:
            return 0
        return bundle.info.bits or 0 if case.planned else case.method.bits

    def _served(self, name: str, case: Case, merge: Bundle | None) -> Bundle | None:
        """What a package is made of: the merge, or the task's own adapter alone."""
        if case.method.method != "own" or case.method.backend != "executorch":
            return merge
        key = name, case.method.bits
        if key not in self._alone:
            alone = merge_adapters([self.adapters[name]], "spectral", 1, seed=self.config.seed)
            self._alone[key] = alone.with_bits(case.method.bits)
        return self._alone[key]

    def _own_bytes(self, case: Case, name: str) -> int:
        bundle = self._served(name, case, None)
        if bundle is None:
            return self.adapters[name].bytes
        return sum(_bytes(module) for module in _stored(bundle).values())

    def _session(self, name: str, case: Case, bundle: Bundle | None) -> Session:
        """The device under the task's head; packed and opened once for all that it serves."""
        from hydrapack.device.session import Session

        key = case, name if case.method.method == "own" else ""
        if self._opened is None or self._opened[0] != key:
            package = None if bundle is None else self._package_folder(*key) / "package"
            if bundle is not None and package is not None:
                pack(bundle, package)
            if self._opened is not None:
                self._opened[1].close()
            self._opened = key, Session(self._program(case, bundle), package)
        return self._opened[1].use(None if bundle is None else name)

    def _package_folder(self, case: Case, task: str = "") -> Path:
        served = [case.group, case.label] + ([task] if task else [])
        return self.out / "packages" / _digest(served)[:16]

    def _program(self, case: Case, bundle: Bundle | None) -> Path:
        # Without an adapter any rank will do: that of own's program, which is there already.
        ranks = [self.adapters[name].rank for name in self.groups[case.group]]
        return self._programs.find(bundle.rank if bundle else max(ranks), case.method.program)

    def _program_sha256(self, case: Case, bundle: Bundle | None) -> str:
        return str(read_description(self._program(case, bundle))["sha256"])

    def document(self, results: Sequence[Result]) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "base_model": self.config.base_model,
            "correction_edits": f"errant, {spacy}"
            if (spacy := metrics.spacy_model())
            else "word difference",
            "device": self.config.device,
            "dtype": self.config.dtype,
            "metrics": {task.name: task.metric for task in self.config.tasks},
            "results": [result.as_json() for result in results],
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "seed": self.config.seed,
            "versions": {
                "hydrapack": __version__,
                **{
                    name: version(name)
                    for name in ("executorch", "torch", "transformers")
                    if importlib.util.find_spec(name)
                },
            },
            "weights_sha256": self.weights,
        }


Inputs = tuple[str, Path, Path, Path]


def _inputs(config: EvalConfig, *folders: Path) -> Inputs:
    """What an evaluation takes, for a process that works in another folder."""
    model = Path(config.base_model)
    if model.exists():
        config = config.model_copy(update={"base_model": str(model.absolute())})
    folder, out, cache = (path.absolute() for path in folders)
    return config.model_dump_json(), folder, out, cache


@lru_cache(1)
def _evaluation(config: str, folder: Path, out: Path, cache: Path) -> Evaluation:
    return Evaluation(EvalConfig.model_validate_json(config), folder, out, cache)


def _row_of(config: str, folder: Path, out: Path, cache: Path, case: Case) -> Result:
    """A row in another process, which keeps the model for its next one."""
    return _evaluation(config, folder, out, cache).row(case, 0, 1, quietly)


def _where(case: Case) -> str:
    return f"{case.group}: {case.label}" if case.group else case.label


def _with_template(adapter: Adapter, task: TaskConfig) -> Adapter:
    """The adapter with the task's own prompt, which its package then has too."""
    if task.prompt_template is not None:
        settings = adapter.settings.model_copy(update={"prompt_template": task.prompt_template})
        adapter = replace(adapter, settings=settings)
    check_template(adapter.settings.prompt_template, f"task {task.name!r}: prompt_template")
    return adapter


def _stored(bundle: Bundle) -> dict[str, StoredModule | Merged]:
    """The modules at their bits, by name; at 32 as they are."""
    bits = bundle.info.bits or {}
    return {
        name: store(module, Precision(bits[name], bits[name]))
        if isinstance(module, MergedModule) and bits[name] != 32
        else module
        for name, module in bundle.modules.items()
    }


def _bytes(module: StoredModule | Merged) -> int:
    if isinstance(module, StoredModule):
        return module.bytes
    factors = SCALE_BYTES * len(module.of) if isinstance(module, MergedModule) else 0
    return 4 * stored_values([module]) + factors


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return bytes_sha256(text.encode())


def _tensors_digest(pairs: Pairs) -> str:
    digest = hashlib.sha256()
    for name in sorted(pairs):
        digest.update(name.encode())
        for tensor in pairs[name]:
            digest.update(tensor.float().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
