"""What a device reads of ``manifest.json``: what it uses, and no key more.

The digest answers for the rest. The C++ runtime gives the same verdict on any bytes
(docs/runtime-contract.md); the packing tools read with hydrapack.packing.manifest instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hydrapack.adapters.task_settings import MaxNewTokens, Stop, Temperature, Text, TopK, TopP
from hydrapack.packing.manifest import (
    ADAPTERS,
    MANIFEST,
    Piece,
    check_package_digest,
    check_tasks_and_files,
    check_version,
)
from hydrapack.support.errors import Invalid, NotFound
from hydrapack.support.schema import Digest, fitting, parse_json, read_bytes, utf8_at_most

Items = Field(min_length=1, max_length=65536)


class Read(BaseModel):
    """Unknown keys are ignored; the types are JSON's own, so 1.0 and true are no integers."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True)


class Base(Read):
    """The base model the tasks were trained on."""

    id: Annotated[str, AfterValidator(utf8_at_most(1000))]
    weights_sha256: Digest | None
    tokenizer_sha256: Digest | None


class Module(Read):
    """A module's number of heads, and what each has of the banks, (number, bytes)."""

    heads: Annotated[int, Field(ge=1, le=4096)]
    pieces: Annotated[list[Piece], Field(max_length=8)] = []


class Generation(Read):
    """How an answer is generated where the caller does not say."""

    max_new_tokens: MaxNewTokens
    temperature: Temperature
    top_k: TopK
    top_p: TopP


class Task(Read):
    """A task: how it is prompted, and its head in each module."""

    name: Annotated[str, Field(min_length=1), AfterValidator(utf8_at_most(200))]
    prompt_template: Text
    stop: Stop
    generation: Generation
    language: Text | None
    route: list[Annotated[int, Field(ge=0, lt=4096)]]
    head_sha256: Digest | None = None


class HeadBanks(Read):
    """Where adapters.pte holds heads, and the SHA-256 of the rest of it."""

    offsets: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 40)]], Items]
    shared_sha256: Digest


class File(Read):
    """A file of the package."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    bytes: Annotated[int, Field(ge=0, lt=1 << 40)]
    sha256: Digest


class DeviceManifest(Read):
    """The part of manifest.json that a device uses."""

    package_digest: Digest
    layout_digest: Digest
    rank: Annotated[int, Field(ge=1, le=65536)]
    heads: Annotated[int, Field(ge=1, le=4096)]
    base_model: Base
    modules: Annotated[list[Module], Items]
    tasks: Annotated[list[Task], Items]
    fallback: str
    files: Annotated[list[File], Items]
    head_banks: HeadBanks | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def adapters(self) -> File:
        """What is said of adapters.pte."""
        return next(file for file in self.files if file.name == ADAPTERS)

    def find(self, name: str) -> Task | None:
        """The task called ``name``, or what ``fallback`` has for it; None is the bare model.

        Raises:
            NotFound: no such task and no fallback; the message lists those there are.
        """
        tasks = {task.name: task for task in self.tasks}
        if name in tasks:
            return tasks[name]
        if self.fallback == "error":
            raise NotFound(f"unknown task {name!r}; the package has: {', '.join(tasks)}")
        return None if self.fallback == "base" else tasks[self.fallback]


def find_task(manifest: DeviceManifest | None, name: str | None) -> Task | None:
    """The task called ``name``; None for no name, the bare base model.

    Raises:
        NotFound: see ``DeviceManifest.find``, or there is no package.
    """
    if name is None:
        return None
    if manifest is None:
        raise NotFound(f"unknown task {name!r}: the session has no package")
    return manifest.find(name)


def read_device_manifest(package: Path, check_digest: bool = True) -> tuple[DeviceManifest, bytes]:
    """The manifest of a package, and its bytes (which a signature is of).

    Raises:
        NotFound, Io: it is not there, or cannot be read.
        Invalid, Mismatch: see ``parse_manifest``.
    """
    path = package / MANIFEST
    data = read_bytes(path, "; is it a package?")
    return parse_manifest(data, path, check_digest), data


def parse_manifest(data: bytes, where: Path, check_digest: bool = True) -> DeviceManifest:
    """The manifest in ``data``.

    Raises:
        Invalid: not the JSON it must be, or a key that the device uses is missing or out of range.
        Mismatch: with ``check_digest``, the bytes have another package_digest.
    """
    content = parse_json(data, where)
    check_version(content, where)
    with fitting(where):
        manifest = DeviceManifest.model_validate(content)
    heads = max(module.heads for module in manifest.modules)
    if heads > manifest.heads:
        raise Invalid(f"{where}: modules: one has more heads than the {manifest.heads} of the file")
    check_tasks_and_files(manifest, where)
    if check_digest:
        check_package_digest(data, manifest.package_digest, where)
    return manifest
