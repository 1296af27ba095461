"""An Ed25519 signature of manifest.json, and through its digests of the whole package.

``manifest.sig`` is JSON: the algorithm, the public key and the signature, in hex. It is made and
checked without a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hydrapack.errors import InputError
from hydrapack.pack.manifest import MANIFEST
from hydrapack.schema import Strict, read_model

SIGNATURE = "manifest.sig"


class Signature(Strict):
    """The content of manifest.sig."""

    algorithm: Literal["ed25519"] = "ed25519"
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n"


def read_private_key(path: Path) -> Any:
    """An Ed25519 private key from an unencrypted PEM file.

    Raises:
        InputError: cryptography is not installed, or no such key in the file.
    """
    _, serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no unencrypted private key in PEM form: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(
            f"{path}: no Ed25519 key; make one with openssl genpkey -algorithm ed25519"
        )
    return key


def read_public_key(path: Path) -> str:
    """An Ed25519 public key from a PEM file, raw, in hex.

    Raises:
        InputError: cryptography is not installed, or no such key in the file.
    """
    _, serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: no public key in PEM form: {error}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(f"{path}: no Ed25519 key")
    return str(key.public_bytes_raw().hex())


def sign_manifest(package: Path, key: Any) -> None:
    """Write manifest.sig beside manifest.json."""
    signature = Signature(
        public_key=key.public_key().public_bytes_raw().hex(),
        signature=key.sign((package / MANIFEST).read_bytes()).hex(),
    )
    (package / SIGNATURE).write_text(signature.text(), encoding="utf-8", newline="\n")


def check_signature(package: Path, public_key: str | None) -> str:
    """The key (hex) that signed the package.

    Args:
        public_key: the key it must be; None accepts any.

    Raises:
        InputError: no signature, a damaged one, one of other bytes or by another key.
    """
    path = package / SIGNATURE
    if not path.is_file():
        raise InputError(f"{path}: missing: the package is not signed; pack with --signing-key")
    signature = read_model(path, Signature)
    if path.read_bytes() != signature.text().encode():
        raise InputError(f"{path}: is not as hydrapack writes it")
    invalid, _, ed25519 = _cryptography()
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
    try:
        key.verify(bytes.fromhex(signature.signature), (package / MANIFEST).read_bytes())
    except invalid:
        raise InputError(f"{path}: is no signature of {MANIFEST} as it is") from None
    if public_key is not None and signature.public_key != public_key:
        raise InputError(f"{path}: signed by another key, {signature.public_key[:16]}…")
    return signature.public_key


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InputError("signatures need cryptography: pip install 'hydrapack[signing]'") from None
    return InvalidSignature, serialization, ed25519
