"""Kills and full disks while outputs are written: the old one stays whole, the next run works."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import SERVER, TASKS, hydrapack, write_tiny_model

from hydrapack.support import atomic
from hydrapack.support.atomic import new_directory, new_file
from hydrapack.verification.checks import verify


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The command that exports the least of models."""
    folder = tmp_path_factory.mktemp("model") / "one-layer"
    write_tiny_model(folder, layers=1)
    options = ("--rank", 4, "--target-modules", "q", "--quant", "fp32", "--max-context", 64)
    return ("export-base", folder, *options)


REPLACE = """
import sys, itertools
from pathlib import Path
from hydrapack.support import atomic
target, file, rounds, exchange = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
if not exchange:
    atomic._exchange = lambda one, other: False  # As on systems that have none.
for number in itertools.count():
    if number == rounds:
        break
    with atomic.new_directory(target) as partial:
        for name in "abc":
            (partial / name).write_text(str(number) * 1000)
    with atomic.new_file(file) as partial:
        partial.write_text(str(number) * 1000)
"""


def replace_without_pause(*arguments):
    return subprocess.Popen([sys.executable, "-c", REPLACE, *map(str, arguments)])


def hidden(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@pytest.mark.parametrize("exchange", [1, 0])
def test_a_kill_at_any_moment_leaves_a_whole_output(tmp_path, exchange):
    """Outputs replaced without pause; SIGKILL at random; what stands there is of one run.

    Without an exchange of names a kill may fall between the two renames: then there is no output,
    and the old one lies whole beside it.
    """
    target, file = tmp_path / "out", tmp_path / "file.txt"
    generator, landed = random.Random(0), 0
    for number in range(15):
        before = file.stat().st_mtime_ns if file.exists() else 0
        writer = replace_without_pause(target, file, -1, exchange)
        while not file.exists() or file.stat().st_mtime_ns == before:
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(0.1 * generator.random())
        # Now and then while something is half-written, which chance alone meets seldom.
        while number % 3 == 0 and not hidden(tmp_path):
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        left = hidden(tmp_path)
        landed += bool(left)
        if exchange or target.exists():
            contents = [(target / name).read_text() for name in "abc"]
        else:
            (old,) = (name for name in left if "hydrapack-old-" in name)
            contents = [(tmp_path / old / "old" / name).read_text() for name in "abc"]
        assert len(set(contents)) == 1 and contents[0]
        assert file.read_text() and len(file.read_text()) % 1000 == 0
        assert len(left) <= 3
    assert landed > 0, "no kill fell into the writing"
    assert replace_without_pause(target, file, 1, exchange).wait() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "out"]


@pytest.mark.parametrize("exchange", [1, 0])
def test_two_runs_write_one_target_at_once(tmp_path, exchange):
    """Neither takes what the other is writing for a leftover, nor fails for it."""
    target, file = tmp_path / "out", tmp_path / "file.txt"
    writers = [replace_without_pause(target, file, 300, exchange) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert {(target / name).read_text() for name in "abc"} == {"299" * 1000}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "out"]


@pytest.mark.parametrize("new", [new_file, new_directory])
def test_only_leftovers_of_the_same_target_are_removed(tmp_path, new):
    """Not what a live run writes, nor another's, nor a user's own hidden files."""

    def fill(path):
        (path if new is new_file else path / "x").write_text("whole")

    target = tmp_path / "out.bin"
    kept = [".out.bin.settings", ".out.bin.hydrapack-short.bin", ".out.bin.hydrapack-abcdefgh"]
    kept += [".out.hydrapack-abcdefgh.bin", ".xout.bin.hydrapack-abcdefgh.bin"]
    for name in kept:
        (tmp_path / name).write_text("")
    (tmp_path / ".out.bin.hydrapack-abcdefgh.bin").write_text("left")
    (tmp_path / ".out.bin.hydrapack-abcdefg2.bin").mkdir()
    (tmp_path / ".out.bin.hydrapack-abcdefg2.bin" / "x").write_text("left")
    (tmp_path / ".out.bin.hydrapack-abcdefg3.bin").symlink_to(tmp_path / "elsewhere")
    with new(target) as first:
        assert first.suffix == ".bin" and hidden(tmp_path) == sorted(
            [*kept, first.name, ".out.bin.hydrapack-abcdefg3.bin"]
        )
        with new(target) as second:
            assert first.exists() and first != second
            fill(second)
        fill(first)
        assert target.exists() and not second.exists()
    assert target.exists() and not first.exists()
    assert hidden(tmp_path) == sorted([*kept, ".out.bin.hydrapack-abcdefg3.bin"])


