"""A common output basis, and the planner that chooses between it and whole heads."""

import functools
import itertools
import json
import math
import random
from dataclasses import replace

import pytest
import torch
from conftest import edit_tensors, hydrapack, module_names, write_adapter
from test_merge import dense, random_updates, squared_error

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import LoraModule, difference_norm
from hydrapack.bundle.stored import store
from hydrapack.demo.job import example_adapters
from hydrapack.merging.candidates import Choice, candidates
from hydrapack.merging.hulls import buy, lower_hull, steps_of
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.plan import Planner, Request
from hydrapack.merging.planned import merge_budget, merge_plan, merge_target
from hydrapack.merging.span import core_of
from hydrapack.merging.two_sided import inputs_of, merge_two_sided, outputs_of
from hydrapack.merging.uniform import merge_adapters
from hydrapack.packing.package import pack
from hydrapack.program.quantized import Precision
from hydrapack.support.errors import HydrapackError


def test_two_sided_is_exact_with_room_enough():
    updates = random_updates([2, 3, 2])
    merged = merge_two_sided(updates, MergeOptions(3, 7), 7)
    assert merged.U is not None and merged.heads.shape == (3, 7, 7)
    assert squared_error(updates, merged) < 1e-8 * squared_error(updates, _zero(merged))


def _zero(merged):
    return type(merged)(merged.A, torch.zeros_like(merged.heads), merged.assignment, merged.U)


def test_two_sided_finds_planted_bases():
    """Updates U C_k A with a common U and A are found, at any scale of the tasks."""
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(12, 3, generator=generator)
    A = torch.randn(2, 10, generator=generator)
    updates = [
        LoraModule(A, U @ torch.randn(3, 2, generator=generator) * 10.0**k) for k in range(4)
    ]
    merged = merge_two_sided(updates, MergeOptions(4, 2), 3)
    for update, head in zip(updates, merged.assignment, strict=True):
        torch.testing.assert_close(
            merged.head(head).double() @ merged.A.double(), dense(update), atol=1e-2, rtol=1e-4
        )


def test_two_sided_beats_any_alternation_step():
    """For its A and U the C's are the least-squares ones, and no worse than the truncated bases."""
    updates = random_updates([3, 3, 3], d_out=14, d_in=11, seed=2)
    merged = merge_two_sided(updates, MergeOptions(3, 4), 5)
    for update, head in zip(updates, merged.assignment, strict=True):
        C = merged.U.double().T @ dense(update) @ merged.A.double().T
        torch.testing.assert_close(merged.heads[head], C.float(), atol=1e-5, rtol=1e-5)
    cores = core_of(updates, 4).cores
    bases = outputs_of(cores, None, 99), inputs_of(cores, None, 99)
    kept = (bases[0].T @ cores @ bases[1]).square().sum(0).cumsum(0).cumsum(1)
    whole = sum(float(dense(u).square().sum()) for u in updates)
    assert squared_error(updates, merged) <= whole - float(kept[4, 3]) + 1e-9
    assert float(kept[-1, -1]) == pytest.approx(whole)


def test_two_sided_with_weights():
    updates = random_updates([3, 3, 3], seed=5)
    plain = merge_two_sided(updates, MergeOptions(3, 2), 2)
    heavy = merge_two_sided(updates, MergeOptions(3, 2, weights=(50.0, 1.0, 1.0)), 2)

    def error(merged, k):
        rest = dense(updates[k]) - merged.head(k).double() @ merged.A.double()
        return float(rest.square().sum())

    assert error(heavy, 0) < error(plain, 0)


def choice(size, error):
    return Choice(size, error, 1, 1, 0, 8)


def test_lower_hull():
    points = [(5, 10), (5, 12), (10, 9), (20, 4), (30, 3.9), (40, 1), (50, 2)]
    hull = lower_hull([choice(*p) for p in points])
    assert [(c.bytes, c.error) for c in hull] == [(5, 10), (20, 4), (40, 1)]


