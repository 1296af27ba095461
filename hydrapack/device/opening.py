"""Opening: every check that a model, a package and a tokenizer belong together, in order.

The C++ runtime makes the same checks in the same order (docs/runtime-contract.md).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer

from hydrapack.device.manifest import DeviceManifest, Read, Task, read_device_manifest
from hydrapack.device.text import load_tokenizer
from hydrapack.packing.head_bytes import HeadBytes, pieces_sha256
from hydrapack.packing.manifest import ADAPTERS, MANIFEST, head_bytes
from hydrapack.packing.signature import verify_signature
from hydrapack.program.description import description_path, read_description
from hydrapack.program.load import LoadedProgram, check_forward, load_program
from hydrapack.support.digest import is_file
from hydrapack.support.errors import Invalid, Mismatch, NotFound, reading
from hydrapack.support.schema import Digest, fitting


class Description(Read):
    """What is read of ``model.pte.json``, which export-base writes beside the program."""

    bytes: Annotated[int, Field(ge=0, lt=1 << 40)]
    sha256: Digest


class Heads:
    """The heads in adapters.pte, each compared with the manifest when it is first used."""

    def __init__(self, path: Path, manifest: DeviceManifest, where: HeadBytes) -> None:
        """Maps the file, so that another put in its place is no matter.

        Raises:
            NotFound, Io: it is not there, or cannot be read.
            Mismatch: what the heads share is not as the manifest describes it.
        """
        assert manifest.head_banks is not None
        stated = manifest.adapters
        check_file(path, stated.bytes, stated.sha256, False, MANIFEST)
        self._data = memoryview(b"")
        if stated.bytes:
            with reading(path), path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._path, self._where = path, where
        self._checked: set[str] = set()
        if pieces_sha256(self._data, where.shared) != manifest.head_banks.shared_sha256:
            raise Mismatch(f"{path}: is not the file that {MANIFEST} describes")

    def check(self, task: Task) -> None:
        """Compare a task's head, if it is the first time.

        Raises:
            Mismatch: it is damaged; names the task.
        """
        if task.name in self._checked:
            return
        if pieces_sha256(self._data, self._where.of(task.route)) != task.head_sha256:
            raise Mismatch(
                f"{self._path}: the head of task {task.name!r} is damaged: it is not the one that "
                f"{MANIFEST} describes; copy the package again"
            )
        self._checked.add(task.name)


@dataclass(frozen=True)
class Opened:
    """Files that belong together; manifest, heads and adapters are a package's."""

    manifest: DeviceManifest | None
    heads: Heads | None
    """None where none is left to be checked."""
    model: LoadedProgram
    adapters: LoadedProgram | None
    tokenizer: Tokenizer


def open_files(
    model: Path,
    package: Path | None,
    tokenizer: Path,
    check_digests: bool,
    check_heads: bool,
    public_key: str | None,
) -> Opened:
    """Read and load all of them.

    Args:
        model: model.pte.
        package: the directory with manifest.json and adapters.pte; None for the base model alone.
        tokenizer: tokenizer.json.
        check_digests: compare SHA-256 digests too; sizes always are.
        check_heads: all heads at once, and not each when it is first used.
        public_key: Ed25519, hex, that must have signed the manifest.

    Raises:
        HydrapackError: of the kind that docs/runtime-contract.md has for it.
    """
    if package is None:
        return _open_base(model, tokenizer, check_digests, public_key)
    manifest, data = read_device_manifest(package, check_digests)
    if public_key is not None:
        verify_signature(package, data, public_key)
    where, heads = head_bytes(manifest, package / MANIFEST), None
    if where is not None and check_digests and not check_heads:
        heads = Heads(package / ADAPTERS, manifest, where)
    else:
        stated = manifest.adapters
        check_file(package / ADAPTERS, stated.bytes, stated.sha256, check_digests, MANIFEST)
    check_model_file(model, check_digests)
    program, adapters = load_program(model, "forward"), load_program(package / ADAPTERS, "head")
    check_forward(program)
    _check_layout(manifest, program, adapters)
    check_base(manifest, program)
    return Opened(manifest, heads, program, adapters, _tokenizer(tokenizer, program, check_digests))


def _open_base(model: Path, tokenizer: Path, check_digests: bool, public_key: str | None) -> Opened:
    if public_key is not None:
        raise Invalid("`public_key`: is of a package, and none is given")
    check_model_file(model, check_digests)
    program = load_program(model, "forward")
    check_forward(program)
    return Opened(None, None, program, None, _tokenizer(tokenizer, program, check_digests))


def _tokenizer(path: Path, model: LoadedProgram, check_digests: bool) -> Tokenizer:
    own = str(model.constant("get_tokenizer_sha256")) if check_digests else None
    return load_tokenizer(path, own)


def check_model_file(model: Path, check_digests: bool) -> None:
    """Compare model.pte with model.pte.json, which may be missing where digests are not checked.

    Raises:
        NotFound, Io: one of them is not there, or cannot be read.
        Invalid: model.pte.json is malformed.
        Mismatch: another size or SHA-256.
    """
    if not model.is_file():
        raise NotFound(f"{model}: no such file")
    path = description_path(model)
    if not check_digests and not path.exists():
        return
    described = read_description(model)
    with fitting(path):
        stated = Description.model_validate(described)
    check_file(model, stated.bytes, stated.sha256, check_digests, path.name)


def check_file(path: Path, size: int, sha256: str, check_digests: bool, source: str) -> None:
    """Compare a file's size, and if asked its SHA-256, with what ``source`` states.

    Raises:
        NotFound, Io: it is not there, or cannot be read.
        Mismatch: another size or digest.
    """
    if not is_file(path, size, sha256 if check_digests else None):
        raise Mismatch(f"{path}: is not the file that {source} describes")


def _check_layout(manifest: DeviceManifest, model: LoadedProgram, adapters: LoadedProgram) -> None:
    path = model.path
    rank = int(model.constant("get_adapter_rank"))
    if rank != manifest.rank:
        raise Mismatch(
            f"{path} takes adapters of rank {rank}, the package has rank {manifest.rank}: export "
            f"the base with `rank` {manifest.rank}, or merge with `rank` {rank}"
        )
    if int(adapters.constant("get_adapter_rank")) != manifest.rank:
        raise Mismatch(f"{ADAPTERS}: has another rank than its manifest")
    if str(model.constant("get_adapter_layout")) != manifest.layout_digest:
        raise Mismatch(
            f"{path} has another adapter layout than the package (base model "
            f"{manifest.base_model.id!r}): export that base with the `targets` that "
            f"hydrapack inspect shows for the package"
        )
    if str(adapters.constant("get_adapter_layout")) != manifest.layout_digest:
        raise Mismatch(f"{ADAPTERS}: has another adapter layout than its manifest")


def check_base(manifest: DeviceManifest, model: LoadedProgram) -> None:
    """Refuse a model of other weights or another tokenizer than the package is bound to.

    Raises:
        Mismatch: naming the digest.
    """
    base = manifest.base_model
    for stated, method in (
        (base.weights_sha256, "get_weights_sha256"),
        (base.tokenizer_sha256, "get_tokenizer_sha256"),
    ):
        if stated is not None and (own := str(model.constant(method))) != stated:
            raise Mismatch(f"{model.path}: {method} is {own}, the package was made for {stated}")
