"""Will these adapters merge, pack and run on this base? A line for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.task_settings import TASK_FILE
from hydrapack.analysis.similarity import SHARED_START, analyze
from hydrapack.base.config import DecoderConfig, read_config
from hydrapack.packing.package import base_of
from hydrapack.program.layout import Layout, layout_of, module_name
from hydrapack.program.load import LoadedProgram, check_forward, load_program
from hydrapack.support.digest import file_sha256
from hydrapack.support.errors import HydrapackError, Invalid, Mismatch, NotFound
from hydrapack.support.progress import Progress, quietly

TOKENIZER = "tokenizer.json"
Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The answer to one question: ``warn`` is worth a look, ``fail`` what a command refuses."""

    name: str
    level: Level
    detail: str


class _Findings(list[Finding]):
    def ask(
        self,
        name: str,
        question: Callable[[], str | tuple[Level, str]],
        passed_on: type[HydrapackError] | tuple[()] = (),
    ) -> bool:
        """Add the answer, or what a reader refuses, in its own words; False if that."""
        try:
            answer = question()
        except passed_on:
            raise
        except HydrapackError as error:
            self.append(Finding(name, "fail", str(error)))
            return False
        self.append(Finding(name, *(("ok", answer) if isinstance(answer, str) else answer)))
        return self[-1].level != "fail"


def check(
    adapters: Sequence[str | Path],
    model: str | Path | None = None,
    progress: Progress = quietly,
) -> list[Finding]:
    """Whether adapters merge with each other, go into a package, and run on a base model.

    Args:
        adapters: PEFT folders, as ``DIR`` or ``NAME=DIR``.
        model: model.pte, or the base's config.json or its folder; not judged by default.

    Raises:
        HydrapackError: no adapter, or a folder or a model that is not there.

    >>> findings = hydrapack.check(["adapters/grammar", "adapters/qa"], "model.pte")
    >>> [finding.name for finding in findings if finding.level == "fail"]
    []
    """
    if model is not None and not Path(model).exists():
        raise NotFound(f"{model}: no such file")
    findings = _Findings()
    read: list[Adapter] = []
    for one in adapters:
        found: list[Adapter] = []
        question = partial(_adapter, one, found)
        if findings.ask(f"adapter {Path(str(one).partition('=')[0]).name}", question, NotFound):
            read += found
    if not adapters:
        raise Invalid("no adapters given")
    if not read or not findings.ask("together", lambda: _together(read)):
        return findings
    if len(read) > 1 and read[0].kind == "LORA":
        findings.ask("shared A", lambda: _shared_a(read, progress))
    layouts: list[Layout] = []
    if findings.ask("package", lambda: _package(read, layouts)) and model is not None:
        path = Path(model)
        judge = _on_program if path.is_file() and path.suffix == ".pte" else _on_config
        judge(path, read, layouts[0], findings)
    return findings


def _adapter(one: str | Path, found: list[Adapter]) -> tuple[Level, str]:
    (adapter,) = read_adapters([one])
    found.append(adapter)
    targets = sorted({name.rsplit(".", 1)[-1].removesuffix("_proj") for name in adapter.modules})
    detail = (
        f"{adapter.kind}, rank {adapter.rank}, {','.join(targets)} in {len(adapter.modules)} "
        f"modules, {adapter.parameters:,} parameters"
    )
    zero = _zero_modules(adapter)
    if zero == len(adapter.modules):
        return "fail", f"{detail}; is untrained: every lora_B is zero"
    odd = []
    if zero:
        odd.append(f"lora_B is zero in {zero} modules: nothing was trained there")
    if not (adapter.folder / TASK_FILE).exists():
        odd.append(f"no {TASK_FILE}: the task's prompt will be the bare input")
    return ("warn", f"{detail}; {'; '.join(odd)}") if odd else ("ok", detail)


def _zero_modules(adapter: Adapter) -> int:
    return sum(not bool(m.trained[1].any()) for m in adapter.modules.values())


def _together(adapters: list[Adapter]) -> str:
    read_adapters(adapters)
    ranks = sorted({adapter.rank for adapter in adapters})
    revision = f" at {adapters[0].revision}" if adapters[0].revision else ""
    return (
        f"{len(adapters)} adapters of {adapters[0].base_model or 'an unnamed base'!r}{revision}, "
        f"rank {', '.join(map(str, ranks))}"
    )


