"""Is an APK what a phone and the store take? python check_apk.py APK [--aar AAR]"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ABIS = ("arm64-v8a", "x86_64")
PAGE = 16384
# What libexecutorch.so and libfbjni.so look up when they are loaded, whoever calls them.
ALWAYS_KEPT = ("Lorg/pytorch/executorch/Module;", "Lcom/facebook/jni/HybridData$Destructor;")


def run(*command: object) -> str:
    """What a command prints; an error if it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[:2000]}")
    return done.stdout


def check_badging(apk: Path, wanted: dict[str, str]) -> Iterator[str]:
    """The package, its SDK versions and its activity; and that it asks for no permission."""
    badging = run("aapt", "dump", "badging", apk)
    lines = [
        f"package: name='{wanted['applicationId']}' versionCode='{wanted['versionCode']}'",
        f"sdkVersion:'{wanted['minSdk']}'",
        f"targetSdkVersion:'{wanted['targetSdk']}'",
        f"launchable-activity: name='{wanted['applicationId']}.MainActivity'",
    ]
    for line in lines:
        if line not in badging:
            yield f"badging has no {line}"
    if "uses-permission" in badging:
        yield "it asks for a permission"


def check_signature(apk: Path) -> Iterator[str]:
    """Signed by the schemes that Android 8 and newer verify."""
    verified = run("apksigner", "verify", "--verbose", apk)
    for scheme in ("v2", "v3"):
        if not re.search(rf"Verified using {scheme} scheme.*: true", verified):
            yield f"no {scheme} signature"


def data_offset(apk: Path, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin in the file."""
    with apk.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return entry.header_offset + 30 + int(name) + int(extra)


def load_alignments(library: bytes) -> list[int]:
    """Alignment of each loadable segment of a 64-bit ELF file."""
    if library[:5] != b"\x7fELF\x02":
        return []
    (start,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", library, start + i * size) for i in range(count)]
    return [header[7] for header in headers if header[0] == 1]


def check_alignment(apk: Path) -> Iterator[str]:
    """Libraries are stored as they are, at pages of 16 KB, for both kinds of processor."""
    with zipfile.ZipFile(apk) as archive:
        libraries = [e for e in archive.infolist() if e.filename.endswith(".so")]
        for abi in ABIS:
            for name in ("libexecutorch.so", "libfbjni.so", "libc++_shared.so"):
                if f"lib/{abi}/{name}" not in archive.namelist():
                    yield f"lib/{abi}/{name} is missing"
        for entry in libraries:
            if entry.compress_type != zipfile.ZIP_STORED:
                yield f"{entry.filename} is compressed"
            if data_offset(apk, entry) % PAGE:
                yield f"{entry.filename} does not begin at a page of 16 KB"
            alignments = load_alignments(archive.read(entry))
            if not alignments or min(alignments) < PAGE:
                yield f"{entry.filename}: its segments are not aligned to 16 KB"
    if subprocess.run(["zipalign", "-c", "-p", "4", apk], capture_output=True).returncode:
        yield "zipalign finds an entry that is not aligned"


def native_classes(aar: Path, folder: Path) -> set[str]:
    """Classes of an AAR with native methods: its library registers them all."""
    with zipfile.ZipFile(aar) as archive:
        jar = Path(archive.extract("classes.jar", folder))
    with zipfile.ZipFile(jar) as archive:
        names = [n.removesuffix(".class") for n in archive.namelist() if n.endswith(".class")]
    found = set()
    for name in names:
        if re.search(r"\bnative\b", run("javap", "-p", "-cp", jar, name.replace("/", "."))):
            found.add(f"L{name};")
    return found


def check_dex(apk: Path, aar: Path | None) -> Iterator[str]:
    """No instruction that Android 8 cannot link, and every class that C++ looks up."""
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(apk) as archive:
        dex = archive.extract("classes.dex", scratch)
        listing = run("dexdump", "-d", dex)
        classes = set(re.findall(r"Class descriptor  : '(.*)'", listing))
        for instruction in ("invoke-custom", "invoke-polymorphic"):
            if instruction in listing:
                yield f"classes.dex has {instruction}"
        kept = set(ALWAYS_KEPT) | (native_classes(aar, Path(scratch)) if aar else set())
        for name in sorted(kept - classes):
            yield f"classes.dex lacks {name}, which the native library looks up"


def check(apk: Path, wanted: dict[str, str], aar: Path | None) -> list[str]:
    """What is wrong, a line each.

    Args:
        apk: the file.
        wanted: applicationId, versionCode, minSdk and targetSdk.
        aar: of ExecuTorch, whose classes with native methods must all be there.
    """
    return [
        *check_badging(apk, wanted),
        *check_signature(apk),
        *check_alignment(apk),
        *check_dex(apk, aar),
    ]


def main() -> None:
    """The command line."""
    from build_apk import versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("apk", type=Path)
    parser.add_argument("--aar", type=Path)
    arguments = parser.parse_args()
    problems = check(arguments.apk, versions(), arguments.aar)
    for problem in problems:
        print(f"{arguments.apk}: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
