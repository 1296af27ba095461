"""``--engine ray``: the same bytes as on this machine, and the same errors."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from conftest import hydrapack, write_adapter

from hydrapack.support.engine import _made, on_ray
from hydrapack.support.errors import Mismatch, RuntimeFailure
from hydrapack.support.threads import one_thread

if find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install 'hydrapack[ray]'", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    """A local Ray of two workers."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    return [write_adapter(folder / f"task{k}", seed=k + 1, shared_seed=99) for k in range(3)]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "options",
    [
        ["--heads", "2"],
        ["--budget", "60KB"],
        ["--target-error", "0.6"],
        ["--method", "hydraopt", "--heads", "2", "--set", "steps=5"],
        ["--method", "dare", "--set", "seed=3"],
    ],
    ids=lambda options: " ".join(options),
)
def test_the_same_bytes(cluster, folders, tmp_path, options, monkeypatch):
    # Workers are somewhere else already.
    monkeypatch.chdir(folders[0].parent)
    folders = [folder.name for folder in folders]
    for engine in ("local", "ray"):
        done = hydrapack("merge", *folders, "-o", tmp_path / engine, "--engine", engine, *options)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_the_same_bytes_of_vera(cluster, vera_tiny, tmp_path):
    tasks = sorted(vera_tiny.glob("*/adapter_config.json"))
    for engine in ("local", "ray"):
        adapters = [path.parent for path in tasks]
        done = hydrapack("merge", *adapters, "-o", tmp_path / engine, "--engine", engine)
        assert done.returncode == 0, done.stderr
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_an_error_of_a_worker_is_the_same_line(cluster, tmp_path):
    folders = [write_adapter(tmp_path / f"a{k}", seed=k) for k in range(2)]
    config = folders[0] / "adapter_config.json"
    # In range by itself, but not once both updates stand on one A.
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 1e37'))
    said = [
        hydrapack("merge", *folders, "-o", tmp_path / "out", "--objective", "absolute",
                  "--engine", engine)
        for engine in ("local", "ray")
    ]  # fmt: skip
    assert [done.returncode for done in said] == [2, 2]
    assert said[0].stderr == said[1].stderr and len(said[1].stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_evaluation_scores_the_same(cluster, folders, tiny_model, tmp_path, monkeypatch):
    rows = [{"input": f"text {i}", "output": "x"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "base_model": str(tiny_model),
        "tasks": [
            {"name": folder.name, "adapter": str(folder), "data": "rows.jsonl",
             "metric": "rouge-l", "max_new_tokens": 4}
            for folder in folders
        ],
        "methods": [{"method": "own"}, {"method": "spectral", "heads": [1, 2]}],
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    found = {}
    for engine in ("local", "ray"):
        with one_thread():
            done = hydrapack("eval", "eval.yaml", "-o", engine, "--engine", engine)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / engine / "results.json").read_text())["results"]
        measured = ("answer_seconds", "merge_peak_bytes", "merge_seconds")
        found[engine] = [{k: v for k, v in row.items() if k not in measured} for row in rows]
        # Answers of the same prompts and heads, each with the seconds it took.
        files = sorted((tmp_path / engine / "cache").iterdir())
        answers = [json.loads(path.read_text()) | {"seconds": 0} for path in files]
        found[engine].append(dict(zip([path.name for path in files], answers, strict=True)))
    assert found["ray"] == found["local"] and len(found["ray"]) == 4
    (tmp_path / "eval.yaml").write_text(json.dumps({**config, "device": "cuda"}))
    done = hydrapack("eval", "eval.yaml", "-o", "gpu", "--engine", "ray")
    assert done.returncode == 2 and "--engine ray: answers on CPUs" in done.stderr


def test_a_worker_that_raises_or_is_lost(cluster):
    def raises(number: int) -> int:
        if number == 3:
            raise Mismatch("three")
        return number

    found = on_ray(raises, range(6))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Mismatch, match=r"^three$"):
        list(found)

    def get(_):
        # As of a worker that was killed; Ray tries again three times before.
        raise cluster.exceptions.WorkerCrashedError

    with pytest.raises(RuntimeFailure, match=r"^`engine` ray: WorkerCrashedError: The worker died"):
        _made(SimpleNamespace(get=get, exceptions=cluster.exceptions), None)
    with pytest.raises(ZeroDivisionError):
        list(on_ray(partial(divmod, 1), [0]))


def test_an_engine_that_is_none(folders, tmp_path):
    done = hydrapack("merge", *folders, "-o", tmp_path / "out", "--engine", "spark")
    assert done.returncode == 2 and "--engine spark: choose local or ray" in done.stderr


def test_a_cluster_that_is_not_there(folders, tmp_path, monkeypatch):
    import ray

    def init(**_):
        # As the real one, once it has given up.
        raise ConnectionError("Failed to connect to GCS")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    done = hydrapack("merge", *folders, "-o", tmp_path / "out", "--engine", "ray")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "error: --engine ray: no cluster at 127.0.0.1:1: Failed" in done.stderr


def test_ctrl_c_ends_it(folders, tmp_path):
    command = [sys.executable, "-m", "hydrapack", "merge", *map(str, folders), "-o",
               str(tmp_path / "out"), "--engine", "ray", "--method", "hydraopt", "--heads", "2",
               "--set", "steps=1000000"]  # fmt: skip
    # What a shell starts in the background ignores SIGINT, and so would the command.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heard
    )
    try:
        time.sleep(25)
        assert running.poll() is None
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode not in (0, 2) and b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []
