"""Is a package what its manifest says, does it run, and does every head do something?

Checks go from the cheap to the dear, and what is damaged is never run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hydrapack.adapters.adapter import Adapter
from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import ErrorSum, LoraModule, difference_norm
from hydrapack.bundle.format import Bundle
from hydrapack.device.session import Session
from hydrapack.packing.manifest import (
    ADAPTERS,
    GOLDEN,
    MANIFEST,
    Manifest,
    ManifestTask,
    check_files,
    read_manifest,
)
from hydrapack.packing.package import Package
from hydrapack.packing.signature import SIGNATURE, check_signature
from hydrapack.program.layout import Layout
from hydrapack.program.load import execute, load_program
from hydrapack.support.errors import HydrapackError, Invalid, RuntimeFailure
from hydrapack.support.junit import Check
from hydrapack.support.progress import Stage, silently
from hydrapack.verification.drift import DriftLimits, drift, packed_adapter

TOLERANCE = 0.02
"""Of a stated relative error, absolute: stated ones add merge and rounding as independent."""


def verify(
    package: Package | str | Path,
    model: str | Path | None = None,
    bundle: Bundle | str | Path | None = None,
    adapters: Sequence[Adapter | str | Path] = (),
    public_key: str | None = None,
    max_drift: float | None = None,
    max_task_error: float | None = None,
    stage: Stage = silently,
    newer_than: Package | str | Path | int | None = None,
    *,
    min_top1: float | None = None,
    min_margin_kept: float | None = None,
) -> list[Check]:
    """Every check, in order; after a failed one only those that it does not make unsafe.

    Args:
        package: the directory, or the package that ``pack`` gave.
        model: the model.pte it is to run on.
        bundle: what it was packed from, in memory or saved.
        adapters: what it was merged from; PEFT folders, as ``DIR`` or ``TASK=DIR``, or adapters.
        public_key: Ed25519, hex, that must have signed it.
        max_drift: nats that a head's next-token distributions may be from its adapter's, with
            ``model`` and ``adapters``; not judged by default.
        min_top1: share of tokens, likewise, at which it must prefer its adapter's.
        min_margin_kept: share that it must keep, likewise, of its adapter's margins before the
            next best tokens, summed.
        max_task_error: relative error, as packed, that no task may be above; not judged by default.
        newer_than: a package, or its version, that this one's package_version must be above; of a
            package the channel must be the same too.

    Raises:
        HydrapackError: no package there, a ``model`` that is none, unreadable bundles or adapters,
            or a limit on drift without ``model`` and ``adapters``.

    >>> checks = hydrapack.verify("package", "model.pte")
    >>> all(check.passed for check in checks)
    True
    """
    package = package.folder if isinstance(package, Package) else Path(package)
    limits = DriftLimits(max_drift, min_top1, min_margin_kept)
    if limits.given and (model is None or not adapters):
        raise Invalid(f"`{limits.given[0]}`: needs `model` and `adapters` to measure drift")
    bundle = None if bundle is None else Bundle.of(bundle)
    read = read_adapters(adapters) if adapters else []
    if not (package / MANIFEST).is_file():
        raise Invalid(f"{package}: no package, it has no {MANIFEST}")
    if newer_than is not None and not isinstance(newer_than, int | Package):
        newer_than = Package(Path(newer_than), read_manifest(Path(newer_than)))
    checks: list[Check] = []

    def check(name: str, run: Callable[[], str | Check]) -> bool:
        stage(name)
        try:
            found = run()
            checks.append(Check(name, True, found) if isinstance(found, str) else found)
        except HydrapackError as error:
            checks.append(Check(name, False, str(error)))
        return checks[-1].passed

    manifest: list[Manifest] = []
    whole = check("schema", lambda: _schema(package, manifest))
    whole = whole and check("files", lambda: _files(package, manifest[0]))
    if public_key is not None or (package / SIGNATURE).exists():
        signed = check("signature", lambda: f"by {check_signature(package, public_key)[:16]}…")
        whole = whole and signed
    if not whole:
        return checks
    stated, programs = manifest[0], _Programs(package, manifest[0])
    if newer_than is not None:
        check("version", lambda: _newer(stated, newer_than))
    check("task errors", lambda: _task_errors(stated, max_task_error))
    check("sources", lambda: _sources(stated))
    if not check("program", programs.load):
        return checks
    for task in stated.tasks:
        check(f"head {task.name}", partial(programs.head, task))
    if bundle is not None:
        for task in stated.tasks:
            check(f"bundle {task.name}", partial(programs.against_bundle, task, bundle))
    for adapter in read:
        check(f"adapter {adapter.task}", partial(programs.against_adapter, adapter))
    if model is not None:
        model = Path(model)
        load_program(model, "forward")
        sessions: list[Session] = []
        if check("model", lambda: _on_model(model, package, stated, sessions)):
            session = sessions[0]
            if any(file.name == GOLDEN for file in stated.files):
                check("golden", lambda: _golden(session))
            for task in stated.tasks:
                check(f"output {task.name}", partial(_changes_output, session, task.name))
            for adapter in read:
                own = partial(_drift, session, programs.layout, adapter, limits)
                check(f"drift {adapter.task}", own)
    return checks


def _schema(package: Path, found: list[Manifest]) -> str:
    found.append(read_manifest(package))
    return f"schema version {found[0].schema_version}, {len(found[0].tasks)} tasks"


def _files(package: Path, manifest: Manifest) -> str:
    check_files(package, manifest)
    known = {MANIFEST, SIGNATURE, *(file.name for file in manifest.files)}
    odd = sorted(path.name for path in package.iterdir() if path.name not in known)
    if odd:
        raise Invalid(f"{package / odd[0]}: is not in the manifest; remove it or pack again")
    total = sum(file.bytes for file in manifest.files)
    return f"{len(manifest.files)} files, {total:,} bytes, SHA-256 as stated"


def _newer(manifest: Manifest, other: Package | int) -> str:
    version, channel = manifest.package_version, manifest.channel
    if isinstance(other, Package):
        older = other.manifest
        if older.channel != channel:
            raise Invalid(f"channel is {channel or 'none'}, the other's {older.channel or 'none'}")
        # A package without one is older than any that has one.
        other = older.package_version or 0
    if version is None or version <= other:
        raise Invalid(f"package_version is {version or 'none'}, not above {other or 'none'}")
    return f"{version}, above {other or 'none'}" + (f", channel {channel}" if channel else "")


def _task_errors(manifest: Manifest, limit: float | None) -> str:
    errors = {task.name: task.packed_relative_error for task in manifest.tasks}
    above = {name: e for name, e in errors.items() if limit is not None and e > limit}
    if above:
        found = ", ".join(f"{name} {error:.4f}" for name, error in above.items())
        raise Invalid(f"relative errors above {limit:g}: {found}")
    if manifest.lost_tasks:
        found = ", ".join(f"{name} ({errors[name]:.2f})" for name in manifest.lost_tasks)
        return f"warning: lost tasks, next to nothing is left of them: {found}"
    worst = max(errors, key=errors.__getitem__)
    return f"none lost; the worst is {worst}, {errors[worst]:.4f} from its adapter"


def _sources(manifest: Manifest) -> str:
    if sorted(s.task for s in manifest.sources) != sorted(task.name for task in manifest.tasks):
        raise Invalid(f"{MANIFEST}: sources: are not one for each task")
    known = [f"{s.task} {s.origin}" for s in manifest.sources if s.url]
    named = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
    return f"{len(known)} of {len(manifest.sources)} with a URL" + (f": {named}" if named else "")


class _Programs:
    """adapters.pte on the runtime, and what it gives."""

    def __init__(self, package: Path, manifest: Manifest) -> None:
        self.path, self.manifest = package / ADAPTERS, manifest
        self.layout: Layout = manifest.layout
        self.a = torch.zeros(0)
        self.heads: dict[str, torch.Tensor] = {}
        self._head: Any = None

    def load(self) -> str:
        program = load_program(self.path, "head")
        if program.constant("get_adapter_layout") != self.manifest.layout_digest:
            raise Invalid(f"{self.path}: has another adapter layout than {MANIFEST}")
        if int(program.constant("get_heads")) != self.manifest.heads:
            raise Invalid(f"{self.path}: has another number of heads than {MANIFEST}")
        self._head = program.method("head")
        self.a = self._run(program.method("shared"), [], self.layout.a_size, "shared")
        return f"both methods run, {self.layout.a_size:,} values in a, {self.layout.b_size:,} in b"

    def _run(self, method: Any, inputs: list[Any], size: int, name: str) -> torch.Tensor:
        try:
            (value,) = execute(method, inputs, name)
        except (RuntimeFailure, ValueError) as error:  # ValueError: not one output
            raise Invalid(f"{self.path}: {name} does not run") from error
        if value.shape != (size,) or not bool(torch.isfinite(value).all()):
            raise Invalid(f"{self.path}: {name} gives another size than the layout's, or NaN")
        return value

    def head(self, task: ManifestTask) -> str:
        b = self._run(self._head, [torch.tensor(task.route)], self.layout.b_size, "head")
        self.heads[task.name] = b = b.clone()
        pairs = list(self.layout.unpack(self.a, b))
        norm = math.hypot(*(difference_norm(LoraModule(A, B), A * 0, B * 0)[1] for A, B in pairs))
        if norm == 0:
            raise Invalid(f"task {task.name!r}: its head changes nothing: B @ A is zero")
        for other in self.manifest.tasks:
            known = self.heads.get(other.name)
            if other.route == task.route or known is None:
                continue
            if torch.equal(known, b):
                raise Invalid(
                    f"task {task.name!r}: its head is that of {other.name!r}, whose route differs"
                )
        silent = sum(not bool(B.any()) for _, B in pairs)
        return f"norm {norm:.4g}" + (f", {silent} modules silent" if silent else "")

    def updates(self, task: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B by module name, as the device has them."""
        if task not in self.heads:
            raise Invalid(f"task {task!r}: its head does not run")
        pairs = self.layout.unpack(self.a, self.heads[task])
        return dict(zip(self.layout.modules(), pairs, strict=True))

    def against_bundle(self, task: ManifestTask, bundle: Bundle) -> str:
        stored = self.updates(task.name)
        error = ErrorSum()
        for name, B in bundle.head(bundle.info.task(task.name)).items():
            if name not in stored:
                raise Invalid(f"task {task.name!r}: the package does not have {name}")
            update = LoraModule(bundle.modules[name].shared(), B)
            error.add(update, *stored[name])
        found = error.relative
        stated = math.sqrt(max(task.packed_relative_error**2 - task.merge_relative_error**2, 0.0))
        if found > stated * 1.01 + 1e-6:
            raise Invalid(
                f"task {task.name!r}: dequantized it is {found:.4f} from the bundle, "
                f"{stated:.4f} are stated"
            )
        return f"{found:.4f} from the bundle, {stated:.4f} stated"

    def against_adapter(self, adapter: Adapter) -> str:
        task = _task_of(self.manifest, adapter)
        (source,) = (s for s in self.manifest.sources if s.task == adapter.task)
        if source.digest != adapter.digest:
            whence = f"; that is {source.origin}" if source.url else ""
            raise Invalid(f"{adapter.folder}: is not the adapter that was merged (SHA-256){whence}")
        stored = self.updates(task.name)
        error = ErrorSum()
        for name, pair in stored.items():
            (d_out, _), (_, d_in) = pair[1].shape, pair[0].shape
            absent = LoraModule(torch.zeros(0, d_in), torch.zeros(d_out, 0))
            update = adapter.modules.get(name, absent)
            error.add(update, *pair)
        found = error.relative
        if abs(found - task.packed_relative_error) > TOLERANCE + 0.02 * found:
            raise Invalid(
                f"task {task.name!r}: its head is {found:.4f} from the adapter, "
                f"{task.packed_relative_error:.4f} are stated"
            )
        return f"{found:.4f} from the adapter, {task.packed_relative_error:.4f} stated"


