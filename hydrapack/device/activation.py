"""Which package is in use: ``packages/current``, with ``packages/previous`` to fall back to.

Both are symbolic links to folders beside them, ``package-…``. A new package is first copied there,
whole and under a name of its own, and then one link after the other is renamed into place. Nothing
that a link names is ever changed: whenever a process is killed, ``current`` names a whole one.
The C++ runtime does the same on the same folder (docs/runtime-contract.md).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hydrapack.device.manifest import DeviceManifest, read_device_manifest
from hydrapack.device.opening import check_file
from hydrapack.device.session import Session
from hydrapack.packing.manifest import MANIFEST
from hydrapack.packing.signature import SIGNATURE
from hydrapack.support.atomic import sync
from hydrapack.support.errors import HydrapackError, Invalid

CURRENT, PREVIOUS = "current", "previous"
_FOLDER, _LINK = "package-", ".link"


def activate(packages: str | Path, package: str | Path) -> Path:
    """Make a package the current one, and the one that was so the previous one.

    Args:
        packages: the folder of both links; made if it is not there. One process at a time.
        package: it is copied, its files compared with its manifest; ``packages/previous`` is
            only named anew: the way back.

    Returns:
        the folder in ``packages`` that is current now; those that no link names are gone.

    Raises:
        HydrapackError: no package, a damaged one, or ``packages`` cannot be written.

    >>> folder = hydrapack.activate("packages", "package")
    >>> hydrapack.Session("model.pte", "packages/current").tasks
    ['grammar', 'qa']
    """
    packages, package = Path(packages).absolute(), Path(package)
    manifest, _ = read_device_manifest(package)
    try:
        packages.mkdir(parents=True, exist_ok=True)
        target = package.resolve()
        before = (packages / CURRENT).resolve() if (packages / CURRENT).exists() else None
        links = [] if before is None else [(PREVIOUS, before)]
        if target.parent == packages.resolve():
            # Already there: current first, or a kill in between might leave it without a name.
            links = [] if before == target else [(CURRENT, target), *links]
        else:
            target = Path(tempfile.mkdtemp("", _FOLDER, packages))
            _copy(package, target, manifest)
            links.append((CURRENT, target))
        for name, folder in links:
            (packages / _LINK).unlink(missing_ok=True)
            (packages / _LINK).symlink_to(folder.name)
            (packages / _LINK).replace(packages / name)
        # A loss of power finds no link to what was not written.
        sync(packages)
        named = {(packages / name).resolve() for name in (CURRENT, PREVIOUS)}
        for folder in packages.glob(f"{_FOLDER}*"):
            if folder.resolve() not in named:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise Invalid(f"{packages}: cannot be written: {error.strerror or error}") from error
    return target


def open_last_good(model: str | Path, packages: str | Path, **options: Any) -> Session:
    """A session on the current package, self-tested; where it does not open, on the previous one.

    The links stay as they are: ``session.package`` says which it is, and ``activate`` of
    ``packages/previous`` goes back for good.

    Args:
        model: model.pte.
        packages: what ``activate`` wrote.
        options: of ``Session``; ``self_test`` and ``check_heads`` are on by default.

    Raises:
        HydrapackError: neither opens; the error is the current one's.

    >>> folder = hydrapack.activate("packages", "package")
    >>> hydrapack.open_last_good("model.pte", "packages", self_test=False).package.name
    'current'
    """
    options = {"self_test": True, "check_heads": True, **options}
    try:
        return Session(model, Path(packages) / CURRENT, **options)
    except HydrapackError as error:
        try:
            return Session(model, Path(packages) / PREVIOUS, **options)
        except HydrapackError:
            raise error from None


def _copy(package: Path, target: Path, manifest: DeviceManifest) -> None:
    stated = {file.name: file for file in manifest.files}
    others = [MANIFEST, *([SIGNATURE] if (package / SIGNATURE).exists() else [])]
    for name in (*stated, *others):
        shutil.copyfile(package / name, target / name)
        if name in stated:
            check_file(target / name, stated[name].bytes, stated[name].sha256, True, MANIFEST)
        sync(target / name)
    target.chmod(0o755)
    sync(target)
