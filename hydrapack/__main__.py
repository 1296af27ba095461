"""The ``hydrapack`` command: exit code 0, 1 for a failed check, 2 for unusable input."""

from __future__ import annotations

import sys

from hydrapack.support.errors import HydrapackError
from hydrapack.support.extras import lacking
from hydrapack.support.quiet import silence_libraries


def main() -> None:
    """Run the command line in ``sys.argv``."""
    if "--verbose" not in sys.argv:
        silence_libraries()
    from hydrapack.cli.app import app
    from hydrapack.cli.terminal import as_options

    try:
        app(prog_name="hydrapack")
    except HydrapackError as error:
        # A file's name or key may hold a line break; the message is one line all the same.
        line = as_options(" ".join(str(error).splitlines()))
        print(f"hydrapack: error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        lacks = lacking(error)
        if lacks is error:
            raise
        print(f"hydrapack: error: {lacks}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
