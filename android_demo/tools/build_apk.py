"""The APK without Gradle: ProGuard, dx, a zip of our own, apksigner. After mvn package.

Every file that comes from Maven Central must have the SHA-256 that pins.json states.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from check_apk import ABIS, check, run

DEMO = Path(__file__).resolve().parents[1]
APP = DEMO / "app"
PINS = json.loads((DEMO / "tools" / "pins.json").read_text())
# Any date will do, as long as it is the same each time.
DATE = (1980, 1, 1, 0, 0, 0)
ALIGNMENT_FIELD = 0xD935
PASSWORD = "android"
# Compiled once and plainly: no process runs for long.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


def properties() -> dict[str, str]:
    """Those of the parent POM."""
    space = "{http://maven.apache.org/POM/4.0.0}"
    found = ElementTree.parse(DEMO / "pom.xml").getroot().find(f"{space}properties")
    assert found is not None
    return {str(p.tag).removeprefix(space): p.text or "" for p in found}


def versions() -> dict[str, str]:
    """What the APK is to say of itself."""
    all_of_them = properties()
    keys = ("applicationId", "minSdk", "targetSdk", "versionCode")
    return {key: all_of_them[f"android.{key}"] for key in keys}


def pinned(path: Path) -> Path:
    """The file, whose SHA-256 is the one that was looked at."""
    if not path.is_file():
        raise SystemExit(f"{path}: missing; run mvn package first")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PINS.get(path.name):
        raise SystemExit(f"{path}: SHA-256 {digest} is not the one in tools/pins.json")
    return path


def fetched_aar(target: Path) -> Path:
    """executorch-android from Maven Central."""
    version = properties()["executorch.version"]
    path = target / "contents" / f"executorch-android-{version}.aar"
    if not path.exists():
        artifact = f"org.pytorch:executorch-android:{version}:aar"
        command = ["mvn", "-q", "-B", "-U", "dependency:copy", f"-Dartifact={artifact}"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={path.parent}"], cwd=DEMO, capture_output=True, text=True
        )
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if "ERROR" in line]
            why = lines[0] if lines else done.stdout
            raise SystemExit(
                f"{artifact} cannot be had from Maven Central: name the file by --aar\n{why[:500]}"
            )
    return pinned(path)


def unpack(aar: Path, folder: Path) -> Path:
    """The files of an AAR."""
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(aar) as archive:
        archive.extractall(folder)
    return folder


def shrink(target: Path, jars: list[Path], rules: list[Path]) -> Path:
    """One jar of what the app reaches, back-ported to what dx and Android 8 read."""
    tools = target / "tools"
    names = ("proguard-base-7.9.1", "proguard-core-9.3.2", "kotlin-metadata-jvm-2.3.0")
    names += ("gson-2.11.0", "json-20231013", "log4j-api-2.25.3", "log4j-core-2.25.3")
    stdlib = f"kotlin-stdlib-{properties()['kotlin.version']}.jar"
    path = [pinned(tools / f"{name}.jar") for name in names]
    path.append(pinned(target / "contents" / stdlib))
    framework = pinned(tools / f"android-all-{properties()['android-all.version']}.jar")
    # android-all leaves out what any Java has.
    java = Path(shutil.which("javac") or "").resolve().parents[1] / "jmods" / "java.base.jmod"
    shrunk = target / "shrunk.jar"
    shrunk.unlink(missing_ok=True)
    inputs = [argument for jar in jars for argument in ("-injars", f"{jar}(!META-INF/**)")]
    # With version 7 strings are joined, lambdas called and interfaces implemented as of old.
    run(
        *JAVA, "-cp", ":".join(map(str, path)), "proguard.ProGuard", *inputs,
        "-outjars", shrunk, "-libraryjars", f"{framework}(!META-INF/**)",
        "-libraryjars", f"{java}(!**.jar;!module-info.class)", "-target", "1.7",
        *(argument for file in rules for argument in ("-include", file)),
    )  # fmt: skip
    return shrunk


def dex(target: Path, jar: Path) -> Path:
    """The jar as Android runs it."""
    made = target / "classes.dex"
    tool = pinned(target / "tools" / "dalvik-dx-16.0.1.jar")
    least = versions()["minSdk"]
    run(
        *JAVA, "-cp", tool, "com.android.dx.command.Main", "--dex",
        f"--min-sdk-version={least}", f"--output={made}", jar,
    )  # fmt: skip
    return made


class Apk:
    """A zip of files in the order given, each where it may be mapped."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w")

    def add(self, name: str, data: bytes, alignment: int | None = None) -> None:
        """Adds a file; with ``alignment`` it is stored as it is, at a multiple of that."""
        entry = zipfile.ZipInfo(name, DATE)
        entry.external_attr = 0o644 << 16
        entry.compress_type = zipfile.ZIP_DEFLATED if alignment is None else zipfile.ZIP_STORED
        if alignment is not None:
            # The header, the name and this field's own head come before the bytes. apksigner keeps
            # the alignment that the field states.
            assert self._zip.fp is not None
            start = self._zip.fp.tell() + 30 + len(name.encode()) + 6
            padding = -start % alignment
            entry.extra = struct.pack("<HHH", ALIGNMENT_FIELD, 2 + padding, alignment)
            entry.extra += bytes(padding)
        self._zip.writestr(entry, data)

    def close(self) -> None:
        """Ends the file."""
        self._zip.close()