def _task_of(manifest: Manifest, adapter: Adapter) -> ManifestTask:
    for task in manifest.tasks:
        if task.name == adapter.task:
            return task
    raise Invalid(f"{adapter.folder}: the package has no task {adapter.task!r}")


def _on_model(model: Path, package: Path, manifest: Manifest, sessions: list[Session]) -> str:
    sessions.append(Session(model, package))
    bound = ", digests" if manifest.base_model.weights_sha256 else ""
    return f"layout, rank {manifest.rank}{bound}"


def _golden(session: Session) -> Check:
    found = session.self_test()
    values = {"near_ties": float(found.near_ties), "tokens": float(found.tokens)}
    return Check("golden", found.passed, str(found), values)


def _changes_output(session: Session, task: str) -> str:
    ids = session.use(task).encode("The quick brown fox jumps over the lazy dog.")
    with_head = session.forward(ids)
    without = session.use(None).forward(ids)
    change = float((with_head - without).abs().max())
    if not math.isfinite(change):
        raise Invalid(f"task {task!r}: the model gives NaN or infinity")
    if change == 0:
        raise Invalid(f"task {task!r}: its head does not change the model's output")
    return f"logits change by up to {change:.4g}"


def _drift(session: Session, layout: Layout, adapter: Adapter, limits: DriftLimits) -> Check:
    found = drift(session, adapter.task, *packed_adapter(layout, adapter))
    broken = limits.broken(found)
    detail = (
        f"{found.nats:.4f} nats a token from its adapter, {found.top1:.3f} of the top tokens, "
        f"{found.margin_kept:.3f} of the margin"
    )
    if broken:
        detail = f"task {adapter.task!r}, against its adapter: {'; '.join(broken)}"
    return Check(f"drift {adapter.task}", not broken, detail, vars(found))
