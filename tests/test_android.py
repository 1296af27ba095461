"""The Android library and app, built and tested by Maven on this machine's Java.

Skipped, with the reason, where a JDK, Maven, what Maven downloads, or a C++ compiler is missing (on
Debian: openjdk-17-jdk-headless, maven, g++).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import android_vectors as vectors
import pytest
from conftest import ROOT, SITE, TASKS, have, tool
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from test_golden import resealed, set_first, write_prompts
from tokenizers import Tokenizer

from hydrapack.base import smollm2
from hydrapack.base.export import export_base
from hydrapack.demo import job
from hydrapack.device.recording import golden
from hydrapack.packing.manifest import read_manifest
from hydrapack.packing.package import pack
from hydrapack.packing.patch import diff
from hydrapack.packing.signature import sign_manifest
from hydrapack.support.version import __version__

DEMO = ROOT / "android_demo"
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
SHRUNK = DEMO / "app" / "target" / "shrunk.jar"
POM = (DEMO / "pom.xml").read_text()
INPUTS = ["hello", "Grüße! what is this? 🤖", "x y\n\nz <|end|>", "one two one two one two one"]


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
        f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}", "-DCMAKE_CXX_FLAGS=-O1",
        "-DCMAKE_UNITY_BUILD=ON",
        f"-Dexecutorch_DIR={SITE / 'executorch' / 'share' / 'cmake'}",
    ]  # fmt: skip
    for command in (configure, [tool("cmake"), "--build", folder]):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "JAVA_HOME": str(home)}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libhydrapack_desktop.so"


def place(folder, model, package):
    """A model's files and a package beside them."""
    shutil.copytree(package, folder / "package")
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        (folder / name).symlink_to(model.with_name(name))


def smollm2_examples(folder, program, package):
    """SmolLM2 as two programs, each with a package of the five example adapters."""
    tasks = [task.name for task in read_manifest(package).tasks]
    asked = [(task, job.heldout_input(task, 0)[:100]) for task in tasks]
    asked.append((None, asked[-1][1]))
    # In float32 a token takes far longer.
    for quant, count in (("gguf", 20), ("fp32", 10)):
        here = folder / f"smollm2-{quant}"
        place(here, program(quant), package)
        exact = quant == "fp32"
        vectors.write_session(here, asked, count, steps=not exact, answers=exact)


def copy_base(source, folder, key):
    folder.mkdir(exist_ok=True)
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(source / name, folder)
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    (folder / "public_key").write_text(raw.hex())


