"""Golden outputs, and packages that switch whole or not at all."""

import json
import random
import shutil
import time

import pytest
from conftest import SERVER, TASKS, hydrapack

from hydrapack.device import Session
from hydrapack.device.activation import activate, open_last_good
from hydrapack.device.golden import Golden, replay
from hydrapack.device.recording import NEAR_TIE, TOKENS, golden
from hydrapack.packing.manifest import (
    GOLDEN,
    MANIFEST,
    describe_file,
    manifest_text,
    read_manifest,
    read_package,
    sealed,
)
from hydrapack.packing.package import pack
from hydrapack.support.errors import HydrapackError, Mismatch, NotFound
from hydrapack.verification.checks import verify

INPUTS = ("what is this", "a longer text of the task, and more", "Grüße!")


def write_prompts(path, tasks=TASKS, inputs=INPUTS):
    rows = [{"task": task, "input": text} for task in tasks for text in inputs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def proven(tiny, tmp_path_factory):
    """A package with golden outputs."""
    folder = tmp_path_factory.mktemp("proven")
    record = golden(tiny[0], write_prompts(folder / "prompts.jsonl"))
    pack(tiny[2] / "bundle", folder / "package", 32, model=tiny[0], golden=record)
    return folder / "package"


def resealed(package, target, change):
    """A copy whose golden.json is changed and described anew, as another device would find it."""
    shutil.copytree(package, target)
    content = json.loads((target / GOLDEN).read_text())
    change(content)
    (target / GOLDEN).write_text(json.dumps(content))
    manifest = read_manifest(target)
    files = [f for f in manifest.files if f.name != GOLDEN]
    manifest = manifest.model_copy(update={"files": files})
    manifest = sealed(manifest, [describe_file(target / GOLDEN)])
    (target / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return target


def set_first(margin, prompt=2):
    def change(content):
        changed = content["tasks"][1]["prompts"][prompt]
        changed["tokens"][0] = (changed["tokens"][0] + 1) % 300
        changed["margins"][0] = margin

    return change


def test_what_is_stored(tiny, proven):
    content = Golden.model_validate_json((proven / GOLDEN).read_text())
    assert [task.name for task in content.tasks] == list(TASKS)
    assert content.near_tie == NEAR_TIE
    session = Session(tiny[0], proven)
    for task in content.tasks:
        for text, prompt in zip(INPUTS, task.prompts, strict=True):
            assert session.use(task.name).encode(text) == prompt.ids
            assert len(prompt.tokens) == len(prompt.margins) == TOKENS
            logits = session.forward(prompt.ids)
            best = logits.topk(2).values
            assert int(logits.argmax()) == prompt.tokens[0]
            assert prompt.margins[0] == pytest.approx(float(best[0] - best[1]), abs=1e-3)
    assert read_package(proven).files[1].name == GOLDEN


def test_self_test(tiny, proven, tmp_path):
    with Session(tiny[0], proven, self_test=True) as session:
        found = session.self_test()
        assert found.passed and found.tokens == len(TASKS) * len(INPUTS) * TOKENS
        assert found.near_ties == 0 and session.task is None
    (check,) = [c for c in verify(proven, tiny[0]) if c.name == "golden"]
    assert check.passed and "72 golden tokens as packed" in check.detail

    other = resealed(proven, tmp_path / "other", set_first(2.0))
    with Session(tiny[0], other) as session:
        found = session.self_test()
    # What follows another token is other too, of this prompt alone.
    one = found.differences[0]
    assert {(d.task, d.prompt) for d in found.differences} == {("two", 2)}
    assert (one.task, one.prompt, one.token, one.margin) == ("two", 2, 0, 2.0)
    assert one.expected == (one.found + 1) % 300
    with pytest.raises(Mismatch, match=r"fails its self-test.*task 'two', prompt 2, token 0"):
        Session(tiny[0], other, self_test=True)
    checks = {c.name: c for c in verify(other, tiny[0])}
    assert not checks["golden"].passed and "of 72 golden tokens differ" in checks["golden"].detail
    assert hydrapack("verify", other, "--model", tiny[0]).returncode == 1

    # A near tie that falls otherwise passes, and what follows is still compared with what it was.
    near = resealed(proven, tmp_path / "near", set_first(NEAR_TIE / 2))
    with Session(tiny[0], near) as session:
        found = session.self_test()
    assert found.near_ties >= 1
    assert {(d.task, d.prompt) for d in found.differences} <= {("two", 2)}


def test_a_wrong_head_is_found(tiny, proven):
    """Every task's head under another's golden outputs."""
    content = json.loads((proven / GOLDEN).read_text())
    names = [task["name"] for task in content["tasks"]]
    for task, name in zip(content["tasks"], [*names[1:], names[0]], strict=True):
        task["name"] = name
    with Session(tiny[0], proven) as session:
        found = replay(session, Golden.model_validate(content))
    assert len({one.task for one in found.differences}) >= 2


def test_the_command(tiny, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    command = ("pack", tiny[2] / "bundle", "-o", tmp_path / "p")
    done = hydrapack(*command, "--golden", prompts, "--model", tiny[0])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / GOLDEN).exists()
    shutil.rmtree(tmp_path / "p")
    for rows, words in (
        (None, "cannot be read"),
        ("", "has no text"),
        ("{", "prompts.jsonl:1: not JSON"),
        ('{"task": "one", "input": 1}', "needs texts under 'task' and 'input'"),
        ('{"task": "one", "input": "x"}', "has no line of task 'two'"),
        ('{"task": "nine", "input": "x"}', "task 'nine' is not in the package"),
    ):
        prompts.unlink(missing_ok=True)
        if rows is not None:
            prompts.write_text(rows)
        done = hydrapack(*command, "--golden", prompts, "--model", tiny[0])
        assert done.returncode == 2 and words in done.stderr, (rows, done.stderr)
        assert not (tmp_path / "p").exists()
    long = write_prompts(prompts, inputs=("x" * 125,))
    done = hydrapack(*command, "--golden", long, "--model", tiny[0])
    assert done.returncode == 2 and "must fit the context" in done.stderr
    done = hydrapack(*command, "--golden", prompts)
    assert done.returncode == 2 and "--golden: needs --model" in done.stderr


def test_the_command_that_replays(tiny, proven, tmp_path):
    run = ("--model", tiny[0], "--self-test")
    done = hydrapack("run", proven, *run)
    assert done.returncode == 0, done.stderr
    lines = [*(f"{task}: pass" for task in TASKS), "72 golden tokens as packed, 0 near ties apart"]
    assert done.stdout.splitlines() == lines
    other = resealed(proven, tmp_path / "other", set_first(2.0))
    done = hydrapack("run", other, *run)
    assert done.returncode == 1 and "two: FAIL, prompts 2\nthree: pass\n" in done.stdout
    for arguments, words in (
        ([tiny[1], *run], "no golden outputs: pack it with --golden"),
        ([tmp_path / "none", *run], "is it a package?"),
        ([proven, "text", *run], "give PACKAGE_DIR alone"),
        ([proven, *run, "--task", "one"], "give PACKAGE_DIR alone"),
    ):
        done = hydrapack("run", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_damage_and_absence(tiny, proven, tmp_path):
    with Session(tiny[0], tiny[1]) as session, pytest.raises(NotFound, match="no golden outputs"):
        session.self_test()
    with pytest.raises(NotFound, match="no golden outputs"):
        Session(tiny[0], tiny[1], self_test=True)
    copy = tmp_path / "copy"
    shutil.copytree(proven, copy)
    (copy / GOLDEN).write_text("{}" + " " * ((proven / GOLDEN).stat().st_size - 2))
    with pytest.raises(Mismatch, match="is not the file"):
        Session(tiny[0], copy, self_test=True)
    with pytest.raises(HydrapackError, match="schema_version"):
        Session(tiny[0], copy, self_test=True, check_digests=False)

    def drop(content):
        content["tasks"][0]["prompts"][0]["margins"].pop()

    def rename(content):
        content["tasks"][0]["name"] = "nine"

    for name, change, words in (("d", drop, "not a margin"), ("r", rename, "not in the package")):
        with pytest.raises(HydrapackError, match=words):
            Session(tiny[0], resealed(proven, tmp_path / name, change), self_test=True)


def whole(packages, link="current"):
    """The package that is in use, every file as its manifest says."""
    return read_package(packages / link).package_digest


def test_switching(tiny, proven, tmp_path):
    packages = tmp_path / "packages"
    bad = resealed(proven, tmp_path / "bad", set_first(2.0))
    with pytest.raises(HydrapackError):
        open_last_good(tiny[0], packages)
    first = activate(packages, proven)
    assert whole(packages) == read_package(proven).package_digest
    assert not (packages / "previous").exists()
    activate(packages, bad)
    with open_last_good(tiny[0], packages) as session:
        assert session.package.name == "previous"
    with pytest.raises(Mismatch, match="self-test"):
        Session(tiny[0], packages / "current", self_test=True)
    # The way back: no copy, and the other way round.
    assert activate(packages, packages / "previous") == first
    with open_last_good(tiny[0], packages) as session:
        assert session.package.name == "current"
    assert read_package(packages / "previous").package_digest == read_package(bad).package_digest
    assert activate(packages, packages / "current") == first
    # What no link names goes.
    activate(packages, tiny[1])
    names = sorted(path.name for path in packages.iterdir())
    assert len(names) == 4 and {"current", "previous"} <= set(names)
    damaged = tmp_path / "damaged"
    shutil.copytree(proven, damaged)
    with (damaged / "adapters.pte").open("r+b") as file:
        file.write(b"x")
    before = whole(packages)
    with pytest.raises(Mismatch):
        activate(packages, damaged)
    assert whole(packages) == before
    with pytest.raises(NotFound):
        activate(packages, tmp_path / "none")
    # The current one fails, and there is nothing to fall back to: its own error is the error.
    activate(packages, bad)
    activate(packages, bad)
    with pytest.raises(Mismatch, match="self-test"):
        open_last_good(tiny[0], packages)


def test_killed_while_it_switches(proven, tmp_path):
    """200 processes that switch to the other package, each killed within about one switch."""
    sources = [proven, resealed(proven, tmp_path / "second", set_first(2.0))]
    packages, previous = tmp_path / "packages", tmp_path / "packages" / "previous"
    activate(packages, proven)
    digests = [read_package(path).package_digest for path in sources]
    chance, span, at, moves, left = random.Random(0), 0.05, 0, 0, 0
    for number in range(200):
        # A new copy, or one that is there and is only named anew.
        source = sources[1 - at]
        if previous.exists() and whole(packages, "previous") == digests[1 - at]:
            source = chance.choice([source, previous])
        child = SERVER.Process(target=activate, args=(packages, source))
        child.start()
        time.sleep(chance.random() * span)
        child.kill()
        child.join()
        found = digests.index(whole(packages))
        # So that about half of them come to their end, however slow the machine is now.
        span *= 1.1 if found == at else 0.9
        moves, at = moves + (found != at), found
        assert not previous.exists() or whole(packages, "previous") in digests, number
        left += len(list(packages.glob("package-*"))) > 2
    assert 20 < moves < 180 and left, "some are killed within a copy"
    activate(packages, proven)
    assert len(list(packages.glob("package-*"))) <= 2 and not (packages / ".link").is_symlink()
