"""VeRA on the device: packed, verified, and run with PEFT's logits."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import TASKS, edit_tensors, hydrapack
from safetensors.torch import load_file

from hydrapack.bundle.format import Bundle
from hydrapack.bundle.stored import store_modules, tensor_bytes
from hydrapack.bundle.unpack import unpack
from hydrapack.device import Session
from hydrapack.footprint.report import planned, storage
from hydrapack.merging.add import add
from hydrapack.packing.package import pack
from hydrapack.packing.vera import VeraHead, VeraShared
from hydrapack.program.layout import layout_of
from hydrapack.program.quantized import Precision
from hydrapack.support.errors import HydrapackError
from hydrapack.verification.checks import verify

CASES = [("three-heads", 32), ("two-heads", 16), ("two-heads", 8), ("three-heads", 4)]
IDS = [3, 90, 27, 170, 51, 250, 11, 33]


def peft_logits(base, folder):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(folder))
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1]


def session_logits(session, task):
    return session.use(task).forward(IDS)


def dequantized(bundle, bits):
    """The bundle as a device sees it."""
    stored = store_modules(bundle.modules, dict.fromkeys(bundle.modules, Precision(bits, bits)))
    return replace(bundle, modules={name: module.dequantize() for name, module in stored.items()})


@pytest.fixture(scope="module")
def packages(vera_tiny, tmp_path_factory):
    """(bundle's name, bits) -> package, each packed once."""
    folder, made = tmp_path_factory.mktemp("packages"), {}

    def package(name, bits):
        if (name, bits) not in made:
            target = folder / f"{name}-{bits}"
            made[name, bits] = pack(
                vera_tiny / name, target, bits, model=vera_tiny / "model.pte", model_card=True
            )
        return made[name, bits]

    return package


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_logits_are_those_of_peft(vera_tiny, tiny_model, packages, tmp_path, name, bits):
    """Of the stored vectors and matrices, written as PEFT's adapters; at 32 bits of the bundle."""
    bundle = Bundle.load(vera_tiny / name)
    package = packages(name, bits)
    unpack(bundle if bits == 32 else dequantized(bundle, bits), tmp_path / "peft")
    with Session(vera_tiny / "model.pte", package.folder) as session:
        bare = session_logits(session, None)
        first = session_logits(session, "one")
        for task in TASKS:
            given, wanted = (
                session_logits(session, task),
                peft_logits(tiny_model, tmp_path / "peft" / task),
            )
            torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
            assert (given - bare).abs().max() > 0.05
        assert torch.equal(session_logits(session, "one"), first)
        assert torch.equal(session_logits(session, None), bare)
    for task in package.manifest.tasks:
        rounding = task.packed_relative_error**2 - task.merge_relative_error**2
        assert rounding**0.5 < {4: 0.15, 8: 0.015, 16: 1e-3, 32: 1e-5}[bits]


def test_one_task_is_its_adapter(vera_tiny, tiny_model, tmp_path):
    assert hydrapack("merge", vera_tiny / "three", "-o", tmp_path / "b").returncode == 0
    done = hydrapack("pack", tmp_path / "b", "-o", tmp_path / "p", "--bits", 32)
    assert done.returncode == 0, done.stderr
    with Session(vera_tiny / "model.pte", tmp_path / "p") as session:
        given = session_logits(session, "three")
    torch.testing.assert_close(
        given, peft_logits(tiny_model, vera_tiny / "three"), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(("name", "bits"), CASES[2:])
def test_verify(vera_tiny, packages, name, bits):
    checks = verify(
        packages(name, bits),
        vera_tiny / "model.pte",
        vera_tiny / name,
        [str(vera_tiny / task) for task in TASKS],
    )
    assert [str(c) for c in checks if not c.passed] == []
    names = {check.name.split()[0] for check in checks}
    assert {"files", "head", "bundle", "adapter", "model", "output", "drift"} <= names


def test_damage_is_found(vera_tiny, packages, tmp_path):
    package = packages("three-heads", 8).folder
    shutil.copytree(package, tmp_path / "p")
    data = bytearray((tmp_path / "p" / "adapters.pte").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p" / "adapters.pte").write_bytes(data)
    failed = [check for check in verify(tmp_path / "p") if not check.passed]
    assert [check.name for check in failed] == ["files"]
    shutil.copytree(vera_tiny / "one", tmp_path / "one")
    edit_tensors(tmp_path / "one", lambda t: t["base_model.vera_A"].mul_(1.5))
    checks = verify(package, None, vera_tiny / "two-heads", [str(tmp_path / "one")])
    failed = [check for check in checks if not check.passed]
    assert {check.name for check in failed} >= {"bundle one", "adapter one"}


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_bytes(vera_tiny, packages, name, bits):
    """By hand, and of the program's own buffers."""
    bundle = Bundle.load(vera_tiny / name)
    rank, widths, layers, heads = 7, {"q": 64, "v": 32, "o": 64, "down": 64}, 2, bundle.heads
    wide = max(bits, 8)
    scale = 2 if bits < 16 else 0
    frozen = rank * ((96 * bits + 7) // 8 + scale) + 64 * ((rank * bits + 7) // 8 + scale)
    scale = 2 if wide < 16 else 0
    d = layers * len(widths) * (rank * wide // 8 + scale)
    b = layers * sum(n * wide // 8 + scale for n in widths.values())
    factors = 12 * layers * len(widths) * 3 if name == "two-heads" else 0
    package = packages(name, bits)
    report = storage(package, vera_tiny / "model.pte")
    assert package.manifest.storage.tensor_bytes == frozen + d + heads * b + factors
    assert sum(report.modules.values()) == frozen + d + heads * b + factors
    assert report.shared_bytes + heads * report.head_bytes == sum(report.modules.values())
    assert report.modules["vera_A and vera_B"] == frozen
    own = storage(bundle.with_bits(bits))
    assert (own.bytes, own.modules) == (sum(report.modules.values()), report.modules)
    values = 3 * layers * (4 * rank + sum(widths.values()))
    assert report.baseline_parameters == values
    assert report.baseline_bytes == own.baseline_bytes == 2 * (values + rank * (96 + 64))
    assert report.parameters == bundle.info.parameters < values
    layout = layout_of(bundle.shapes, rank)
    stored = store_modules(bundle.modules, dict.fromkeys(bundle.modules, Precision(bits, bits)))
    assert tensor_bytes(stored.values()) == package.manifest.storage.tensor_bytes
    ordered = [stored[module] for module in layout.modules()]
    buffers = {
        name: buffer.nbytes
        for part in (VeraShared(layout, ordered), VeraHead(layout, ordered))
        for name, buffer in part.named_buffers()
    }
    # Nibbles lie in pairs of rows, the odd row of A with zeros; scales of vectors are float32.
    vectors = layers * len(widths) * (len(TASKS) if name == "two-heads" else heads)
    lying = sum(buffers[n] for n in buffers if n.endswith(("values", "scales", "vectors")))
    assert lying + scale * layers * len(widths) * heads + factors == pytest.approx(
        package.manifest.storage.tensor_bytes, abs=64 if bits == 4 else 0
    )
    assert buffers["factor"] == 4 * vectors


def test_storage_of_a_plan():
    """What S counts, and what lies in the file beside that: A and B."""
    report = planned("smollm2-135m", 256, 5, 5, "vera", 8)
    vectors = 30 * (4 * 256 + 5 * 1536)
    assert report.parameters == vectors
    assert report.bytes == vectors + 120 * 6 * 2 + 2 * 256 * 576 + 2 * (256 + 576)
    assert report.baseline_bytes == 2 * (5 * 30 * (4 * 256 + 1536) + 2 * 256 * 576)


def test_the_manifest_says_so(vera_tiny, packages):
    package = packages("three-heads", 8)
    manifest = json.loads((package.folder / "manifest.json").read_text())
    assert manifest["adapter_type"] == "vera" and manifest["rank"] == 7
    assert manifest["target_shapes"] == [[64, 64], [32, 64], [64, 64], [64, 96]]
    card = (package.folder / "README.md").read_text()
    assert "one shared d over VeRA's common A and B" in card and '"vera"' in card
    described = json.loads(hydrapack("inspect", package.folder, "--json").stdout)
    assert described["adapter_type"] == "vera"


def test_a_task_more_and_modules_that_no_adapter_has(vera_tiny, tiny_model, tmp_path):
    """The first layer's q and v alone: the base program's other modules get zeros."""
    from hydrapack.adapters.read import read_adapter
    from hydrapack.merging.uniform import merge_adapters

    def some(task, modules):
        adapter = read_adapter(vera_tiny / task, task)
        return replace(adapter, modules={n: u for n, u in adapter.modules.items() if modules(n)})

    one = some("one", lambda name: "layers.0" in name)
    extension = add(merge_adapters([one]), some("two", lambda name: ".0.self_attn.q" in name))
    package = pack(extension.bundle.with_bits(4), tmp_path / "p", 32, model=vera_tiny / "model.pte")
    assert package.tasks == ("one", "two")
    shutil.copytree(vera_tiny / "one", tmp_path / "one")

    def first_layer(tensors):
        for key in tensors:
            if "layers.1" in key:
                tensors[key].zero_()

    edit_tensors(tmp_path / "one", first_layer)
    assert all(
        not t.any()
        for k, t in load_file(tmp_path / "one" / "adapter_model.safetensors").items()
        if "layers.1" in k
    )
    with Session(vera_tiny / "model.pte", package.folder) as session:
        given = session_logits(session, "one")
        assert not torch.equal(session_logits(session, "two"), given)
    wanted = peft_logits(tiny_model, tmp_path / "one")
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    small = pack(extension.bundle.with_bits(4), tmp_path / "q", model=vera_tiny / "model.pte")
    assert small.manifest.bits == "4"


def test_what_pack_refuses(vera_tiny, tmp_path):
    bundle = Bundle.load(vera_tiny / "three-heads")
    name = next(iter(bundle.modules))
    mixed = bundle.info.model_copy(update={"bits": {**dict.fromkeys(bundle.modules, 8), name: 4}})
    huge = {name: replace(module, A=module.A * 1e9) for name, module in bundle.modules.items()}
    for match, changed in (
        ("give one `bits`", replace(bundle, info=mixed)),
        ("A has values up to", replace(bundle, modules=huge)),
    ):
        with pytest.raises(HydrapackError, match=match):
            pack(changed, tmp_path / "p")
        assert not (tmp_path / "p").exists()
