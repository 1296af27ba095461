"""The C++ runtime: built here with CMake, tested through ctest and against Python's session.

Skipped, with the reason, where a compiler, CMake, nlohmann/json or GoogleTest is missing
(on Debian: g++, nlohmann-json3-dev, libgtest-dev; CMake and ninja come with the dev extra).
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TASKS, build, greedy, have, hydrapack, make_package, tool

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from transformers import LlamaConfig, LlamaForCausalLM

from hydrapack.base.export import export_base
from hydrapack.bundle import read_bundle
from hydrapack.device import Session
from hydrapack.device.native import NativeSession
from hydrapack.errors import InputError
from hydrapack.pack.package import write_package
from hydrapack.pack.signature import sign_manifest

TEXT = "Grüße! what is this"
COUNT = 64


def answers(model, package):
    """Prompt ids, and each task's greedy ids by Python's session; "" is the bare base model."""
    session = Session(model, package)
    ids = session.use("one").encode(TEXT)
    made = {t or "": greedy(session.use(t), ids, COUNT) for t in (*TASKS, None)}
    assert len({tuple(tokens) for tokens in made.values()}) > 1
    return {"prompt": ids, "answers": made}


def other_weights(model, folder):
    """A model of the same shape with other weights."""
    torch.manual_seed(1)
    shutil.copytree(model, folder)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fixtures(tiny, tiny_model, tmp_path_factory):
    """What the C++ tests run on.

    model.pte with its package, bound to it and signed with key.pem; twin.pte of the same shape with
    other weights; other.pte of another rank; expected.json, what Python's session answers.
    """
    folder = tmp_path_factory.mktemp("fixtures")
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(tiny[2] / name, folder)
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(pem)
    write_package(
        read_bundle(tiny[2] / "bundle"), folder / "package", 32, model=folder / "model.pte"
    )
    sign_manifest(folder / "package", key)
    twin = other_weights(tiny_model, folder / "twin")
    export_base(str(twin), folder / "twin.pte", 4, quant="fp32", max_context=100)
    export_base(str(tiny_model), folder / "other.pte", 2, quant="fp32", max_context=64)
    expected = answers(folder / "model.pte", folder / "package")
    expected["public_key"] = public.public_bytes_raw().hex()
    (folder / "expected.json").write_text(json.dumps(expected))
    return folder


def run_ctest(folder, fixtures, **environment):
    done = subprocess.run(
        [folder / "hydrapack-tests"],
        capture_output=True,
        text=True,
        env={**os.environ, "HYDRAPACK_FIXTURES": str(fixtures), **environment},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "SKIPPED" not in done.stdout
    return done


def test_cpp_tests(native, fixtures):
    run_ctest(native, fixtures)
    done = subprocess.run(
        [tool("ctest"), "--test-dir", native, "--output-on-failure"],
        capture_output=True,
        text=True,
        env={**os.environ, "HYDRAPACK_FIXTURES": str(fixtures)},
    )
    assert done.returncode == 0 and "100% tests passed" in done.stdout


def test_sanitized(fixtures, tmp_path):
    """The same tests with AddressSanitizer and UndefinedBehaviorSanitizer."""
    folder = build(
        tmp_path, "-DHYDRAPACK_TESTS=ON", "-DHYDRAPACK_SANITIZE=address,undefined",
        target="hydrapack-tests",
    )  # fmt: skip
    # Leaks of the libraries that are not built here are not ours to find.
    done = run_ctest(folder, fixtures, ASAN_OPTIONS="detect_leaks=0")
    assert "runtime error" not in done.stderr


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


@pytest.mark.parametrize("quant", ["fp32", "8da4w"])
def test_same_ids_as_python(native, fixtures, tiny_model, tmp_path, quant):
    """All tasks, 64 tokens, after 20 random swaps, on both kinds of base program."""
    model = fixtures / "model.pte"
    if quant == "8da4w":
        model = tmp_path / "model.pte"
        export_base(str(tiny_model), model, 4, max_context=100)
    expected = answers(model, fixtures / "package")
    generator = random.Random(0)
    warm = [{"ids": [5], "task": generator.choice(TASKS), "max_new_tokens": 1} for _ in range(20)]
    # An end token ends native generation: what comes before it is compared.
    asked = [
        {"ids": expected["prompt"], "task": t or None, "max_new_tokens": COUNT}
        for t in expected["answers"]
    ]
    done, lines = serve(native, model, fixtures / "package", [*warm, *asked])
    assert len(done) == 20 + len(asked)
    for request, answer in zip(asked, done[20:], strict=True):
        want = expected["answers"][request["task"] or ""]
        assert answer["ids"] == want[: len(answer["ids"])]
        assert len(answer["ids"]) == COUNT or answer["finish"] == "stop"
    assert sum("token" in line for line in lines) == sum(len(a["ids"]) for a in done)


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
        ("nothing", "no JSON object"),
        ({}, "ids"),
        ({"ids": "x"}, "ids"),
        ({"ids": []}, "no tokens"),
        ({"ids": [1e300]}, "ids"),
        ({"ids": [-1]}, "not in the vocabulary"),
        ({"ids": [5], "task": 5}, "task"),
        ({"ids": [5], "task": "nine"}, "unknown task 'nine'; the package has: one, two, three"),
        ({"ids": [5], "max_new_tokens": -1}, "out of range"),
        ({"ids": [5], "temperature": "hot"}, "no number"),
        ({"ids": [5], "top_p": 7}, "top_p"),
        ({"ids": [5] * 500}, "do not fit"),
    ]
    done, _ = serve(
        native, fixtures / "model.pte", fixtures / "package",
        [*(request for request, _ in bad), {"ids": [5], "max_new_tokens": 2}],
    )  # fmt: skip
    for (_, words), answer in zip(bad, done, strict=False):
        assert words in answer["error"]
    assert len(done[-1]["ids"]) <= 2 and "error" not in done[-1]


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
        ((fixtures / "none.pte", fixtures / "package"), "no such file"),
        ((fixtures / "model.pte", fixtures), "manifest.json: no such file"),
        ((fixtures / "other.pte", fixtures / "package"), "adapters of rank 2"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr
        assert [line for line in done.stderr.splitlines() if "hydrapack-run: error" in line]
    figures = json.loads(run(fixtures / "model.pte", fixtures / "package", "--bench").stdout)
    assert figures["swap_ms"]["min"] <= figures["swap_ms"]["median"]
    assert figures["decode_ms"]["min"] > 0 and figures["resident_bytes_decoding"] > 0


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
    assert one != "".join(session.generate(TEXT, 20, temperature=2.0, seed=2))
    with pytest.raises(InputError, match="do not fit"):
        "".join(session.generate("x" * 500))
    with pytest.raises(InputError, match="unknown task"):
        session.use("nine")
    session.close()
    other = NativeSession(fixtures / "other.pte", package)
    with pytest.raises(InputError, match="adapters of rank 2"):
        "".join(other.generate("x"))
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
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", "-DCMAKE_BUILD_TYPE=Release",
        f"-Dnlohmann_json_DIR={config.parent}",
        executorch=folder / "wheel" / "executorch", target="hydrapack-run",
    )  # fmt: skip


def test_arm64(arm64, fixtures, tiny_model, tmp_path):
    """Under qemu: the ids of x86-64 for the float32 program; the 8da4w program runs too."""
    qemu = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
    expected = json.loads((fixtures / "expected.json").read_text())
    asked = [
        {"ids": expected["prompt"], "task": t or None, "max_new_tokens": 32}
        for t in expected["answers"]
    ]
    package = fixtures / "package"
    done, _ = serve(arm64, fixtures / "model.pte", package, asked, runner=qemu)
    for request, answer in zip(asked, done, strict=True):
        want = expected["answers"][request["task"] or ""]
        assert answer["ids"] == want[: len(answer["ids"])] and answer["ids"]
    model = tmp_path / "model.pte"
    export_base(str(tiny_model), model, 4, max_context=100)
    done, _ = serve(arm64, model, package, asked[:1], runner=qemu)
    assert done[0]["ids"]


TOKEN_BY_TOKEN = """
import ctypes, json, sys
library, model, package = sys.argv[1:4]
c = ctypes.CDLL(library)
c.hydrapack_last_error.restype = ctypes.c_char_p
session = ctypes.c_void_p()
def check(code):
    if code:
        raise SystemExit(c.hydrapack_last_error().decode())