def test_buying_is_optimal_on_hulls():
    """Against every combination, where the budget ends on a step."""
    generator = torch.Generator().manual_seed(1)
    hulls = {}
    for name in "abc":
        sizes = torch.randint(1, 20, (6,), generator=generator).cumsum(0).tolist()
        errors = torch.rand(6, generator=generator).mul(50).sort(descending=True).values.tolist()
        hulls[name] = lower_hull([choice(*p) for p in zip(sizes, errors, strict=True)])
    bought = 0
    for room in range(20, 200, 7):
        plan = buy(hulls, room, steps_of(hulls))
        bought += plan is not None
        if plan is None:
            assert sum(h[0].bytes for h in hulls.values()) > room
            continue
        spent = sum(c.bytes for c in plan.values())
        assert spent <= room
        best = min(
            sum(c.error for c in combination)
            for combination in itertools.product(*hulls.values())
            if sum(c.bytes for c in combination) <= spent
        )
        # Nothing of the size it came to is better than one unspent step.
        largest = max(a.error - b.error for h in hulls.values() for a, b in itertools.pairwise(h))
        assert sum(c.error for c in plan.values()) <= best + largest
    assert bought > 10


def test_candidates_foretell_errors():
    updates = random_updates([4, 4, 4], d_out=64, d_in=48, seed=3)
    weights = (2.0, 1.0, 0.5)
    found = candidates(updates, MergeOptions(3, 4, weights=weights), (16,))
    from hydrapack.merging.spectral import merge_spectral

    assert {c.head_count for c in found if not c.output_rank and c.rank == 4} == {1, 2, 3}
    assert any(c.output_rank for c in found)
    for c in found:
        options = MergeOptions(c.head_count, c.rank, 0, weights, c.assignment)
        if c.output_rank:
            merged = merge_two_sided(updates, options, c.output_rank)
        else:
            merged = merge_spectral(updates, options)
        actual = [
            difference_norm(u, merged.A, merged.head(merged.assignment[k]))[0] ** 2
            for k, u in enumerate(updates)
        ]
        weighed = sum(w * e for w, e in zip(weights, actual, strict=True))
        assert weighed <= c.error * 1.001 + 1e-3
        assert c.error == pytest.approx(sum(w * e for w, e in zip(weights, c.errors, strict=True)))
        if not c.output_rank and c.rank == 4:
            assert actual == pytest.approx(list(c.errors), rel=1e-2)


