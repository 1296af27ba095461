"""How much memory a piece of work needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Resident memory above what was there on entry, at its peak.

    On Linux what was freed earlier goes back to the system on entry (glibc's malloc_trim) and the
    process's high-water mark is set back. Elsewhere only a peak above all earlier ones is seen.
    """

    bytes: int = 0

    def __enter__(self) -> PeakMemory:
        self._peak: Callable[[], int]
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        try:
            # "5" resets VmHWM (man proc_pid_clear_refs).
            _RESET.write_text("5")
            self._before, self._peak = _status("VmRSS"), lambda: _status("VmHWM")
        except OSError:
            self._before, self._peak = _max_rss(), _max_rss
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = max(0, self._peak() - self._before)


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _max_rss() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
