"""Updates of a package: small, exact, of one package only, and whole or not at all."""

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, hydrapack, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.merging.add import add
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing import patch as python
from hydrapack.packing.package import pack
from hydrapack.packing.patch import MAGIC, apply, diff
from hydrapack.support.delta import Reader, decode, encode, write_number
from hydrapack.support.errors import HydrapackError, of_kind


@pytest.fixture(scope="module", params=["python", "native"])
def engine(request):
    """What applies a patch: ``apply`` as hydrapack.apply; ``start``, the pid of a process that
    begins to; how many ``kills`` of those are quick; whether it checks ``signatures``.
    """
    if request.param == "python":
        return SimpleNamespace(apply=apply, start=forked, kills=60, signatures=True)
    native = request.getfixturevalue("native")
    signatures = "SODIUM_FOUND:INTERNAL=1" in (native / "CMakeCache.txt").read_text()
    program = native / "hydrapack-run"

    def command(old, patch, target, public_key=None):
        key = [] if public_key is None else ["--public-key", public_key]
        return [program, "--apply", patch, old, target, *key]

    def run(*paths, **options):
        done = subprocess.run(command(*paths, **options), capture_output=True, text=True)
        said = json.loads(done.stdout)
        if done.returncode:
            assert done.stderr == f"hydrapack-run: error: {said['error']}\n"
            raise of_kind(said["kind"], said["error"])
        assert said == {"applied": str(paths[2])}

    silent = [(os.POSIX_SPAWN_OPEN, handle, os.devnull, os.O_WRONLY, 0) for handle in (1, 2)]

    def start(*paths):
        return os.posix_spawn(program, command(*paths), os.environ, file_actions=silent)

    return SimpleNamespace(apply=run, start=start, kills=200, signatures=signatures)


def forked(*paths):
    child = os.fork()
    if child == 0:
        apply(*paths)
        os._exit(0)
    return child


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two Ed25519 keys in PEM, and the first one's public key in PEM and in hex."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        (folder / f"{name}.pem").write_bytes(pem)
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub.pem").write_bytes(public)
        (folder / f"{name}.hex").write_text(key.public_key().public_bytes_raw().hex())
    return folder


@pytest.fixture(scope="module")
def releases(keys, tmp_path_factory):
    """A folder of packages 1 and 2 (a task added, two-sided, signed), and patches between them."""
    folder = tmp_path_factory.mktemp("releases")
    adapters = [write_adapter(folder / f"t{k}", seed=k + 1, shared_seed=99) for k in range(4)]
    read = read_adapters([str(a) for a in adapters[:3]])
    first = merge_adapters(read, "two-sided", output_rank=4)
    second = add(first, adapters[3]).bundle
    for number, bundle in ((1, first), (2, second)):
        options = {"package_version": number, "channel": "beta", "model_card": number == 2}
        pack(bundle, folder / str(number), signing_key=keys / "own.pem", **options)
    diff(folder / "1", folder / "2", folder / "up.patch", signing_key=keys / "own.pem")
    diff(folder / "2", folder / "1", folder / "down.patch")
    return folder


WORDS = [bytes(random.Random(k).randbytes(40)) for k in range(8)]


def texts():
    """Pairs of bytes: alike, unlike, empty, repeated, shifted, with holes."""
    chance = random.Random(0)
    yield b"", b""
    yield b"", b"a" * 1000
    yield WORDS[0], b""
    yield WORDS[0] * 5, WORDS[0] * 9
    for _ in range(60):
        old = b"".join(chance.choice(WORDS) for _ in range(chance.randrange(30)))
        new = bytearray(old)
        for _ in range(chance.randrange(6)):
            at = chance.randrange(len(new) + 1)
            kind = chance.randrange(3)
            if kind == 0:
                new[at:at] = chance.randbytes(chance.randrange(50))
            elif kind == 1:
                del new[at : at + chance.randrange(100)]
            else:
                new[at : at + 3] = chance.randbytes(3)
        yield old, bytes(new)