def packed_error(manifest):
    return math.hypot(*(t.packed_relative_error for t in manifest.tasks))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Adapters of four tasks whose modules differ in size and in what they share."""
    root, folders = tmp_path_factory.mktemp("uneven"), []
    for k in range(4):
        folder = write_adapter(root / f"t{k}", seed=k % 2 + 1, shared_seed=99, rank=8)

        def change(tensors, k=k):
            generator = torch.Generator().manual_seed(k)
            for key, tensor in tensors.items():
                if "q_proj" in key:
                    tensor *= 4
                if "v_proj" in key:
                    tensor += tensor.std() * torch.randn(tensor.shape, generator=generator)

        edit_tensors(folder, change)
        folders.append(str(folder))
    return folders


WIDTHS = (4, 8, 16)


@pytest.fixture(scope="module")
def uniform(uneven, tmp_path_factory):
    """One choice for all modules: (bytes, width, bundle), by size; and the error of such a row."""
    adapters, out = read_adapters(uneven), tmp_path_factory.mktemp("uniform")
    rows = []
    for heads, rank in itertools.product((1, 2, 3, 4), (2, 4, 6, 8)):
        bundle = merge_adapters(adapters, heads=heads, rank=rank)
        for width in WIDTHS:
            stored = (store(m, Precision(width, width)) for m in bundle.modules.values())
            rows.append((sum(s.bytes for s in stored), width, bundle))

    @functools.cache
    def error(index):
        return packed_error(pack(rows[index][2], out / f"{index}", rows[index][1]).manifest)

    rows.sort(key=lambda row: row[0])
    return rows, error


@pytest.mark.parametrize("kilobytes", [40, 55, 70])
def test_budget_beats_uniform(uneven, uniform, tmp_path, kilobytes):
    """At most the budget, and no higher an error than any one choice for all modules has."""
    limit = kilobytes * 1000
    merge_budget(read_adapters(uneven), limit).save(tmp_path / "planned")
    planned = pack(tmp_path / "planned", tmp_path / "package").manifest
    assert planned.storage.bytes <= limit
    rows, error = uniform
    fit = [i for i, row in enumerate(rows) if row[0] <= planned.storage.tensor_bytes]
    # Packing takes seconds: only the largest of each width are tried.
    best = [error(i) for width in WIDTHS for i in [i for i in fit if rows[i][1] == width][-2:]]
    assert len(best) > 2 and packed_error(planned) <= min(best)


def test_budget_options(uneven, tmp_path):
    adapters = read_adapters(uneven)
    with pytest.raises(HydrapackError, match="`budget` 100 bytes: the smallest plan takes about"):
        merge_budget(adapters, 100)
    with pytest.raises(HydrapackError, match="`bits` 32"):
        merge_budget(adapters, 100_000, bits=32)
    assert set(merge_budget(adapters, 90_000, bits=8).info.bits.values()) == {8}
    merged = merge_budget(adapters, 90_000, rank=4)
    # A rank that is asked for is the base program's, whatever the modules need.
    assert merged.rank == 4 >= max(module.rank for module in merged.modules.values())
    out = tmp_path / "bundle"
    done = hydrapack("merge", *uneven, "-o", out, "--budget", "90kB", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "budget"
    assert hydrapack("pack", out, "-o", tmp_path / "p").returncode == 0
    assert (tmp_path / "p" / "adapters.pte").stat().st_size <= 90_000
    for arguments, words in [
        (("--budget", "much"), "--budget much: give a size"),
        (("--budget", "6MB", "--heads", "2"), "--budget: chooses heads"),
        (("--bits", "4"), "--bits: needs --budget"),
        (("--budget", "1MB", "--target-error", "0.5"), "--budget and --target-error: give one"),
        (("--target-error", "1.5"), "--target-error 1.5: must lie between 0 and 1"),
        (("--target-error", "0.5", "--weight", "t0=2"), "--weight: not with --target-error"),
        (("--target-error", "0.5", "--heads", "2"), "--target-error: chooses heads"),
        (("--target-error", "0.5", "--objective", "minimax"), "--objective: not with"),
    ]:
        done = hydrapack("merge", *uneven, "-o", tmp_path / "x", *arguments)
        assert done.returncode == 2 and words in done.stderr


def test_a_budget_is_never_overrun(tmp_path):
    """Ten layers of the real adapters: what pack writes is at most the budget, and not far off."""
    adapters = []
    for adapter in read_adapters(example_adapters()):
        kept = {n: m for n, m in adapter.modules.items() if int(n.split(".")[2]) < 10}
        adapters.append(replace(adapter, modules=kept))
    request, weights = Request(adapters), (1.0,) * len(adapters)
    planner = Planner(request, weights)
    ranks, errors = [], []
    for kilobytes in (100, 330, 1000, 2700):
        limit = kilobytes * 1000
        plan = planner.within(limit)
        merge_plan(request, plan, weights, budget=limit).save(tmp_path / "bundle")
        manifest = pack(tmp_path / "bundle", tmp_path / "package").manifest
        assert manifest.storage.bytes <= plan.bytes <= limit, kilobytes
        # A bound so loose that it wastes a tenth of a small budget would be another fault.
        assert manifest.storage.bytes > plan.bytes - 20_000, kilobytes
        ranks.append(manifest.rank)
        errors.append(packed_error(manifest))
    assert errors == sorted(errors, reverse=True)
    assert ranks[0] < 8 <= ranks[-1]


def test_every_kind_of_plan_is_counted_from_above(tmp_path):
    """Whole heads and common bases at all widths and ranks, beside each other and alone."""
    adapters = read_adapters(
        [str(write_adapter(tmp_path / f"t{k}", seed=k, rank=40)) for k in range(2)]
    )
    request = Request(adapters)
    planner = Planner(request, (1.0, 1.0))
    generator = random.Random(0)
    kinds = [
        lambda c: True,
        lambda c: c.bits == 8 and not c.output_rank,
        lambda c: c.bits == 4 and c.output_rank > 0,
        lambda c: c.bits == 4 and c.rank == 40 and not c.output_rank,
        lambda c: c.bits == 16,
        lambda c: c.head_count == 1,
        lambda c: c.head_count == 1 and c.bits == 16,
    ]
    for number, kind in enumerate(kinds):
        choices = {
            name: generator.choice([c for c in found if kind(c)])
            for name, found in planner.found.items()
        }
        plan = planner.plan(choices)
        merged = merge_plan(request, plan, (1.0, 1.0), budget=plan.bytes)
        merged.save(tmp_path / "bundle")
        manifest = pack(tmp_path / "bundle", tmp_path / "package").manifest
        assert plan.bytes - 45_000 < manifest.storage.bytes <= plan.bytes, number
        for task in manifest.tasks:
            # What the program gives is the bundle's, with factors where heads are shared.
            rounding = task.packed_relative_error**2 - task.merge_relative_error**2
            assert rounding < (0.02 if max(plan.bits.values()) > 4 else 0.05)


def test_missing_modules_are_counted(tmp_path):
    """Adapters of the last layer alone: the packer adds zeros for the others."""
    names = [name for name in module_names() if ".1." in name]
    folders = [str(write_adapter(tmp_path / f"t{k}", seed=k, names=names)) for k in range(2)]
    adapters = read_adapters(folders)
    merged = merge_budget(adapters, 45_000)
    merged.save(tmp_path / "bundle")
    manifest = pack(tmp_path / "bundle", tmp_path / "package").manifest
    assert manifest.storage.bytes <= merged.planned_bytes <= 45_000


def test_pack_refuses_what_was_not_planned(uneven, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "p"
    done = hydrapack("merge", *uneven, "-o", bundle, "--budget", "45kB")
    assert done.returncode == 0 and "on a base program of export-base --rank" in done.stdout
    done = hydrapack("pack", bundle, "-o", out, "--bits", "32")
    assert done.returncode == 2 and not out.exists()
    assert "bytes, the bundle was planned for 45,000: pack with the planned bits" in done.stderr
    assert hydrapack("pack", bundle, "-o", out).returncode == 0


def test_a_small_budget_is_not_refused_for_its_program(tmp_path):
    """The room for integers is searched, up and down: a plan that fits is found."""
    folders = [str(write_adapter(tmp_path / f"t{k}", seed=k, rank=8)) for k in range(3)]
    adapters = read_adapters(folders)
    with pytest.raises(HydrapackError, match="the smallest plan takes about") as error:
        merge_budget(adapters, 1000)
    least = int(str(error.value).split("about ")[1].split(";")[0])
    assert merge_budget(adapters, least).planned_bytes <= least < 40_000


def test_target_error(uneven, tmp_path):
    adapters = read_adapters(uneven)
    sizes = []
    for error in (0.6, 0.3, 0.1):
        merged = merge_target(adapters, error)
        assert merged.info.objective == "minimax"
        merged.save(tmp_path / "bundle")
        manifest = pack(tmp_path / "bundle", tmp_path / "package").manifest
        packed = [task.packed_relative_error for task in manifest.tasks]
        # pack adds merge and rounding as independent; the planner measures them together.
        assert 0.75 * error < max(packed) <= error * 1.01
        sizes.append(manifest.storage.bytes)
    assert sizes == sorted(set(sizes))
    with pytest.raises(
        HydrapackError, match=r"`target_error` 0\.001: the nearest plan found leaves"
    ):
        merge_target(adapters, 0.001, bits=4)
    out = tmp_path / "cli"
    done = hydrapack("merge", *uneven, "-o", out, "--target-error", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert max(t["relative_error"] for t in json.loads(done.stdout)["tasks"]) <= 0.5


def test_a_plan_takes_a_low_rank(tmp_path):
    """Updates of two common directions: a rank of two is all the base program needs."""
    generator = torch.Generator().manual_seed(3)
    folders, shared = [], {}
    for k in range(3):
        folder = write_adapter(tmp_path / f"t{k}", seed=k, rank=8, shared_seed=9)

        def change(tensors):
            for key in [key for key in tensors if "lora_A" in key]:
                two = shared.setdefault(key, tensors[key][:2].clone())
                tensors[key] = torch.randn(8, 2, generator=generator) @ two

        edit_tensors(folder, change)
        folders.append(str(folder))
    merged = merge_budget(read_adapters(folders), 60_000)
    assert merged.rank == 2
    assert max(merged.relative_errors.values()) < 0.05
