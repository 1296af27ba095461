"""Libraries that only some commands need: what to install where one is missing."""

from __future__ import annotations

from hydrapack.support.errors import InputError


def require_matplotlib() -> None:
    """Check for it before long work.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("plots need matplotlib: pip install 'hydrapack[report]'") from None
