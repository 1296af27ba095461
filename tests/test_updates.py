"""A bundle over its life: a task replaced, one taken out, one trained on the bundle's own A."""

import json
import re

import pytest
import torch
from conftest import hydrapack, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.read import read_adapter
from hydrapack.adapters.update import ErrorSum, LoraModule, difference_norm
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.merged import MergedModule, stored_values
from hydrapack.bundle.unpack import new_adapter, unpack
from hydrapack.merging.add import add, replace
from hydrapack.merging.method import MergeOptions, fit_head, with_sizes
from hydrapack.merging.modules import merge_modules
from hydrapack.merging.remove import remove
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.support.errors import HydrapackError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three adapters of a bundle and a fourth, from one initialisation of A."""
    folder = tmp_path_factory.mktemp("sources")
    return [write_adapter(folder / f"task{k}", seed=k + 1, shared_seed=99) for k in range(4)]


def shared_heads(read):
    """Modules whose first two tasks share a head, with a factor each."""
    modules = {}
    for name in read[0].modules:
        updates = [adapter.modules[name] for adapter in read]
        two, last = merge_spectral(updates[:2], MergeOptions(1, 4)), updates[2]
        two = with_sizes(two, updates[:2], [1.0, 1.0])
        whole = fit_head(last, two).float()
        modules[name] = MergedModule(
            two.A,
            torch.cat([two.heads, whole[None]]),
            (0, 1, 2),
            scales=torch.cat([two.scales, torch.ones(1)]),
            of=(*two.of, 1),
        )
    return merge_modules(read, lambda name, _: modules[name], "made", None, 4, 0, lambda *_: None)


@pytest.fixture(scope="module", params=["whole", "fewer", "two-sided", "scaled"])
def bundle(request, sources):
    read = read_adapters([str(f) for f in sources[:3]])
    if request.param == "scaled":
        return shared_heads(read)
    options = {
        "whole": {},
        "fewer": {"heads": 2},
        "two-sided": {"method": "two-sided", "output_rank": 6},
    }[request.param]
    return merge_adapters(read, **options)


def assert_rest_is_the_same(before, after, tasks):
    for name, module in before.modules.items():
        new = after.modules[name]
        assert torch.equal(new.A, module.A)
        assert new.U is module.U is None or torch.equal(new.U, module.U)
    for task in tasks:
        old, new = before.info.task(task), after.info.task(task)
        assert new.model_dump(exclude={"route"}) == old.model_dump(exclude={"route"})
        heads = after.head(new)
        assert all(torch.equal(heads[name], head) for name, head in before.head(old).items())
        at = before.tasks.index(task), after.tasks.index(task)
        for name in before.info.modules:
            errors = before.info.module_errors[name][at[0]], after.info.module_errors[name][at[1]]
            assert errors[0] == errors[1]


def assert_counts_and_loads(made, tmp_path):
    """Nothing is stored that no task uses, and the file says the same."""
    for index, module in enumerate(made.modules.values()):
        assert {task.route[index] for task in made.info.tasks} == set(range(module.choices))
        assert not module.of or set(module.of) == set(range(len(module.heads)))
    assert made.info.parameters == stored_values(made.modules.values())
    made.save(tmp_path / "made")
    assert Bundle.load(tmp_path / "made").info == made.info


@pytest.mark.parametrize("task", ["task0", "task2"])
def test_remove(bundle, task, tmp_path):
    made = remove(bundle, task)
    rest = [name for name in bundle.tasks if name != task]
    assert list(made.tasks) == rest
    assert_rest_is_the_same(bundle, made, rest)
    assert_counts_and_loads(made, tmp_path)
    gone = bundle.info.task(task).source.parameters
    assert made.info.baseline_parameters == bundle.info.baseline_parameters - gone


def test_replace(bundle, sources, tmp_path):
    made = replace(bundle, "task1", sources[3])
    assert made.bundle.tasks == bundle.tasks
    assert_rest_is_the_same(bundle, made.bundle, ["task0", "task2"])
    assert_counts_and_loads(made.bundle, tmp_path)
    added = add(bundle, sources[3])
    assert made.relative_error == added.relative_error
    new, alone = made.bundle.info.task("task1"), added.bundle.info.task("task3")
    assert new.source == alone.source and new.settings == alone.settings
    for name, head in made.bundle.head(new).items():
        assert torch.equal(head, added.bundle.head(alone)[name])
        assert made.bundle.info.module_errors[name][1] == added.bundle.info.module_errors[name][3]


def test_what_is_left_may_be_one_task_and_not_none(bundle, sources):
    one = remove(remove(bundle, "task0"), "task1")
    assert one.tasks == ("task2",)
    assert_rest_is_the_same(bundle, one, ["task2"])
    with pytest.raises(HydrapackError, match="task 'task2' is the bundle's only one"):
        remove(one, "task2")
    assert replace(one, "task2", sources[3]).bundle.tasks == ("task2",)
    for change in (lambda: remove(bundle, "x"), lambda: replace(bundle, "x", sources[3])):
        with pytest.raises(HydrapackError, match="`task` x: not in the bundle; it has task0"):
            change()


def changed(before, after, task):
    """What changed of a task's update, over the update."""
    error = ErrorSum()
    heads = after.head(after.info.task(task))
    for name, head in before.head(before.info.task(task)).items():
        update = LoraModule(before.modules[name].shared(), head)
        error.add(update, after.modules[name].shared(), heads[name])
    return error.relative


