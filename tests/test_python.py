"""The library as a caller sees it: its names, its types, its examples."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TEMPLATE, module_names, write_adapter

import hydrapack

PAGE = ROOT / "docs" / "python.md"
HUB = "meta-llama/Llama-3.2-1B-Instruct"


EVALUATION = {
    "base_model": "tiny-llama",
    "tasks": [
        {
            "name": task,
            "adapter": f"adapters/{task}",
            "data": f"{task}.jsonl",
            "metric": "rouge-l",
            "max_new_tokens": 2,
        }
        for task in ("grammar", "qa")
    ],
    "methods": [{"method": "own"}, {"method": "spectral", "heads": [1]}],
}


def blocks():
    """The page's code, in its order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def workplace(one_layer, tmp_path_factory):
    """Two adapters, a small model, and what the page's first block makes of them."""
    folder = tmp_path_factory.mktemp("python")
    for k, task in enumerate(("grammar", "qa")):
        names = module_names(layers=1)
        adapter = write_adapter(folder / "adapters" / task, seed=k + 1, shared_seed=99, names=names)
        (adapter / "task.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
        rows = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
        (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(one_layer, folder / "tiny-llama")
    (folder / "eval.yaml").write_text(yaml.safe_dump(EVALUATION))
    rows = [{"task": task, "input": f"text of {task}"} for task in ("grammar", "qa")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = {}
        exec(blocks()[0].replace(HUB, "tiny-llama"), found)
    finally:
        os.chdir(before)
    return folder, found


def test_the_first_block_is_whole(workplace):
    """From adapters to an answer, with what each step leaves on disk."""
    folder, found = workplace
    assert found["bundle"].tasks == found["package"].tasks == ("grammar", "qa")
    assert found["bundle"].heads == 2 and found["bundle"].lost == []
    assert found["session"].stats.decode_tokens > 0
    made = {path.name for path in folder.iterdir()}
    assert {"bundle", "package", "model.pte", "model.pte.json", "tokenizer.json"} <= made
    with pytest.raises(hydrapack.Invalid, match="the session is closed"):
        found["session"].use(None)


def test_the_other_blocks_run(workplace, monkeypatch, capsys):
    folder, found = workplace
    monkeypatch.chdir(folder)
    for block in blocks()[1:]:
        exec(block, found)
    assert all(check.passed for check in found["checks"]), found["checks"]
    assert found["near"].info.method == "budget"
    assert {p.method for p in found["made"].points} > {"spectral", "two-sided", "adapters apart"}
    assert found["facts"]["kind"] == "adapter program"
    for name in ("tradeoff/tradeoff.png", "analysis/analysis.json", "results/results.md"):
        assert (folder / name).stat().st_size > 100
    assert "`heads` 3: must be from 1 to the number of adapters, 2" in capsys.readouterr().out


FUNCTIONS = [name for name in hydrapack.__all__ if name[0].islower() or name == "Adapter"]
FUNCTIONS += ["Bundle", "Package", "Session"]


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS)))
def test_docstring_examples(workplace, monkeypatch, name):
    monkeypatch.chdir(workplace[0])
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(getattr(hydrapack, name), name, globs={"hydrapack": hydrapack})
    assert test.examples, f"{name} has no example"
    said = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_all_names_are_there_and_documented():
    for name in hydrapack.__all__:
        assert getattr(hydrapack, name).__doc__, name
    assert set(hydrapack.__all__) <= set(dir(hydrapack))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hydrapack.nothing
    assert issubclass(hydrapack.ContextFull, hydrapack.HydrapackError)
    assert issubclass(hydrapack.HydrapackError, ValueError)


def test_import_brings_no_heavy_library():
    """Nor do rooms shadow the functions, whichever is imported first."""
    program = """
import sys
import hydrapack
heavy = {"torch", "numpy", "pydantic", "safetensors", "executorch", "transformers", "peft"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import hydrapack.merging.spectral, hydrapack.packing.manifest, hydrapack.verification.drift
assert all(callable(getattr(hydrapack, name)) for name in ("merge", "pack", "verify", "storage"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_caller_is_typed(tmp_path):
    """mypy --strict on the page's code; and it sees what is wrong."""
    assert (Path(hydrapack.__file__).parent / "py.typed").exists()
    good = tmp_path / "good.py"
    good.write_text("\n".join(blocks()))
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import hydrapack as hp\n"
        'count: str = hp.merge(["a"]).heads\n'
        'hp.pack(hp.Bundle.load("b"), "p", bits="8")\n'
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent"]
    # What mypy knows of torch is kept: reading it anew takes most of the time.
    cache = ROOT / ".mypy_cache" / "callers"
    command += ["--config-file", ROOT / "pyproject.toml", "--cache-dir", cache]
    environment = {**os.environ, "MYPYPATH": str(Path(hydrapack.__file__).parents[1])}
    found = subprocess.run(
        [*command, good, wrong], capture_output=True, text=True, cwd=tmp_path, env=environment
    ).stdout
    assert "good.py" not in found, found
    assert found.count("wrong.py:2: error") == found.count("wrong.py:3: error") == 1, found
