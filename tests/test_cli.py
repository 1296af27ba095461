"""The commands as a user runs them: exit codes, one line of error, nothing half-written."""

import json
import re
import resource
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import edit_config, edit_tensors, hydrapack, module_names, process, write_adapter

from hydrapack.cli.terminal import KNOBS
from hydrapack.merging.methods import METHODS

ROOT = Path(__file__).parents[1]


def assert_refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("hydrapack: error: ")
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert str(word) in done.stderr


def everything_below(folder):
    return sorted(str(p) for p in folder.rglob("*"))


def test_merge_and_pack(adapters, tmp_path):
    """In processes of their own, and in this one: the same bytes, whatever the hash seed."""
    bundle, package = tmp_path / "a bundle", tmp_path / "päckchen"
    other = {"PYTHONHASHSEED": "1"}
    done = process("merge", *adapters, "-o", bundle, "--heads", 2, env=other)
    assert done.returncode == 0 and done.stderr == ""
    assert "S = " in done.stdout and "task2" in done.stdout
    done = process("pack", bundle, "-o", package, "--json", env=other)
    assert done.returncode == 0 and done.stderr == ""
    manifest = json.loads(done.stdout)
    assert manifest == json.loads((package / "manifest.json").read_text())
    assert manifest["files"][0]["bytes"] == (package / "adapters.pte").stat().st_size
    assert everything_below(package) == [
        str(package / n) for n in ("adapters.pte", "manifest.json")
    ]
    again, repacked = tmp_path / "bundle", tmp_path / "package"
    assert hydrapack("merge", *adapters, "-o", again, "--heads", 2).returncode == 0
    assert hydrapack("pack", again, "-o", repacked).returncode == 0
    for one, same in ((bundle, again), (package, repacked)):
        assert contents(one) == contents(same)
    done = hydrapack("merge", f"x={adapters[0]}", adapters[1], "-o", bundle, "--json")
    assert [t["name"] for t in json.loads(done.stdout)["tasks"]] == ["x", "task1"]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def bad_adapters(tmp_path):
    key = f"base_model.model.{module_names()[0]}.lora_A.weight"
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = write_adapter(tmp_path / "cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    nan = write_adapter(tmp_path / "nan")
    edit_tensors(nan, lambda t: t[key].fill_(float("nan")))
    return {
        "not an adapter folder": empty,
        "corrupt or truncated": cut,
        "NaN or infinity": nan,
        "different base models": write_adapter(tmp_path / "other", base="other"),
        "use_dora": edit_config(write_adapter(tmp_path / "dora"), use_dora=True),
        "modules_to_save": edit_config(write_adapter(tmp_path / "save"), modules_to_save=["x"]),
    }


def test_bad_adapters(tmp_path):
    good = write_adapter(tmp_path / "good")
    for words, folder in bad_adapters(tmp_path).items():
        before = everything_below(tmp_path)
        assert_refused(hydrapack("merge", good, folder, "-o", tmp_path / "out"), words, folder)
        assert everything_below(tmp_path) == before


@contextmanager
def full_disk():
    """No file may grow past 2000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_unwritable_targets(adapters, one_layer, tmp_path):
    bundle = tmp_path / "bundle"
    assert hydrapack("merge", *adapters, "-o", bundle).returncode == 0
    (tmp_path / "file").write_text("x")
    old = tmp_path / "old"
    assert hydrapack("pack", bundle, "-o", old).returncode == 0
    content = [p.read_bytes() for p in sorted(old.iterdir())]
    before = everything_below(tmp_path)
    commands = {
        "merge": ("merge", *adapters),
        "pack": ("pack", bundle),
        "export": ("export-base", one_layer, "--rank", 4, "--max-context", 64),
    }
    for command in commands.values():
        assert_refused(hydrapack(*command, "-o", tmp_path / "file" / "x"), tmp_path / "file")
    for name in ("merge", "pack"):
        assert_refused(hydrapack(*commands[name], "-o", tmp_path / "file"), "is a file")
        with full_disk():
            done = hydrapack(*commands[name], "-o", old)
        assert_refused(done, old, "cannot be written")
    with full_disk():
        done = hydrapack(*commands["export"], "-o", tmp_path / "m.pte")
    assert_refused(done, "m.pte", "cannot be written")
    assert_refused(hydrapack(*commands["export"], "-o", old), "is a directory")
    assert everything_below(tmp_path) == before
    assert [p.read_bytes() for p in sorted(old.iterdir())] == content


def test_bad_bundles(adapters, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    assert hydrapack("merge", *adapters, "-o", bundle).returncode == 0
    assert_refused(
        hydrapack("pack", tmp_path / "none", "-o", out), "bundle.json", "is it a bundle?"
    )
    assert_refused(hydrapack("pack", bundle, "-o", out, "--bits", 5), "--bits 5")
    assert_refused(hydrapack("pack", bundle, "-o", out, "--fallback", "x"), "--fallback 'x'")
    assert_refused(hydrapack("pack", bundle, "-o", out, "--group-size", 0), "--group-size 0")
    description = bundle / "bundle.json"
    text = description.read_text()
    for old, new, words in [
        ('"rank": 4', '"rank": 0', "rank"),
        ('"heads": 3', '"heads": 2', "number of heads"),
        ('"name": "task0"', '"name": "task1"', "a name twice"),
        ("[\n        0,", "[\n        9,", "route does not fit"),
    ]:
        assert old in text
        description.write_text(text.replace(old, new, 1))
        assert_refused(hydrapack("pack", bundle, "-o", out), words)
    description.write_text(text)
    tensors = bundle / "bundle.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert_refused(hydrapack("pack", bundle, "-o", out), "SHA-256")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": "wide"}, "wrong type"),
    ],
)
def test_models_not_taken(tiny_model, tmp_path, change, words):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((tiny_model / "config.json").read_text())
    config.update(change)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    done = hydrapack("export-base", folder, "-o", tmp_path / "m.pte", "--rank", 4)
    assert_refused(done, folder / "config.json", words)


def test_export_options(tiny_model, tmp_path):
    export = ("export-base", tiny_model, "-o", tmp_path / "m.pte")
    assert_refused(hydrapack(*export, "--rank", 0), "--rank 0")
    assert_refused(hydrapack(*export, "--rank", 4, "--quant", "int3"), "--quant int3")
    assert_refused(hydrapack(*export, "--rank", 4, "--target-modules", "q,x"), "choose from")
    assert_refused(hydrapack(*export, "--rank", 4, "--max-context", 9999), "--max-context 9999")
    none = hydrapack("export-base", tmp_path / "none", "-o", tmp_path / "m.pte", "--rank", 4)
    assert_refused(none, "no such folder")
    assert not list(tmp_path.iterdir())


def test_help_page_is_generated():
    """docs/help.md is what --help prints; `python docs/make_help.py` rewrites it."""
    import runpy

    page = runpy.run_path(str(ROOT / "docs" / "make_help.py"))["help_page"]()
    assert page == (ROOT / "docs" / "help.md").read_text(encoding="utf-8")


def test_results_pages_are_generated():
    """They have the tables of docs/results; `python docs/make_results.py` rewrites them."""
    import runpy

    made = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    texts = [path.read_text(encoding="utf-8") for path in made["PAGES"]]
    assert [made["page"](text) for text in texts] == texts
    named = {name for text in texts for name in re.findall(r"<!-- \w+ (\w+) -->", text)}
    assert named == {path.stem for path in (ROOT / "docs" / "results").glob("*.json")}


def test_readme_commands_exist():
    """The README's first two commands are targets of the Makefile, and CI runs the second."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)$", readme, re.MULTILINE)
    assert commands[:2] == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: setup" in makefile for target in commands[:2])
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_merges_help_fits_a_screen_and_names_every_method(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = hydrapack("merge", "--help").stdout
    assert len(text.strip().splitlines()) <= 50
    words = " ".join(text.split())
    assert all(method.signature in words for method in METHODS)
    knobs = {field.name for method in METHODS for field in fields(method.knobs)}
    assert knobs == set(KNOBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["steps"], "--set steps: give NAME=VALUE"),
        (["lr=1", "lr=2"], "--set lr=2: give NAME=VALUE, each name once"),
        (["heads=2"], "--set heads=2: is no option of a method, but of the command"),
        (["seed=x"], "--set seed=x: must be a whole number"),
        (["steps=5"], "--set steps: spectral has no such option; it has routing"),
        (["routing=x"], "--set routing x: choose one of per-module, global"),
    ],
)
def test_options_of_methods(adapters, tmp_path, arguments, words):
    flags = [part for argument in arguments for part in ("--set", argument)]
    assert_refused(hydrapack("merge", *adapters, "-o", tmp_path / "x", *flags), words)
    assert not (tmp_path / "x").exists()


def test_help_has_examples():
    for command in ("merge", "tradeoff", "inspect", "export-base", "pack", "run", "demo"):
        done = hydrapack(command, "--help")
        assert done.returncode == 0 and "Examples:" in done.stdout
    assert hydrapack("--version").stdout.startswith("hydrapack 0.")
    usage = hydrapack("merge")
    assert usage.returncode == 2 and "Missing" in usage.stderr
