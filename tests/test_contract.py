"""What both runtimes promise alike (docs/runtime-contract.md): manifests and draws."""

import copy
import json
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from make_manifests import FOLDER, corpus, manifest, more, sealed, text

from hydrapack.device.manifest import parse_manifest
from hydrapack.device.sampler import Sampler
from hydrapack.packing.manifest import read_manifest
from hydrapack.support.errors import HydrapackError

PROGRAM = "hydrapack-contract"
VERDICTS = json.loads((FOLDER / "verdicts.json").read_text())
KINDS = {"Ok", "Invalid", "Mismatch"}


def verdict(data):
    """("Ok" or the kind, message) of the device's reader."""
    try:
        parse_manifest(data, Path("m.json"))
    except HydrapackError as error:
        assert "\n" not in str(error) and "m.json" in str(error)
        return error.kind, str(error)
    return "Ok", ""


def strictly(folder, data):
    """Does the packing tools' reader take it?"""
    (folder / "manifest.json").write_bytes(data)
    try:
        read_manifest(folder)
    except HydrapackError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def contract(native):
    """The C++ side of these tests."""
    if PROGRAM not in (ROOT / "runtime" / "CMakeLists.txt").read_text():
        pytest.skip(f"runtime/CMakeLists.txt has no {PROGRAM}")
    return native / PROGRAM


def cpp_verdicts(contract, folder):
    """{file name: kind} of the C++ reader, all files of a folder in one call."""
    names = sorted(path.name for path in folder.iterdir())
    done = subprocess.run(
        [contract, "manifest", *names], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == names
    assert all(line["kind"] == "Ok" or line["message"] for line in lines)
    return {line["file"]: line["kind"] for line in lines}


def test_the_corpus_is_what_its_script_writes():
    written = corpus()
    assert {path.name for path in FOLDER.iterdir()} == written.keys()
    for name, data in written.items():
        assert (FOLDER / name).read_bytes() == data, f"{name}: run tests/make_manifests.py"


def test_the_corpus_has_every_verdict():
    counts = {kind: sum(v == kind for v in VERDICTS.values()) for kind in KINDS}
    assert set(VERDICTS.values()) == KINDS
    assert counts["Ok"] >= 25 and counts["Invalid"] >= 80 and counts["Mismatch"] >= 3


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_corpus_in_python(name):
    data = (FOLDER / f"{name}.json").read_bytes()
    assert verdict(data)[0] == VERDICTS[name], verdict(data)
    # The digests are right wherever they can be: nothing is refused for its digest alone.
    if VERDICTS[name] == "Invalid" and not name.startswith("digest"):
        assert "package_digest does not fit" not in verdict(data)[1]


def test_what_is_too_large_to_commit(tmp_path):
    cases = list(more())
    assert len(cases) > 50
    for name, expected, data in cases:
        assert verdict(data)[0] == expected, name


def test_every_manifest_that_packing_takes_runs(tmp_path):
    taken = []
    cases = {name: (FOLDER / f"{name}.json").read_bytes() for name in VERDICTS}
    # Beyond 4 MB the strict reader's memory, not its verdict, would be tested.
    cases |= {name: data for name, _, data in more() if len(data) < 4 << 20}
    for name, data in cases.items():
        if strictly(tmp_path, data):
            taken.append(name)
            # The digest is left to check_files there.
            parse_manifest(data, Path(name), check_digest=False)
    assert "good" in taken and "metadata" in taken and len(taken) >= 20
    assert "unknown-key" not in taken and "rank-float" not in taken


def test_corpus_in_cpp(contract):
    found = cpp_verdicts(contract, FOLDER)
    found.pop("verdicts.json")
    assert found == {f"{name}.json": kind for name, kind in VERDICTS.items()}


def test_what_is_too_large_to_commit_in_cpp(contract, tmp_path):
    expected = {}
    for name, kind, data in more():
        (tmp_path / name).write_bytes(data)
        expected[name] = kind
    found = cpp_verdicts(contract, tmp_path)
    shutil.rmtree(tmp_path)
    assert found == expected


VALUES = (
    None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e-7, 4096, 65537, 1 << 31, 1 << 53, 1 << 63,
    1 << 64, -(1 << 63) - 1, 10**30, 1e300, "", "x", "base", "error", "one", "two", "{input}",
    "adapters.pte", "a" * 64, "0" * 63, "é" * 150, [], {}, [0], [1, 1], [None], {"a": 1}, [[]],
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0041", b"\\ud800", b"\\udc00", b"\\ud83d",
    b"\\ude00", b"\0", b"\t", b"\r\n", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"1e999",
    b"-1e999", b"1e-999", b"9" * 330, b"-", b"-0", b"00", b"1.", b".5", b"1E5", b"NaN", b"Infinity",
    b"null", b"true", b"//", b"/**/", b"[" * 70, b"]" * 70, b'{"a":' * 70, b'"rank": 4,',
    b'"\\u0072ank": 4,', b'"tasks": [],', b'"x": 1, "x": 2,', b"\x0c", b"\xc2\xa0", b" ",
)  # fmt: skip


def places(value, at=()):
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*at, key))


