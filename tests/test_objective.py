"""What a merge minimises, and what is said of a task that it gives up."""

import json

import pytest
from conftest import edit_tensors, hydrapack, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.analysis.tradeoff import tradeoff
from hydrapack.bundle.format import Bundle
from hydrapack.merging.objective import reweigh, task_sizes
from hydrapack.merging.planned import merge_budget
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError


def scaled(folder, factor):
    """The adapter with its B's times ``factor``."""

    def change(tensors):
        for key in [key for key in tensors if "lora_B" in key]:
            tensors[key] = tensors[key] * factor

    return edit_tensors(folder, change)


@pytest.fixture
def uneven(tmp_path):
    """Four unlike adapters, the last a twentieth of the others' size."""
    folders = [write_adapter(tmp_path / f"t{k}", seed=k + 1) for k in range(4)]
    scaled(folders[3], 0.05)
    return folders


def read(folders):
    return read_adapters([str(folder) for folder in folders])


WAYS = [
    ("spectral", {"heads": 1}),
    ("spectral", {"heads": 2}),
    ("spectral", {"heads": 2, "routing": "global"}),
    ("spectral", {"heads": 4, "rank": 3}),
    ("two-sided", {"rank": 4, "output_rank": 4}),
    ("hydraopt", {"heads": 2, "steps": 40, "objective": "relative"}),
    ("hydraopt", {"heads": 2, "steps": 40, "objective": "relative", "distance": "fro"}),
    ("hydraopt", {"heads": 2, "steps": 40, "objective": "relative", "distance": "mse"}),
    ("hydraopt", {"heads": 2, "steps": 40, "objective": "relative", "init": "spectral"}),
]


@pytest.mark.parametrize(("method", "options"), WAYS)
def test_a_tasks_scale_does_not_matter(uneven, method, options):
    before = merge_adapters(read(uneven), method, **options)
    scaled(uneven[1], 10)
    after = merge_adapters(read(uneven), method, **options)
    assert before.info.objective == after.info.objective == "relative"
    for task, error in before.relative_errors.items():
        assert after.relative_errors[task] == pytest.approx(error, rel=1e-4, abs=1e-6)


def test_a_plans_errors_do_not_depend_on_scale(uneven):
    before = merge_budget(read(uneven), 45_000)
    scaled(uneven[2], 10)
    after = merge_budget(read(uneven), 45_000)
    assert before.info.bits == after.info.bits
    ranks = [{n: (m.rank, len(m.heads)) for n, m in b.modules.items()} for b in (before, after)]
    assert ranks[0] == ranks[1]
    assert list(before.relative_errors.values()) == pytest.approx(
        list(after.relative_errors.values()), rel=1e-3
    )


def test_the_trade_off_does_not_depend_on_scale(uneven):
    before = tradeoff(read(uneven), [2, 4], [8]).points
    scaled(uneven[0], 10)
    after = tradeoff(read(uneven), [2, 4], [8]).points
    mine = [
        [(p.relative_error, p.worst_error) for p in points if p.method in ("spectral", "two-sided")]
        for points in (before, after)
    ]
    assert len(mine[0]) > 8
    for old, new in zip(*mine, strict=True):
        assert new == pytest.approx(old, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [("spectral", {"heads": 2}), ("two-sided", {"rank": 4, "output_rank": 4})],
)
def test_absolute_gives_up_the_small_task(uneven, method, options):
    errors = {
        objective: merge_adapters(read(uneven), method, objective=objective, **options)
        for objective in ("absolute", "relative", "minimax")
    }
    assert "t3" in errors["absolute"].lost
    assert errors["relative"].relative_errors["t3"] < 0.85
    worst = {name: max(m.relative_errors.values()) for name, m in errors.items()}
    assert worst["minimax"] <= worst["relative"] < worst["absolute"]
    # The default is relative.
    assert (
        merge_adapters(read(uneven), method, **options).relative_errors
        == errors["relative"].relative_errors
    )


@pytest.mark.parametrize("seed", range(6))
def test_minimax_is_never_worse_in_its_worst_task(tmp_path, seed):
    folders = [
        write_adapter(tmp_path / f"t{k}", seed=10 * seed + k, shared_seed=seed * k % 2)
        for k in range(3)
    ]
    scaled(folders[seed % 3], 3.0**seed)
    for method, options in (("spectral", {"heads": 2}), ("two-sided", {"rank": 3})):
        worst = [
            max(
                merge_adapters(
                    read(folders), method, objective=o, **options
                ).relative_errors.values()
            )
            for o in ("minimax", "relative")
        ]
        assert worst[0] <= worst[1] * (1 + 1e-9)


def test_minimax_plans(uneven):
    worst = [
        max(merge_budget(read(uneven), 40_000, objective=o).relative_errors.values())
        for o in ("minimax", "relative")
    ]
    assert worst[0] <= worst[1]


def test_weights_are_on_top(uneven):
    """The objective's own weights are multiplied by the user's."""
    plain = merge_adapters(read(uneven), heads=2).relative_errors
    heavy = merge_adapters(read(uneven), heads=2, weights={"t3": 8.0}).relative_errors
    assert heavy["t3"] < plain["t3"]
    evened = [
        merge_adapters(
            read(uneven), "two-sided", rank=10, objective="minimax", weights={"t0": weight}
        ).relative_errors["t0"]
        for weight in (1.0, 4.0)
    ]
    assert evened[1] < evened[0]


