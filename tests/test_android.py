"""The Android library and app, built and tested by Maven on this machine's Java.

Skipped, with the reason, where a JDK, Maven, what Maven downloads, or a C++ compiler is missing (on
Debian: openjdk-17-jdk-headless, maven, g++).
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import android_vectors as vectors
import pytest
from conftest import ROOT, SITE, have, tool
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hydrapack.adapters.collect import read_adapters
from hydrapack.base import smollm2
from hydrapack.bundle import read_bundle, write_bundle
from hydrapack.demo import job
from hydrapack.merge.adapters import merge_adapters
from hydrapack.pack.package import write_package
from hydrapack.pack.signature import sign_manifest

DEMO = ROOT / "android_demo"
INPUTS = ["hello", "Grüße! what is this? 🤖", "x y\n\nz <|end|>"]


UNREACHED = re.compile(r"Could not (?:transfer|find|resolve)[^\n]*|Unknown host[^\n]*")


def need(*programs):
    if not have(*programs):
        pytest.skip(f"needs {' '.join(programs)} (openjdk-17-jdk-headless, maven, g++ on Debian)")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The native side of ExecuTorch's Java API, over the wheel."""
    need("java", "javac", "c++")
    folder = tmp_path_factory.mktemp("desktop")
    home = Path(shutil.which("javac")).resolve().parents[1]
    configure = [
        tool("cmake"), "-S", DEMO / "desktop" / "native", "-B", folder, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}", "-DCMAKE_BUILD_TYPE=Release",
        f"-Dexecutorch_DIR={SITE / 'executorch' / 'share' / 'cmake'}",
    ]  # fmt: skip
    for command in (configure, [tool("cmake"), "--build", folder]):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "JAVA_HOME": str(home)}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libhydrapack_desktop.so"


def smollm2_example(folder):
    """The demo's base program and a package of its five adapters."""
    adapters = read_adapters(job.example_adapters())
    write_bundle(merge_adapters(adapters), adapters, folder / "bundle")
    manifest = write_package(read_bundle(folder / "bundle"), folder / "package", 4)
    model = job._base_program(manifest.rank, tuple(manifest.target_modules), lambda name: None)
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        (folder / name).symlink_to(model.parent / name)
    inputs = [job.heldout_input("tone", 0)[:100]]
    vectors.write_session(folder / "session.json", model, folder / "package", inputs, 12)


@pytest.fixture(scope="module")
def fixtures(tiny, tmp_path_factory):
    """What the tests in Kotlin compare with."""
    need("java")
    folder = tmp_path_factory.mktemp("fixtures")
    offline = bool(os.environ.get("HYDRAPACK_OFFLINE"))
    base = None if offline else smollm2.base_model_directory()
    vectors.write_tokenizers(folder / "tokenizers", "java", base)
    vectors.write_manifests(folder / "manifests")
    vectors.write_draws(folder / "draws.jsonl")
    shutil.copytree(tiny[1], folder / "tiny" / "package")
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(tiny[2] / name, folder / "tiny")
    key = Ed25519PrivateKey.generate()
    sign_manifest(folder / "tiny" / "package", key)
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    (folder / "tiny" / "public_key").write_text(raw.hex())
    here = folder / "tiny"
    vectors.write_session(here / "session.json", here / "model.pte", here / "package", INPUTS, 24)
    if not offline:
        (folder / "smollm2").mkdir()
        smollm2_example(folder / "smollm2")
    return folder


@pytest.fixture(scope="module")
def built(fixtures, library):
    """What Maven printed; all modules are built and tested."""
    need("mvn")
    command = ["mvn", "-B", "verify", f"-Dhydrapack.fixtures={fixtures}"]
    done = subprocess.run(
        [*command, f"-Dhydrapack.native={library}"], cwd=DEMO, capture_output=True, text=True
    )
    if done.returncode and (found := UNREACHED.search(done.stdout)):
        pytest.skip(f"needs Maven Central: {found[0][:200]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_the_library_is_like_the_other_runtimes(built):
    ran = {line.split(" -- in ")[1]: line for line in built.splitlines() if " -- in org." in line}
    for name in ("ManifestTest", "SamplerTest", "SessionTest", "TokenizerTest", "SmolLm2Test"):
        line = ran[f"org.hydrapack.{name}"]
        expected = 1 if name == "SmolLm2Test" and os.environ.get("HYDRAPACK_OFFLINE") else 0
        assert f"Skipped: {expected}," in line and "Tests run: 0" not in line, line
    print("\n".join(ran.values()))
