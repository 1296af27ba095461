"""Merging for the error of outputs on some text."""

import json

import pytest
import torch
from conftest import hydrapack, module_names, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.base.moments import input_moments
from hydrapack.merging.calibrated import merge_calibrated, spans
from hydrapack.merging.uniform import merge_adapters
from hydrapack.support.errors import HydrapackError


@pytest.fixture
def read(tmp_path):
    return read_adapters([str(write_adapter(tmp_path / f"t{k}", seed=k)) for k in range(3)])


def uneven_inputs(width, count=4000, seed=0):
    """Inputs of few large directions, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, width, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * spread @ mix.T


def moments_of(bases, inputs):
    return {
        name: (inputs[len(Q)] @ Q).T @ (inputs[len(Q)] @ Q) / len(inputs[len(Q)])
        for name, Q in bases.items()
    }


def output_errors(adapters, merged, inputs):
    """By task: norm of the outputs' error over that of the outputs, all modules together."""
    found = []
    for k, adapter in enumerate(adapters):
        squares = [0.0, 0.0]
        for name, module in merged.modules.items():
            A, B = adapter.modules[name].factors()
            x = inputs[A.shape[1]]
            own = x @ A.T @ B.T
            head = module.head(module.assignment[k]).double()
            squares[0] += float((own - x @ module.A.double().T @ head.T).square().sum())
            squares[1] += float(own.square().sum())
        found.append((squares[0] / squares[1]) ** 0.5)
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("spectral", {"heads": 3, "rank": 3}),
        ("spectral", {"heads": 2, "rank": 4}),
        ("two-sided", {"rank": 4, "output_rank": 4}),
    ],
)
def test_outputs_come_nearer(read, method, options):
    inputs = {64: uneven_inputs(64)}
    bases = spans(read)
    plain = merge_adapters(read, method, **options)
    fitted = merge_calibrated(read, bases, moments_of(bases, inputs), method, **options)
    info = fitted.info
    assert info.method == f"{method} (calibrated)" and info.objective == "relative"
    before, after = output_errors(read, plain, inputs), output_errors(read, fitted, inputs)
    # The damping gives up little.
    assert sum(e**2 for e in after) < 0.9 * sum(e**2 for e in before)
    # It is the weights that pay: the errors noted are theirs.
    weights = [sum(e**2 for e in m.relative_errors.values()) for m in (plain, fitted)]
    assert weights[1] > weights[0]


def test_even_inputs_change_nothing(read):
    bases = spans(read)
    even = {name: torch.eye(Q.shape[1]) * 7 for name, Q in bases.items()}
    plain = merge_adapters(read, heads=2, rank=3)
    same = merge_calibrated(read, bases, even, heads=2, rank=3)
    assert list(same.relative_errors.values()) == pytest.approx(
        list(plain.relative_errors.values()), rel=1e-5
    )


def test_inputs_that_are_never_there(read):
    """A direction that no text shows is damped, not divided by zero."""
    bases = spans(read)
    moments = {}
    for name, Q in bases.items():
        one = torch.zeros(Q.shape[1], Q.shape[1])
        one[0, 0] = 1
        moments[name] = one
    merged = merge_calibrated(read, bases, moments, rank=3)
    assert max(merged.relative_errors.values()) < 2


def test_moments_are_those_of_the_inputs(tiny_model, read):
    """Against x of a hook of its own, on the same text."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    bases = spans(read)
    texts = ["how are you", "the library opens at nine"]
    found = input_moments(tiny_model, texts, bases)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    name = module_names()[-1]
    seen = []
    model.get_submodule(name).register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([tokenizer.encode(text).ids]))
    x = torch.cat(seen).double() @ bases[name]
    assert len(x) > 4
    torch.testing.assert_close(found[name], x.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_command(tiny_model, tmp_path):
    folders = [write_adapter(tmp_path / f"t{k}", seed=k) for k in range(2)]
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"row {i} of a text"}) for i in range(5)))
    run = ("merge", *folders, "--rank", "3", "--base-model", tiny_model)
    done = hydrapack(*run, "-o", tmp_path / "one", "--calibrate", text, "--json")
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert info["method"] == "spectral (calibrated)" and info["rank"] == 3
    assert hydrapack(*run, "-o", tmp_path / "two", "--calibrate", text).returncode == 0
    same = [(tmp_path / n / "bundle.safetensors").read_bytes() for n in ("one", "two")]
    assert same[0] == same[1]
    assert hydrapack("pack", tmp_path / "one", "-o", tmp_path / "package").returncode == 0
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    for arguments, words in [
        (("--calibrate", text, "--budget", "1MB"), "--calibrate: not with --budget"),
        (("--calibrate", text, "--method", "ties"), "--calibrate: works with --method spectral"),
        (("--calibrate", empty), "has no text"),
        (("--calibrate", tmp_path / "none"), "cannot be read"),
        ((), "--base-model: needs --calibrate"),
    ]:
        done = hydrapack(*run, "-o", tmp_path / "x", *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert not (tmp_path / "x").exists()
    done = hydrapack(
        "merge", *folders, "-o", tmp_path / "x", "--calibrate", text, "--base-model", tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_another_model_is_refused(tiny_model, tmp_path):
    odd = write_adapter(tmp_path / "odd", names=["model.layers.7.self_attn.q_proj"])
    bases = spans(read_adapters([str(odd)]))
    with pytest.raises(HydrapackError, match=r"has no linear model\.layers\.7"):
        input_moments(tiny_model, ["text"], bases)
