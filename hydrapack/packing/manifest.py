"""``manifest.json``: what the device must know of a package (docs/manifest.md)."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hydrapack.adapters.prompt import check_template
from hydrapack.adapters.task_settings import (
    Generation,
    MaxNewTokens,
    Revision,
    Stop,
    Temperature,
    Text,
    TopK,
    TopP,
    Url,
)
from hydrapack.packing.head_bytes import HeadBytes
from hydrapack.program.layout import Layout, parse_targets
from hydrapack.program.quantized import BitWidth
from hydrapack.support.digest import bytes_sha256, file_sha256, is_file
from hydrapack.support.errors import Invalid, Mismatch
from hydrapack.support.schema import (
    Digest,
    Strict,
    fitting,
    json_text,
    parse_json,
    read_bytes,
    utf8_at_most,
)

MANIFEST, ADAPTERS, GOLDEN = "manifest.json", "adapters.pte", "golden.json"
_STATED_DIGEST = re.compile(rb'\n  "package_digest": "([0-9a-f]{64})')
_NUMBERS = re.compile(r"\[\n\s+(-?\d[^\n]*(?:\n\s+-?\d[^\n]*)*)\n\s+\]")

Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Width = Annotated[int, Field(ge=1, le=1 << 24)]
Piece = Annotated[list[Count], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


class BaseModelInfo(Strict):
    """The base model the tasks were trained on."""

    id: Annotated[str, Field(max_length=1000), AfterValidator(utf8_at_most(1000))]
    """Hugging Face id or path, as the adapters name it."""
    weights_sha256: Digest | None
    """SHA-256 of the base weights' tensors, where the package was checked against a model.pte."""
    tokenizer_sha256: Digest | None
    """SHA-256 of tokenizer.json, likewise."""
    scheme: dict[str, str] | None = None
    """Format of the base program's weights by kind, likewise (docs/architecture.md)."""


class SourceInfo(Strict):
    """An adapter that went into the merge."""

    task: Name
    digest: Digest
    """SHA-256 of the adapter's adapter_model.safetensors."""
    rank: int = Field(ge=1, le=65536)
    alpha: float
    parameters: Count
    license: str | None
    base_model: str
    url: Url | None = Field(default=None, exclude_if=lambda url: url is None)
    """Where the adapter was published; left out of the file where it is not known."""
    revision: Revision | None = Field(default=None, exclude_if=lambda name: name is None)
    """Its commit or tag there; left out likewise."""

    @property
    def origin(self) -> str:
        """Its URL and revision, in words; empty where they are not known."""
        return " at ".join(part for part in (self.url, self.revision) if part)


class ModuleInfo(Strict):
    """How one module is stored."""

    name: Name
    heads: int = Field(ge=1, le=4096)
    """Heads that a route may name."""
    stored_heads: int | None = Field(default=None, ge=1, le=4096, exclude_if=lambda n: n is None)
    """Heads that are stored, where those named are these times a factor each; left out else."""
    rank: int = Field(ge=1, le=65536)
    output_rank: Count
    """Q of a two-sided module; 0 for whole heads."""
    bits_a: BitWidth
    bits_b: BitWidth
    pieces: list[Piece] = Field(
        default_factory=list, max_length=8, exclude_if=lambda pieces: not pieces
    )
    """Bytes of a bank that each of the heads has, as (its number, bytes); left out if none."""


class HeadBanks(Strict):
    """Where adapters.pte holds heads and nothing else, so that each is checked when it is used."""

    offsets: list[Annotated[int, Field(ge=0, lt=1 << 40)]] = Field(min_length=1, max_length=65536)
    """Where each bank begins; in it the heads of the modules that have pieces of it lie in order,
    one module after the other."""
    shared_sha256: Digest
    """SHA-256 of adapters.pte without the banks."""


class TaskGeneration(Generation):
    """How an answer is generated where the caller does not say; here every key is needed."""

    max_new_tokens: MaxNewTokens
    temperature: Temperature
    """0 is greedy."""
    top_k: TopK
    """Tokens to choose among; 0 for all."""
    top_p: TopP
    """Least probability mass of the tokens to choose among."""


class ManifestTask(Strict):
    """A task: how it is prompted, and its head in each module, in packing order."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(utf8_at_most(200))]
    prompt_template: Text
    stop: Stop
    generation: TaskGeneration
    language: Text | None
    route: list[Annotated[int, Field(ge=0, lt=4096)]]
    head_sha256: Digest | None = Field(default=None, exclude_if=lambda digest: digest is None)
    """SHA-256 of its head's pieces, in the order of the modules; there where head_banks is."""
    merge_relative_error: float = Field(ge=0)
    """Norm of (adapter's updates - head's) over norm of the updates, before quantization."""
    packed_relative_error: float = Field(ge=0)
    """The same after quantization."""


