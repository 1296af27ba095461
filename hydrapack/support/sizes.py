"""Sizes as people write them."""

from __future__ import annotations

import math
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


def readable(count: float) -> str:
    """Bytes in three digits and a decimal unit: 987 bytes, 392 kB, 1.53 GB."""
    if count < 999.5:
        return f"{count:.0f} bytes"
    unit = min(int(math.log10(count * 1.0005)) // 3, 4)
    size = count / 1000**unit
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {('', 'kB', 'MB', 'GB', 'TB')[unit]}"


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.2f} MB"
