"""An update of a package: what ``diff`` finds between two, and ``apply`` makes of the old one.

The file is described in docs/patch-format.md; the C++ runtime applies it too.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from hydrapack.packing.manifest import ADAPTERS, MANIFEST, read_package
from hydrapack.packing.signature import (
    SIGNATURE,
    Signature,
    check_key,
    read_private_key,
    verify_bytes,
)
from hydrapack.support.atomic import new_directory, new_file, sync
from hydrapack.support.delta import Reader, decode, encode, write_number
from hydrapack.support.errors import Invalid, Mismatch, reading

MAGIC = b"hydrapack-patch-1\n"
MAX_BYTES = 1 << 30
"""Of a patch, and of a package's files together."""
MAX_FILES = 64
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class _File:
    """A file of the old or of the new package."""

    name: str
    size: int
    sha256: bytes


def diff(
    old: str | Path,
    new: str | Path,
    target: str | Path,
    *,
    signing_key: str | Path | None = None,
) -> Path:
    """Write a patch that makes package ``new`` of package ``old``, and of no other.

    Args:
        old: what devices have.
        new: what they are to have.
        target: the patch file to write; the same packages and key give the same bytes.
        signing_key: an Ed25519 private key (PEM) to sign the patch with.

    Raises:
        HydrapackError: a damaged package, or one of more than 1 GiB; a key that is none; an
            unwritable target.

    >>> hydrapack.diff("package", "package", "same.patch").stat().st_size < 1000
    True
    """
    key = None if signing_key is None else read_private_key(Path(signing_key))
    before, after = _read_whole(Path(old)), _read_whole(Path(new))
    data = MAGIC + (b"\0" if key is None else b"\1")
    for files in (before, after):
        data += write_number(len(files))
        for name, content in files.items():
            data += write_number(len(name)) + name.encode() + write_number(len(content))
            data += hashlib.sha256(content).digest()
    data += encode(b"".join(before.values()), b"".join(after.values()))
    if key is not None:
        data += key.public_key().public_bytes_raw() + key.sign(data)
    data += hashlib.sha256(data).digest()
    with new_file(Path(target)) as partial:
        partial.write_bytes(data)
    return Path(target)


def apply(
    old: str | Path,
    patch: str | Path,
    target: str | Path,
    *,
    public_key: str | None = None,
) -> Path:
    """Write the package that a patch makes of ``old``, whole or not at all.

    Args:
        old: the package that the patch was made from.
        patch: what ``diff`` wrote.
        target: the directory to write, each file's bytes those of ``new``; may be ``old`` itself.
        public_key: Ed25519, hex, that must have signed the patch; None asks for no signature.

    Raises:
        Invalid: no patch, or a damaged one.
        Mismatch: ``old`` is not the package it was made from, or another key signed it.
        HydrapackError: a file that is missing or cannot be read, an unwritable target.

    >>> patch = hydrapack.diff("package", "package", "same.patch")
    >>> hydrapack.Package.load(hydrapack.apply("package", patch, "copy")).tasks
    ('grammar', 'qa')
    """
    old, patch, target = Path(old), Path(patch), Path(target)
    reader = Reader(_checked(patch, public_key))
    try:
        before, after = _read_list(reader), _read_list(reader)
        if not {MANIFEST, ADAPTERS} <= {file.name for file in after}:
            raise Invalid(f"it makes no package, {MANIFEST} or {ADAPTERS} is missing")
        data = b"".join(_as_described(old, file, patch) for file in before)
        made = decode(data, reader, sum(file.size for file in after))
        if reader.at != len(reader.data):
            raise Invalid("it goes on after its end")
        pieces = Reader(made)
        files = {file.name: pieces.piece(file.size) for file in after}
        for file in after:
            if hashlib.sha256(files[file.name]).digest() != file.sha256:
                raise Invalid(f"the {file.name} that it gives is another than it says")
    except Invalid as error:
        raise Invalid(f"{patch}: is damaged: {error}") from error
    with new_directory(target) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
            sync(partial / name)  # before the old package goes
    return target


def _read_whole(package: Path) -> dict[str, bytes]:
    """A package's files by name, sorted, once they are as the manifest says."""
    names = [file.name for file in read_package(package).files] + [MANIFEST]
    if (package / SIGNATURE).exists():
        names.append(SIGNATURE)
    with reading(package):
        files = {name: (package / name).read_bytes() for name in sorted(names)}
    if sum(map(len, files.values())) > MAX_BYTES or len(files) > MAX_FILES:
        raise Invalid(f"{package}: a patch takes {MAX_FILES} files of {MAX_BYTES:,} bytes in all")
    return files


def _checked(patch: Path, public_key: str | None) -> bytes:
    """What a patch says, without its frame: magic, signature and SHA-256, which are checked."""
    with reading(patch):
        large = patch.stat().st_size > MAX_BYTES
        data = b"" if large else patch.read_bytes()
    start = len(MAGIC) + 1
    if not data.startswith(MAGIC):
        raise Invalid(f"{patch}: is no patch that this hydrapack reads")
    signed = data[start - 1 : start] == b"\1"
    end = len(data) - 32 - (96 if signed else 0)
    if end < start or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Invalid(f"{patch}: is damaged: its SHA-256 is another; fetch it again")
    if public_key is not None:
        check_key(public_key)
        if not signed:
            raise Mismatch(f"{patch}: is not signed; make it with `signing_key`")
        key, signature = data[end : end + 32].hex(), data[end + 32 : -32].hex()
        made = Signature(algorithm="ed25519", public_key=key, signature=signature)
        verify_bytes(data[:end], made, public_key, patch, "its signature is of other bytes")
    return data[start:end]


def _read_list(reader: Reader) -> list[_File]:
    files: list[_File] = []
    for _ in range(reader.number()):
        name = reader.piece(reader.number())
        if not _NAME.fullmatch(name) or len(files) == MAX_FILES:
            raise Invalid("a file's name is none, or there are too many")
        files.append(_File(name.decode(), reader.number(), reader.piece(32)))
    if len({file.name for file in files}) != len(files):
        raise Invalid("a file's name stands twice")
    if sum(file.size for file in files) > MAX_BYTES:
        raise Invalid(f"its files have more than {MAX_BYTES:,} bytes")
    return files


def _as_described(package: Path, file: _File, patch: Path) -> bytes:
    path = package / file.name
    with reading(path, f"; {patch} is of a package that has it"):
        # The size first: nothing of an absurd file is read.
        content = path.read_bytes() if path.stat().st_size == file.size else b""
    if hashlib.sha256(content).digest() != file.sha256:
        raise Mismatch(f"{path}: is not the file that {patch} was made from")
    return content