def least_budget(bundle, adapter):
    """What the bundle takes as it is."""
    with pytest.raises(HydrapackError, match="`budget` 1,000: the bundle takes up to") as caught:
        add(bundle, adapter, budget=1000)
    return int(re.search(r"up to ([\d,]+) bytes", str(caught.value))[1].replace(",", ""))


def test_a_budget_that_a_head_more_fits(bundle, sources):
    more = add(bundle, sources[3])
    assert more.relative_error == more.own_head_relative_error
    roomy = add(bundle, sources[3], budget="1MB")
    assert roomy.bundle.info.budget_bytes == 1_000_000
    assert roomy.relative_error == more.relative_error
    assert (roomy.way, dict(roomy.weighed)) == ("head", {})


def test_a_task_like_one_that_is_there_shares_its_head(bundle, tmp_path):
    """Nothing grows, nothing else changes."""
    unpack(bundle, tmp_path / "heads")
    like = read_adapter(tmp_path / "heads" / "task1", "like")
    least = least_budget(bundle, like)
    shared = add(bundle, like, budget=least)
    assert shared.way == "share" and shared.relative_error < 0.01
    assert_rest_is_the_same(bundle, shared.bundle, bundle.tasks)
    assert shared.bundle.info.parameters == bundle.info.parameters
    assert shared.weighed["share"] == {
        "task0": 0, "task1": 0, "task2": 0, "like": shared.relative_error
    }  # fmt: skip
    assert pack(shared.bundle, tmp_path / "shared").bytes <= least
    for index, (name, module) in enumerate(bundle.modules.items()):
        errors = [
            difference_norm(like.modules[name], module.A, module.head(choice))[0]
            for choice in range(module.choices)
        ]
        assert shared.bundle.info.tasks[-1].route[index] == errors.index(min(errors))


