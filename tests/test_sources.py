"""Where adapters come from, and which tensor of what was made of them is damaged."""

import json
import shutil

import pytest
from conftest import hydrapack, write_adapter
from safetensors import safe_open

from hydrapack.adapters.read import read_adapter
from hydrapack.bundle.format import Bundle
from hydrapack.merging.merge import merge
from hydrapack.packing.manifest import MANIFEST
from hydrapack.packing.package import Package, pack
from hydrapack.support.errors import HydrapackError, Mismatch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL, AT = "https://git.example.org/team/adapters", "v1.2"
HUB = "https://huggingface.co/team/lora-qa"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with a bundle and package of three tasks: a stated source, the hub's, and none."""
    folder = tmp_path_factory.mktemp("sources")
    stated = write_adapter(folder / "stated", seed=1)
    (stated / "task.json").write_text(json.dumps({"source": {"url": URL, "revision": AT}}))
    snapshot = folder / "hub" / "models--team--lora-qa" / "snapshots" / COMMIT
    cached = write_adapter(snapshot, seed=2)
    (folder / "linked").symlink_to(cached)
    none = write_adapter(folder / "none", seed=3)
    merge([str(stated), f"cached={folder / 'linked'}", str(none)]).save(folder / "bundle")
    pack(folder / "bundle", folder / "package", model_card=True, sbom=True)
    return folder


def test_a_source_reaches_the_manifest(packed):
    manifest = Package.load(packed / "package").manifest
    assert [(s.url, s.revision) for s in manifest.sources] == [
        (URL, AT), (HUB, COMMIT), (None, None)
    ]  # fmt: skip
    listed = json.loads((packed / "package" / MANIFEST).read_text())["sources"]
    assert [set(s) & {"url", "revision"} for s in listed] == [{"url", "revision"}] * 2 + [set()]
    for made in ("bundle", "package"):
        facts = json.loads(hydrapack("inspect", packed / made, "--json").stdout)
        assert [s.get("url") for s in facts["sources"]] == [URL, HUB, None]
        assert COMMIT[:8] in hydrapack("inspect", packed / made).stdout
    card = json.loads(hydrapack("inspect", packed / "linked", "--json").stdout)["card"]
    assert card["source"] == {"url": HUB, "revision": COMMIT}
    done = hydrapack("verify", packed / "package", "--json")
    details = {c["name"]: c["detail"] for c in json.loads(done.stdout)["checks"]}
    both = f"stated {URL} at {AT}, cached {HUB} at {COMMIT}"
    assert details["sources"] == f"2 of 3 with a URL: {both}"
    bom = json.loads((packed / "package" / "sbom.cdx.json").read_text())
    (part,) = (c for c in bom["components"] if c["name"] == "cached")
    assert part["version"] == COMMIT and part["externalReferences"][0]["url"] == HUB
    assert f"…]({URL})" in (packed / "package" / "README.md").read_text()


def test_another_adapter_says_where_the_right_one_is(packed, tmp_path):
    other = write_adapter(tmp_path / "stated", seed=9)
    done = hydrapack("verify", packed / "package", "--adapters", other, "--json")
    (found,) = (c for c in json.loads(done.stdout)["checks"] if c["name"] == "adapter stated")
    assert done.returncode == 1 and found["detail"].endswith(f"that is {URL} at {AT}")


def test_what_is_made_of_an_adapter_is_not_published_there(packed, tmp_path):
    hydrapack("unpack", packed / "bundle", "--task", "cached", "-o", tmp_path / "cached")
    assert read_adapter(tmp_path / "cached", "cached").settings.source is None


def test_inside_a_snapshot(tmp_path):
    inner = tmp_path / "models--solo" / "snapshots" / COMMIT / "adapters" / "qa"
    source = read_adapter(write_adapter(inner, seed=1), "qa").settings.source
    assert source.url == f"https://huggingface.co/solo/tree/{COMMIT}/adapters/qa"


@pytest.mark.parametrize(
    "source",
    [
        "team/lora", "https://me:secret@example.org/a", "https://token@example.org/a", "https://",
        "https://example.org/a b", "x" * 20,
    ],
)  # fmt: skip
def test_no_url(tmp_path, source):
    folder = write_adapter(tmp_path / "qa", seed=1)
    (folder / "task.json").write_text(json.dumps({"source": {"url": source}}))
    with pytest.raises(HydrapackError, match=r"task.json: source.url: .*without a user or pass"):
        read_adapter(folder, "qa")


def copied(packed, tmp_path):
    return shutil.copytree(packed / "bundle", tmp_path / "bundle")


def test_a_damaged_bundle_names_the_tensor(packed, tmp_path):
    bundle = copied(packed, tmp_path)
    path = bundle / "bundle.safetensors"
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in names:
        at = start + header[name]["data_offsets"][1] - 2
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(Mismatch, match=rf"names: {name} changed; merge again"):
            Bundle.load(bundle)
        data[at] ^= 1
    path.write_bytes(data[:-1])
    with pytest.raises(Mismatch, match="the file was changed or cut"):
        Bundle.load(bundle)
    at = data.index(b'"dtype"')
    path.write_bytes(data[: start - 1] + b"\n" + data[start:])
    with pytest.raises(Mismatch, match="its header changed"):
        Bundle.load(bundle)


def test_a_bundle_of_before_is_read(packed, tmp_path):
    bundle = copied(packed, tmp_path)
    description = bundle / "bundle.json"
    content = json.loads(description.read_text())
    assert content.pop("tensor_sha256")
    description.write_text(json.dumps(content))
    assert Bundle.load(bundle).tasks == ("stated", "cached", "none")
    path = bundle / "bundle.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Mismatch, match="the file was changed or cut"):
        Bundle.load(bundle)