def bare_base(folder, model):
    """A base program that takes no adapter, of a tokenizer that begins with BOS."""
    source = shutil.copytree(model, folder / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = vectors.with_bos(tokenizer)
    tokenizer.save(str(source / "tokenizer.json"))
    export_base(source, folder / "model.pte", quant="fp32", max_context=100)
    vectors.write_session(folder, [(None, text) for text in INPUTS], 24)


def releases(folder, tiny, key):
    """Two releases with golden outputs, updates between them, and one that fails its own."""
    copy_base(tiny, folder, key)
    model, pem = folder / "model.pte", folder / "key.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(private)
    record = golden(model, write_prompts(folder / "prompts.jsonl"))
    for name, bits in (("package", 32), ("next", 16)):
        pack(tiny / "bundle", folder / name, bits, model=model, golden=record)
    resealed(folder / "package", folder / "other", set_first(2.0))
    diff(folder / "package", folder / "next", folder / "up.patch", signing_key=pem)
    diff(folder / "next", folder / "package", folder / "down.patch")
    vectors.write_self_tests(folder, ("package", "other", "next"))


@pytest.fixture(scope="module")
def fixtures(tiny, tiny_model, exported, smollm2_program, smollm2_package, tmp_path_factory):
    """What the tests in Kotlin compare with."""
    # All that they need: nothing is made for tests that are skipped.
    need("java", "javac", "mvn", "c++")
    folder = tmp_path_factory.mktemp("fixtures")
    offline = bool(os.environ.get("HYDRAPACK_OFFLINE"))
    base = None if offline else smollm2.base_model_directory()
    vectors.write_tokenizers(folder / "tokenizers", "java", base)
    vectors.write_manifests(folder / "manifests")
    vectors.write_draws(folder / "draws.jsonl")
    vectors.write_lookups(folder / "lookups.jsonl")
    key = Ed25519PrivateKey.generate()
    shutil.copytree(tiny[1], folder / "tiny" / "package")
    copy_base(tiny[2], folder / "tiny", key)
    sign_manifest(folder / "tiny" / "package", key)
    asked = [(task, text) for task in (*TASKS, None) for text in INPUTS]
    vectors.write_session(folder / "tiny", asked, 24)
    bare_base(folder / "bare", tiny_model)
    releases(folder / "life", tiny[2], key)
    place(folder / "tiny-8da4w", exported(4, quant="8da4w", max_context=100), tiny[1])
    vectors.write_session(folder / "tiny-8da4w", asked, 24, answers=False)
    if not offline:
        smollm2_examples(folder, smollm2_program, smollm2_package(4))
    return folder


@pytest.fixture(scope="module")
def built(fixtures, library):
    """What Maven printed; all modules are built and tested."""
    command = ["mvn", "-B", "clean", "verify", f"-Dhydrapack.fixtures={fixtures}"]
    done = subprocess.run(
        [*command, f"-Dhydrapack.native={library}"], cwd=DEMO, capture_output=True, text=True
    )
    if done.returncode and (found := UNREACHED.search(done.stdout)):
        pytest.skip(f"needs Maven Central: {found[0][:200]}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_every_class_of_tests_has_run(built):
    ran = dict(reversed(line.split(" -- in ")) for line in built.splitlines() if " -- in " in line)
    # So many tests of the real model are left out.
    offline = bool(os.environ.get("HYDRAPACK_OFFLINE"))
    expected = {
        "org.hydrapack.LookupTest": (1, 0),
        "org.hydrapack.ManifestTest": (4, 0),
        "org.hydrapack.PackagesTest": (6, 0),
        "org.hydrapack.SamplerTest": (3, 0),
        "org.hydrapack.ProgramsTest": (2, 1 * offline),
        "org.hydrapack.SessionTest": (14, 0),
        "org.hydrapack.SmolLm2Test": (4, 4 * offline),
        "org.hydrapack.TokenizerTest": (4, 0),
        "org.hydrapack.demo.EndToEndTest": (4, 1 * offline),
        "org.hydrapack.demo.MainActivityTest": (10, 0),
    }
    assert set(ran) == set(expected)
    for name, (count, skipped) in expected.items():
        line = f"Tests run: {count}, Failures: 0, Errors: 0, Skipped: {skipped},"
        assert line in ran[name], ran[name]


def stand_in_aar(folder):
    """An AAR in the form of executorch-android's: our classes, and libraries that only load."""
    (jar,) = (DEMO / "desktop" / "target").glob("executorch-desktop-*.jar")
    source = folder / "stub.cpp"
    source.write_text('extern "C" int JNI_OnLoad(void*, void*) { return 0x00010006; }\n')
    aar = folder / "executorch.aar"
    with zipfile.ZipFile(aar, "w") as archive:
        archive.write(jar, "classes.jar")
        archive.writestr("proguard.txt", "-keepattributes *Annotation*\n")
        for abi, compiler in (("arm64-v8a", "aarch64-linux-gnu-g++"), ("x86_64", "g++")):
            made = folder / f"{abi}.so"
            options = ["-shared", "-fPIC", "-nostdlib", "-Wl,-z,max-page-size=16384"]
            subprocess.run([compiler, *options, source, "-o", made], check=True)
            archive.write(made, f"jni/{abi}/libexecutorch.so")
    return aar


def build_apk(*arguments):
    """tools/build_apk.py as the Makefile calls it."""
    return subprocess.run(
        [sys.executable, DEMO / "tools" / "build_apk.py", *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def apk(built, tmp_path_factory):
    """(APK, AAR, folder); what stands in for executorch-android would not run on a phone."""
    need("aapt", "apksigner", "zipalign", "dexdump", "keytool", "g++", "aarch64-linux-gnu-g++")
    folder = tmp_path_factory.mktemp("apk")
    aar = stand_in_aar(folder)
    arguments = ("--aar", aar, "--any-aar", "--keystore", folder / "debug.p12")
    digests = set()
    for name in ("first.apk", "second.apk"):
        done = build_apk(*arguments, "--out", folder / name)
        assert done.returncode == 0, done.stderr
        digests.add(hashlib.sha256((folder / name).read_bytes()).hexdigest())
    assert len(digests) == 1, "the same sources made two APKs"
    print(done.stdout)
    return folder / "first.apk", aar, folder


@pytest.fixture
def tools(monkeypatch):
    """tools/ as modules."""
    monkeypatch.syspath_prepend(str(DEMO / "tools"))
    import build_apk
    import check_apk

    return build_apk, check_apk


def test_the_checks_find_what_is_wrong(apk, tools, tmp_path):
    build, check = tools
    good, aar, folder = apk
    wanted = build.versions()
    assert check.check(good, wanted, aar) == []
    assert list(check.check_badging(good, {**wanted, "minSdk": "21"})) == [
        "badging has no sdkVersion:'21'"
    ]
    with pytest.raises(SystemExit, match="apksigner"):
        list(check.check_signature(DEMO / "app" / "target" / "unsigned.apk"))
    loose = tmp_path / "loose.apk"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(loose, "w") as new:
        for entry in old.infolist():
            if "arm64" not in entry.filename:
                new.writestr(entry.filename, old.read(entry), zipfile.ZIP_DEFLATED)
            elif "fbjni" not in entry.filename:
                new.writestr(entry.filename, old.read(entry))
    said = " ".join(check.check_alignment(loose))
    assert "lib/arm64-v8a/libfbjni.so is missing" in said
    assert "x86_64/libexecutorch.so is compressed" in said
    assert "arm64-v8a/libexecutorch.so does not begin at a page" in said
    assert min(check.load_alignments((folder / "arm64-v8a.so").read_bytes())) == 16384
    # A class whose methods a library registers, and which the app does not call.
    (tmp_path / "Other.java").write_text("class Other { native void run(); }")
    subprocess.run(["javac", "-d", tmp_path / "classes", tmp_path / "Other.java"], check=True)
    with zipfile.ZipFile(tmp_path / "classes.jar", "w") as jar:
        jar.write(tmp_path / "classes" / "Other.class", "Other.class")
    with zipfile.ZipFile(tmp_path / "other.aar", "w") as archive:
        archive.write(tmp_path / "classes.jar", "classes.jar")
    assert list(check.check_dex(good, tmp_path / "other.aar")) == [
        "classes.dex lacks LOther;, which the native library looks up"
    ]


def test_a_package_ships_within_the_app(apk, tools, fixtures):
    target = DEMO / "app" / "target"
    package = fixtures / "tiny" / "package"
    made = tools[0].write_zip(target, target / "classes.dex", {}, package)
    with zipfile.ZipFile(made) as archive:
        for file in package.iterdir():
            entry = archive.getinfo(f"assets/demo/{file.name}")
            assert archive.read(entry) == file.read_bytes()
            assert entry.compress_type == zipfile.ZIP_STORED
            assert tools[1].data_offset(made, entry) % 4 == 0
        assert archive.read("classes.dex") == (target / "classes.dex").read_bytes()


def test_other_bytes_than_those_pinned_are_refused(apk):
    done = build_apk("--aar", apk[1])
    assert done.returncode != 0 and "is not the one in tools/pins.json" in done.stderr


@pytest.fixture(scope="module")
def shipped(apk, tmp_path_factory):
    """The DEX of the APK turned back into a jar; without enjarify, the jar that it was made of."""
    if not have("enjarify"):
        return SHRUNK
    jar = tmp_path_factory.mktemp("dex") / "dex.jar"
    subprocess.run(
        [shutil.which("enjarify"), DEMO / "app" / "target" / "classes.dex", "-o", jar],
        env={**os.environ, "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    return jar


def test_what_ships_has_pythons_tokens(shipped, fixtures, library, tmp_path):
    """Of that jar alone: the library, ExecuTorch's Java classes and Kotlin's."""
    source = DEMO / "tools" / "RunSession.java"
    subprocess.run(["javac", "-cp", SHRUNK, "-d", tmp_path, source], check=True)
    for name in ("tiny", "tiny-8da4w", "smollm2-gguf"):
        if not (fixtures / name).exists():
            continue
        expected = json.loads((fixtures / name / "session.json").read_text())
        asked = [part for row in expected["rows"] for part in (row["task"] or "", row["text"])]
        command = [*JAVA, "-cp", f"{shipped}:{tmp_path}", "RunSession", library, fixtures / name]
        done = subprocess.run(
            [*command, str(expected["count"]), *asked], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert len(rows) == len(expected["rows"]) > 5
        for (task, finish, prompt, greedy, ids), row in zip(rows, expected["rows"], strict=True):
            assert task == (row["task"] or "")
            assert (json.loads(prompt), json.loads(greedy)) == (row["prompt"], row["greedy"])
            if "ids" in row:
                assert (json.loads(ids), finish) == (row["ids"], row["finish"])


def test_what_ships_passes_the_sessions_tests(shipped, fixtures, library, tmp_path):
    """The tests of Session in Kotlin again, on the library's classes out of that jar."""
    classes = tmp_path / "classes.jar"
    with zipfile.ZipFile(shipped) as jar, zipfile.ZipFile(classes, "w") as own:
        for name in jar.namelist():
            # Not Kotlin's: the tests call more of it than the app does.
            if name.startswith("org/hydrapack/"):
                own.writestr(name, jar.read(name))
    target = DEMO / "hydrapack" / "target"
    path = f"{classes}:{target / 'test-classes'}:{(target / 'test-classpath.txt').read_text()}"
    settings = [f"-Dhydrapack.fixtures={fixtures}", f"-Dhydrapack.native={library}"]
    done = subprocess.run(
        [*JAVA, "-cp", path, *settings, "org.junit.runner.JUnitCore", "org.hydrapack.SessionTest"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    # JUnitCore is silent on tests left out: what one says of its fixtures shows that they ran.
    assert "OK (14 tests)" in done.stdout and "tiny: " in done.stdout


def test_gradle_has_mavens_versions(tools):
    catalog = (DEMO / "gradle" / "libs.versions.toml").read_text()
    block = catalog.split("[versions]")[1].split("[libraries]")[0]
    stated = dict(re.findall(r'^(\w+) = "(.*)"$', block, re.MULTILINE))
    maven = tools[0].properties()
    equal = {
        "kotlin": "kotlin.version",
        "executorch": "executorch.version",
        "applicationId": "android.applicationId",
        "minSdk": "android.minSdk",
        "targetSdk": "android.targetSdk",
        "versionCode": "android.versionCode",
    }
    assert {key: stated[key] for key in equal} == {key: maven[name] for key, name in equal.items()}
    # What Maven compiles against is of the SDK that Gradle compiles against.
    levels = {"35": "15"}
    assert maven["android-all.version"].split("-")[0] == levels[stated["compileSdk"]]
    version = re.search(r"<artifactId>android-demo</artifactId>\s*<version>(.*)</version>", POM)
    assert version and version[1] == stated["versionName"] == __version__
    settings = (DEMO / "settings.gradle.kts").read_text()
    assert ["desktop", *re.findall('":([a-z]+)"', settings)] == re.findall(
        "<module>(.*)</module>", POM
    )


def test_gradle_has_mavens_dependencies():
    """What is in the APK by Maven is what Gradle names: executorch-android, and what it brings."""
    catalog = (DEMO / "gradle" / "libs.versions.toml").read_text()
    assert re.findall('module = "([^"]*)"', catalog) == ["org.pytorch:executorch-android"]
    library = (DEMO / "hydrapack" / "build.gradle.kts").read_text()
    app = (DEMO / "app" / "build.gradle.kts").read_text()
    named = re.findall(r"^    (?:api|implementation)\(([^)]*\)?)\)", library + app, re.MULTILINE)
    assert named == ["libs.executorch", 'project(":hydrapack")']
    contents = (DEMO / "app" / "pom.xml").read_text().split("<id>contents</id>")[1]
    items = re.findall("<artifactId>(.*)</artifactId>", contents.split("</artifactItems>")[0])
    # executorch-android brings fbjni, nativeloader and kotlin-stdlib.
    assert items == ["kotlin-stdlib", "fbjni", "nativeloader", "hydrapack"]
