"""The C++ runtime: built here with CMake, tested through ctest and against Python's session.

Skipped, with the reason, where a compiler, CMake, nlohmann/json or GoogleTest is missing
(on Debian: g++, nlohmann-json3-dev, libgtest-dev; CMake and ninja come with the dev extra).
Signatures are checked where libsodium is found (libsodium-dev, pkg-config), else refused.
"""

import fcntl
import hashlib
import json
import os
import platform
import random
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TASKS, build, greedy, have, hydrapack, make_package, tool
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from test_golden import resealed, set_first
from transformers import LlamaConfig, LlamaForCausalLM

from hydrapack.base.export import export_base
from hydrapack.demo.job import heldout_input
from hydrapack.device import Session
from hydrapack.device.activation import activate, open_last_good
from hydrapack.device.native import NativeSession
from hydrapack.device.recording import golden
from hydrapack.packing.manifest import read_package
from hydrapack.packing.package import pack
from hydrapack.packing.signature import sign_manifest
from hydrapack.program.load import load_program
from hydrapack.support.errors import HydrapackError, Mismatch, NotFound

TEXT = "Grüße! what is this"
COUNT = 64


def answers(model, package):
    """Prompt ids, and each task's greedy ids by Python's session; "" is the bare base model."""
    session = Session(model, package)
    ids = session.use("one").encode(TEXT)
    made = {t or "": greedy(session.use(t), ids, COUNT) for t in (*TASKS, None)}
    assert len({tuple(tokens) for tokens in made.values()}) > 1
    return {"prompt": ids, "answers": made, "ends": end_tokens(model)}


def end_tokens(model):
    return sorted(int(i) for i in load_program(model, "forward").constants("get_eos_ids"))


def check_answers(done, want, ends, count):
    """Answers are the ids wanted, all of them, up to the first end token."""
    assert len(done) == len(want) and sum(len(answer["ids"]) for answer in done) > len(done)
    for answer, ids in zip(done, want, strict=True):
        ids = ids[:count]
        assert len(ids) == count
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        assert answer["ids"] == ids[:end]
        assert answer["finish"] == ("length" if end is None else "stop")


def other_weights(model, folder):
    """A model of the same shape with other weights."""
    torch.manual_seed(1)
    shutil.copytree(model, folder)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fixtures(tiny, tiny_model, exported, tmp_path_factory):
    """What the C++ tests run on.

    model.pte with its package, bound to it and signed with key.pem; twin.pte of the same shape with
    other weights; other.pte of another rank; proven, the package with golden outputs;
    expected.json, what Python's session answers.
    """
    folder = tmp_path_factory.mktemp("fixtures")
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(tiny[2] / name, folder)
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(pem)
    pack(tiny[2] / "bundle", folder / "package", 32, model=folder / "model.pte")
    sign_manifest(folder / "package", key)
    rows = [{"task": task, "input": text} for task in TASKS for text in (TEXT, "another")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = golden(folder / "model.pte", folder / "prompts.jsonl")
    pack(tiny[2] / "bundle", folder / "proven", 32, model=folder / "model.pte", golden=record)
    twin = other_weights(tiny_model, folder / "twin")
    export_base(str(twin), folder / "twin.pte", 4, quant="fp32", max_context=100)
    other = exported(2, quant="fp32", max_context=64)
    shutil.copy(other, folder / "other.pte")
    shutil.copy(other.with_name("model.pte.json"), folder / "other.pte.json")
    expected = answers(folder / "model.pte", folder / "package")
    expected["public_key"] = public.public_bytes_raw().hex()
    (folder / "expected.json").write_text(json.dumps(expected))
    return folder


def run_tests(command, fixtures, **environment):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "HYDRAPACK_FIXTURES": str(fixtures), **environment},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "SKIPPED" not in done.stdout
    return done


def test_cpp_tests(native, fixtures):
    done = run_tests([tool("ctest"), "--test-dir", native, "--verbose"], fixtures)
    assert "100% tests passed" in done.stdout


