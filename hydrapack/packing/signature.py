"""An Ed25519 signature of manifest.json, and through its digests of the whole package.

``manifest.sig`` is JSON: the algorithm, the public key and the signature, in hex. It is made and
checked without a network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hydrapack.packing.manifest import MANIFEST
from hydrapack.support.errors import Invalid, Mismatch, NotFound, reading
from hydrapack.support.extras import need
from hydrapack.support.schema import Strict, fitting, json_text, parse_json, read_bytes

SIGNATURE = "manifest.sig"


class Signature(Strict):
    """The content of manifest.sig."""

    algorithm: Literal["ed25519"]
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    def text(self) -> str:
        """The file's content."""
        return json_text(self.model_dump())


def read_private_key(path: Path) -> Any:
    """An Ed25519 private key from an unencrypted PEM file.

    Raises:
        HydrapackError: cryptography is not installed, or no such key in the file.
    """
    _, serialization, ed25519 = _cryptography()
    with reading(path):
        data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise Invalid(f"{path}: no unencrypted private key in PEM form: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Invalid(f"{path}: no Ed25519 key; make one with openssl genpkey -algorithm ed25519")
    return key


def read_public_key(path: Path) -> str:
    """An Ed25519 public key from a PEM file, raw, in hex.

    Raises:
        HydrapackError: cryptography is not installed, or no such key in the file.
    """
    _, serialization, ed25519 = _cryptography()
    with reading(path):
        data = path.read_bytes()
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError as error:
        raise Invalid(f"{path}: no public key in PEM form: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise Invalid(f"{path}: no Ed25519 key")
    return str(key.public_bytes_raw().hex())


def sign_manifest(package: Path, key: Any) -> None:
    """Write manifest.sig beside manifest.json."""
    signature = Signature(
        algorithm="ed25519",
        public_key=key.public_key().public_bytes_raw().hex(),
        signature=key.sign((package / MANIFEST).read_bytes()).hex(),
    )
    (package / SIGNATURE).write_text(signature.text(), encoding="utf-8", newline="\n")


def check_signature(package: Path, public_key: str | None) -> str:
    """The key (hex) that signed the package.

    Args:
        public_key: the key it must be; None accepts any.

    Raises:
        HydrapackError: no signature, a damaged one, one of other bytes or by another key, or one
            that is not written as hydrapack writes it.
    """
    path = package / SIGNATURE
    signature = verify_signature(package, read_bytes(package / MANIFEST), public_key)
    if path.read_bytes() != signature.text().encode():
        raise Invalid(f"{path}: is not as hydrapack writes it")
    return signature.public_key


def verify_signature(package: Path, signed: bytes, public_key: str | None) -> Signature:
    """The package's signature, once it is seen to be one of ``signed``.

    Args:
        signed: the bytes of manifest.json, as they were read.
        public_key: the key it must be by, 64 hex digits; None accepts any.

    Raises:
        NotFound: no signature.
        Invalid: a damaged one, a ``public_key`` that is none, or cryptography is not installed.
        Mismatch: it is of other bytes or by another key.
    """
    path = package / SIGNATURE
    check_key(public_key)
    if not path.is_file():
        raise NotFound(f"{path}: missing: the package is not signed; pack with `signing_key`")
    with fitting(path):
        signature = Signature.model_validate(parse_json(read_bytes(path), path), strict=True)
    verify_bytes(signed, signature, public_key, path, f"is no signature of {MANIFEST} as it is")
    return signature


def verify_bytes(
    signed: bytes, signature: Signature, public_key: str | None, where: Path, otherwise: str
) -> None:
    """Refuse a signature of other bytes or by another key.

    Args:
        public_key: the key it must be by, 64 hex digits; None accepts any.
        where, otherwise: the file that holds it, and what is said of one of other bytes.

    Raises:
        Invalid: cryptography is not installed.
        Mismatch: naming ``where``.
    """
    invalid, _, ed25519 = _cryptography()
    if public_key is not None and signature.public_key != public_key:
        raise Mismatch(f"{where}: signed by another key, {signature.public_key[:16]}…")
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
    try:
        key.verify(bytes.fromhex(signature.signature), signed)
    except invalid:
        raise Mismatch(f"{where}: {otherwise}") from None


def check_key(public_key: str | None) -> None:
    """Refuse a public key that is not 64 hex digits; None is none.

    Raises:
        Invalid: it is not.
    """
    if public_key is not None and not re.fullmatch("[0-9a-f]{64}", public_key):
        raise Invalid(f"the public key {public_key!r} is not 64 of the digits 0-9 and a-f")


def _cryptography() -> tuple[Any, Any, Any]:
    primitives = "cryptography.hazmat.primitives"
    return (
        need("cryptography.exceptions").InvalidSignature,
        need(f"{primitives}.serialization"),
        need(f"{primitives}.asymmetric.ed25519"),
    )
