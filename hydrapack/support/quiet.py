"""Keep what libraries print on import and at run time away from the user.

torchao logs 'Failed to load …so', torch warns of pytree changes, and ExecuTorch's C++ writes log
lines both to the file descriptors and, through its Python binding, to ``sys.stderr``.
``--verbose`` lets all of it through.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from typing import TextIO

# ExecuTorch's log lines: [cpuinfo_utils.cpp:71] Reading file …
_NATIVE_LOG = re.compile(r"\[\w+\.(?:cpp|h):\d+\] ")


class _WithoutNativeLog(io.TextIOWrapper):
    """Drops ExecuTorch's log lines, which its binding writes in pieces of a few characters."""

    _held = ""

    def write(self, text: str) -> int:
        *whole, rest = (self._held + text).split("\n")
        kept = "".join(line + "\n" for line in whole if not _NATIVE_LOG.match(line))
        # A line that starts with a bracket is held until its end shows what it is.
        self._held = rest if rest.startswith("[") else ""
        super().write(kept if self._held else kept + rest)
        return len(text)


def silence_libraries() -> None:
    """Point descriptors 1 and 2 at nothing; ``sys.stdout`` and ``sys.stderr`` write as before."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    # Libraries reset the warning filters while they are imported.
    warnings.showwarning = lambda *args, **kwargs: None
    logging.disable(logging.ERROR)
    sys.stdout = _own_copy(sys.stdout, io.TextIOWrapper)
    sys.stderr = _own_copy(sys.stderr, _WithoutNativeLog)


def _own_copy(stream: TextIO, kind: type[io.TextIOWrapper]) -> TextIO:
    """A stream that writes where ``stream`` does, whose file descriptor then leads nowhere."""
    stream.flush()
    descriptor = stream.fileno()
    raw = os.fdopen(os.dup(descriptor), "wb")
    encoding = stream.encoding or "utf-8"
    own = kind(raw, encoding, errors=stream.errors, line_buffering=True)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return own
