"""Libraries that only some commands need: what to install where one is missing."""

from __future__ import annotations

from hydrapack.support.errors import Invalid


def require_matplotlib() -> None:
    """Check for it before long work.

    Raises:
        HydrapackError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Invalid("plots need matplotlib: pip install 'hydrapack[report]'") from None