class ManifestFile(Strict):
    """A file of the package."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    bytes: int = Field(ge=0, lt=1 << 40)
    sha256: Digest


class Storage(Strict):
    """What the package takes against the adapters kept apart."""

    parameters: Annotated[int, Field(ge=1)]
    baseline_parameters: Annotated[int, Field(ge=1)]
    s_percent: float = Field(ge=0)
    bytes: int = Field(ge=1)
    tensor_bytes: int = Field(ge=1)
    """Integers and scales alone, by arithmetic; the rest of the file is the program."""
    baseline_bytes: int = Field(ge=1)
    """The adapters in half precision: 2 bytes a value, VeRA's common A and B once."""


class ManifestContent(Strict):
    """All of manifest.json but its digest."""

    schema_version: Literal[1]
    hydrapack_version: str
    adapter_type: Literal["lora", "vera"] = Field(
        default="lora", exclude_if=lambda kind: kind == "lora"
    )
    """Of the adapters; left out for LoRA."""
    tools: dict[str, str]
    """Versions of what wrote adapters.pte."""
    base_model: BaseModelInfo
    layout_digest: Digest
    rank: int = Field(ge=1, le=65536)
    heads: int = Field(ge=1, le=4096)
    target_modules: list[str] = Field(min_length=1)
    target_shapes: list[tuple[Width, Width]]
    """(d_out, d_in) of each target."""
    group_size: int = Field(ge=1, le=65536)
    """Columns that share a scale at 4 bits."""
    modules: list[ModuleInfo] = Field(min_length=1, max_length=65536)
    """In packing order."""
    sources: list[SourceInfo] = Field(min_length=1)
    tasks: list[ManifestTask] = Field(min_length=1, max_length=65536)
    lost_tasks: list[Name] = Field(default_factory=list)
    """Tasks whose packed_relative_error is above 0.9; left out of the file where there are none."""
    fallback: str
    """What a name that is no task gets: ``error``, ``base`` for the bare model, or a task."""
    files: list[ManifestFile] = Field(min_length=1, max_length=65536)
    head_banks: HeadBanks | None = Field(default=None, exclude_if=lambda banks: banks is None)
    """Left out where adapters.pte is checked as a whole only."""
    storage: Storage
    package_version: int | None = Field(
        default=None, ge=1, lt=1 << 53, exclude_if=lambda n: n is None
    )
    """Yours, higher with each release; left out of the file where none was given."""
    channel: (
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None
    ) = Field(default=None, exclude_if=lambda name: name is None)
    """Yours, as ``beta``; left out likewise."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Anything; left out of the file where it is empty."""

    @property
    def bits(self) -> str:
        """Bits a value, of A and of B: ``8``, ``8/4``, or ``mixed``."""
        widths = {(m.bits_a, m.bits_b) for m in self.modules}
        if len(widths) > 1:
            return "mixed"
        (a, b) = widths.pop()
        return str(a) if a == b else f"{a}/{b}"

    @property
    def layout(self) -> Layout:
        """How the vectors ``a`` and ``b`` are packed."""
        layers = len(self.modules) // len(self.target_modules)
        shapes = tuple(zip(self.target_modules, self.target_shapes, strict=True))
        return Layout(layers=layers, rank=self.rank, shapes=shapes)


class Manifest(ManifestContent):
    """The content of manifest.json."""

    package_digest: Digest
    """SHA-256 of manifest.json with this field empty; the files are in it by their digests."""