def test_a_delta_gives_the_new_bytes():
    for old, new in texts():
        coded = encode(old, new)
        assert decode(old, Reader(coded), len(new)) == new
        assert len(coded) <= len(new) + 4
    # A long repeat is one copy that runs into its own output.
    assert len(encode(b"", b"ab" * 5000)) < 30
    assert len(encode(WORDS[0] * 5, WORDS[0] * 9)) < 10


@pytest.mark.parametrize("number", [0, 127, 128, 1 << 30, (1 << 63) - 1])
def test_numbers(number):
    assert Reader(write_number(number)).number() == number


def test_bytes_are_the_new_packages(releases, engine, tmp_path):
    apply = engine.apply
    shutil.copytree(releases / "1", tmp_path / "1")
    apply(tmp_path / "1", releases / "up.patch", tmp_path / "2")
    assert files_of(tmp_path / "2") == files_of(releases / "2")
    assert files_of(tmp_path / "1") == files_of(releases / "1")
    apply(tmp_path / "1", releases / "up.patch", tmp_path / "1")
    assert files_of(tmp_path / "1") == files_of(releases / "2")
    apply(tmp_path / "1", releases / "down.patch", tmp_path / "1")
    assert files_of(tmp_path / "1") == files_of(releases / "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    (tmp_path / "link").symlink_to("1")
    apply(tmp_path / "link", releases / "up.patch", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert files_of(tmp_path / "1") == files_of(releases / "2")


def test_the_same_packages_give_the_same_patch(releases, tmp_path):
    again = diff(releases / "2", releases / "1", tmp_path / "again.patch")
    assert again.read_bytes() == (releases / "down.patch").read_bytes()


def test_a_task_more_costs_its_head_and_a_manifest(releases):
    """The program's own fields are a constant, about 250 bytes."""
    old, new = (json.loads((releases / n / "manifest.json").read_text()) for n in "12")
    head = new["storage"]["tensor_bytes"] - old["storage"]["tensor_bytes"]
    documents = sum(
        (releases / "2" / name).stat().st_size for name in ("manifest.json", "README.md")
    )
    size = (releases / "up.patch").stat().st_size
    assert 0 < head < size < head + documents


def test_refused(releases, engine, keys, tmp_path):
    apply = engine.apply
    patch, one, two = releases / "up.patch", releases / "1", releases / "2"
    unsigned, own = releases / "down.patch", (keys / "own.hex").read_text()
    other = (keys / "other.hex").read_text()
    shutil.copytree(one, tmp_path / "cut")
    (tmp_path / "cut" / "adapters.pte").unlink()
    shutil.copytree(one, tmp_path / "touched")
    data = bytearray((one / "adapters.pte").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "touched" / "adapters.pte").write_bytes(data)
    (tmp_path / "text").write_text("a text")
    gone = r"(cannot be read|no such file)"
    for arguments, key, kind, words in [
        ((two, patch), None, "Mismatch", "adapters.pte: is not the file that"),
        ((tmp_path / "touched", patch), None, "Mismatch", "adapters.pte: is not the file that"),
        (
            (tmp_path / "cut", patch),
            None,
            "NotFound",
            f"adapters.pte: {gone}",
        ),
        ((one, tmp_path / "none"), None, "NotFound", f"none: {gone}"),
        ((one, tmp_path / "text"), None, "Invalid", "is no patch that this"),
        ((one, patch), other, "Mismatch", "signed by another key"),
        ((two, unsigned), own, "Mismatch", "is not signed"),
    ]:
        if key is not None and not engine.signatures:
            kind, words = "Invalid", "this build checks no signatures"
        with pytest.raises(HydrapackError, match=words) as caught:
            apply(*arguments, tmp_path / "out", public_key=key)
        assert caught.value.kind == kind
    with pytest.raises(HydrapackError, match="is not 64 of the digits"):
        python.apply(one, patch, tmp_path / "out", public_key="x")
    with pytest.raises(HydrapackError, match=r"adapters\.pte: is not the file"):
        diff(tmp_path / "touched", two, tmp_path / "x.patch")
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.patch").exists()
    if engine.signatures:
        apply(one, patch, tmp_path / "out", public_key=own)


def framed(body):
    data = MAGIC + b"\0" + body
    return data + hashlib.sha256(data).digest()


def malformed(releases):
    """Patches whose SHA-256 fits and whose content does not, with what is said of them."""
    whole = (releases / "down.patch").read_bytes()
    body = whole[len(MAGIC) + 1 : -32]
    digest = bytes(32)
    listed = [
        write_number(len(name)) + name + write_number(0) + digest
        for name in (b"adapters.pte", b"manifest.json")
    ]
    none = write_number(0)
    both = write_number(2) + b"".join(listed)
    empty = hashlib.sha256(b"").digest()
    sized = both.replace(write_number(0) + digest, write_number(4) + empty)
    huge = both.replace(b"\0" + digest, write_number(1 << 40) + digest)
    return {
        framed(b""): "it ends too early",
        framed(body[:-1]): "it ends too early",
        framed(body + b"\0"): "it goes on after its end",
        framed(b"\xff" * 9 + b"\1"): "a number is too large",
        framed(none + write_number(1) + listed[0]): "it makes no package",
        framed(none + write_number(2) + listed[0] * 2): "a file's name stands twice",
        framed(none + both.replace(b"adapters.pte", b"../apters.pt")): "a file's name is none",
        framed(none + huge): "its files have more than",
        framed(none + both): "the adapters.pte that it gives is another than it says",
        framed(none + sized + b"\x09"): "it gives more bytes than it says",
        framed(none + sized + b"\1x\x07\0"): "it copies from where nothing is",
        framed(none + sized + b"\1x\x00\1"): "it gives more bytes than it says",
    }


def test_malformed(releases, engine, tmp_path):
    apply = engine.apply
    for number, (data, words) in enumerate(malformed(releases).items()):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with pytest.raises(HydrapackError, match=f"is damaged: {words}") as caught:
            apply(releases / "2", path, tmp_path / "out")
        assert caught.value.kind == "Invalid" and not (tmp_path / "out").exists()


def flipped(data, count):
    """The data with one byte changed, so many times."""
    chance = random.Random(7)
    for _ in range(count):
        bad = bytearray(data)
        bad[chance.randrange(len(bad))] ^= chance.randrange(1, 256)
        yield bytes(bad)


def test_every_flipped_byte_is_found(releases, engine, tmp_path):
    apply = engine.apply
    for data in flipped((releases / "up.patch").read_bytes(), 200):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(HydrapackError, match=r"bad: is (damaged|no patch)"):
            apply(releases / "1", tmp_path / "bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_patch_with_a_right_digest_gives_the_package_or_is_refused(
    releases, engine, tmp_path
):
    """As an attacker makes it; without a key nothing else finds it than its own structure."""
    whole, expected = (releases / "down.patch").read_bytes(), files_of(releases / "1")
    start, refused = len(MAGIC) + 1, 0
    for bad in flipped(whole[start:-32], 100):
        (tmp_path / "bad").write_bytes(framed(bad))
        try:
            engine.apply(releases / "2", tmp_path / "bad", tmp_path / "out")
        except HydrapackError as error:
            refused += 1
            assert error.kind in ("Invalid", "Mismatch", "NotFound"), error
        else:
            assert files_of(tmp_path / "out") == expected
    assert refused > 50


def test_killed_at_any_instant_a_package_is_whole(releases, engine, tmp_path):
    """Processes that update a package up and down, each killed within about one update."""
    kills = engine.kills
    chance, current, span = random.Random(3), tmp_path / "current", 0.01
    shutil.copytree(releases / "1", current)
    whole = [files_of(releases / "1"), files_of(releases / "2")]
    patches, at, moves = (releases / "up.patch", releases / "down.patch"), 0, 0
    for _ in range(kills):
        child = engine.start(current, patches[at], current)
        time.sleep(chance.random() * span)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = whole.index(files_of(current))
        # So that about half of them come to their end, however slow the machine is now.
        span *= 1.1 if found == at else 0.9
        moves, at = moves + (found != at), found
    assert 0.1 * kills < moves < 0.9 * kills
    engine.apply(current, patches[at], current)
    assert list(tmp_path.iterdir()) == [current], "what killed runs left is swept"


def test_versions_rise(releases, tmp_path):
    """The package's own number and channel, shown, kept, and compared."""
    facts = json.loads(hydrapack("inspect", releases / "2", "--json").stdout)
    assert (facts["package_version"], facts["channel"]) == (2, "beta")
    first = merge_adapters(read_adapters([str(releases / "t0")]))
    for name, options in [("none", {}), ("stable", {"package_version": 9, "channel": "stable"})]:
        pack(first, tmp_path / name, **options)
    assert not {"package_version", "channel"} & set(
        json.loads((tmp_path / "none" / "manifest.json").read_text())
    )
    for package, other, words in [
        (releases / "2", releases / "1", None),
        (releases / "2", "1", None),
        (tmp_path / "stable", "8", None),
        (releases / "2", releases / "2", "package_version is 2, not above 2"),
        (tmp_path / "none", "1", "package_version is none, not above 1"),
        (tmp_path / "stable", releases / "1", "channel is stable, the other's beta"),
    ]:
        done = hydrapack("verify", package, "--newer-than", other, "--json")
        (check,) = (c for c in json.loads(done.stdout)["checks"] if c["name"] == "version")
        assert done.returncode == (words is not None) and check["passed"] == (words is None)
        assert words is None or check["detail"] == words
    done = hydrapack("verify", releases / "2", "--newer-than", tmp_path / "no")
    assert done.returncode == 2 and "is it a package?" in done.stderr
    for option in ("--package-version", "0"), ("--channel", "a b"):
        first.save(tmp_path / "bundle")
        done = hydrapack("pack", tmp_path / "bundle", "-o", tmp_path / "no", *option)
        assert done.returncode == 2 and option[0].strip("-").replace("-", "_") in done.stderr


def test_the_story_of_the_docs(keys, tmp_path, monkeypatch):
    """Its commands as they stand; what the device ends with is release 3, each patch a fraction."""
    page = (ROOT / "docs" / "release-builds.md").read_text(encoding="utf-8")
    story = page.split("## From release to release")[1].split("```sh\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    for k, task in enumerate(("grammar", "qa", "summary", "tone", "qa-2")):
        write_adapter(tmp_path / "adapters" / task, seed=k + 1, shared_seed=99)
    shutil.copy(keys / "own.pem", "release-key.pem")
    shutil.copy(keys / "own.pub.pem", "release-key.pub.pem")
    for line in story.splitlines():
        if line.startswith("hydrapack "):
            done = hydrapack(*shlex.split(line)[1:])
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    assert files_of(tmp_path / "in-use") == files_of(tmp_path / "release-3")
    last = json.loads((tmp_path / "in-use" / "manifest.json").read_text())
    assert [task["name"] for task in last["tasks"]] == ["grammar", "qa", "tone"]
    for old, new in ("12", "23"):
        patch = (tmp_path / f"{old}-to-{new}.patch").stat().st_size
        assert patch < 0.25 * sum(map(len, files_of(tmp_path / f"release-{new}").values()))


def test_commands(releases, keys, tmp_path):
    patch = tmp_path / "p.patch"
    key = "--signing-key", keys / "own.pem"
    done = hydrapack("diff", releases / "1", releases / "2", "-o", patch, *key)
    assert done.returncode == 0, done.stderr
    assert f"{patch.stat().st_size:,} bytes" in done.stdout
    assert patch.read_bytes() == (releases / "up.patch").read_bytes()
    out = "-o", tmp_path / "out"
    key = "--public-key", keys / "own.pub.pem"
    done = hydrapack("apply", releases / "1", patch, *out, *key)
    assert done.returncode == 0 and "t0, t1, t2, t3" in done.stdout, done.stderr
    assert files_of(tmp_path / "out") == files_of(releases / "2")
    done = hydrapack("apply", releases / "2", releases / "down.patch", "-o", tmp_path / "x", *key)
    assert done.returncode == 2 and "make it with --signing-key" in done.stderr
    assert not (tmp_path / "x").exists()
