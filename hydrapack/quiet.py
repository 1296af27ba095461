"""Keep what libraries print on import and at run time away from the user.

torchao logs 'Failed to load …so', torch warns of pytree changes, ExecuTorch's C++ prints cpuinfo
lines straight to file descriptor 2. ``--verbose`` lets all of it through.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings


def silence_libraries() -> None:
    """Point file descriptor 2 at nothing; ``sys.stderr`` goes on writing where it did."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    # Libraries reset the warning filters while they are imported.
    warnings.showwarning = lambda *args, **kwargs: None
    logging.disable(logging.ERROR)
    sys.stderr.flush()
    own = os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding or "utf-8", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    sys.stderr = own