check(c.hydrapack_open(model.encode(), package.encode(), 1, ctypes.byref(session)))
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


@pytest.mark.skipif(bool(os.environ.get("HYDRAPACK_OFFLINE")), reason="HYDRAPACK_OFFLINE is set")
@pytest.mark.parametrize("quant", ["fp32", "8da4w"])
def test_smollm2(native, tmp_path, quant):
    """The real model and adapters: every task's first 64 greedy tokens are Python's.

    In a Python process torch's BLAS takes the place of ExecuTorch's own in products of several
    rows, and 8-bit activations make much of a last bit. So the 4-bit program gets its prompt token
    by token, through the C interface: then all logits are equal to the bit, and so are the ids.
    """
    from hydrapack.base import smollm2
    from hydrapack.demo.job import example_adapters, heldout_input

    model = tmp_path / "model.pte"
    export_base(smollm2.NAME, model, 16, quant=quant, max_context=512)
    package = make_package(tmp_path, example_adapters(), 8)
    session = Session(model, package)
    generator = random.Random(0)
    for _ in range(20):
        session.use(generator.choice(session.tasks))
    asked, want = [], []
    for task in session.tasks:
        ids = session.use(task).encode(heldout_input(task, 0))
        asked.append({"ids": ids, "task": task, "max_new_tokens": COUNT, "count": COUNT})
        want.append(greedy(session, ids, COUNT, 1 if quant == "8da4w" else len(ids)))
    if quant == "fp32":
        done, _ = serve(native, model, package, asked)
        for expected, answer in zip(want, done, strict=True):
            assert answer["ids"] == expected[: len(answer["ids"])] and answer["ids"]
        return
    # A process of its own: one with Python's executorch loaded cannot hold the C++ kernels too.
    done = subprocess.run(
        [sys.executable, "-c", TOKEN_BY_TOKEN, native / "libhydrapack.so", model, package],
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
        write_package(read_bundle(tiny[2] / "bundle"), tmp_path / f"{bits}", bits)
        packages.append(tmp_path / f"{bits}")
    for package in packages:
        expected = answers(fixtures / "model.pte", package)
        asked = [
            {"ids": expected["prompt"], "task": t or None, "max_new_tokens": 24}
            for t in expected["answers"]
        ]
        done, _ = serve(native, fixtures / "model.pte", package, asked)
        for request, answer in zip(asked, done, strict=True):
            want = expected["answers"][request["task"] or ""]
            assert answer["ids"] == want[: len(answer["ids"])]
