"""A damaged head is refused before its first use, and opening reads no head."""

import json
import random
import shutil
import subprocess

import pytest
import torch
from conftest import TASKS, write_adapter
from make_manifests import sealed as resealed

from hydrapack.adapters.collect import read_adapters
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import MergedModule
from hydrapack.device import Session
from hydrapack.device.activation import activate, open_last_good
from hydrapack.device.manifest import read_device_manifest
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.head_digests import Bank, found_in
from hydrapack.packing.manifest import ADAPTERS, MANIFEST, head_bytes, manifest_text, sealed
from hydrapack.packing.package import Package, pack
from hydrapack.program.load import execute, load_program
from hydrapack.support.errors import Mismatch, of_kind
from hydrapack.support.schema import json_text
from hydrapack.verification.checks import verify


def mixed(bundle):
    """Whole heads and C's on bases of two widths, of two ranks, at 4, 8 and 16 bits."""
    modules, bits = {}, {}
    generator = torch.Generator().manual_seed(0)
    for number, (name, module) in enumerate(bundle.modules.items()):
        bits[name] = (4, 8, 16)[number % 3]
        A, heads, U = module.A, module.heads, None
        if number % 4 == 1:
            A, heads = A[:3], heads[:, :, :3]
        if number % 5 > 1:
            width = 2 + number % 5
            U = torch.randn(len(heads[0]), width, generator=generator)
            heads = torch.randn(len(heads), width, len(A), generator=generator)
        modules[name] = MergedModule(A, heads, module.assignment, U)
    return Bundle(bundle.info.model_copy(update={"bits": bits}), modules)


@pytest.fixture(scope="module")
def packages(exported, vera_tiny, tmp_path_factory):
    """(model.pte, package) of each kind of heads, by its name."""
    folder = tmp_path_factory.mktemp("heads")
    adapters = [
        write_adapter(folder / task, seed=k + 1, shared_seed=99) for k, task in enumerate(TASKS)
    ]
    read = read_adapters([str(adapter) for adapter in adapters])
    whole = merge_adapters(read)
    model = exported(4, quant="fp32", max_context=100)
    sides = merge_adapters(read, "two-sided", output_rank=5)
    made = {}
    for name, bundle, bits in (
        ("whole", whole, 4),
        ("sides", sides, 8),
        ("mixed", mixed(whole), None),
    ):
        made[name] = model, pack(bundle, folder / f"{name}-package", bits, model=model)
    vera = vera_tiny / "model.pte"
    made["vera"] = vera, pack(vera_tiny / "three-heads", folder / "vera", 8, model=vera)
    return made


KINDS = ("whole", "sides", "mixed", "vera")


