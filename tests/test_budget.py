"""A common output basis, and the planner that chooses between it and whole heads."""

import itertools
import json
import math

import pytest
import torch
from conftest import hydrapack, write_adapter
from test_merge import dense, random_updates, squared_error

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.modules import LoraModule
from hydrapack.bundle import read_bundle, write_bundle
from hydrapack.errors import InputError
from hydrapack.merge.adapters import merge_adapters
from hydrapack.merge.budget import Choice, buy, candidates, lower_hull, merge_budget
from hydrapack.merge.module import MergeOptions
from hydrapack.merge.two_sided import core_of, energies, merge_two_sided
from hydrapack.pack.package import write_package


def test_two_sided_is_exact_with_room_enough():
    updates = random_updates([2, 3, 2])
    merged = merge_two_sided(updates, MergeOptions(3, 7, output_rank=7))
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
    merged = merge_two_sided(updates, MergeOptions(4, 2, output_rank=3))
    for update, head in zip(updates, merged.assignment, strict=True):
        torch.testing.assert_close(
            merged.head(head).double() @ merged.A.double(), dense(update), atol=1e-2, rtol=1e-4
        )


def test_two_sided_beats_any_alternation_step():
    """For its A and U the C's are the least-squares ones, and no worse than the truncated bases."""
    updates = random_updates([3, 3, 3], d_out=14, d_in=11, seed=2)
    merged = merge_two_sided(updates, MergeOptions(3, 4, output_rank=5))
    for update, head in zip(updates, merged.assignment, strict=True):
        C = merged.U.double().T @ dense(update) @ merged.A.double().T
        torch.testing.assert_close(merged.heads[head], C.float(), atol=1e-5, rtol=1e-5)
    core = core_of(updates, MergeOptions(3, 4))
    kept = energies(core.projected(core.left(None, 99), core.right(None, 99)))
    whole = sum(float(dense(u).square().sum()) for u in updates)
    assert squared_error(updates, merged) <= whole - float(kept[4, 3]) + 1e-9
    assert float(kept[-1, -1]) == pytest.approx(whole)


def test_two_sided_with_weights():
    updates = random_updates([3, 3, 3], seed=5)
    plain = merge_two_sided(updates, MergeOptions(3, 2, output_rank=2))
    heavy = merge_two_sided(updates, MergeOptions(3, 2, output_rank=2, weights=(50.0, 1.0, 1.0)))

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
        plan = buy(hulls, room)
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
    found = candidates(updates, MergeOptions(3, 4), (16,))
    from hydrapack.merge.spectral import merge_spectral

    assert {c.heads for c in found if not c.output_rank and c.rank == 4} == {1, 2, 3}
    assert any(c.output_rank for c in found)
    for c in found:
        options = MergeOptions(c.heads, c.rank, output_rank=c.output_rank)
        merge = merge_two_sided if c.output_rank else merge_spectral
        actual = squared_error(updates, merge(updates, options))
        assert actual <= c.error * 1.001 + 1e-3
        if not c.output_rank and c.rank == 4:
            assert actual == pytest.approx(c.error, rel=1e-2)


def packed_error(manifest):
    return math.hypot(*(t.packed_relative_error for t in manifest.tasks))


@pytest.fixture
def uneven(tmp_path):
    """Adapters of four tasks whose modules differ in size and in what they share."""
    folders = []
    for k in range(4):
        folder = write_adapter(tmp_path / f"t{k}", seed=k % 2 + 1, shared_seed=99, rank=8)
        from conftest import edit_tensors

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


@pytest.mark.parametrize("kilobytes", [70, 80, 95])
def test_budget_beats_uniform(uneven, tmp_path, kilobytes):
    """At most the budget, and a lower error than any one choice for all modules of that size."""
    adapters = read_adapters(uneven)
    limit = kilobytes * 1000
    merged, plan = merge_budget(adapters, limit)
    bits = {name: c.bits for name, c in plan.items()}
    write_bundle(merged, adapters, tmp_path / "planned", bits)
    planned = write_package(read_bundle(tmp_path / "planned"), tmp_path / "package")
    assert planned.storage.bytes <= limit
    uniform = []
    for heads, rank, width in itertools.product((1, 2, 3, 4), (2, 4, 6, 8), (4, 8, 16)):
        merge = merge_adapters(adapters, heads=heads, rank=rank)
        write_bundle(merge, adapters, tmp_path / "uniform")
        from hydrapack.quantize import Rounding, module_bytes

        size = sum(module_bytes(m, Rounding(width, width)) for m in merge.modules.values())
        if size <= planned.storage.tensor_bytes:
            bundle = read_bundle(tmp_path / "uniform")
            uniform.append((heads, rank, width, size, bundle))
    # Packing takes seconds: only the largest of each width are tried.
    best = []
    for width in (4, 8, 16):
        own = sorted((u for u in uniform if u[2] == width), key=lambda u: u[3])[-2:]
        for *_, bundle in own:
            best.append(packed_error(write_package(bundle, tmp_path / "u", width)))
    assert packed_error(planned) < min(best)


def test_budget_options(uneven, tmp_path):
    adapters = read_adapters(uneven)
    with pytest.raises(InputError, match="--budget 100 bytes: the smallest plan takes about"):
        merge_budget(adapters, 100)
    with pytest.raises(InputError, match="--bits 32"):
        merge_budget(adapters, 100_000, bits=32)
    _, plan = merge_budget(adapters, 90_000, bits=8)
    assert {c.bits for c in plan.values()} == {8}
    _, plan = merge_budget(adapters, 90_000, rank=4)
    assert max(c.rank for c in plan.values()) <= 4
    out = tmp_path / "bundle"
    done = hydrapack("merge", *uneven, "-o", out, "--budget", "90kB", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "budget"
    assert hydrapack("pack", out, "-o", tmp_path / "p").returncode == 0
    assert (tmp_path / "p" / "adapters.pte").stat().st_size <= 90_000
    for arguments, words in [
        (("--budget", "much"), "--budget much: give a size"),
        (("--budget", "6MB", "--heads", "2"), "--budget: chooses heads"),
        (("--bits", "4"), "--bits: goes with --budget"),
    ]:
        done = hydrapack("merge", *uneven, "-o", tmp_path / "x", *arguments)
        assert done.returncode == 2 and words in done.stderr
