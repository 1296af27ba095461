"""``hydrapack check``: what will not merge, pack or run is said before anything is made."""

import json
import shutil

import pytest
from conftest import TASKS, edit_config, edit_tensors, hydrapack, module_names, write_adapter

from hydrapack.analysis.check import check
from hydrapack.support.errors import HydrapackError


def levels(findings):
    return {finding.name: finding.level for finding in findings}


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of model.pte with its description and tokenizer."""
    for name in ("model.pte", "model.pte.json", "tokenizer.json"):
        shutil.copy(tiny[2] / name, tmp_path)
    return tmp_path / "model.pte"


def test_what_will_do(tiny, tiny_model):
    adapters = [tiny[2] / task for task in TASKS]
    done = hydrapack("check", *adapters, "--model", tiny[0], "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    names = [*(f"adapter {task}" for task in TASKS), "together", "shared A", "package"]
    assert list(found) == [*names, "base", "rank", "targets", "tokenizer"]
    # The tiny adapters name their base by an id, the program has the folder it came from.
    assert {n for n, f in found.items() if f["level"] != "ok"} == {"base"}
    assert "alike (R² 0.9" in found["shared A"]["detail"]
    assert "relative errors from 0." in found["shared A"]["detail"]
    done = hydrapack("check", *adapters, "--model", tiny_model / "config.json")
    assert done.returncode == 0 and "FAIL" not in done.stdout
    assert "300 tokens" in done.stdout


def test_adapters_that_no_merge_takes(tmp_path):
    good = write_adapter(tmp_path / "good", seed=1)
    dora = edit_config(write_adapter(tmp_path / "dora"), use_dora=True)
    untrained = edit_tensors(
        write_adapter(tmp_path / "untrained"),
        lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k],
    )
    other = write_adapter(tmp_path / "other", seed=2, base="another/base")
    done = hydrapack("check", good, dora, untrained, other)
    assert done.returncode == 1
    said = " ".join(done.stdout.replace("│", " ").split())
    assert "use_dora = true: DoRA's magnitudes" in said and "every lora_B is zero" in said
    assert "different base models" in said
    assert levels(check([good, dora]))["adapter dora"] == "fail"
    key = f"base_model.model.{module_names()[0]}.lora_B.weight"
    partly = edit_tensors(write_adapter(tmp_path / "partly"), lambda t: t[key].zero_())
    (finding,) = [f for f in check([partly]) if f.name == "adapter partly"]
    assert finding.level == "warn" and "zero in 1 modules" in finding.detail
    assert "no task.json" in finding.detail


def test_other_seeds_cost(tmp_path):
    strangers = [write_adapter(tmp_path / f"s{k}", seed=k) for k in range(3)]
    (finding,) = [f for f in check(strangers) if f.name == "shared A"]
    assert finding.level == "warn" and "as of other seeds" in finding.detail
    alike = [write_adapter(tmp_path / f"a{k}", seed=k, shared_seed=9) for k in range(3)]
    (kin,) = [f for f in check(alike) if f.name == "shared A"]
    worst = [float(f.detail.split(" to ")[1].split()[0]) for f in (kin, finding)]
    assert kin.level == "ok" and worst[0] < 0.5 * worst[1]


def test_a_base_that_will_not_run_them(model, tiny_model, tmp_path):
    narrow = write_adapter(tmp_path / "r2", rank=2)
    found = {f.name: f for f in check([narrow], model)}
    assert found["rank"].level == "warn" and "merge with `rank` 4" in found["rank"].detail
    assert found["targets"].level == "ok"
    mlp = write_adapter(tmp_path / "mlp", names=module_names("qg"))
    found = {f.name: f for f in check([mlp], model)}
    assert found["targets"].level == "fail" and "another adapter layout" in found["targets"].detail

    (narrow / "tokenizer.json").write_text("{}")
    found = {f.name: f for f in check([narrow], model)}
    assert found["tokenizer"].level == "warn" and "is not the base's" in found["tokenizer"].detail
    (model.parent / "tokenizer.json").write_text("{}")
    assert levels(check([narrow], model))["tokenizer"] == "fail"
    with model.open("ab") as file:
        file.write(b"x")
    assert levels(check([narrow], model))["base"] == "fail"

    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    for change, name, words in (
        ({"num_hidden_layers": 1}, "shapes", "has 1 layers"),
        ({"hidden_size": 128}, "shapes", "adapters of another model"),
        ({"model_type": "gemma"}, "base", "'gemma' is not supported"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        found = {f.name: f for f in check([narrow], folder)}
        assert found[name].level == "fail" and words in found[name].detail


def test_unusable_input(tiny, tmp_path):
    for arguments, words in (
        ((tmp_path / "none",), "does not exist"),
        ((tiny[2] / "one", "--model", tmp_path / "none.pte"), "no such file"),
    ):
        done = hydrapack("check", *arguments)
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(HydrapackError, match="no adapters given"):
        check([])
