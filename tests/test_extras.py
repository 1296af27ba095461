"""The core alone: merging, adding, unpacking and measuring need no extra; the rest says which."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from hydrapack.support.extras import _EXTRAS, lacking

CORE_ONLY = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

blocked, commands = json.loads(sys.argv[1]), json.loads(sys.argv[2])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from hydrapack.__main__ import main
found = []
for command in commands:
    sys.argv = ["hydrapack", "--verbose", *command]
    out, code = io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append([code, out.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By command, its exit code and what it prints where no extra is installed."""
    from conftest import write_adapter

    folder = tmp_path_factory.mktemp("core")
    names = ("one", "two", "three")
    one, two, three = (str(write_adapter(folder / n, k + 1)) for k, n in enumerate(names))
    bundle, out = str(folder / "bundle"), str(folder / "out")
    commands = {
        "merge": ["merge", one, two, "-o", bundle],
        "ties": ["merge", one, two, "-o", str(folder / "ties"), "--method", "ties"],
        "plan": ["merge", one, two, "-o", str(folder / "plan"), "--budget", "60KB"],
        "add": ["add", bundle, three, "-o", str(folder / "more")],
        "unpack": ["unpack", bundle, "--all", "-o", str(folder / "peft")],
        "storage": ["storage", bundle],
        "inspect": ["inspect", one],
        "pack": ["pack", bundle, "-o", out],
        "export-base": ["export-base", one, "-o", out, "--rank", "4"],
        "run": ["run", out, "text", "--model", out],
        "analyze": ["analyze", one, two, "-o", out],
        "storage --html": ["storage", bundle, "--html", out],
        "eval": ["eval", out, "-o", out],
        "demo": ["demo"],
        "engine": ["merge", one, two, "-o", out, "--engine", "ray"],
        "calibrate": ["merge", one, two, "-o", out, "--calibrate", f"{ROOT}/README.md"],
    }
    arguments = [json.dumps([*_EXTRAS, "sklearn", "zstandard"]), json.dumps([*commands.values()])]
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", ["merge", "ties", "plan", "add", "unpack", "storage", "inspect"])
def test_the_core_does_it(found, name):
    code, said = found[name]
    assert code == 0, said


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("pack", "executorch", "export"),
        ("export-base", "executorch", "export"),
        ("run", "tokenizers", "device"),
        ("analyze", "matplotlib", "report"),
        ("storage --html", "jinja2", "report"),
        ("eval", "matplotlib", "report"),
        ("demo", "executorch", "demo"),
        ("engine", "ray", "ray"),
        ("calibrate", "huggingface_hub", "export"),
    ],
)
def test_it_says_which_extra_it_lacks(found, name, package, extra):
    code, said = found[name]
    assert code == 2, said
    assert f"error: {package} is not installed: pip install 'hydrapack[{extra}]'" in said


def test_extras_are_those_of_the_package():
    stated = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
    for package, extra in _EXTRAS.values():
        assert re.search(rf"^{extra} = ", stated, re.MULTILINE), package
    strange = ModuleNotFoundError("No module named 'x'", name="x.y")
    assert lacking(strange) is strange
