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

    try:
        app(prog_name="hydrapack")
    except (HydrapackError, ModuleNotFoundError) as error:
        print(f"hydrapack: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def one_line(error: BaseException) -> str:
    """What a user reads of an error; one that is not of unusable input is raised again."""
    from hydrapack.cli.terminal import as_options

    shown = lacking(error) if isinstance(error, ModuleNotFoundError) else error
    if not isinstance(shown, HydrapackError):
        raise error
    # A file's name or key may hold a line break; the message is one line all the same.
    return as_options(" ".join(str(shown).splitlines()))


if __name__ == "__main__":
    main()
