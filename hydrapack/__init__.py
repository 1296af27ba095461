"""hydrapack: one shared A, many task heads, one ExecuTorch package.

Every name is imported when it is first used: ``import hydrapack`` imports no torch. docs/python.md
has them in the order of the work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydrapack.support.version import __version__

if TYPE_CHECKING:
    from hydrapack.adapters.adapter import Adapter
    from hydrapack.analysis.check import check
    from hydrapack.analysis.describe import describe
    from hydrapack.analysis.similarity import analyze
    from hydrapack.analysis.tradeoff import tradeoff
    from hydrapack.base.export import export_base
    from hydrapack.bundle.format import Bundle
    from hydrapack.bundle.unpack import new_adapter, unpack
    from hydrapack.device.activation import activate, open_last_good
    from hydrapack.device.recording import golden
    from hydrapack.device.session import Session
    from hydrapack.evaluation.evaluate import evaluate
    from hydrapack.footprint.report import storage
    from hydrapack.merging.add import add, replace
    from hydrapack.merging.merge import merge
    from hydrapack.merging.remove import remove
    from hydrapack.packing.package import Package, pack
    from hydrapack.packing.patch import apply, diff
    from hydrapack.support.errors import (
        Busy,
        ContextFull,
        HydrapackError,
        Invalid,
        Io,
        Mismatch,
        NotFound,
        RuntimeFailure,
    )
    from hydrapack.verification.checks import verify

__all__ = [
    "Adapter",
    "Bundle",
    "Busy",
    "ContextFull",
    "HydrapackError",
    "Invalid",
    "Io",
    "Mismatch",
    "NotFound",
    "Package",
    "RuntimeFailure",
    "Session",
    "__version__",
    "activate",
    "add",
    "analyze",
    "apply",
    "check",
    "describe",
    "diff",
    "evaluate",
    "export_base",
    "golden",
    "merge",
    "new_adapter",
    "open_last_good",
    "pack",
    "remove",
    "replace",
    "storage",
    "tradeoff",
    "unpack",
    "verify",
]

_MODULES = {
    "Adapter": "adapters.adapter",
    "Bundle": "bundle.format",
    "Package": "packing.package",
    "Session": "device.session",
    "activate": "device.activation",
    "add": "merging.add",
    "analyze": "analysis.similarity",
    "apply": "packing.patch",
    "check": "analysis.check",
    "describe": "analysis.describe",
    "diff": "packing.patch",
    "evaluate": "evaluation.evaluate",
    "export_base": "base.export",
    "golden": "device.recording",
    "merge": "merging.merge",
    "new_adapter": "bundle.unpack",
    "open_last_good": "device.activation",
    "pack": "packing.package",
    "remove": "merging.remove",
    "replace": "merging.add",
    "storage": "footprint.report",
    "tradeoff": "analysis.tradeoff",
    "unpack": "bundle.unpack",
    "verify": "verification.checks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hydrapack' has no attribute {name!r}")
    try:
        module = import_module(f"hydrapack.{_MODULES.get(name, 'support.errors')}")
    except ModuleNotFoundError as error:
        from hydrapack.support.extras import lacking

        raise lacking(error) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
