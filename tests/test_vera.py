"""VeRA adapters: read as PEFT saves them, merged to one d and M vectors b, and written back."""

import itertools

import pytest
import torch
from conftest import edit_config, edit_tensors, hydrapack
from test_merge import dense

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.read import read_adapter
from hydrapack.adapters.update import VeraModule
from hydrapack.adapters.vera import input_widths
from hydrapack.analysis.tradeoff import tradeoff
from hydrapack.bundle.format import Bundle
from hydrapack.bundle.unpack import unpack
from hydrapack.footprint.report import storage
from hydrapack.merging.add import add
from hydrapack.merging.method import MergeOptions
from hydrapack.merging.planned import merge_budget
from hydrapack.merging.uniform import merge_adapters
from hydrapack.merging.vera import merge_vera
from hydrapack.support.errors import HydrapackError

TASKS = ("x", "y", "z")


@pytest.fixture(scope="module")
def vera(tmp_path_factory):
    """Three VeRA adapters of a small Llama as PEFT saves them, and PEFT's model of each."""
    from peft import VeraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    folder, models = tmp_path_factory.mktemp("vera"), {}
    for k, task in enumerate(TASKS):
        torch.manual_seed(0)
        model = get_peft_model(
            LlamaForCausalLM(config),
            VeraConfig(r=16, target_modules=["q_proj", "v_proj"], projection_prng_key=3),
        )
        generator = torch.Generator().manual_seed(k)
        for name, parameter in model.named_parameters():
            if "vera_lambda" in name:
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.data = (0.1 if name.endswith("d") else 0.0) + noise
                parameter.data = parameter.data + 0.0
        model.save_pretrained(folder / task)
        models[task] = model
    return folder, models


def folders(vera):
    return [str(vera[0] / task) for task in TASKS]


def test_reads_what_peft_writes(vera):
    adapter = read_adapter(vera[0] / "y", "y")
    assert adapter.kind == "VERA" and adapter.rank == 16 and len(adapter.modules) == 4
    for name, module in adapter.modules.items():
        layer = vera[1]["y"].get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(dense(module).float(), layer.get_delta_weight("default"))
    values = sum(len(m.d) + len(m.b) for m in adapter.modules.values())
    assert adapter.parameters == values


def random_vera(count, rank=6, d_out=9, d_in=7):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    A, B = normal(rank, d_in), normal(d_out, rank)
    return [VeraModule(1 + 0.3 * normal(rank), normal(d_out), A, B) for _ in range(count)]


def squared(updates, merged):
    rest = [
        dense(u) - merged.head(a).double() @ merged.shared().double()
        for u, a in zip(updates, merged.assignment, strict=True)
    ]
    return sum(float(r.square().sum()) for r in rest)


def test_one_task_is_exact_and_copies_share():
    updates = random_vera(1)
    assert squared(updates, merge_vera(updates, MergeOptions(1, 6))) < 1e-9
    copies = updates * 3
    assert squared(copies, merge_vera(copies, MergeOptions(1, 6))) < 1e-9


def test_least_squares_is_stationary():
    """No small step of d or of a head lowers the error."""
    updates = random_vera(3)
    merged = merge_vera(updates, MergeOptions(3, 6))
    best = squared(updates, merged)
    for tensor, index, sign in itertools.product((merged.d, merged.heads), range(6), (-1e-2, 1e-2)):
        tensor.view(-1)[index] += sign
        assert squared(updates, merged) > best
        tensor.view(-1)[index] -= sign


def whole_error(adapters, merged):
    return sum(
        squared([a.modules[name] for a in adapters], module)
        for name, module in merged.modules.items()
    )


@pytest.mark.parametrize("method", ["spectral", "hydraopt", "task-arithmetic", "ties", "dare"])
def test_methods(vera, method):
    adapters = read_adapters(folders(vera))
    merged = merge_adapters(adapters, method, **({"steps": 60} if method == "hydraopt" else {}))
    limit = 1.0 if method in ("spectral", "hydraopt") else 3.0
    assert all(0 < e < limit for e in merged.relative_errors.values())
    module = next(iter(merged.modules.values()))
    assert set(module.tensors) == {"d", "b"}
    if method == "task-arithmetic":
        own = [a.modules[next(iter(merged.modules))] for a in adapters]
        torch.testing.assert_close(module.d, sum(u.d for u in own) / 3**0.5)
    if method == "spectral":
        assert merged.s_percent == pytest.approx(
            100
            * sum(16 + 3 * len(m.B) for m in merged.modules.values())
            / merged.info.baseline_parameters
        )
        merged = merge_adapters(adapters, method, objective="absolute")
        other = merge_adapters(adapters, "hydraopt", distance="fro", steps=400)
        assert whole_error(adapters, merged) <= whole_error(adapters, other) * 1.001