def owned(package: Package) -> tuple[list[tuple[int, int]], dict[str, set[int]]]:
    """What lies around the banks, and the bytes of each task's head."""
    where = head_bytes(package.manifest, package.folder / MANIFEST)
    assert where is not None
    return where.shared, {
        task.name: {at for start, end in where.of(task.route) for at in range(start, end)}
        for task in package.manifest.tasks
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_reads_its_own_bytes_and_what_is_shared(packages, kind, tmp_path):
    _, package = packages[kind]
    shared, own = owned(package)
    data = (package.folder / ADAPTERS).read_bytes()
    banks = set(range(len(data))) - {at for span in shared for at in range(*span)}
    assert banks == set.union(*own.values())
    # The C's, heads or vectors, but for what modules of other widths share.
    assert sum(map(len, own.values())) == len(banks) > package.manifest.storage.tensor_bytes / 9

    def heads(program):
        method = program.method("head")
        return {
            task.name: execute(method, [torch.tensor(task.route)], "head")[0].clone()
            for task in package.manifest.tasks
        }

    before = heads(load_program(package.folder / ADAPTERS))
    for task, mine in own.items():
        changed = bytearray(data)
        for at in banks - mine:
            changed[at] ^= 0x11
        (tmp_path / f"{task}.pte").write_bytes(changed)
        program = load_program(tmp_path / f"{task}.pte")
        assert torch.equal(
            execute(program.method("shared"), [], "shared")[0],
            execute(load_program(package.folder / ADAPTERS).method("shared"), [], "shared")[0],
        )
        after = heads(program)
        for other, b in after.items():
            assert torch.equal(b, before[other]) == (other == task)


def test_the_last_good_package_has_no_damaged_head(packages, tmp_path):
    model, package = packages["whole"]
    folder = tmp_path / "packages"
    activate(folder, package.folder)
    activate(folder, package.folder)
    path = folder / "current" / ADAPTERS
    data = bytearray(path.read_bytes())
    data[max(owned(package)[1][TASKS[-1]])] ^= 1
    path.write_bytes(data)
    with open_last_good(model, folder, self_test=False) as session:
        assert session.package.name == "previous"


@pytest.fixture(params=["python", "native"])
def answers(request):
    """(model, package, task, check_heads) -> nothing; raises what the runtime does."""
    if request.param == "python":

        def run(model, package, task, check_heads=False):
            with Session(model, package, check_heads=check_heads) as session:
                session.use(task)

        return run
    program = request.getfixturevalue("native") / "hydrapack-run"

    def run(model, package, task, check_heads=False):
        options = ["--check-heads"] if check_heads else []
        command = [program, model, package, "--task", task, *options]
        asked = json.dumps({"ids": [3, 5], "max_new_tokens": 1})
        done = subprocess.run(command, input=asked, capture_output=True, text=True)
        said = json.loads(done.stdout.splitlines()[-1])
        if "error" in said:
            raise of_kind(said["kind"], said["error"])
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_where_it_is_read(packages, kind, tmp_path, answers):
    model, package = packages[kind]
    shared, own = owned(package)
    copy = shutil.copytree(package.folder, tmp_path / "copy")
    data, chance = (copy / ADAPTERS).read_bytes(), random.Random(0)

    def flipped(at):
        changed = bytearray(data)
        changed[at] ^= 1 << chance.randrange(8)
        (copy / ADAPTERS).write_bytes(changed)

    for task in TASKS[:2]:
        for at in chance.sample(sorted(own[task]), 3):
            flipped(at)
            with pytest.raises(Mismatch, match=f"the head of task '{task}' is damaged"):
                answers(model, copy, task)
            answers(model, copy, "three")
            with pytest.raises(Mismatch, match=ADAPTERS):
                answers(model, copy, "three", check_heads=True)
            assert [check.name for check in verify(copy) if not check.passed] == ["files"]
    for at in chance.sample([at for span in shared for at in range(*span)], 6):
        flipped(at)
        with pytest.raises(Mismatch, match=ADAPTERS):
            answers(model, copy, "three")
    (copy / ADAPTERS).write_bytes(data)
    answers(model, copy, "three", check_heads=True)


def test_a_refused_head_leaves_the_bare_model(packages, tmp_path):
    model, package = packages["sides"]
    copy = shutil.copytree(package.folder, tmp_path / "copy")
    at = min(owned(package)[1]["one"])
    with (copy / ADAPTERS).open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    with Session(model, copy) as session:
        session.use("two")
        for _ in range(2):
            with pytest.raises(Mismatch, match="task 'one'"):
                session.use("one")
            assert session.task is None
        session.use("two")
        # Another package put in the place of this one is not this session's.
        shutil.rmtree(copy)
        session.use("three")


def test_packages_of_before_are_checked_whole(packages, tmp_path, answers):
    """Without the keys that say where heads lie, and with every number on a line of its own."""
    model, package = packages["sides"]
    copy = shutil.copytree(package.folder, tmp_path / "copy")
    manifest = package.manifest.model_copy(
        update={
            "head_banks": None,
            "modules": [m.model_copy(update={"pieces": []}) for m in package.manifest.modules],
            "tasks": [t.model_copy(update={"head_sha256": None}) for t in package.manifest.tasks],
        }
    )
    (copy / MANIFEST).write_text(manifest_text(sealed(manifest)))
    assert Package.load(copy).manifest.head_banks is None
    answers(model, copy, "one")
    data = bytearray((copy / ADAPTERS).read_bytes())
    data[min(owned(package)[1]["one"])] ^= 1
    (copy / ADAPTERS).write_bytes(data)
    with pytest.raises(Mismatch, match=ADAPTERS):
        answers(model, copy, "three")
    # As it was written before: every number of a list on a line of its own.
    text = (copy / MANIFEST).read_text()
    (copy / ADAPTERS).write_bytes((package.folder / ADAPTERS).read_bytes())
    (copy / MANIFEST).write_bytes(resealed(json_text(json.loads(text)).encode()))
    assert (copy / MANIFEST).stat().st_size > len(text)
    assert Package.load(copy).manifest.rank == 4
    answers(model, copy, "three")


def test_heads_that_several_choices_name_are_checked_whole(tiny):
    """Two heads and a factor for each task."""
    manifest, _ = read_device_manifest(tiny[1])
    assert manifest.head_banks is None and all(task.head_sha256 is None for task in manifest.tasks)


def test_only_what_lies_once_in_the_program_is_a_bank():
    """ExecuTorch stores equal constants once, so one of them is not the heads' alone."""
    one, two = (torch.arange(k, k + 40, dtype=torch.int8) for k in (0, 60))
    data = b"program" + bytes(one.tolist()) + bytes(9) + bytes(two.tolist())
    banks = [Bank(one, {0: 20}), Bank(two, {0: 20})]
    assert found_in(data, banks, [torch.zeros(40)]) == {7: banks[0], 56: banks[1]}
    assert found_in(data, banks, [two.view(2, 20).clone()]) == {7: banks[0]}
    assert found_in(data, [banks[0], banks[0]], []) == {}
    assert found_in(data + data, banks, []) == {}