def write_zip(target: Path, code: Path, libraries: dict[str, Path], assets: Path | None) -> Path:
    """Resources, code, native libraries and, of ``assets``, a package for the first start."""
    path = target / "unsigned.apk"
    apk = Apk(path)
    with zipfile.ZipFile(target / "resources" / "base.apk") as base:
        for name in sorted(n for n in base.namelist() if not n.endswith(".gitkeep")):
            stored = base.getinfo(name).compress_type == zipfile.ZIP_STORED
            apk.add(name, base.read(name), 4 if stored else None)
    apk.add("classes.dex", code.read_bytes())
    for name, library in sorted(libraries.items()):
        apk.add(name, library.read_bytes(), 16384)
    for file in sorted(assets.iterdir()) if assets else []:
        apk.add(f"assets/demo/{file.name}", file.read_bytes(), 4)
    apk.close()
    return path


def sign(unsigned: Path, signed: Path, keystore: Path) -> None:
    """Signs with a key for development, which is made on the first call."""
    if not keystore.exists():
        run(
            "keytool", "-genkeypair", "-keystore", keystore, "-storetype", "PKCS12",
            "-storepass", PASSWORD, "-alias", "androiddebugkey", "-keyalg", "RSA",
            "-keysize", "2048", "-validity", "10000", "-dname", "CN=Android Debug,O=Android,C=US",
        )  # fmt: skip
    run(
        "apksigner", "sign", "--ks", keystore, "--ks-pass", f"pass:{PASSWORD}",
        "--min-sdk-version", versions()["minSdk"], "--out", signed, unsigned,
    )  # fmt: skip


def build(target: Path, aar: Path, out: Path, assets: Path | None, keystore: Path) -> None:
    """The whole of it, and the checks."""
    contents = target / "contents"
    fbjni = unpack(
        pinned(contents / f"fbjni-{properties()['fbjni.version']}.aar"), target / "fbjni"
    )
    executorch = unpack(aar, target / "executorch")
    loader = f"nativeloader-{properties()['nativeloader.version']}.jar"
    stdlib = f"kotlin-stdlib-{properties()['kotlin.version']}.jar"
    (app,) = target.glob("app-*.jar")
    (library,) = contents.glob("hydrapack-*.jar")
    jars = [app, library, pinned(contents / stdlib), pinned(contents / loader)]
    jars += [executorch / "classes.jar", fbjni / "classes.jar"]
    rules = [APP / "proguard-rules.pro", executorch / "proguard.txt"]
    code = dex(target, shrink(target, jars, [file for file in rules if file.exists()]))
    libraries = {
        f"lib/{abi}/{file.name}": file
        for folder in (executorch, fbjni)
        for abi in ABIS
        for file in sorted((folder / "jni" / abi).glob("*.so"))
    }
    # aapt2 made what the APK begins with.
    pinned(target / "tools" / "prebuilt" / "linux" / "aapt2")
    sign(write_zip(target, code, libraries, assets), out, keystore)
    problems = check(out, versions(), aar)
    if problems:
        raise SystemExit("\n".join(f"{out}: {problem}" for problem in problems))
    print(f"{out}: {out.stat().st_size:,} bytes, classes.dex {code.stat().st_size:,}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aar", type=Path, help="executorch-android; else from Maven Central")
    parser.add_argument(
        "--any-aar", action="store_true", help="take --aar whatever its SHA-256 (own builds)"
    )
    parser.add_argument("--assets", type=Path, help="files of a package to ship within the app")
    parser.add_argument("--target", type=Path, default=APP / "target", help="of the app's module")
    parser.add_argument("--out", type=Path, help="the APK; else in the target folder")
    parser.add_argument("--keystore", type=Path, help="PKCS12; else one made for development")
    given = parser.parse_args()
    aar = given.aar or fetched_aar(given.target)
    if given.aar and not given.any_aar:
        pinned(given.aar)
    out = given.out or given.target / "hydrapack-demo.apk"
    build(given.target, aar, out, given.assets, given.keystore or given.target / "debug.p12")


if __name__ == "__main__":
    main()