def run_slowly(marker, arguments):
    """A command that waits for the kill when all is written, before the rename."""

    def wait_for_the_kill():
        marker.touch()
        time.sleep(600)

    atomic._umask = wait_for_the_kill
    hydrapack(*arguments)


def kill_while_writing(arguments, target, moment, marker):
    """Run a command and kill it when its temporary name appears, or when all is written there."""
    process = SERVER.Process(target=run_slowly, args=(marker, arguments))
    process.start()
    prefix = f".{target.name}.hydrapack-"
    while not (
        marker.exists()
        if moment == "written"
        else any(name.startswith(prefix) for name in hidden(target.parent))
    ):
        assert process.is_alive(), "it ended before the kill"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(name.startswith(prefix) for name in hidden(target.parent))


def test_killed_commands(tiny, export, tmp_path):
    adapters = [tiny[2] / task for task in TASKS]
    commands = {
        "bundle": ("merge", *adapters),
        "package": ("pack", tiny[2] / "bundle"),
        "model.pte": export,
    }
    folder = tmp_path / "out"
    folder.mkdir()
    for name, command in commands.items():
        out = folder / name
        done = hydrapack(*command, "-o", out)
        assert done.returncode == 0, done.stderr
        files = [out] if out.is_file() else sorted(out.iterdir())
        content = [f.read_bytes() for f in files]
        assert len(content) == {"bundle": 2, "package": 2, "model.pte": 1}[name]
        for moment in ("begun", "written"):
            kill_while_writing((*command, "-o", out), out, moment, tmp_path / f"{name}-{moment}")
            assert [f.read_bytes() for f in files] == content
            assert len(hidden(folder)) == 1  # The second run removes what the first one left.
        assert hydrapack(*command, "-o", out).returncode == 0
        assert [f.read_bytes() for f in files] == content
        assert not hidden(folder)
    assert {p.name for p in folder.iterdir()} == {*commands, "model.pte.json", "tokenizer.json"}
    checks = verify(folder / "package")
    assert checks and all(check.passed for check in checks)


@pytest.mark.parametrize("command", ["tradeoff", "analyze"])
def test_a_plot_that_fails_leaves_nothing(adapters, tmp_path, monkeypatch, command):
    from matplotlib.figure import Figure

    from hydrapack.cli import analyze, tradeoff

    run = {"tradeoff": tradeoff.tradeoff, "analyze": analyze.analyze}[command]
    before = sorted(p.name for p in tmp_path.iterdir())
    drawn = []

    def fail(self, target, **options):
        drawn.append(target)
        target.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="no font"):
        run([str(a) for a in adapters], tmp_path / "plots")
    assert len(drawn) == 1 and drawn[0].suffix == ".png"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


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


def test_a_full_disk(tiny, export, small_disk):
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
        (*export, "-o", small_disk / "m.pte"),
    ):
        done = hydrapack(*command)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "cannot be written" in done.stderr
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "package"]
    assert all(check.passed for check in verify(package))
    filler.unlink()
    assert hydrapack("pack", tiny[2] / "bundle", "-o", package, "--bits", 4).returncode == 0
    assert json.loads((package / "manifest.json").read_text())["modules"][0]["bits_a"] == 4
