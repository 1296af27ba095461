import itertools

import pytest
import torch
from test_merge import dense, random_updates, squared_error

from hydrapack.adapters.update import LoraModule
from hydrapack.merging.hydraopt import DISTANCES, INITS, HydraOpt, assign_hydraopt, merge_hydraopt
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.spectral import merge_spectral
from hydrapack.support.errors import HydrapackError


def mean_absolute_error(updates, merged):
    return sum(
        float((dense(u) - merged.heads[a].double() @ merged.A.double()).abs().mean())
        for u, a in zip(updates, merged.assignment, strict=True)
    )


def run(updates, heads, **options):
    losses = []
    own = {"steps": 400, **options}
    shared = {"rank": 3, **{name: own.pop(name) for name in ("rank", "seed") if name in own}}
    told = MergeOptions(heads, report=lambda share, loss: losses.append(loss), **shared)
    merged = merge_hydraopt(updates, told, HydraOpt(**own))
    return merged, losses


@pytest.mark.parametrize("init", ["adapters", "random"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_falls(distance, init):
    updates = random_updates([3, 3, 3])
    for heads in (1, 2, 3):
        _, losses = run(updates, heads, distance=distance, init=init, steps=100)
        assert min(losses) < losses[0]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("distance", ["fro", "mse"])
@pytest.mark.parametrize("init", INITS)
def test_reaches_the_spectral_optimum(distance, init):
    updates = random_updates([2, 2, 2], d_out=16, d_in=14, seed=4)
    merged, _ = run(updates, 3, distance=distance, init=init, steps=1500)
    best = squared_error(updates, merge_spectral(updates, MergeOptions(head_count=3, rank=3)))
    assert best * (1 - 1e-6) <= squared_error(updates, merged) < 1.01 * best


def test_mae_reaches_the_brute_force_optimum():
    """Rank 1, one row out, two columns in: A is an angle, the best heads weighted medians."""
    updates = [
        LoraModule(torch.tensor([[a, b]]), torch.tensor([[1.0]]), 1.0)
        for a, b in ((1.0, 0.4), (0.8, 0.9), (-0.5, 1.2))
    ]
    angles = torch.linspace(0, torch.pi, 20001, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    best = torch.zeros(len(angles), dtype=torch.float64)
    for update in updates:
        target = dense(update)[0]
        # A piecewise linear loss has its minimum where one column is met exactly.
        heads = target / directions
        losses = [
            (target - heads[:, [j]] * directions).abs().mean(1).nan_to_num(9.0) for j in (0, 1)
        ]
        best += torch.minimum(*losses)
    # The loss has local minima: the best of eight starts.
    found = [
        mean_absolute_error(updates, run(updates, 3, rank=1, init="random", seed=s)[0])
        for s in range(8)
    ]
    assert float(best.min()) * 0.999 < min(found) < 1.01 * float(best.min())


def test_mae_ends_below_the_spectral_start():
    updates = random_updates([3] * 4, d_out=24, d_in=20)
    start = merge_spectral(updates, MergeOptions(head_count=4, rank=3))
    merged, _ = run(updates, 4, init="spectral")
    assert mean_absolute_error(updates, merged) < mean_absolute_error(updates, start)


@pytest.mark.parametrize("distance", DISTANCES)
def test_groups_planted_clusters(distance):
    centres = random_updates([3, 3], d_out=20, d_in=16)
    planted = (0, 1, 1, 0, 1)
    updates = []
    for k, centre in enumerate(planted):
        noise = 0.05 * torch.randn(20, 3, generator=torch.Generator().manual_seed(k))
        updates.append(LoraModule(centres[centre].A, centres[centre].B + noise, 1.0))
    merged, _ = run(updates, 2, rank=6, distance=distance, init="random", steps=600)
    groups = merged.assignment
    for i, j in itertools.combinations(range(5), 2):
        assert (groups[i] == groups[j]) == (planted[i] == planted[j])
    assert merged.A.isfinite().all() and merged.heads.isfinite().all()
    own = HydraOpt(distance=distance, init="random", steps=300)
    route = assign_hydraopt([updates, updates], MergeOptions(head_count=2, rank=6), own)
    assert [a == route[0] for a in route] == [a == planted[0] for a in planted]


def test_same_seed_same_result():
    updates = random_updates([3] * 4)
    one, two, other = (run(updates, 2, seed=s, init="random", steps=50)[0] for s in (3, 3, 4))
    assert torch.equal(one.A, two.A) and torch.equal(one.heads, two.heads)
    assert one.assignment == two.assignment
    assert not torch.equal(one.A, other.A)


def test_stops_on_a_plateau():
    updates = random_updates([2, 2])
    _, losses = run(updates, 2, rank=4, init="spectral", distance="fro", steps=5000)
    assert 1 < len(losses) < 1000


def test_ranks_mixed_and_a_missing_module():
    updates = [*random_updates([1, 4, 2]), random_updates([0])[0]]
    for init in INITS:
        merged, _ = run(updates, 4, rank=3, init=init, distance="fro", steps=50)
        assert merged.A.shape == (3, 10) and merged.heads.isfinite().all()


def test_unknown_names():
    updates = random_updates([2, 2])
    with pytest.raises(HydrapackError, match="`distance` l2"):
        run(updates, 2, distance="l2")
    with pytest.raises(HydrapackError, match="`init` zero"):
        run(updates, 2, init="zero")
