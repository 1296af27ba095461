"""Kills and full disks while outputs are written: the old one stays whole, the next run works."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import TASKS, hydrapack

from hydrapack.verify import verify_package

EXPORT = ("export-base", "--rank", 4, "--quant", "fp32", "--max-context", 64)

REPLACE = """
import sys, itertools
from pathlib import Path
from hydrapack.atomic import new_directory, new_file
for number in itertools.count():
    with new_directory(Path(sys.argv[1])) as partial:
        for name in "abc":
            (partial / name).write_text(str(number) * 1000)
    with new_file(Path(sys.argv[2])) as partial:
        partial.write_text(str(number) * 1000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_output(tmp_path):
    """Outputs replaced without pause; SIGKILL at random; what stands there is of one run."""
    target, file = tmp_path / "out", tmp_path / "file"
    generator = random.Random(0)
    for _ in range(25):
        writer = subprocess.Popen([sys.executable, "-c", REPLACE, str(target), str(file)])
        while not file.exists():
            time.sleep(0.01)
        time.sleep(0.2 + 0.1 * generator.random())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        contents = {(target / name).read_text() for name in "abc"}
        assert len(contents) == 1
        assert len(set(file.read_text())) <= 10 and len(file.read_text()) % 1000 == 0


def kill_once_writing(arguments, folder, delay):
    """Run a command and kill it ``delay`` s after its first temporary name beside the target."""
    before = set(folder.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "hydrapack", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and set(folder.iterdir()) == before:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_killed_commands(tiny, tiny_model, tmp_path, delay):
    adapters = [tiny[2] / task for task in TASKS]
    commands = {
        "bundle": ("merge", *adapters),
        "package": ("pack", tiny[2] / "bundle"),
        "model.pte": (*EXPORT[:1], tiny_model, *EXPORT[1:]),
    }
    for name, command in commands.items():
        out = tmp_path / name
        done = hydrapack(*command, "-o", out)
        assert done.returncode == 0, done.stderr
        files = [out] if out.is_file() else sorted(out.iterdir())
        content = [f.read_bytes() for f in files]
        killed = kill_once_writing((*command, "-o", out), tmp_path, delay)
        assert killed in (-signal.SIGKILL, 0)
        assert [f.read_bytes() for f in files] == content
        assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} <= {
            *commands,
            "model.pte.json",
            "tokenizer.json",
        }
        assert hydrapack(*command, "-o", out).returncode == 0
        assert [f.read_bytes() for f in files] == content
    assert all(check.passed for check in verify_package(tmp_path / "package"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(tiny, tiny_model, small_disk):
    adapters = [tiny[2] / task for task in TASKS]
    package, bundle = small_disk / "package", small_disk / "bundle"
    assert hydrapack("pack", tiny[2] / "bundle", "-o", package, "--bits", 8).returncode == 0
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        file.write(b"x" * (free - 8192))
    for command in (
        ("pack", tiny[2] / "bundle", "-o", package),
        ("merge", *adapters, "-o", bundle),
        (*EXPORT[:1], tiny_model, *EXPORT[1:], "-o", small_disk / "m.pte"),
    ):
        done = hydrapack(*command)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "cannot be written" in done.stderr
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "package"]
    assert all(check.passed for check in verify_package(package))
    filler.unlink()
    assert hydrapack("pack", tiny[2] / "bundle", "-o", package, "--bits", 4).returncode == 0
    assert json.loads((package / "manifest.json").read_text())["modules"][0]["bits_a"] == 4
