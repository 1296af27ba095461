"""Sizes as people write them."""

from __future__ import annotations

import re

from hydrapack.support.errors import Invalid

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(flag: str, text: str) -> int:
    """``6MB``, ``800 KiB`` or ``123456`` in bytes; ``flag`` names it in the error.

    Raises:
        HydrapackError: not a size above 0.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise Invalid(f"{flag} {text}: give a size, as 6MB, 800KB, 1.5MiB or bytes")
    return size


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.2f} MB"