def test_bundle_and_back_to_peft(vera, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    adapters = read_adapters(folders(vera))
    merge_adapters(adapters[:1]).save(tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    unpack(bundle, tmp_path / "x", "x")
    ids = torch.arange(20).view(1, -1)
    with torch.no_grad():
        expected = vera[1]["x"](ids).logits
        torch.manual_seed(0)
        base = LlamaForCausalLM(vera[1]["x"].config)
        logits = PeftModel.from_pretrained(base, str(tmp_path / "x"))(ids).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    extension = add(bundle, adapters[1])
    extension.bundle.save(tmp_path / "b2")
    again = Bundle.load(tmp_path / "b2")
    assert [t.name for t in again.info.tasks] == ["x", "y"] and extension.relative_error < 1
    for name, module in again.modules.items():
        assert torch.equal(module.heads[:1], bundle.modules[name].heads)


def test_what_vera_cannot(vera, tmp_path):
    adapters = read_adapters(folders(vera))
    merge_adapters(adapters).save(tmp_path / "b")
    for match, call in [
        ("not for VeRA; choose", lambda: merge_adapters(adapters, "two-sided")),
        ("`rank` 8: VeRA", lambda: merge_adapters(adapters, rank=8)),
        (
            "`format` ptd: holds LoRA alone",
            lambda: unpack(tmp_path / "b", tmp_path / "p", format="ptd"),
        ),
        ("`budget` and `target_error` plan LoRA", lambda: merge_budget(adapters, 10_000)),
        ("trade-off is of LoRA", lambda: tradeoff(adapters)),
    ]:
        with pytest.raises(HydrapackError, match=match):
            call()


def test_malformed(vera, tmp_path):
    import shutil

    for number, (change, match) in enumerate(
        [
            (lambda t: t.pop("base_model.vera_A"), "save_projection=True"),
            (lambda t: t.pop(next(k for k in t if k.endswith("lambda_d"))), "no vera_lambda_d"),
            (lambda t: t.update({"base_model.vera_A": torch.ones(3, 3)}), "do not fit"),
            (lambda t: t.update({"what": torch.ones(3)}), "no VeRA vector"),
            (lambda t: [v.fill_(1e20) for v in t.values()], "exceeds single precision"),
        ]
    ):
        folder = tmp_path / f"bad{number}"
        shutil.copytree(vera[0] / "x", folder)
        edit_tensors(folder, change)
        done = hydrapack("merge", folder, "-o", tmp_path / "out")
        assert done.returncode == 2 and match in done.stderr and str(folder) in done.stderr
    ranked = tmp_path / "ranked"
    shutil.copytree(vera[0] / "x", ranked)
    with pytest.raises(HydrapackError, match=r"vera_A has rank 16, r in adapter_config\.json is 8"):
        read_adapters([str(edit_config(ranked, r=8))])
    other = tmp_path / "other"
    shutil.copytree(vera[0] / "x", other)
    edit_tensors(other, lambda t: t["base_model.vera_A"].mul_(2))
    with pytest.raises(HydrapackError, match="are not those of"):
        read_adapters([str(vera[0] / "y"), str(other)])
    with pytest.raises(HydrapackError, match="are not the bundle's"):
        add(merge_adapters(read_adapters([str(vera[0] / "y")])), other)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_head_in_the_storage_report_is_its_vector(vera, tmp_path, heads):
    """By hand, at 8 bits: d of rank values and b of d_out values a module, a scale each.

    A and B of 16 x 32 values lie there once, a scale a row. The three tasks share heads, each with
    a factor: one comes with a head, the others are shared.
    """
    adapters = read_adapters(folders(vera))
    merge_adapters(adapters, heads=heads).save(tmp_path / "b")
    report, modules = storage(tmp_path / "b"), Bundle.load(tmp_path / "b").modules.values()
    factors, once = 12 * (heads < 3), 16 * (32 + 2) + 32 * (16 + 2)
    assert report.head_bytes == sum(m.shape[0] + 2 + factors for m in modules) > 0
    shared = sum(m.rank + 2 + (3 - heads) * factors for m in modules)
    assert report.shared_bytes == once + shared
    assert report.bytes == report.shared_bytes + heads * report.head_bytes


@pytest.mark.parametrize(
    ("outputs", "widest", "wanted"),
    [
        ({"q": 48, "v": 16}, 32, {"q": 32, "v": 32}),
        ({"q": 48, "k": 16, "o": 32}, 48, {"q": 32, "k": 32, "o": 48}),
        ({"v": 16, "down": 32}, 96, {"v": 32, "down": 96}),
        ({"o": 32, "up": 96, "down": 32}, 96, {"o": 96, "up": 32, "down": 96}),
        # q writes a gate too, so that o reads half of it: nothing is told.
        ({"q": 128, "o": 32}, 64, {"q": 64, "o": 64}),
        ({"qkv": 96, "dense": 32}, 32, {"qkv": 32, "dense": 32}),
    ],
)
def test_what_each_linear_reads(outputs, widest, wanted):
    def named(values):
        return {f"model.layers.{i}.x.{n}_proj": v for i in (0, 1) for n, v in values.items()}

    assert input_widths(named(outputs), widest) == named(wanted)
    odd = {**named(outputs), "model.layers.2.x.q_proj": 7}
    assert set(input_widths(odd, widest).values()) == {widest} or "q" not in outputs


def test_the_last_columns_are_of_those_that_read_them(tmp_path):
    """As PEFT's own model adapts them, before and after a bundle."""
    import peft
    from peft_models import build, output, train

    config = peft.VeraConfig(r=5, target_modules=["q_proj", "o_proj", "down_proj"])
    model = train(peft.get_peft_model(build("LlamaForCausalLM"), config), 1, 0.3)
    model.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a", "a")
    merge_adapters([adapter]).save(tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    for name, module in adapter.modules.items():
        delta = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        torch.testing.assert_close(dense(module).float(), delta)
        assert module.shape == bundle.modules[name].shape == tuple(delta.shape)
    unpack(bundle, tmp_path / "u")
    again = peft.PeftModel.from_pretrained(build("LlamaForCausalLM"), str(tmp_path / "u" / "a"))
    torch.testing.assert_close(output(again), output(model), atol=1e-4, rtol=1e-4)