def test_reweigh_keeps_the_best_round():
    """Errors that get worse after the second round: the second is kept."""
    rounds = iter([[0.9, 0.5], [0.7, 0.6], [0.8, 0.6], [0.9, 0.1]])
    seen = []

    def solve(weights, done):
        assert done == len(seen) / 4
        seen.append(weights)
        errors = next(rounds)
        return errors, (weights, errors)

    weights, kept = reweigh(solve, [1.0, 1.0], 4)
    assert kept == [0.7, 0.6] and weights == seen[1] and len(seen) == 4
    assert seen[1][0] > 1 > seen[1][1]


def test_sizes_make_the_distance_from_nothing_one(adapters):
    first = read(adapters)[0]
    dense = [B @ A for A, B in (m.factors() for m in first.modules.values())]
    wanted = {
        "fro": sum(float(d.square().sum()) for d in dense) ** 0.5,
        "mse": sum(float(d.square().mean()) for d in dense) ** 0.5,
        "mae": sum(float(d.abs().mean()) for d in dense),
    }
    for distance, size in wanted.items():
        assert task_sizes([first], distance)[0] == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--objective", "best"), "--objective best: choose one of relative, absolute, minimax"),
        (("--objective", "relative", "--method", "ties"), "ties minimises no error; leave it out"),
        (
            ("--objective", "minimax", "--method", "hydraopt"),
            "hydraopt takes relative or absolute",
        ),
        (("--max-task-error", "nan"), "--max-task-error nan: must be 0 or more"),
        (("--max-task-error", "-1"), "--max-task-error -1: must be 0 or more"),
    ],
)
def test_options(uneven, tmp_path, arguments, words):
    done = hydrapack("merge", *uneven, "-o", tmp_path / "x", *arguments)
    assert done.returncode == 2 and words in done.stderr and not (tmp_path / "x").exists()


def test_a_lost_task_is_said_aloud(uneven, tmp_path):
    bundle, package = tmp_path / "bundle", tmp_path / "package"
    way = ("--method", "two-sided", "--rank", "10", "--set", "output_rank=10")
    lossy = ("merge", *uneven, *way, "--objective", "absolute")
    done = hydrapack(*lossy, "-o", bundle)
    assert done.returncode == 0
    assert "warning: task 't3' is lost: its relative error is" in done.stderr
    assert hydrapack("pack", bundle, "-o", package).returncode == 0
    manifest = json.loads((package / "manifest.json").read_text())
    assert manifest["lost_tasks"] == ["t3"]
    done = hydrapack("verify", package, "--json")
    (found,) = (c for c in json.loads(done.stdout)["checks"] if c["name"] == "task errors")
    assert done.returncode == 0 and "warning: lost tasks" in found["detail"]
    assert "t3" in found["detail"] and "t0" not in found["detail"]
    done = hydrapack("verify", package, "--max-task-error", "0.9")
    assert done.returncode == 1 and "relative errors above 0.9: t3" in done.stdout
    for path in (bundle, package):
        done = hydrapack("storage", path)
        assert done.returncode == 0 and "next to nothing is left of t3" in done.stderr
        done = hydrapack("storage", path, "--json")
        assert json.loads(done.stdout)["lost_tasks"] == ["t3"]
        done = hydrapack("storage", path, "--markdown")
        assert "**lost**" in done.stdout
    # A gate: exit code 1 and nothing written.
    out = tmp_path / "gated"
    done = hydrapack(*lossy, "-o", out, "--max-task-error", "0.9")
    assert done.returncode == 1 and not out.exists()
    assert "--max-task-error 0.9: exceeded by t3 0.9" in done.stderr
    # None is lost by default, and nothing is said.
    done = hydrapack("merge", *uneven, "-o", out, "--heads", "2", "--max-task-error", "0.9")
    assert done.returncode == 0 and done.stderr == ""
    assert hydrapack("pack", out, "-o", tmp_path / "p2").returncode == 0
    assert "lost_tasks" not in json.loads((tmp_path / "p2" / "manifest.json").read_text())
    done = hydrapack("verify", tmp_path / "p2")
    assert done.returncode == 0 and "none lost; the worst is" in done.stdout


def test_older_bundles_are_read(adapters, tmp_path):
    bundle = tmp_path / "bundle"
    assert hydrapack("merge", *adapters, "-o", bundle).returncode == 0
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    assert content.pop("objective") == "relative" and content.pop("budget_bytes") is None
    path.write_text(json.dumps(content))
    assert Bundle.load(bundle).info.objective is None
    assert hydrapack("pack", bundle, "-o", tmp_path / "package").returncode == 0


def test_methods_without_an_objective_note_none(adapters):
    assert merge_adapters(read(adapters), "ties").info.objective is None
    assert merge_adapters(read(adapters), "hydraopt", steps=2).info.objective == "absolute"
    with pytest.raises(HydrapackError, match="choose relative or absolute"):
        tradeoff(read(adapters), objective="minimax")
