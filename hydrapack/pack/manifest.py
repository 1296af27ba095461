"""``manifest.json``: what the device must know of a package (docs/manifest.md)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hydrapack.errors import InputError
from hydrapack.prompts import check_template
from hydrapack.quantize import Bits
from hydrapack.schema import Digest, Strict, read_model

MANIFEST, ADAPTERS = "manifest.json", "adapters.pte"


class ManifestTask(Strict):
    """A task: how it is prompted, and its head in each module, in packing order."""

    name: str = Field(min_length=1, max_length=200)
    prompt_template: str
    stop: list[str]
    language: str | None
    route: list[Annotated[int, Field(ge=0, lt=4096)]]
    merge_relative_error: float = Field(ge=0)
    """Norm of (adapter's updates - head's) over norm of the updates, before quantization."""
    packed_relative_error: float = Field(ge=0)
    """The same after quantization."""
    source_digest: Digest
    """SHA-256 of the adapter's adapter_model.safetensors."""


class ManifestFile(Strict):
    """A file of the package."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    bytes: int = Field(ge=0)
    sha256: Digest


class Storage(Strict):
    """What the package takes against the adapters kept apart."""

    parameters: int = Field(ge=1)
    baseline_parameters: int = Field(ge=1)
    bytes: int = Field(ge=1)
    baseline_bytes: int = Field(ge=1)
    """The adapters in half precision, as PEFT files: 2 bytes a value."""


class Manifest(Strict):
    """The content of manifest.json."""

    schema_version: Literal[1] = 1
    hydrapack_version: str
    base_model: str
    layout_digest: Digest
    rank: int = Field(ge=1, le=65536)
    heads: int = Field(ge=1, le=4096)
    target_modules: list[str]
    bits: Bits
    tasks: list[ManifestTask] = Field(min_length=1)
    files: list[ManifestFile] = Field(min_length=1)
    storage: Storage
    package_digest: Digest
    """SHA-256 over the manifest with this field empty; the files are in it by their digests."""

    def task(self, name: str) -> ManifestTask:
        """The task called ``name``.

        Raises:
            InputError: no such task; the message lists those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks)
        raise InputError(f"unknown task {name!r}; the package has: {known}")


def read_manifest(package: Path) -> Manifest:
    """Read and check a package's manifest.

    Raises:
        InputError: missing or malformed, a template without its hole, a route out of range.
    """
    path = package / MANIFEST
    manifest = read_model(path, Manifest, "; is it a package?")
    for task in manifest.tasks:
        check_template(task.prompt_template, f"{path}: task {task.name!r}")
        if not task.route or max(task.route) >= manifest.heads:
            raise InputError(f"{path}: task {task.name!r}: route names a head that is not there")
    return manifest


def package_digest(manifest: Manifest) -> str:
    """SHA-256 (hex) of the manifest's canonical JSON with an empty ``package_digest``."""
    content = {**manifest.model_dump(), "package_digest": ""}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(package: Path, manifest: Manifest) -> None:
    """Compare the package's files with the manifest.

    Raises:
        InputError: a file is missing, or its size or SHA-256 is another, or the manifest's own
            digest does not fit.
    """
    if package_digest(manifest) != manifest.package_digest:
        raise InputError(
            f"{package / MANIFEST}: package_digest does not fit: it was changed by hand"
        )
    for file in manifest.files:
        path = package / file.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
            raise InputError(f"{path}: is not the file that {MANIFEST} describes; pack again")


def read_package(package: Path) -> Manifest:
    """The manifest of a package whose files are all as it says.

    Raises:
        InputError: see ``read_manifest`` and ``check_files``.
    """
    manifest = read_manifest(package)
    check_files(package, manifest)
    return manifest
