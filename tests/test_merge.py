import math
from dataclasses import replace

import pytest
import torch
from conftest import edit_tensors, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.update import LoraModule, difference_norm
from hydrapack.analysis.similarity import analyze
from hydrapack.analysis.tradeoff import tradeoff
from hydrapack.bundle.merged import MergedModule
from hydrapack.merging.add import add
from hydrapack.merging.elementwise import TASK_ARITHMETIC
from hydrapack.merging.merge import merge
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.methods import METHODS
from hydrapack.merging.modules import module_seed
from hydrapack.merging.spectral import merge_spectral
from hydrapack.merging.two_sided import merge_two_sided
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError


def random_updates(ranks, d_out=12, d_in=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        LoraModule(
            torch.randn(r, d_in, generator=generator),
            torch.randn(d_out, r, generator=generator),
            0.5 + k,
        )
        for k, r in enumerate(ranks)
    ]


def dense(update):
    A, B = update.factors()
    return B @ A


def squared_error(updates, merged):
    return sum(
        float((dense(u) - merged.head(a).double() @ merged.shared().double()).square().sum())
        for u, a in zip(updates, merged.assignment, strict=True)
    )


def test_difference_norm_matches_dense():
    update = random_updates([3])[0]
    a, b = torch.randn(4, 10), torch.randn(12, 4)
    difference, own = difference_norm(update, a, b)
    expected = dense(update) - b.double() @ a.double()
    assert difference == pytest.approx(float(expected.norm()), rel=1e-9)
    assert own == pytest.approx(float(dense(update).norm()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_error_is_the_tail_of_the_singular_values(rank):
    updates = random_updates([2, 3, 2])
    stacked = torch.cat([dense(u) for u in updates])
    tail = torch.linalg.svd(stacked).S[rank:].square().sum()
    merged = merge_spectral(updates, MergeOptions(head_count=3, rank=rank))
    assert squared_error(updates, merged) == pytest.approx(float(tail), rel=1e-5)
    torch.testing.assert_close(merged.A @ merged.A.T, torch.eye(rank), atol=1e-5, rtol=0)


def test_full_rank_reconstructs(tmp_path):
    folders = [write_adapter(tmp_path / f"t{k}", seed=k, rank=3 + k) for k in range(3)]
    adapters = read_adapters([str(f) for f in folders])
    merged = merge_adapters(adapters, rank=sum(a.rank for a in adapters))
    assert max(merged.relative_errors.values()) < 1e-5
    # More rank than all updates have: zero rows, still exact.
    merged = merge_adapters(adapters, rank=20)
    assert max(merged.relative_errors.values()) < 1e-5


def test_copies_merge_to_one_head_without_error(tmp_path):
    folder = write_adapter(tmp_path / "a")
    adapters = read_adapters([f"x={folder}", f"y={folder}", f"z={folder}"])
    merged = merge_adapters(adapters, heads=1)
    assert max(merged.relative_errors.values()) < 1e-6


def test_never_above_mean_a_with_least_squares_b():
    for seed in range(5):
        updates = random_updates([3, 3, 3, 3], seed=seed)
        mean = torch.stack([u.A.double() for u in updates]).mean(0)
        mean_error = sum(
            float((dense(u) - dense(u) @ torch.linalg.pinv(mean) @ mean).square().sum())
            for u in updates
        )
        merged = merge_spectral(updates, MergeOptions(head_count=4, rank=3))
        assert squared_error(updates, merged) <= mean_error * (1 + 1e-9)


def test_falls_with_heads_and_rank():
    updates = random_updates([3] * 5)
    by_heads = [
        squared_error(updates, merge_spectral(updates, MergeOptions(head_count=m, rank=4)))
        for m in range(1, 6)
    ]
    assert by_heads == sorted(by_heads, reverse=True)
    by_rank = [
        squared_error(updates, merge_spectral(updates, MergeOptions(head_count=5, rank=r)))
        for r in range(1, 11)
    ]
    assert by_rank == sorted(by_rank, reverse=True)


def test_best_of_all_assignments_is_found():
    """Four tasks, two heads: all seven partitions by hand."""
    updates = random_updates([2] * 4, seed=3)
    stacked = [dense(u) for u in updates]

    def error(assignment):
        total, gram = 0.0, torch.zeros(10, 10, dtype=torch.float64)
        for head in (0, 1):
            members = [s for s, a in zip(stacked, assignment, strict=True) if a == head]
            mean = torch.stack(members).mean(0)
            total += sum(float(s.square().sum()) for s in members)
            gram += len(members) * mean.T @ mean
        return total - float(torch.linalg.eigvalsh(gram)[-3:].sum())

    partitions = [[(i >> k) & 1 for k in range(4)] for i in range(1, 8)]
    best = min(error(p) for p in partitions if len(set(p)) == 2)
    merged = merge_spectral(updates, MergeOptions(head_count=2, rank=3))
    assert squared_error(updates, merged) == pytest.approx(best, rel=1e-5)


def test_planted_clusters_are_grouped():
    centres = random_updates([3, 3, 3])
    updates = []
    for k in (0, 1, 0, 2, 1, 2, 0):
        noise = 0.01 * torch.randn(12, 3, generator=torch.Generator().manual_seed(k))
        updates.append(LoraModule(centres[k].A, centres[k].B + noise, centres[k].scaling))
    merged = merge_spectral(updates, MergeOptions(head_count=3, rank=9))
    assert merged.assignment == (0, 1, 0, 2, 1, 2, 0)


def test_a_missing_module_is_a_zero_update(tmp_path):
    names = ["model.layers.0.self_attn.q_proj"]
    one = write_adapter(tmp_path / "one", seed=1)
    two = write_adapter(tmp_path / "two", seed=2, names=names)
    merged = merge_adapters(read_adapters([str(one), str(two)]), rank=8)
    other = merged.modules["model.layers.0.self_attn.k_proj"]
    assert other.heads[1].abs().max() < 1e-6
    assert max(merged.relative_errors.values()) < 1e-5


@pytest.fixture(scope="module")
def peft_pair(tmp_path_factory):
    """Two saved adapters of one linear, and PEFT's model that holds both."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="x")
    model.add_adapter("y", lora)
    folder = tmp_path_factory.mktemp("pair")
    model.save_pretrained(folder)
    return model, read_adapters([str(folder / "x"), str(folder / "y")])


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("method", "peft_name", "weight"),
    [
        ("task-arithmetic", "linear", 0.5),
        ("ties", "ties", 1.0),
        ("dare", "dare_linear", 0.5),
        ("dare-ties", "dare_ties", 1.0),
    ],
)
def test_baselines_are_pefts(peft_pair, method, peft_name, weight):
    model, adapters = peft_pair
    own = {} if method == "task-arithmetic" else {"density": 0.3}
    merged = merge_adapters(adapters, method, seed=5, **own).modules[Q_PROJ]
    layer = model.get_submodule(f"base_model.model.{Q_PROJ}")
    torch.manual_seed(module_seed(5, Q_PROJ))
    A, B = model.base_model._generalized_task_arithmetic_weighted_adapter(
        peft_name, ["x", "y"], [weight, weight], layer, 0.3, "total"
    )
    torch.testing.assert_close(merged.A, A, rtol=0, atol=0)
    torch.testing.assert_close(merged.heads[0], B, rtol=0, atol=0)
    assert merged.assignment == (0, 0)


def test_task_arithmetic_is_add_weighted_adapter(peft_pair):
    model, adapters = peft_pair
    model.add_weighted_adapter(["x", "y"], [0.5, 0.5], "mean", combination_type="linear")
    layer = model.get_submodule(f"base_model.model.{Q_PROJ}")
    merged = merge_adapters(adapters, "task-arithmetic").modules[Q_PROJ]
    torch.testing.assert_close(merged.heads[0] @ merged.A, layer.get_delta_weight("mean"))
    model.delete_adapter("mean")


@pytest.mark.parametrize("method", ["task-arithmetic", "ties", "dare", "dare-ties"])
def test_only_a(peft_pair, method):
    from peft.utils import merge_utils

    _, adapters = peft_pair
    updates = [a.modules[Q_PROJ] for a in adapters]
    kept = merge_adapters(adapters, method, only_a=True, seed=1)
    module = kept.modules[Q_PROJ]
    assert module.assignment == (0, 1)
    for k, update in enumerate(updates):
        torch.testing.assert_close(module.heads[k], update.factors()[1].float(), rtol=0, atol=0)
    if method == "ties":
        expected = merge_utils.ties([u.A for u in updates], torch.ones(2), 0.5)
        torch.testing.assert_close(module.A, expected, rtol=0, atol=0)
    refitted = merge_adapters(adapters, method, only_a=True, refit_b=True, seed=1)
    assert torch.equal(refitted.modules[Q_PROJ].A, module.A)
    for k, update in enumerate(updates):
        best = torch.linalg.lstsq(module.A.T.double(), dense(update).T).solution.T
        torch.testing.assert_close(refitted.modules[Q_PROJ].heads[k], best.float())
    assert sum(refitted.relative_errors.values()) < sum(kept.relative_errors.values())


def test_dare_needs_its_seed(peft_pair):
    _, adapters = peft_pair
    one, same, other = (merge_adapters(adapters, "dare", seed=s).modules[Q_PROJ] for s in (0, 0, 1))
    assert torch.equal(one.A, same.A) and not torch.equal(one.A, other.A)


def test_global_routing(tmp_path):
    """Two pairs of near copies: one route for all modules finds the pairs."""
    folders = []
    for k, start in enumerate((7, 8, 7, 8)):
        folder = write_adapter(tmp_path / f"t{k}", seed=start, shared_seed=9)
        generator = torch.Generator().manual_seed(k)

        def blur(tensors, generator=generator):
            for tensor in tensors.values():
                tensor += 0.2 * tensor.std() * torch.randn(tensor.shape, generator=generator)

        folders.append(str(edit_tensors(folder, blur)))
    adapters = read_adapters(folders)
    merged = merge_adapters(adapters, heads=2, routing="global")
    assert {m.of for m in merged.modules.values()} == {(0, 1, 0, 1)}
    for heads in (1, 2, 3):
        one_route = merge_adapters(adapters, heads=heads, routing="global")
        free = merge_adapters(adapters, heads=heads)
        assert len({m.of for m in one_route.modules.values()}) == 1
        assert total(free) <= total(one_route) * (1 + 1e-9)


def total(merged):
    return sum(e**2 for e in merged.relative_errors.values())


def test_weights_favour_a_task(adapters):
    read = read_adapters([str(a) for a in adapters])
    plain = merge_adapters(read, rank=2)
    heavy = merge_adapters(read, rank=2, weights={"task1": 50.0})
    assert heavy.relative_errors["task1"] < plain.relative_errors["task1"]
    assert heavy.relative_errors["task0"] > plain.relative_errors["task0"]
    same = merge_adapters(read, rank=2, weights=dict.fromkeys(("task0", "task1", "task2"), 3.0))
    assert same.relative_errors == pytest.approx(plain.relative_errors)
    # One head alone: the weighted mean of the updates.
    updates = random_updates([2, 2])
    merged = merge_spectral(updates, MergeOptions(head_count=1, rank=10, weights=(3.0, 1.0)))
    mean = (3 * dense(updates[0]) + dense(updates[1])) / 4
    torch.testing.assert_close(merged.heads[0] @ merged.A, mean.float(), atol=1e-5, rtol=1e-5)


def test_options_are_checked(tmp_path):
    adapters = read_adapters([str(write_adapter(tmp_path / f"t{k}", seed=k)) for k in range(2)])
    for options, match in [
        ({"heads": 3}, "`heads` 3"),
        ({"heads": 0}, "`heads` 0"),
        ({"rank": 0}, "`rank` 0"),
        ({"method": "x"}, "`method` x"),
        ({"method": "task-arithmetic", "heads": 2}, "`heads` 2: task-arithmetic makes one head"),
        ({"method": "task-arithmetic", "rank": 3}, "ranks must equal"),
        ({"method": "ties", "density": 1.5}, "`density` 1.5"),
        ({"routing": "x"}, "`routing` x"),
        ({"weights": {"x": 1.0}}, "`weights` x: no such task"),
        ({"weights": {"t0": -1.0}}, "`weights` t0=-1"),
        ({"refit_b": True}, "`refit_b`"),
        ({"only_a": True}, "`only_a`: spectral has no such option; it has routing"),
        ({"method": "ties", "refit_b": True}, "`refit_b`: needs `only_a`"),
        ({"method": "ties", "density": "much"}, "`density` much: Input should be a valid number"),
        ({"method": "hydraopt", "steps": 0}, "`steps` 0: must be above 0"),
    ]:
        with pytest.raises(HydrapackError, match=match):
            merge_adapters(adapters, **options)


def test_s_percent(tmp_path):
    adapters = read_adapters([str(write_adapter(tmp_path / f"t{k}", seed=k)) for k in range(5)])
    merged = merge_adapters(adapters, heads=2)
    a = sum(m.A.numel() for m in adapters[0].modules.values())
    b = sum(m.B.numel() for m in adapters[0].modules.values())
    assert merged.s_percent == pytest.approx(100 * (a + 2 * b) / (5 * (a + b)))


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    rank=st.integers(1, 6),
    seed=st.integers(0, 1000),
    scale=st.floats(1e-3, 1e3),
)
def test_permuting_and_scaling(ranks, rank, seed, scale):
    updates = random_updates(ranks, seed=seed)
    options = MergeOptions(head_count=len(ranks), rank=rank)
    merged = merge_spectral(updates, options)
    assert torch.isfinite(merged.A).all() and torch.isfinite(merged.heads).all()
    backwards = merge_spectral(updates[::-1], options)
    whole = sum(float(dense(u).square().sum()) for u in updates)
    difference = squared_error(updates, merged) - squared_error(updates[::-1], backwards)
    assert abs(difference) < 1e-6 * whole
    # Task by task: the reversed tasks have the reversed updates' errors.
    for k, update in enumerate(updates):
        there = squared_error([update], MergedModule(merged.A, merged.heads[k : k + 1], (0,)))
        last = len(updates) - 1 - k
        back = MergedModule(backwards.A, backwards.heads[last : last + 1], (0,))
        assert abs(there - squared_error([update], back)) < 1e-4 * whole
    scaled = [LoraModule(u.A, u.B, u.scaling * scale) for u in updates]
    error = squared_error(scaled, merge_spectral(scaled, options)) / scale**2
    assert math.isclose(error, squared_error(updates, merged), rel_tol=1e-4, abs_tol=1e-6 * whole)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=2, max_size=4).filter(any),
    heads=st.integers(1, 4),
    rank=st.integers(1, 6),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    exponent=st.integers(-6, 3),
    method=st.sampled_from([merge_spectral, merge_two_sided]),
    seed=st.integers(0, 99),
)
def test_half_precision_in_no_nan_out(ranks, heads, rank, dtype, exponent, method, seed):
    """Any size of values, zero updates among them; as exact as the same values in float32."""
    updates = [
        LoraModule((u.A * 10.0**exponent).to(dtype), u.B.to(dtype), u.scaling)
        for u in random_updates(ranks, seed=seed)
    ]
    options = MergeOptions(min(heads, len(ranks)), rank)
    merged = method(updates, options)
    for tensor in merged.tensors.values():
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
    wide = [LoraModule(u.A.float(), u.B.float(), u.scaling) for u in updates]
    whole = sum(float(dense(u).square().sum()) for u in updates)
    difference = squared_error(updates, merged) - squared_error(wide, method(wide, options))
    assert abs(difference) <= 1e-6 * whole


def test_task_arithmetic_direct():
    updates = random_updates([2, 2])
    merged = TASK_ARITHMETIC.merge(
        updates, MergeOptions(head_count=1, rank=2), TASK_ARITHMETIC.own({})
    )
    expected = sum(math.sqrt(u.scaling / 2) * u.A for u in updates)
    torch.testing.assert_close(merged.A, expected)


NOTHING = {
    **{method.name: lambda a, m=method.name: merge(a, method=m) for method in METHODS},
    "only-a": lambda a: merge(a, method="ties", only_a=True),
    "global": lambda a: merge(a, heads=1, routing="global"),
    "budget": lambda a: merge(a, budget=100_000),
    "target": lambda a: merge(a, target_error=0.5),
    "tradeoff": tradeoff,
}


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_nothing_to_merge(tmp_path, name):
    """No adapters, or one that adapts nothing, is one clear error."""
    with pytest.raises(HydrapackError, match="no adapters given"):
        NOTHING[name]([])
    (one,) = read_adapters([str(write_adapter(tmp_path / "a"))])
    with pytest.raises(HydrapackError, match="a: adapts no module"):
        NOTHING[name]([one, replace(one, task="b", modules={})])


def test_nothing_to_analyze_to_add_and_to_write(tmp_path):
    (one,) = read_adapters([str(write_adapter(tmp_path / "a"))])
    empty = replace(one, task="b", modules={})
    for adapters in ([], [one]):
        with pytest.raises(HydrapackError, match="two adapters or more"):
            analyze(adapters)
    with pytest.raises(HydrapackError, match="adapts no module"):
        analyze([one, empty])
    merge_adapters([one]).save(tmp_path / "bundle")
    with pytest.raises(HydrapackError, match="adapts no module"):
        add(tmp_path / "bundle", empty)
    with pytest.raises(HydrapackError, match="no bit widths"):
        tradeoff([one], bits=())


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_one_adapter_is_kept(tmp_path, method):
    """Spectral, two-sided and task arithmetic are exact; hydraopt trains, ties trims half of A's
    and of B's values, dare drops them at random and doubles the rest (an error of sqrt(3)).
    """
    (one,) = read_adapters([str(write_adapter(tmp_path / "a"))])
    merge = merge_adapters([one], method, **({"steps": 5} if method == "hydraopt" else {}))
    most = {"dare": 1.8, "dare-ties": 1.8, "hydraopt": 0.05, "ties": 0.8}.get(method, 1e-5)
    assert merge.relative_errors["a"] < most
    assert merge.heads == 1 and len(merge.modules) == len(one.modules) > 0
