"""Opening: every check that a model, a package and a tokenizer belong together, in order.

The C++ runtime makes the same checks in the same order (docs/runtime-contract.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tokenizers import Tokenizer

from hydrapack.device.manifest import DeviceManifest, Read, read_device_manifest
from hydrapack.device.text import load_tokenizer
from hydrapack.packing.manifest import ADAPTERS, MANIFEST
from hydrapack.packing.signature import verify_signature
from hydrapack.program.load import LoadedProgram, check_forward, load_program
from hydrapack.support.digest import is_file
from hydrapack.support.errors import Invalid, Mismatch, NotFound
from hydrapack.support.schema import Digest, fitting, parse_json, read_bytes


class Description(Read):
    """What is read of ``model.pte.json``, which export-base writes beside the program."""

    bytes: Annotated[int, Field(ge=0, lt=1 << 40)]
    sha256: Digest


@dataclass(frozen=True)
class Opened:
    """Files that belong together; manifest and adapters are a package's."""

    manifest: DeviceManifest | None
    model: LoadedProgram
    adapters: LoadedProgram | None
    tokenizer: Tokenizer


def open_files(
    model: Path, package: Path | None, tokenizer: Path, check_digests: bool, public_key: str | None
) -> Opened:
    """Read and load all of them.

    Args:
        model: model.pte.
        package: the directory with manifest.json and adapters.pte; None for the base model alone.
        tokenizer: tokenizer.json.
        check_digests: compare SHA-256 digests too; sizes always are.
        public_key: Ed25519, hex, that must have signed the manifest.

    Raises:
        HydrapackError: of the kind that docs/runtime-contract.md has for it.
    """
    if package is None:
        return _open_base(model, tokenizer, check_digests, public_key)
    manifest, data = read_device_manifest(package, check_digests)
    if public_key is not None:
        verify_signature(package, data, public_key)
    stated = manifest.adapters
    check_file(package / ADAPTERS, stated.bytes, stated.sha256, check_digests, MANIFEST)
    check_model_file(model, check_digests)
    program, adapters = load_program(model, "forward"), load_program(package / ADAPTERS, "head")
    check_forward(program)
    _check_layout(manifest, program, adapters)
    check_base(manifest, program)
    return Opened(manifest, program, adapters, _tokenizer(tokenizer, program, check_digests))


def _open_base(model: Path, tokenizer: Path, check_digests: bool, public_key: str | None) -> Opened:
    if public_key is not None:
        raise Invalid("`public_key`: is of a package, and none is given")
    check_model_file(model, check_digests)
    program = load_program(model, "forward")
    check_forward(program)
    return Opened(None, program, None, _tokenizer(tokenizer, program, check_digests))


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
    path = model.with_name(model.name + ".json")
    if not check_digests and not path.exists():
        return
    data = read_bytes(path, "; export-base writes it beside the model")
    with fitting(path):
        stated = Description.model_validate(parse_json(data, path))
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