def mutated_content(generator):
    """The good manifest with values swapped, dropped, moved or added."""
    content = manifest()
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        found = list(places(content))
        if not found:
            break
        *parents, key = generator.choice(found)
        inner = content
        for parent in parents:
            inner = inner[parent]
        kind = generator.randrange(6)
        if kind == 0:
            del inner[key]
        elif kind == 1 and isinstance(inner, dict):
            inner[generator.choice(("x", "metadata", "é", "schema_version", "rank"))] = (
                copy.deepcopy(generator.choice(VALUES))
            )
        elif kind == 2 and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[key]))
        else:
            inner[key] = copy.deepcopy(generator.choice(VALUES))
    return text(content, generator.random() < 0.9)


def mutated_bytes(data, generator):
    """Bytes flipped, cut, doubled or replaced by what parsers trip over."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 3))):
        at = generator.randrange(len(changed) + 1)
        kind = generator.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[at : at + generator.randrange(1, 40)] = b""
        elif kind == 2:
            changed[at:at] = changed[at : at + generator.randrange(1, 200)]
        else:
            changed[at : at + generator.randrange(3)] = generator.choice(TOKENS)
    return bytes(changed)


def mutants(count, seed):
    """Mutated manifests; most with a package_digest that fits."""
    generator = random.Random(seed)
    good = text(manifest())
    for _ in range(count):
        data = mutated_content(generator) if generator.random() < 0.6 else good
        if generator.random() < 0.5:
            data = mutated_bytes(data, generator)
        yield data if generator.random() < 0.05 else sealed(data)


def test_mutants_in_python(tmp_path):
    """One clear error or none, and what packing takes the device takes."""
    counts = dict.fromkeys(KINDS, 0)
    taken = 0
    for data in mutants(2000, 0):
        counts[verdict(data)[0]] += 1
        if strictly(tmp_path, data):
            taken += 1
            parse_manifest(data, tmp_path, check_digest=False)
    assert min(counts.values()) > 10 and counts["Ok"] > 200 and taken > 100


def test_mutants_are_judged_alike(contract, tmp_path):
    expected, content = {}, {}
    for number, data in enumerate(mutants(4000, 1)):
        name = f"{number}"
        (tmp_path / name).write_bytes(data)
        expected[name], content[name] = verdict(data), data
    found = cpp_verdicts(contract, tmp_path)
    differ = [n for n, kind in found.items() if kind != expected[n][0]]
    assert not differ, [(found[n], expected[n], content[n]) for n in differ[:3]]
    assert {kind for kind, _ in expected.values()} == KINDS


def draws(request):
    """What hydrapack-contract prints for a request, by Python's sampler."""
    sampler = Sampler(request["seed"])
    logits = np.array(request["logits"], dtype=np.float32)
    options = [request[key] for key in ("temperature", "top_k", "top_p")]
    return {"ids": [sampler.pick(logits, *options) for _ in range(request["count"])]}


def sampling_requests():
    """Random logits over options: ties, few tokens, a vocabulary of 49k."""
    generator = np.random.default_rng(0)
    plain = random.Random(0)
    for number in range(400):
        size = plain.choice((1, 2, 5, 40, 1000))
        logits = generator.normal(0, plain.choice((0.1, 2, 20)), size).astype(np.float32)
        if number % 3 == 0:  # ties, zeros of both signs among them
            logits = np.round(logits)
        yield {
            "logits": [float(x) for x in logits],
            "temperature": plain.choice((0, 1e-3, 0.3, 0.7, 1, 1.5, 100)),
            "top_k": plain.choice((0, 0, 1, 2, 7, size, size + 1, 1 << 20)),
            "top_p": plain.choice((1, 1, 0.999, 0.9, 0.5, 0.1, 1e-6, 1e-40)),
            "seed": plain.choice((0, 1, 2**53 - 1, plain.randrange(1 << 53))),
            "count": 20,
        }
    large = [float(x) for x in generator.normal(0, 3, 49152).astype(np.float32)]
    for top_k, top_p, temperature in (
        (0, 1, 1),
        (0, 0.9, 0.7),
        (50, 1, 1),
        (50, 0.9, 5),
        (0, 0.999, 9),
    ):
        yield {
            "logits": large,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": top_k,
            "count": 30,
        }


def test_the_same_draws(contract):
    requests = list(sampling_requests())
    lines = [json.dumps(request) for request in requests]
    bad = (
        json.dumps({**requests[1], "logits": [0, 1]}).replace("[0, 1]", "[0, 1e39]"),
        json.dumps({**requests[1], "temperature": -1}),
        json.dumps({**requests[1], "temperature": 101}),
        json.dumps({**requests[1], "top_p": 0}),
        json.dumps({**requests[1], "top_k": -1}),
    )
    done = subprocess.run(
        [contract, "sample"],
        input="".join(line + "\n" for line in (*lines, *bad)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(requests) + len(bad)
    for request, line in zip(requests, found, strict=False):
        assert line == draws(request), {k: v for k, v in request.items() if k != "logits"}
    for line in found[len(requests) :]:
        assert line["kind"] == "Invalid" and line["message"]
