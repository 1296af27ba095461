"""Libraries that only some commands need: what to install where one is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hydrapack.support.errors import Invalid

_EXTRAS = {
    "cryptography": ("cryptography", "signing"),
    "cyclonedx": ("cyclonedx-python-lib", "sbom"),
    "executorch": ("executorch", "export"),
    "gguf": ("gguf", "export"),
    "huggingface_hub": ("huggingface_hub", "export"),
    "jinja2": ("jinja2", "report"),
    "junitparser": ("junitparser", "report"),
    "matplotlib": ("matplotlib", "report"),
    "peft": ("peft", "demo"),
    "ray": ("ray", "ray"),
    "rouge_score": ("rouge-score", "eval"),
    "tokenizers": ("tokenizers", "device"),
    "torchao": ("torchao", "export"),
    "transformers": ("transformers", "export"),
    "yaml": ("PyYAML", "eval"),
}
"""By module: the package on PyPI, and the extra of hydrapack that brings it."""


def need(module: str, extra: str | None = None) -> Any:
    """The module, imported.

    Args:
        extra: that brings it, where it is not the usual one.

    Raises:
        Invalid: it is not installed; says what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise lacking(error, extra) from None


def lacking(error: ModuleNotFoundError, extra: str | None = None) -> Exception:
    """What to install, where the missing module is one of an extra; else the error itself."""
    root = (error.name or "").split(".")[0]
    if root not in _EXTRAS:
        return error
    package, usual = _EXTRAS[root]
    return Invalid(f"{package} is not installed: pip install 'hydrapack[{extra or usual}]'")