def test_a_task_of_its_own_kind_takes_columns(bundle, sources, tmp_path):
    """Less is lost than by sharing, nothing grows, and what is lost is what is said."""
    more, least = add(bundle, sources[3]), least_budget(bundle, sources[3])
    # A little more where no head fits for it: the program of another kind of heads may be larger.
    tried = (least + 2000, least)
    budget, taken = next((b, t) for b in tried if (t := add(bundle, sources[3], budget=b)).weighed)
    assert taken.way == "take" and "takes columns of A and U" in taken.advice
    losses = taken.weighed["take"]
    sums = [sum(e**2 for e in taken.weighed[way].values()) for way in ("share", "take")]
    assert sums[1] < 0.9 * sums[0]
    assert taken.relative_error < taken.weighed["share"]["task3"]
    assert taken.own_head_relative_error == more.relative_error
    assert list(losses) == list(taken.bundle.tasks) == [*bundle.tasks, "task3"]
    for task in bundle.tasks:
        assert losses[task] == pytest.approx(changed(bundle, taken.bundle, task), abs=1e-6)
        old, new = bundle.info.task(task), taken.bundle.info.task(task)
        kept = {"route", "relative_error"}
        assert new.model_dump(exclude=kept) == old.model_dump(exclude=kept)
        # Of the adapters it is foretold, from what the bundle knows.
        adapter = read_adapter(sources[bundle.tasks.index(task)], task)
        error = ErrorSum()
        for name, head in taken.bundle.head(new).items():
            error.add(adapter.modules[name], taken.bundle.modules[name].shared(), head)
        assert new.relative_error == pytest.approx(error.relative, rel=0.15)
    error, new = ErrorSum(), read_adapter(sources[3], "new")
    for name, head in taken.bundle.head(taken.bundle.info.tasks[-1]).items():
        error.add(new.modules[name], taken.bundle.modules[name].shared(), head)
    assert losses["task3"] == taken.relative_error == pytest.approx(error.relative, abs=1e-6)
    assert taken.bundle.info.rank == bundle.info.rank
    assert_counts_and_loads(taken.bundle, tmp_path)
    assert pack(taken.bundle, tmp_path / "taken").bytes <= budget


def test_the_command_says_what_each_task_loses(sources, tmp_path):
    bundle = merge_adapters(read_adapters([str(f) for f in sources[:3]]))
    bundle.save(tmp_path / "bundle")
    budget = least_budget(bundle, sources[3]) + 2000
    command = ("add", tmp_path / "bundle", sources[3], "-o", tmp_path / "more", "--budget", budget)
    said = json.loads(hydrapack(*command, "--json").stdout)
    assert said["way"] == "take" and set(said["weighed"]) == {"share", "take"}
    done = hydrapack(*command)
    assert "takes columns of A and U that cost least elsewhere" in done.stdout
    for losses in said["weighed"].values():
        assert all(f"{name} " in done.stdout for name in losses)
        assert all(f"{loss:.4f}" in done.stdout for loss in losses.values())


def train(model, frozen, steps=4):
    """A few steps of all but what is frozen, towards random targets."""
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_task_trained_on_the_bundles_a_has_no_merge_error(sources, tiny_model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bundle = merge_adapters(read_adapters([str(f) for f in sources[:3]]))
    folder = new_adapter(bundle, tmp_path / "new")
    again = new_adapter(bundle, tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    train(model, "lora_A")
    model.save_pretrained(str(tmp_path / "trained"))
    trained = read_adapter(tmp_path / "trained", "trained")
    extension = add(bundle, trained, allow_base_mismatch=True)
    assert extension.relative_error <= 1e-6
    for name, module in bundle.modules.items():
        A, B = trained.modules[name].factors()
        assert torch.equal(A.float(), module.A) and bool(B.any())
        assert torch.equal(extension.bundle.modules[name].A, module.A)


def test_commands(sources, tmp_path):
    merged, out = tmp_path / "bundle", tmp_path / "out"
    assert hydrapack("merge", *sources[:3], "-o", merged).returncode == 0
    done = hydrapack("replace", merged, "task1", sources[3], "-o", out, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["task"] == "task1", done.stderr
    assert (
        "task1: relative error"
        in hydrapack("replace", merged, "task1", sources[3], "-o", out).stdout
    )
    done = hydrapack("remove", out, "task0", "-o", out, "--json")
    assert json.loads(done.stdout)["tasks"] == ["task1", "task2"], done.stderr
    assert "task1: taken out; 1 tasks" in hydrapack("remove", out, "task1", "-o", out).stdout
    done = hydrapack("new-adapter", merged, "-o", tmp_path / "new")
    assert done.returncode == 0 and "is_trainable=True" in done.stdout
    assert {"peft_type", "r"} <= set(json.loads((tmp_path / "new/adapter_config.json").read_text()))
    for command in (("remove", out, "x"), ("replace", merged, "x", sources[3])):
        done = hydrapack(*command, "-o", tmp_path / "none")
        assert done.returncode == 2 and "--task x: not in the bundle" in done.stderr
        assert not (tmp_path / "none").exists()