def _shared_a(adapters: list[Adapter], progress: Progress) -> tuple[Level, str]:
    found = analyze(adapters, progress=progress)
    errors = found.relative_errors
    best, worst = (pick(errors, key=errors.__getitem__) for pick in (min, max))
    cost = (
        f"a shared A of rank {max(a.rank for a in adapters)} and a head each leave relative errors "
        f"from {errors[best]:.3f} ({best}) to {errors[worst]:.3f} ({worst})"
    )
    alike = found.mean("a_cca")
    if alike >= SHARED_START:
        return "ok", f"the A's are alike (R² {alike:.2f}): {cost}"
    return "warn", (
        f"the A's share little (R² {alike:.2f}), as of other seeds: {cost}; train all from one "
        "seed, or merge with a larger `rank`"
    )


def _package(adapters: list[Adapter], layouts: list[Layout]) -> str:
    shapes = {name: m.shape for adapter in adapters for name, m in adapter.modules.items()}
    layouts.append(layout := layout_of(shapes, max(adapter.rank for adapter in adapters)))
    return f"{','.join(layout.targets)} in {layout.layers} layers, rank {layout.rank}"


def _on_config(path: Path, adapters: list[Adapter], layout: Layout, findings: _Findings) -> None:
    folder = path if path.is_dir() else path.parent
    configs: list[DecoderConfig] = []

    def base() -> str:
        configs.append(config := read_config(folder))
        return f"{config.layers} layers, {config.dim} wide, {config.vocab_size:,} tokens"

    def shapes() -> str:
        config = configs[0]
        if layout.layers > config.layers:
            raise Mismatch(
                f"layer {layout.layers - 1} is adapted, {path} has {config.layers} layers"
            )
        for target, shape in layout.shapes:
            if shape != config.linear_shape(target):
                own = config.linear_shape(target)
                raise Mismatch(
                    f"{module_name(0, target)} is {shape[0]} x {shape[1]} in the adapters, "
                    f"{own[0]} x {own[1]} in {path}: adapters of another model"
                )
        return "as the adapters'"

    if findings.ask("base", base):
        findings.ask("shapes", shapes)
    own = folder / TOKENIZER
    if own.is_file():
        findings.ask("tokenizer", lambda: _tokenizers(adapters, file_sha256(own)))
    else:
        findings.append(Finding("tokenizer", "warn", f"{own}: missing; export-base needs it"))


def _on_program(path: Path, adapters: list[Adapter], layout: Layout, findings: _Findings) -> None:
    # With the extra `device`; the other questions need none.
    from hydrapack.device.opening import check_model_file
    from hydrapack.device.text import load_tokenizer

    programs: list[LoadedProgram] = []

    def base() -> tuple[Level, str]:
        check_model_file(path, True)
        program = load_program(path, "forward")
        check_forward(program)
        programs.append(program)
        name = str(program.constant("get_base_model"))
        if name != adapters[0].base_model:
            return "warn", (
                f"exported from {name!r}, the adapters name {adapters[0].base_model!r}: see that "
                "they are the same weights"
            )
        return "ok", f"{name!r}, weights {program.constant('get_weights_sha256')[:16]}…"

    def rank() -> tuple[Level, str]:
        own = int(programs[0].constant("get_adapter_rank"))
        if own == layout.rank:
            return "ok", f"{own}, as the adapters'"
        return "warn", (
            f"the program takes {own}, the adapters have {layout.rank}: merge with `rank` {own}"
            + (", which leaves something out" if own < layout.rank else "")
        )

    def targets() -> str:
        own = replace(layout, rank=int(programs[0].constant("get_adapter_rank")))
        _, fitting = base_of(path, adapters[0].base_model, own)
        return f"{','.join(fitting.targets)} in {fitting.layers} layers"

    def tokenizer() -> str | tuple[Level, str]:
        sha256 = str(programs[0].constant("get_tokenizer_sha256"))
        load_tokenizer(path.parent / TOKENIZER, sha256)
        return _tokenizers(adapters, sha256)

    if findings.ask("base", base):
        if "get_adapter_rank" not in programs[0].method_names:
            detail = f"{path}: takes no adapters: export it with `rank` {layout.rank}"
            findings.append(Finding("rank", "fail", detail))
            return
        findings.ask("rank", rank)
        findings.ask("targets", targets)
        findings.ask("tokenizer", tokenizer)


def _tokenizers(adapters: list[Adapter], sha256: str) -> str | tuple[Level, str]:
    """Trainers save one beside the adapter; another one means other ids."""
    own = [a.folder / TOKENIZER for a in adapters if (a.folder / TOKENIZER).is_file()]
    for path in own:
        if file_sha256(path) != sha256:
            return "warn", f"{path}: is not the base's (SHA-256): see that the ids are the same"
    return f"{sha256[:16]}…, {len(own)} of {len(adapters)} adapters bring the same one"