# Each header is read once, not once a file; that a library file has its own shows in ``native``.
UNITY = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")


def sanitized(folder, sanitizers):
    return build(
        folder, "-DHYDRAPACK_TESTS=ON", f"-DHYDRAPACK_SANITIZE={sanitizers}", *UNITY,
        targets=("hydrapack-tests",),
    )  # fmt: skip


def test_sanitized(fixtures, tmp_path):
    """The same tests with AddressSanitizer and UndefinedBehaviorSanitizer."""
    folder = sanitized(tmp_path, "address,undefined")
    # Leaks of the libraries that are not built here are not ours to find.
    done = run_tests([folder / "hydrapack-tests"], fixtures, ASAN_OPTIONS="detect_leaks=0")
    assert "runtime error" not in done.stderr


def test_threads(fixtures, tmp_path):
    """With ThreadSanitizer: threads on a session, and sessions of an engine on theirs."""
    folder = sanitized(tmp_path, "thread")
    done = run_tests([folder / "hydrapack-tests"], fixtures)
    assert "[  PASSED  ] 4 tests." in done.stdout and "WARNING" not in done.stderr


def serve(native, model, package, requests, *options, runner=()):
    done = subprocess.run(
        [*runner, native / "hydrapack-run", model, package, *options],
        input="".join(json.dumps(r) + "\n" for r in requests),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [line for line in lines if "token" not in line], lines


def test_golden_outputs(native, fixtures, tmp_path, monkeypatch):
    """Python's golden outputs on the C++ runtime, and a folder of packages that both switch."""
    run, model = native / "hydrapack-run", fixtures / "model.pte"

    def answered(*arguments):
        done = subprocess.run([run, *arguments], input="", capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setenv("HYDRAPACK_RUN", str(run))
    with NativeSession(model, fixtures / "proven", self_test=True) as session:
        assert "".join(session.generate(TEXT, task="one", max_new_tokens=4, stop=[]))
    with pytest.raises(NotFound, match="no golden outputs"):
        NativeSession(model, fixtures / "package", self_test=True)
    code, said = answered(model, fixtures / "package", "--self-test")
    assert code == 2 and '"NotFound"' in said and "no golden outputs" in said
    packages = tmp_path / "packages"
    code, said = answered("--activate", packages, fixtures / "proven")
    assert code == 0 and json.loads(said)["current"] == str((packages / "current").resolve())
    activate(packages, fixtures / "package")
    code, said = answered(model, packages, "--last-good")
    assert code == 0 and "on the previous package" in said
    assert answered("--activate", packages, packages / "previous")[0] == 0
    assert answered(model, packages, "--last-good") == (0, "")
    with open_last_good(model, packages) as session:
        assert session.package.name == "current"
    code, said = answered("--activate", packages, tmp_path)
    assert code == 2 and '"NotFound"' in said


def test_the_same_self_test(native, fixtures, tmp_path, monkeypatch):
    """One golden token changed: both runtimes and all three commands say the same of it."""
    run, model = native / "hydrapack-run", fixtures / "model.pte"
    monkeypatch.setenv("HYDRAPACK_RUN", str(run))
    other = resealed(fixtures / "proven", tmp_path / "other", set_first(2.0, prompt=1))
    for package, code in ((fixtures / "proven", 0), (other, 1)):
        with Session(model, package) as python, NativeSession(model, package) as cpp:
            expected = json.loads(json.dumps(python.self_test().as_json()))
            assert cpp.self_test() == python.self_test()
        assert expected["passed"] is (code == 0)
        assert expected["tasks"] == {"one": True, "three": True, "two": code == 0}
        done = subprocess.run([run, model, package, "--self-test"], capture_output=True, text=True)
        assert (done.returncode, json.loads(done.stdout)) == (code, expected)
        for engine in ("python", "native"):
            command = ("run", package, "--model", model, "--self-test", "--engine", engine)
            done = hydrapack(*command, "--json")
            assert (done.returncode, json.loads(done.stdout)) == (code, expected)
    with pytest.raises(Mismatch, match=r"fails its self-test.*task 'two', prompt 1, token 0"):
        NativeSession(model, other, self_test=True)


def test_killed_while_it_switches(native, fixtures, tmp_path):
    """200 kills of hydrapack-run --activate: never without a whole package."""
    packages, sources = tmp_path / "packages", (fixtures / "proven", fixtures / "package")
    activate(packages, sources[0])
    digests = {read_package(source).package_digest for source in sources}
    began = time.monotonic()
    subprocess.run([native / "hydrapack-run", "--activate", packages, sources[1]], check=True)
    whole = time.monotonic() - began
    generator, seen = random.Random(0), set()
    for number in range(200):
        package = generator.choice([*sources, packages / "previous"])
        if not package.exists():
            continue
        command = [native / "hydrapack-run", "--activate", packages, package]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(generator.random() * 1.2 * whole)
        child.kill()
        child.wait()
        seen.add(read_package(packages / "current").package_digest)
        assert seen <= digests, number
        if (packages / "previous").exists():
            assert read_package(packages / "previous").package_digest in digests
    assert seen == digests
    assert activate(packages, sources[1]).exists()
    assert len(list(packages.glob("package-*"))) <= 2


@pytest.mark.parametrize("quant", ["fp32", "8da4w"])
def test_same_ids_as_python(native, fixtures, exported, quant):
    """All tasks, 64 tokens, after 20 random swaps, on both kinds of base program."""
    model = fixtures / "model.pte"
    if quant == "8da4w":
        model = exported(4, quant="8da4w", max_context=100)
    expected = answers(model, fixtures / "package")
    generator = random.Random(0)
    warm = [{"ids": [5], "task": generator.choice(TASKS), "max_new_tokens": 1} for _ in range(20)]
    asked = [
        {"ids": expected["prompt"], "task": t or None, "max_new_tokens": COUNT}
        for t in expected["answers"]
    ]
    done, lines = serve(native, model, fixtures / "package", [*warm, *asked])
    assert len(done) == 20 + len(asked)
    check_answers(done[20:], list(expected["answers"].values()), expected["ends"], COUNT)
    assert sum("token" in line for line in lines) == sum(len(a["ids"]) for a in done)


def test_vera(native, vera_tiny, tmp_path):
    """A package of VeRA adapters is a package like any other."""
    model = vera_tiny / "model.pte"
    pack(vera_tiny / "two-heads", tmp_path / "package", 8, model=model)
    expected = answers(model, tmp_path / "package")
    asked = [
        {"ids": expected["prompt"], "task": t or None, "max_new_tokens": COUNT}
        for t in expected["answers"]
    ]
    done, _ = serve(native, model, tmp_path / "package", asked)
    check_answers(done, list(expected["answers"].values()), expected["ends"], COUNT)


def test_the_same_guesses(native, fixtures):
    """With lookup: the answers of plain decoding, in as many calls as Python needs."""
    model, package = fixtures / "model.pte", fixtures / "package"
    session = Session(model, package)
    asked = [
        {"task": task, "temperature": temperature, "seed": 3, "max_new_tokens": COUNT}
        for task in (*TASKS, None)
        for temperature in (0.0, 0.05)
    ]
    saved, requests, python = 0, [], []
    for request in asked:
        session.use(request["task"])
        text = TEXT + TEXT
        options = {key: value for key, value in request.items() if key != "task"}
        answer = session.generate(text, **options, stop=[], lookup=True)
        "".join(answer)
        python.append((answer.ids, session.stats.decode_tokens, session.stats.decode_calls))
        saved += session.stats.decode_tokens - session.stats.decode_calls
        ids = session.encode(text)
        requests += [{**request, "ids": ids, "lookup": on, "stop_ids": []} for on in (False, True)]
    assert saved > 10
    done, _ = serve(native, model, package, requests)
    for plain, guessed, want in zip(done[::2], done[1::2], python, strict=True):
        assert (guessed["ids"], guessed["finish"]) == (plain["ids"], plain["finish"])
        stats = guessed["stats"]
        assert (guessed["ids"], stats["decode_tokens"], stats["decode_calls"]) == want
        assert plain["stats"]["decode_calls"] == plain["stats"]["decode_tokens"]


def test_swaps_leak_nothing(native, fixtures):
    done = subprocess.run(
        [
            native / "hydrapack-run",
            fixtures / "model.pte",
            fixtures / "package",
            "--swaps",
            "10000",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert abs(found["resident_bytes_after"] - found["resident_bytes_before"]) < 5_000_000


def test_requests_that_cannot_be_answered(native, fixtures):
    bad = [
        ("nothing", "Invalid", "no JSON object"),
        ({}, "Invalid", "ids: missing"),
        ({"ids": "x"}, "Invalid", "ids: give a list"),
        ({"ids": []}, "Invalid", "no tokens"),
        ({"ids": [1.0]}, "Invalid", "ids: give a list"),
        ({"ids": [1e300]}, "Invalid", "ids: give a list"),
        ({"ids": [True]}, "Invalid", "ids: give a list"),
        ({"ids": [1 << 63]}, "Invalid", "ids: give a list"),
        ({"ids": [-1]}, "Invalid", "not in the vocabulary"),
        ({"ids": [5], "id": "x"}, "Invalid", "id: give an integer"),
        ({"ids": [5], "task": 5}, "Invalid", "task: give a name"),
        (
            {"ids": [5], "task": "nine"},
            "NotFound",
            "unknown task 'nine'; the package has: one, two",
        ),
        ({"ids": [5], "max_new_tokens": -1}, "Invalid", "max_new_tokens must be"),
        ({"ids": [5], "max_new_tokens": None}, "Invalid", "max_new_tokens: give an integer"),
        ({"ids": [5], "max_new_tokens": 2.0}, "Invalid", "max_new_tokens: give an integer"),
        ({"ids": [5], "temperature": "hot"}, "Invalid", "temperature: give a number"),
        ({"ids": [5], "temperature": 101}, "Invalid", "temperature must be"),
        ({"ids": [5], "top_k": -1}, "Invalid", "top_k must be"),
        ({"ids": [5], "top_p": 7}, "Invalid", "top_p must be"),
        ({"ids": [5], "top_p": 0}, "Invalid", "top_p must be"),
        ({"ids": [5], "seed": -1}, "Invalid", "seed: give an integer"),
        ({"ids": [5], "stop_ids": 2}, "Invalid", "stop_ids: give a list"),
        ({"ids": [5], "topk": 2}, "Invalid", "topk: no such key"),
        ({"stop": "x"}, "Invalid", "stop: give an id"),
        ({"stop": 1, "ids": [5]}, "Invalid", "stop: give an id, and no other key"),
        ({"ids": [5] * 500}, "ContextFull", "do not fit"),
    ]
    done, _ = serve(
        native, fixtures / "model.pte", fixtures / "package",
        [*(request for request, *_ in bad), {"ids": [5], "max_new_tokens": 1, "stop_ids": []}],
    )  # fmt: skip
    assert len(done) == len(bad) + 1
    for (_, kind, words), answer in zip(bad, done, strict=False):
        assert words in answer["error"] and answer["kind"] == kind
    assert done[-1]["finish"] in ("stop", "length") and "error" not in done[-1]


def test_ids_of_requests(native, fixtures):
    """Echoed on every line; without one none."""
    requests = [
        {"id": 7, "ids": [5, 6], "max_new_tokens": 3},
        {"id": -1, "ids": [], "max_new_tokens": 3},
        {"ids": [5, 6], "max_new_tokens": 3},
        {"id": 1 << 62, "what": 1},
    ]
    done, lines = serve(native, fixtures / "model.pte", fixtures / "package", requests)
    assert [answer.get("id") for answer in done] == [7, -1, None, 1 << 62]
    assert done[0]["ids"] == done[2]["ids"] and len(done[0]["ids"]) == 3
    tokens = [(line.get("id"), line["token"]) for line in lines if "token" in line]
    assert tokens == [(i, token) for i in (7, None) for token in done[0]["ids"]]
    assert "id" not in done[2]


def test_stop_while_answering(native, fixtures):
    """A stop is read while an answer is made; one that waits is stopped too."""
    program = subprocess.Popen(
        [native / "hydrapack-run", fixtures / "model.pte", fixtures / "package"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    # The lines of one answer are more than the pipe holds, and nobody reads it: it is half made.
    room = fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, 4096)
    assert room == 4096
    first, count = 10**18, 3
    deadline = time.monotonic() + 60

    def wait_until(ready):
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ready()
        time.sleep(0.2)

    def held(pipe):
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]

    def send(line):
        program.stdin.write(json.dumps(line).encode() + b"\n")
        program.stdin.flush()

    for i in range(count):
        send({"id": first + i, "ids": [5]})
    wait_until(lambda: held(program.stdout) > room - 100)
    send({"stop": 99})
    for i in range(count):
        send({"stop": first + i})
    wait_until(lambda: held(program.stdin) == 0)
    send({"id": 50, "ids": [5]})
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    lines = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    done = {line["id"]: line for line in lines if "token" not in line}
    assert list(done) == [*range(first, first + count), 50]
    for i, answer in done.items():
        assert answer["ids"] == [t["token"] for t in lines if "token" in t and t["id"] == i]
    assert [done[first + i]["finish"] for i in range(count)] == ["stopped"] * count
    whole, half = done[50]["ids"], done[first]["ids"]
    assert done[50]["finish"] == "length" and len(whole) == 128
    assert 0 < len(half) < 128 and half == whole[: len(half)]
    assert [done[first + i]["ids"] for i in range(1, count)] == [[], []]


def test_command_line(native, fixtures):
    program = native / "hydrapack-run"

    def run(*arguments):
        return subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, input=""
        )

    assert "Examples:" in run("--help").stdout
    for arguments, words in [
        ((), "give MODEL.pte and PACKAGE"),
        (("a", "b", "--what"), "no such option"),
        ((fixtures / "model.pte", "--bench"), "--self-test: need a PACKAGE"),
        ((fixtures / "model.pte", "--self-test"), "--self-test: need a PACKAGE"),
        ((fixtures / "model.pte", "--public-key", "0" * 64), "public_key: is of a package"),
        ((fixtures / "none.pte", fixtures / "package"), "no such file"),
        ((fixtures / "model.pte", fixtures), "manifest.json: no such file"),
        ((fixtures / "other.pte", fixtures / "package"), "adapters of rank 2"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr
        assert [line for line in done.stderr.splitlines() if "hydrapack-run: error" in line]
    done = run(fixtures / "twin.pte", fixtures / "package")
    assert done.returncode == 2 and "has other weights than the base" in done.stderr
    model, package = fixtures / "model.pte", fixtures / "package"
    figures = json.loads(run(model, package, "--bench", "--no-digests").stdout)
    assert figures["digests"] is False
    done = run(model, package, "--bench")
    figures = json.loads(done.stdout)
    assert figures["digests"] is True and done.stderr == ""
    assert figures["swap_ms"]["min"] <= figures["swap_ms"]["median"]
    assert figures["decode_ms"]["min"] > 0 and figures["resident_bytes_decoding"] > 0


def test_public_keys(native, fixtures, tmp_path):
    key = json.loads((fixtures / "expected.json").read_text())["public_key"]
    lines = (fixtures / "key.pem").read_text().splitlines()
    (tmp_path / "short.pem").write_text("\n".join([lines[0], lines[1][:-8], lines[2]]))
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    other = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pem").write_bytes(other)
    (tmp_path / "empty.pem").touch()

    def run(public_key):
        command = [native / "hydrapack-run", fixtures / "model.pte", fixtures / "package"]
        return subprocess.run(
            [*command, "--public-key", str(public_key)], capture_output=True, text=True, input=""
        )

    if "SODIUM_FOUND:INTERNAL=1" not in (native / "CMakeCache.txt").read_text():
        for public_key in (key, fixtures / "key.pem"):
            done = run(public_key)
            assert done.returncode == 2 and "checks no signatures" in done.stderr
        return
    for public_key in (key, fixtures / "key.pem"):
        assert run(public_key).returncode == 0
    for public_key, words in [
        (tmp_path / "other.pem", "signed by another key"),
        ("0" * 64, "signed by another key"),
        (tmp_path / "short.pem", "no Ed25519 public key in PEM form"),
        (tmp_path / "empty.pem", "no Ed25519 public key in PEM form"),
        (fixtures / "model.pte.json", "no Ed25519 public key in PEM form"),
        ("abc", "neither 64 hex digits nor a file"),
    ]:
        done = run(public_key)
        assert done.returncode == 2 and words in done.stderr


def test_native_engine(native, fixtures, monkeypatch):
    """``hydrapack run --engine native`` prints what the Python engine prints."""
    monkeypatch.setenv("HYDRAPACK_RUN", str(native / "hydrapack-run"))
    model, package = fixtures / "model.pte", fixtures / "package"
    texts = []
    for engine in ("python", "native"):
        done = hydrapack(
            "run", package, TEXT, "--model", model, "--task", "two", "--engine", engine, "--json"
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["stats"]["prefill_tokens"] > 0
        texts.append(answer["text"])
    assert texts[0] == texts[1] != ""
    session = NativeSession(model, package)
    assert "".join(session.use("two").generate(TEXT)) == texts[0]
    one = "".join(session.generate(TEXT, 20, temperature=2.0, seed=1))
    assert one == "".join(session.generate(TEXT, 20, temperature=2.0, seed=1))
    python = Session(model, package).use("two")
    assert one == "".join(python.generate(TEXT, 20, temperature=2.0, seed=1))
    assert one != "".join(session.generate(TEXT, 20, temperature=2.0, seed=2))
    with pytest.raises(HydrapackError, match="do not fit"):
        "".join(session.generate("x" * 500))
    with pytest.raises(HydrapackError, match="unknown task"):
        session.use("nine")
    session.close()
    for pause in (0, 2):
        # Refused while the request is under way, and before it is sent.
        other = NativeSession(fixtures / "other.pte", package)
        time.sleep(pause)
        with pytest.raises(Mismatch, match="adapters of rank 2"):
            "".join(other.generate("x"))
    bare = ("run", TEXT, "--model", model, "--max-new-tokens", 20, "--engine")
    alone = [hydrapack(*bare, engine).stdout for engine in ("python", "native")]
    assert alone[0] == alone[1] != "\n"
    done = hydrapack(*bare, "native", "--task", "one")
    assert done.returncode == 2 and "the session has no package" in done.stderr
    monkeypatch.setenv("HYDRAPACK_RUN", "/nowhere/hydrapack-run")
    done = hydrapack("run", package, TEXT, "--model", model, "--engine", "native")
    assert done.returncode == 2 and "cannot be run" in done.stderr
    done = hydrapack("run", package, TEXT, "--model", model, "--engine", "rust")
    assert done.returncode == 2 and "choose python or native" in done.stderr


@pytest.fixture(scope="session")
def arm64(tmp_path_factory):
    """The runtime cross-compiled against executorch's aarch64 wheel."""
    needed = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    if platform.machine() != "x86_64" or not have(*needed):
        pytest.skip(f"cross-compiling needs x86-64 and {', '.join(needed)}")
    folder = tmp_path_factory.mktemp("arm64")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    download = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "executorch==1.5.1",
        "--only-binary=:all:", "--platform", "manylinux_2_28_aarch64",
        "--python-version", version, "-d", str(folder),
    ]  # fmt: skip
    done = subprocess.run(download, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip("executorch's aarch64 wheel cannot be downloaded")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder / "wheel")
    # Header-only, so the host's installation serves; arm64 code must not see its other headers.
    headers = folder / "headers"
    headers.mkdir()
    if not Path("/usr/include/nlohmann").is_dir():
        pytest.skip("nlohmann/json is not in /usr/include")
    (headers / "nlohmann").symlink_to("/usr/include/nlohmann")
    config = folder / "json" / "nlohmann_jsonConfig.cmake"
    config.parent.mkdir()
    config.write_text(
        "add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)\n"
        f'target_include_directories(nlohmann_json::nlohmann_json INTERFACE "{headers}")\n'
    )
    (config.parent / "nlohmann_jsonConfigVersion.cmake").write_text(
        "set(PACKAGE_VERSION 3.11.2)\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n"
    )
    return build(
        folder / "build", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCMAKE_CXX_FLAGS=-O1",
        f"-Dnlohmann_json_DIR={config.parent}",
        "-DHYDRAPACK_TESTS=ON", *UNITY, executorch=folder / "wheel" / "executorch",
        targets=("hydrapack-run", "hydrapack-contract"),
    )  # fmt: skip


def test_arm64(arm64, fixtures, exported, tmp_path):
    """Under qemu: the ids of x86-64 for the float32 program; the 8da4w program runs too."""
    qemu = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
    expected = json.loads((fixtures / "expected.json").read_text())
    asked = [
        {"ids": expected["prompt"], "task": t or None, "max_new_tokens": 12}
        for t in expected["answers"]
    ]
    package = fixtures / "package"
    done, _ = serve(arm64, fixtures / "model.pte", package, asked, runner=qemu)
    check_answers(done, list(expected["answers"].values()), expected["ends"], 12)
    # Both ways to take digests, on random sizes.
    generator, paths = random.Random(0), []
    for i, size in enumerate([0, 1, 55, 56, 63, 64, 65, *generator.sample(range(100_000), 20)]):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(generator.randbytes(size))
    command = [*qemu, arm64 / "hydrapack-contract", "sha256", *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [json.loads(line) for line in found.splitlines()] == [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "way": way}
        for path in paths
        for way in ("armv8", "portable")
    ]
    # This build is without libsodium: a key is refused, not ignored.
    refused = subprocess.run(
        [*qemu, arm64 / "hydrapack-run", fixtures / "model.pte", package, "--public-key", "0" * 64],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and "checks no signatures" in refused.stderr
    model = exported(4, quant="8da4w", max_context=100)
    done, _ = serve(arm64, model, package, asked[:1], runner=qemu)
    assert len(done[0]["ids"]) == 12 or done[0]["finish"] == "stop"


TOKEN_BY_TOKEN = """
import ctypes, json, sys
library, model, package = sys.argv[1:4]
c = ctypes.CDLL(library)
c.hydrapack_last_error.restype = ctypes.c_char_p
session = ctypes.c_void_p()
def check(code):
    if code:
        raise SystemExit(c.hydrapack_last_error().decode())
check(c.hydrapack_open(model.encode(), package.encode(), None, ctypes.byref(session)))
for line in sys.stdin:
    asked = json.loads(line)
    check(c.hydrapack_use(session, asked["task"].encode()))
    for token in asked["ids"]:
        check(c.hydrapack_prefill(session, (ctypes.c_int64 * 1)(token), ctypes.c_size_t(1)))
    made, token = [], ctypes.c_int64()
    for _ in range(asked["count"]):
        check(c.hydrapack_step(session, None, ctypes.byref(token)))
        made.append(token.value)
    print(json.dumps(made))
c.hydrapack_close(session)
"""


@pytest.mark.parametrize("quant", ["fp32", "gguf"])
def test_smollm2(native, smollm2_program, smollm2_package, quant):
    """The real model and adapters: every task's first 64 greedy tokens are Python's.

    In a Python process torch's BLAS takes the place of ExecuTorch's own in products of several
    rows, and 8-bit activations make much of a last bit. So the 4-bit program gets its prompt token
    by token, through the C interface: then all logits are equal to the bit, and so are the ids.
    """
    model, package = smollm2_program(quant), smollm2_package(8)
    session = Session(model, package)
    generator = random.Random(0)
    for _ in range(20):
        session.use(generator.choice(session.tasks))
    asked, want = [], []
    for task in session.tasks:
        ids = session.use(task).encode(heldout_input(task, 0))
        asked.append({"ids": ids, "task": task, "max_new_tokens": COUNT, "count": COUNT})
        want.append(greedy(session, ids, COUNT, 1 if quant != "fp32" else len(ids)))
    if quant == "fp32":
        requests = [{k: v for k, v in a.items() if k != "count"} | {"stop_ids": []} for a in asked]
        # Guessed tokens change nothing, and real answers repeat their input. One task without.
        requests = [request | {"lookup": True} for request in requests] + requests[-1:]
        done, _ = serve(native, model, package, requests)
        check_answers(done, [*want, want[-1]], end_tokens(model), COUNT)
        stats = [answer["stats"] for answer in done]
        assert stats[-1]["decode_calls"] == stats[-1]["decode_tokens"] > 0
        tokens, calls = (sum(s[k] for s in stats[:-1]) for k in ("decode_tokens", "decode_calls"))
        assert 0 < calls < 0.8 * tokens
        return
    # A process of its own: one with Python's executorch loaded cannot hold the C++ kernels too.
    done = subprocess.run(
        [sys.executable, "-c", TOKEN_BY_TOKEN, native / "libhydrapack_c.so", model, package],
        input="".join(json.dumps(request) + "\n" for request in asked),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "["] == want


def test_other_widths_and_heads(native, fixtures, tiny, tmp_path):
    """Packages of every width and of a common output basis run as in Python."""
    folders = [tiny[2] / task for task in TASKS]
    packages = [make_package(tmp_path / "u", folders, 8, method="two-sided", output_rank=6)]
    for bits in (4, 16):
        pack(tiny[2] / "bundle", tmp_path / f"{bits}", bits)
        packages.append(tmp_path / f"{bits}")
    for package in packages:
        expected = answers(fixtures / "model.pte", package)
        asked = [
            {"ids": expected["prompt"], "task": t or None, "max_new_tokens": 24}
            for t in expected["answers"]
        ]
        done, _ = serve(native, fixtures / "model.pte", package, asked)
        check_answers(done, list(expected["answers"].values()), expected["ends"], 24)


def compiles(tmp_path, name, source, *options):
    path = tmp_path / name
    path.write_text(source)
    compiler = "cc" if name.endswith(".c") else "c++"
    if not have(compiler):
        pytest.skip(f"needs a compiler, {compiler}")
    done = subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", *options,
         f"-I{ROOT / 'runtime' / 'include'}", path],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_examples_compile(tmp_path):
    """Those of the README and of the headers' heads, without a warning."""
    text = (ROOT / "runtime" / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = {kind: [code for k, code in fences if k == kind] for kind in ("cpp", "c")}
    assert blocks["cpp"] and blocks["c"]
    for i, code in enumerate(blocks["cpp"]):
        compiles(tmp_path, f"readme{i}.cpp", code, "-std=c++17")
    for i, code in enumerate(blocks["c"]):
        compiles(tmp_path, f"readme{i}.c", code, "-std=c11")
    for name in ("session", "engine"):
        path = ROOT / "runtime" / "include" / "hydrapack" / f"{name}.h"
        head = path.read_text(encoding="utf-8").split("#pragma once")[0]
        example = [line[5:] for line in head.splitlines() if line.startswith("//   ")]
        assert any("open" in line for line in example)
        body = "\n".join(example)
        source = f"#include <cstdio>\n#include <hydrapack/session.h>\nint main() {{\n{body}\n}}\n"
        compiles(tmp_path, f"{name}.cpp", source, "-std=c++17")
