"""Merge, export, pack and run the five embedded adapters, beside what they replace."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.files import WEIGHTS
from hydrapack.adapters.prompt import encode_prompt
from hydrapack.base import smollm2
from hydrapack.base.export import export_base
from hydrapack.device.session import Session
from hydrapack.merging.planned import merge_budget
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.program.description import description_path, read_description
from hydrapack.program.quantized import DEFAULT_BITS
from hydrapack.support.digest import bytes_sha256
from hydrapack.support.errors import Invalid
from hydrapack.support.progress import Stage, silently
from hydrapack.support.sizes import megabytes
from hydrapack.support.version import __version__

MAX_NEW_TOKENS = 40
CONTEXT = 512
WEEK = 7 * 24 * 3600


@dataclass(frozen=True)
class Answer:
    """One held-out input, and what three models make of it."""

    task: str
    input: str
    base: str
    adapter: str
    head: str


@dataclass(frozen=True)
class StorageLine:
    """Values and bytes on disk of one way to store the tasks."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows."""

    answers: list[Answer]
    storage: list[StorageLine]
    base_program: str
    """What the heads ran on: base model, quantization, size."""
    swap_ms: float
    decode_rate: float
    seconds: float
    folder: Path

    @property
    def same_answers(self) -> int:
        """Answers of a head that are the adapter's own, word for word."""
        return sum(answer.head == answer.adapter for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """JSON form."""
        own = {"folder": str(self.folder), "same_answers": self.same_answers}
        return {**asdict(self), **own}


def example_adapters() -> list[str]:
    """Folders of the five embedded adapters."""
    return [str(folder) for folder in sorted(_embedded("adapters").iterdir()) if folder.is_dir()]


def heldout_input(task: str, row: int) -> str:
    """Input of a task's held-out row.

    Raises:
        HydrapackError: there is no such row.
    """
    lines = (_embedded("heldout") / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    if row >= len(lines):
        raise Invalid(f"`row` {row}: the held-out files have rows 0 to {len(lines) - 1}")
    return json.loads(lines[row])["input"]


def _embedded(what: str) -> Path:
    # In a wheel the files lie beside this one, in a checkout under examples/.
    installed = Path(__file__).parent / what
    checkout = Path(__file__).parents[2] / "examples"
    source = {"adapters": checkout / "adapters", "heldout": checkout / "data" / "heldout"}[what]
    return installed if installed.is_dir() else source


def run_demo(
    budget: int,
    heads: int | None,
    bits: int | None,
    row: int,
    out: Path | None,
    stage: Stage = silently,
) -> DemoResult:
    """The main job, whole.

    Args:
        budget: bytes of the package, planned; not where heads or bits are given.
        heads: M; as many as adapters where only bits are given.
        bits: of the package; 8 where only heads are given.
        row: which held-out row of each task to run.
        out: where bundle and package are kept; the cache when None.
        stage: called with the name of each step.

    Raises:
        HydrapackError: an option out of range, or the model cannot be downloaded.
    """
    started = time.monotonic()
    stage("the base model")
    base = smollm2.base_model_directory()
    folder = out or smollm2.cache_directory() / "demo"
    stage("merging")
    adapters = read_adapters(example_adapters())
    inputs = {adapter.task: heldout_input(adapter.task, row) for adapter in adapters}
    if heads is None and bits is None:
        bundle = merge_budget(adapters, budget)
        package_name = f"one package, planned for {megabytes(budget)}"
    else:
        bundle = merge_adapters(adapters, heads=heads)
        bits = bits or DEFAULT_BITS
        package_name = f"one package, {bundle.heads} heads, {bits} bit"
    stage("packing")
    bundle.save(folder / "bundle")
    manifest = pack(bundle, folder / "package", bits).manifest
    model = _base_program(manifest.rank, tuple(manifest.target_modules), stage)
    stage("running heads on ExecuTorch")
    session = Session(model, folder / "package")
    base_answers, head_answers, swaps, rates = {}, {}, [], []
    for adapter in adapters:
        template = adapter.settings.prompt_template
        session.use(None)
        base_answers[adapter.task] = "".join(
            session.generate(inputs[adapter.task], MAX_NEW_TOKENS, prompt_template=template)
        )
        session.use(adapter.task)
        swaps.append(session.stats.swap_ms)
        head_answers[adapter.task] = "".join(session.generate(inputs[adapter.task], MAX_NEW_TOKENS))
        rates.append(session.stats.decode_rate)
    stage("running the adapters on PyTorch")
    own_answers = _peft_answers(base, adapters, inputs, session)
    apart = sum((a.folder / WEIGHTS).stat().st_size for a in adapters)
    return DemoResult(
        answers=[
            Answer(t, text, base_answers[t], own_answers[t], head_answers[t])
            for t, text in inputs.items()
        ],
        storage=[
            StorageLine(
                f"{len(adapters)} adapters apart, 16 bit", bundle.info.baseline_parameters, apart
            ),
            StorageLine(package_name, manifest.storage.parameters, manifest.storage.bytes),
        ],
        base_program=_described(model),
        swap_ms=min(swaps),
        decode_rate=max(rates),
        seconds=time.monotonic() - started,
        folder=folder,
    )


def _base_program(
    rank: int, targets: tuple[str, ...], stage: Stage, quant: str | None = None
) -> Path:
    """The exported SmolLM2, cached under a digest of all that decides its bytes.

    Programs that nothing has asked for in a week, as those of older versions, go.
    """
    key = json.dumps(
        [
            *([quant] if quant else []),
            smollm2.GGUF_SHA256,
            __version__,
            metadata.version("executorch"),
            metadata.version("torch"),
            metadata.version("torchao"),
            rank,
            targets,
            CONTEXT,
            _source_digest(),
        ]
    )
    digest = bytes_sha256(key.encode())[:16]
    programs = smollm2.cache_directory() / "programs"
    model = programs / digest / "model.pte"
    model.parent.mkdir(parents=True, exist_ok=True)
    os.utime(model.parent)
    for folder in programs.iterdir():
        if time.time() - folder.stat().st_mtime > WEEK:
            shutil.rmtree(folder, ignore_errors=True)
    needed = (model, description_path(model), model.parent / "tokenizer.json")
    if not all(path.exists() for path in needed):
        export_base(
            smollm2.NAME,
            model,
            rank,
            targets,
            quant,
            CONTEXT,
            stage=lambda name: stage(f"exporting the base program (once): {name}"),
        )
    return model


def _described(model: Path) -> str:
    """A base program in a few words."""
    program = read_description(model)
    size = megabytes(program["bytes"])
    return f"{program['get_base_model']}, {program['get_quant']}, {size}"


def _source_digest() -> str:
    """SHA-256 of the exporter's own source: a change to it makes another program."""
    package = Path(__file__).parents[1]
    files = [file for room in ("base", "program") for file in sorted((package / room).glob("*.py"))]
    return bytes_sha256(b"".join(file.read_bytes() for file in files))


def _peft_answers(
    base: Path, adapters: list[Adapter], inputs: dict[str, str], session: Session
) -> dict[str, str]:
    """Each adapter on its own input, in PyTorch with PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    answers = {}
    for adapter in adapters:
        name = adapter.task
        if isinstance(model, PeftModel):
            model.load_adapter(str(adapter.folder), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(adapter.folder), adapter_name=name)
        model.set_adapter(name)
        ids = encode_prompt(session.tokenizer, adapter.settings.prompt_template, inputs[name])
        prompt = torch.tensor([ids])
        with torch.no_grad():
            new = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        tokens = new[0, len(ids) :].tolist()
        answers[name] = session.tokenizer.decode(tokens, skip_special_tokens=True)
    return answers
