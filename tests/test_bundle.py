"""What is done with a bundle: heads back to PEFT, a task more, a look inside."""

import json
import re

import pytest
import torch
from conftest import hydrapack, module_names, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.read import read_adapter
from hydrapack.adapters.update import difference_norm
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.unpack import exactly, unpack
from hydrapack.merging.add import add
from hydrapack.merging.method import MergeOptions, with_sizes
from hydrapack.merging.modules import merge_modules
from hydrapack.merging.planned import merge_budget
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.support.errors import HydrapackError


def bundle_of(folders, target, **options):
    adapters = read_adapters([str(f) for f in folders])
    merge_adapters(adapters, **options).save(target)
    return Bundle.load(target)


def test_peft_loads_an_unpacked_head(adapters, tiny_model, tmp_path):
    """With rank enough to be exact, PEFT's logits are the adapter's own."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bundle = bundle_of(adapters, tmp_path / "bundle", rank=12)
    unpack(bundle, tmp_path / "all")
    ids = torch.arange(40).view(1, -1)
    for folder in adapters:
        logits = []
        for source in (folder, tmp_path / "all" / folder.name):
            base = AutoModelForCausalLM.from_pretrained(tiny_model)
            model = PeftModel.from_pretrained(base, str(source))
            with torch.no_grad():
                logits.append(model(ids).logits)
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_unpacked_is_the_head(adapters, tmp_path):
    bundle = bundle_of(adapters, tmp_path / "bundle", heads=2)
    unpack(bundle, tmp_path / "one", "task1")
    read = read_adapter(tmp_path / "one", "x")
    assert read.settings == bundle.info.tasks[1].settings
    for name, B in bundle.head(bundle.info.tasks[1]).items():
        assert torch.equal(read.modules[name].A, bundle.modules[name].A)
        assert torch.equal(read.modules[name].factors()[1].float(), B)
    unpack(bundle, tmp_path / "again", "task1")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    with pytest.raises(HydrapackError, match="`task` x: not in the bundle"):
        unpack(bundle, tmp_path / "none", "x")
    with pytest.raises(HydrapackError, match="`dtype` int8"):
        unpack(bundle, tmp_path / "none", "task1", "int8")


@pytest.mark.parametrize(
    "names",
    [
        module_names(),
        module_names()[:-1],
        ["transformer.head"],
        ["lm_head", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"],
        ["blocks.0.attn.to_out.0", "blocks.3.attn.to_out.0", "blocks.3.attn.to_q"],
        ["a+b.0.(x)", "h.1.experts.2.w1", "h.1.experts.0.w1", "h.2.experts.2.w1"],
    ],
)
def test_target_modules_match_the_names_and_no_others(names):
    """As PEFT reads them, over every name and every near one."""
    expression = exactly(names)
    near = {f"vision.{name}" for name in names} | {f"{name}.linear" for name in names}
    near |= {name.replace("1", "2").replace("0", "1") for name in names}
    near |= {name.replace(".", "_", 1) for name in names} | {name + "0" for name in names}
    for name in set(names) | near:
        assert bool(re.fullmatch(expression, name)) == (name in names), name


def test_add_leaves_the_rest_alone(adapters, tmp_path):
    bundle = bundle_of(adapters, tmp_path / "bundle", rank=4)
    new = read_adapter(write_adapter(tmp_path / "new", seed=50, shared_seed=99), "new")
    extension = add(bundle, new)
    extension.bundle.save(tmp_path / "bundle2")
    extended = Bundle.load(tmp_path / "bundle2")
    assert extended.info == extension.bundle.info
    assert [t.name for t in extended.info.tasks] == ["task0", "task1", "task2", "new"]
    for name in bundle.info.modules:
        before, after = bundle.modules[name], extended.modules[name]
        assert torch.equal(after.A, before.A)
        assert torch.equal(after.heads[:3], before.heads)
        A, B = new.modules[name].factors()
        best = torch.linalg.lstsq(before.A.double().T, (B @ A).T).solution.T
        torch.testing.assert_close(after.heads[3], best.float())
    assert extension.relative_error < 0.3 and extension.advice is None
    stored = sum(t.numel() for m in extended.modules.values() for t in m.tensors.values())
    assert extended.info.parameters == stored


def test_add_to_a_common_basis_and_to_a_plan(adapters, tmp_path):
    """A new task costs a C where there is a U, a B where there is none; M differs by module."""
    new = read_adapter(write_adapter(tmp_path / "new", seed=50, shared_seed=99), "new")
    two_sided = bundle_of(adapters, tmp_path / "b", method="two-sided", output_rank=6)
    read = read_adapters([str(f) for f in adapters])
    merged = merge_budget(read, 45_000)
    # One module's three tasks share a head, with a factor each.
    name = next(iter(merged.modules))
    options = MergeOptions(1, 4)
    updates = [adapter.modules[name] for adapter in read]
    shared = with_sizes(merge_spectral(updates, options), updates, [1.0, 1.0, 1.0])
    modules = {**merged.modules, name: shared}
    rank, bits = max(4, merged.rank), merged.info.bits
    merged = merge_modules(
        read, lambda name, _: modules[name], "budget", None, rank, 0, lambda *_: None, bits
    )
    merged.save(tmp_path / "p")
    planned = Bundle.load(tmp_path / "p")
    kinds = {(len(m.heads), m.choices, m.U is None) for m in planned.modules.values()}
    assert {(1, 3, True), (3, 3, True)} <= kinds
    for number, bundle in enumerate((two_sided, planned)):
        add(bundle, new).bundle.save(tmp_path / f"b{number}")
        extended = Bundle.load(tmp_path / f"b{number}")
        assert extended.info.bits == bundle.info.bits
        grown = extended.info.parameters - bundle.info.parameters
        assert grown == sum(m.heads[0].numel() for m in bundle.modules.values())
        for index, (name, before) in enumerate(bundle.modules.items()):
            after = extended.modules[name]
            assert torch.equal(after.heads[:-1], before.heads) and torch.equal(after.A, before.A)
            assert after.U is before.U is None or torch.equal(after.U, before.U)
            assert extended.info.tasks[-1].route[index] == before.choices
            assert torch.equal(
                after.head(before.choices), after.heads[-1] if after.U is None else after.head(-1)
            )
            for old in range(before.choices):
                assert torch.equal(after.head(old), before.head(old))
            # No small step of the new head comes nearer.
            errors = []
            for step in (0.0, 1e-2, -1e-2):
                moved = after.heads[-1].clone()
                moved[0, 0] += step
                head = moved if after.U is None else after.U @ moved
                errors.append(difference_norm(new.modules[name], after.A, head)[0])
            assert errors[0] <= min(errors[1:])
        pack(extended, tmp_path / f"package{number}")


def test_add_advises_a_merge(adapters, tmp_path):
    bundle = bundle_of(adapters, tmp_path / "bundle", rank=8)
    stranger = read_adapter(write_adapter(tmp_path / "s", seed=50), "s")
    for module in stranger.modules.values():
        module.B.mul_(20)
    extension = add(bundle, stranger)
    assert extension.relative_error > 0.5
    assert extension.advice is not None and "merge all adapters again" in extension.advice


def test_add_refuses(adapters, tmp_path):
    bundle = bundle_of(adapters, tmp_path / "bundle")
    for folder, task, match in [
        (adapters[0], "task0", "has a task 'task0'"),
        (write_adapter(tmp_path / "b", base="other"), "b", "different base models: .* has 'other'"),
        (
            write_adapter(tmp_path / "m", names=module_names("qkvog")),
            "m",
            "for which the bundle has no A",
        ),
    ]:
        with pytest.raises(HydrapackError, match=match):
            add(bundle, read_adapter(folder, task))


def test_commands(adapters, tmp_path):
    bundle = tmp_path / "bundle"
    assert hydrapack("merge", *adapters[:2], "-o", bundle).returncode == 0
    done = hydrapack("add", bundle, f"late={adapters[2]}", "-o", tmp_path / "b2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "late"
    done = hydrapack("unpack", tmp_path / "b2", "--all", "-o", tmp_path / "all", "--json")
    assert sorted(json.loads(done.stdout)) == ["late", "task0", "task1"]
    assert (tmp_path / "all" / "late" / "adapter_config.json").exists()
    done = hydrapack("unpack", bundle, "-o", tmp_path / "x")
    assert done.returncode == 2 and "--task NAME or --all" in done.stderr


def test_inspect(adapters, tmp_path):
    bundle, package = tmp_path / "bundle", tmp_path / "package"
    assert hydrapack("merge", *adapters, "-o", bundle).returncode == 0
    assert hydrapack("pack", bundle, "-o", package).returncode == 0
    for path, kind, key, value in [
        (adapters[0], "adapter", "ranks", [4]),
        (bundle, "bundle", "heads", 3),
        (package, "package", "heads", 3),
        (package / "adapters.pte", "adapter program", "get_adapter_rank", 4),
    ]:
        facts = json.loads(hydrapack("inspect", path, "--json").stdout)
        assert facts["kind"] == kind and facts[key] == value
    assert "task1" in hydrapack("inspect", bundle).stdout
    done = hydrapack("inspect", tmp_path)
    assert done.returncode == 2 and "neither an adapter folder" in done.stderr
    (package / "adapters.pte").write_bytes(b"x" * 100)
    done = hydrapack("inspect", package / "adapters.pte")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