def manifest_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of manifest.json."""
    schema = Manifest.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_version(content: dict[str, Any], where: Path) -> None:
    """Refuse a manifest of another schema version; first, before anything else in it is.

    Raises:
        Invalid: naming ``where``.
    """
    version = content.get("schema_version")
    # True and 1.0 equal 1 in Python.
    if type(version) is not int or version != 1:
        raise Invalid(f"{where}: schema_version: is not 1, the version read here; update hydrapack")


def read_manifest(package: Path) -> Manifest:
    """Read and check a package's manifest.

    Raises:
        HydrapackError: missing or malformed, a template without its hole, a route out of range.
    """
    path = package / MANIFEST
    data = read_bytes(path, "; is it a package?")
    check_version(parse_json(data, path), path)
    with fitting(path):
        manifest = Manifest.model_validate_json(data, strict=True)
    _check_layout(manifest, path)
    check_tasks_and_files(manifest, path)
    if not set(manifest.lost_tasks) <= {task.name for task in manifest.tasks}:
        raise Invalid(f"{path}: lost_tasks: names one that is no task")
    return manifest


def check_tasks_and_files(manifest: Any, where: Path) -> None:
    """What lies between the keys that a device reads; ``manifest`` is either reader's.

    Raises:
        Invalid: a template without its hole, a route out of range, a name twice, or no such task;
            names ``where``.
    """
    heads = [module.heads for module in manifest.modules]
    for task in manifest.tasks:
        check_template(task.prompt_template, f"{where}: task {task.name!r}")
        if len(task.route) != len(heads):
            raise Invalid(
                f"{where}: task {task.name!r}: route has {len(task.route)} entries, there are "
                f"{len(heads)} modules"
            )
        if any(map(operator.ge, task.route, heads)):
            raise Invalid(f"{where}: task {task.name!r}: route names a head that is not there")
    names = [task.name for task in manifest.tasks]
    if len(set(names)) != len(names):
        raise Invalid(f"{where}: tasks: a name twice")
    check_fallback(manifest.fallback, names, f"{where}: fallback")
    files = [file.name for file in manifest.files]
    if ADAPTERS not in files or MANIFEST in files or len(set(files)) != len(files):
        raise Invalid(f"{where}: files: must name {ADAPTERS}, and each file once")
    head_bytes(manifest, where)


def head_bytes(manifest: Any, where: Path) -> HeadBytes | None:
    """Where the heads lie; None where the manifest does not say. ``manifest`` is either reader's.

    Raises:
        Invalid: they lie nowhere in the file, or a task's digest is missing; names ``where``.
    """
    banks = manifest.head_banks
    size = next(file.bytes for file in manifest.files if file.name == ADAPTERS)
    try:
        found = HeadBytes(banks.offsets if banks else (), manifest.modules, size)
    except Invalid as error:
        raise Invalid(f"{where}: {error}") from None
    for task in manifest.tasks:
        if banks and not task.head_sha256:
            raise Invalid(f"{where}: task {task.name!r}: head_sha256 is missing")
    return found if banks else None


def _check_layout(manifest: Manifest, path: Path) -> None:
    targets = manifest.target_modules
    if tuple(targets) != parse_targets(targets) or len(manifest.target_shapes) != len(targets):
        raise Invalid(f"{path}: target_modules: not in packing order, or without target_shapes")
    if manifest.layout.digest != manifest.layout_digest:
        raise Invalid(f"{path}: layout_digest: is not that of the layout described")
    if [module.name for module in manifest.modules] != manifest.layout.modules():
        raise Invalid(f"{path}: modules: are not those of the layout")
    for module in manifest.modules:
        stored = module.stored_heads or module.heads
        if module.rank > manifest.rank or not stored <= module.heads <= manifest.heads:
            raise Invalid(f"{path}: modules: {module.name} exceeds rank or heads")


def check_fallback(fallback: str, tasks: Sequence[str], where: str) -> None:
    """Refuse a fallback that is neither ``error``, ``base`` nor a task.

    Raises:
        HydrapackError: naming ``where``.
    """
    if fallback not in ("error", "base", *tasks):
        raise Invalid(f"{where} {fallback!r}: give error, base or one of {', '.join(tasks)}")


def check_package_digest(data: bytes, stated: str, where: Path) -> None:
    """Compare manifest.json's bytes with the digest in them.

    Raises:
        Invalid, Mismatch: no line of package_digest as hydrapack writes it; another digest.
    """
    # A line of its own at the top level: no JSON string holds a bare newline.
    found = _STATED_DIGEST.search(data)
    if found is None:
        raise Invalid(f"{where}: is not as hydrapack writes it: no line of package_digest")
    digest = hashlib.sha256(data[: found.start(1)])
    digest.update(data[found.end(1) :])
    if digest.hexdigest() != stated:
        raise Mismatch(f"{where}: package_digest does not fit: the file was changed")


def sealed(manifest: ManifestContent, more: Sequence[ManifestFile] = ()) -> Manifest:
    """The manifest with more files, and its package digest over all of them."""
    files = sorted([*manifest.files, *more], key=lambda file: file.name)
    manifest = manifest.model_copy(update={"files": files})
    fields = dict(manifest) | {"package_digest": bytes_sha256(_text(manifest, "").encode())}
    return Manifest.model_construct(**fields)


def manifest_text(manifest: Manifest) -> str:
    """The content of manifest.json; the same manifest gives the same text."""
    return _text(manifest, manifest.package_digest)


def _text(manifest: ManifestContent, digest: str) -> str:
    left_out = {name for name in ("lost_tasks", "metadata") if not getattr(manifest, name)}
    fields = manifest.model_dump(exclude=left_out) | {"package_digest": digest}
    # Lists of numbers on a line each: routes would fill the file else. No string holds a newline.
    return _NUMBERS.sub(lambda m: "[" + re.sub(r"\n\s+", " ", m[1]) + "]", json_text(fields))


def describe_file(path: Path) -> ManifestFile:
    """Name, size and digest of a file of the package."""
    return ManifestFile(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def check_files(package: Path, manifest: Manifest) -> None:
    """Compare the package's files with the manifest.

    Raises:
        HydrapackError: a file is missing, or its size or SHA-256 is another, or the manifest's own
            digest does not fit.
    """
    path = package / MANIFEST
    check_package_digest(read_bytes(path), manifest.package_digest, path)
    for file in manifest.files:
        path = package / file.name
        if not is_file(path, file.bytes, file.sha256):
            raise Mismatch(f"{path}: is not the file that {MANIFEST} describes; pack again")


def read_package(package: Path) -> Manifest:
    """The manifest of a package whose files are all as it says.

    Raises:
        HydrapackError: see ``read_manifest`` and ``check_files``.
    """
    manifest = read_manifest(package)
    check_files(package, manifest)
    return manifest
