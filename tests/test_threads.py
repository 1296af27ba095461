"""The same numbers, hence the same bytes, whatever number of threads the machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hydrapack.program.load import execute
from hydrapack.support.threads import one_thread

ADAPTERS = Path(__file__).parents[1] / "examples" / "adapters"

# The example adapters' products are large enough to be shared by threads. Three layers of them;
# what takes seconds is done with one.
WRITE = """
import hashlib, json, sys
from dataclasses import asdict, replace
from pathlib import Path
import torch
from hydrapack.adapters.collect import read_adapters
from hydrapack.analysis.similarity import analyze
from hydrapack.bundle.format import Bundle
from hydrapack.merging.add import add
from hydrapack.merging.uniform import merge_adapters
from hydrapack.merging.planned import merge_budget
from hydrapack.analysis.tradeoff import tradeoff
from hydrapack.packing.package import pack
from hydrapack.program.quantized import Precision
from hydrapack.bundle.stored import store
from hydrapack.bundle.unpack import unpack

adapters, out = Path(sys.argv[1]), Path(sys.argv[2])
if len(sys.argv) > 3:
    torch.set_num_threads(int(sys.argv[3]))
before = torch.get_num_threads()
def first(adapter, layers):
    kept = {n: m for n, m in adapter.modules.items() if int(n.split(".")[2]) < layers}
    return replace(adapter, modules=kept)

found = read_adapters([str(f) for f in sorted(adapters.iterdir())])
several, read = [first(a, 3) for a in found], [first(a, 1) for a in found]
made = {}

def note(name, *parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    made[name] = digest.hexdigest()

def files(name, folder):
    note(name, *(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()))

def tensors(module):
    return [t.contiguous().numpy().tobytes() for t in module.tensors.values()]

for name, options in {
    "several spectral": {"heads": 2},
    "several two-sided": {"method": "two-sided"},
    "several M = N": {},
}.items():
    merge_adapters(several, **options).save(out / name)
    files(name, out / name)
for name, options in {
    "spectral": {},
    "spectral, 2 heads": {"heads": 2},
    "spectral, one route": {"heads": 2, "routing": "global"},
    "two-sided": {"method": "two-sided"},
    "hydraopt": {"method": "hydraopt", "steps": 3},
    "ties": {"method": "ties"},
    "dare-ties": {"method": "dare-ties"},
    "A only, refitted": {"method": "task-arithmetic", "only_a": True, "refit_b": True},
}.items():
    merge_adapters(read, **options).save(out / name)
    files(name, out / name)
merge_budget(read, 150_000).save(out / "budget")
files("budget", out / "budget")
pack(out / "budget", out / "package")
files("package", out / "package")
merge_adapters(read[:4]).save(out / "four")
add(out / "four", read[4]).bundle.save(out / "added")
files("added", out / "added")
unpack(out / "two-sided", out / "unpacked")
files("unpacked", out / "unpacked")
unpack(out / "two-sided", out / "one", read[0].task)
files("one", out / "one")
note("trade-off", *(asdict(p) for p in tradeoff(read, [8, 16], [4]).points))
note("analysis", analyze(read).as_json())
modules = Bundle.load(out / "two-sided").modules.values()
stored = [store(m, Precision(4, 4)) for m in modules]
note("rounded", *(b for m in stored for b in tensors(m.dequantize())))
note("refitted", *(b for m in stored for b in tensors(m.merged)))
assert torch.get_num_threads() == before
print(json.dumps(made))
"""

PLAIN = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """By environment and caller's number of threads: the digests of all that is written."""
    found = {}

    def run(number, **environment):
        key = (number, *sorted(environment.items()))
        if key not in found:
            kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
            out = tmp_path_factory.mktemp("threads")
            done = subprocess.run(
                [sys.executable, "-c", WRITE, ADAPTERS, out, *([str(number)] if number else [])],
                env={**kept, **environment},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            found[key] = json.loads(done.stdout)
            assert len(found[key]) == 20
        return found[key]

    return run


@pytest.mark.parametrize(
    ("number", "environment"),
    [
        (None, {"OMP_NUM_THREADS": "4"}),
        (3, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}),
    ],
)
def test_bytes_do_not_depend_on_threads(digests, number, environment):
    one, other = digests(None, **PLAIN), digests(number, **environment)
    differing = [name for name in one if one[name] != other[name]]
    assert not differing


@pytest.fixture
def three_threads():
    """torch has three threads while a test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_the_callers_number_is_set_back():
    with pytest.raises(ValueError, match="x"), one_thread():
        assert torch.get_num_threads() == 1
        raise ValueError("x")
    assert torch.get_num_threads() == 3
    assert one_thread()(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_program_runs_on_one_thread_of_torch():
    """Attention's products are torch's on this runtime, and its sums would depend on the number."""

    class Method:
        def execute(self, inputs):
            return [torch.get_num_threads(), *inputs]

    assert execute(Method(), ["input"], "forward") == [1, "input"]
    assert torch.get_num_threads() == 3
