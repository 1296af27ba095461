"""Metrics by hand, and the evaluation on a small model."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import TEMPLATE, hydrapack, write_adapter

from hydrapack.adapters.collect import read_adapters
from hydrapack.adapters.prompt import encode_prompt
from hydrapack.analysis.similarity import analyze
from hydrapack.bundle.stored import store
from hydrapack.evaluation import metrics
from hydrapack.evaluation.backends import TorchBackend
from hydrapack.evaluation.memory import PeakMemory
from hydrapack.evaluation.metrics import edit_counts, score, squad_f1, weighted_rouge, words
from hydrapack.evaluation.run import Evaluation
from hydrapack.evaluation.spec import EvalConfig, quick_config, read_config, read_rows
from hydrapack.evaluation.tables import markdown, plot
from hydrapack.merging.planned import merge_budget
from hydrapack.packing.manifest import read_package
from hydrapack.program.quantized import Precision
from hydrapack.support.errors import HydrapackError


def test_words():
    assert words("It's 3.5 kB, über!") == ["it", "s", "3", "5", "kb", "über"]
    assert words("我喜欢 GPT-4") == ["我", "喜", "欢", "gpt", "4"]
    assert words("カタカナと漢字") == list("カタカナと漢字")
    assert words("안녕 world") == ["안", "녕", "world"]


def test_rouge_l():
    # Longest common subsequence "police the gunman" of 4 and 4 words (Lin 2004, section 3).
    reference = "police killed the gunman"
    assert metrics.rouge_l("police kill the gunman", [reference], "") == pytest.approx(75.0)
    assert metrics.rouge_l("the gunman kill police", [reference], "") == pytest.approx(50.0)
    assert metrics.rouge_l("x", ["y", "x"], "") == 100.0


def test_weighted_rouge():
    # Unigrams 3/4, bigrams 1/3 (the gunman), trigrams 0/2: F1 of equal lengths is that share.
    got = weighted_rouge("police kill the gunman", ["police killed the gunman"], "")
    assert got == pytest.approx(100 * (0.75 / 6 + (1 / 3) / 3 + 0.0 / 2))
    assert weighted_rouge("a b c d", ["a b c d"], "") == pytest.approx(100.0)
    assert weighted_rouge("今天天气", ["今天天气"], "") == pytest.approx(100.0)


def test_squad_f1():
    # As in SQuAD's script: articles, case and punctuation do not count.
    assert squad_f1("The Eiffel Tower!", ["eiffel tower"], "") == 100.0
    assert squad_f1("in the year 1999", ["1999"], "") == pytest.approx(50.0)
    assert squad_f1("", ["x"], "") == 0.0
    assert squad_f1("东京都", ["东京"], "") == pytest.approx(80.0)


def test_correction_f_half(monkeypatch):
    monkeypatch.setattr(metrics, "spacy_model", lambda: None)
    source, reference = "He go to school yesterday .", "He went to school yesterday ."
    assert edit_counts(reference, [reference], source) == (1, 1, 1)
    assert edit_counts(source, [reference], source) == (0, 0, 1)
    assert edit_counts("He went to the school yesterday .", [reference], source) == (1, 2, 1)
    # P = 1/2, R = 1: F0.5 = 1.25 * .5 * 1 / (.25 * .5 + 1).
    made = score("correction-f0.5", ["He went to the school yesterday ."], [[reference]], [source])
    assert made == pytest.approx(100 * 1.25 * 0.5 / 1.125)
    # Over the set: counts are added up, not scores.
    both = score("correction-f0.5", [reference, source], [[reference], [reference]], [source] * 2)
    assert both == pytest.approx(100 * 1.25 * 1.0 * 0.5 / (0.25 + 0.5))
    with pytest.raises(HydrapackError, match="metric 'x'"):
        score("x", ["a"], [["a"]], ["a"])


def test_errant():
    """The example of ERRANT's README: three edits, where a difference by word sees one."""
    assert metrics.spacy_model()
    source, target = "This are gramamtical sentence .", "This is a grammatical sentence ."
    edits = {(1, 2, ("is",)), (2, 2, ("a",)), (2, 3, ("grammatical",))}
    assert metrics.errant_edits(source, target) == edits
    assert metrics.word_edits(source, target) == {(1, 3, ("is", "a", "grammatical"))}
    assert edit_counts("This is gramamtical sentence .", [target], source) == (1, 1, 3)


@pytest.fixture
def setting(adapters, tiny_model, tmp_path):
    """A YAML over the small model: three tasks whose references are their adapters' own answers."""
    for k, folder in enumerate(adapters):
        rows = [{"input": f"text {i} of {k}", "output": "x"} for i in range(6)]
        (tmp_path / f"{folder.name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "base_model": str(tiny_model),
        "batch_size": 4,
        "tasks": [
            {
                "name": folder.name,
                "adapter": folder.name,
                "data": f"{folder.name}.jsonl",
                "metric": "rouge-l",
                "max_new_tokens": 8,
            }
            for folder in adapters
        ],
        "methods": [
            {"method": "zero-shot"},
            {"method": "own"},
            {"method": "spectral", "heads": [1, 3], "rank": 12},
            {"method": "ties"},
        ],
    }
    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_an_exact_bundle_scores_as_its_adapters(setting, tmp_path):
    """References are made the adapters' own answers: own and an exact merge score 100."""
    config = read_config(setting)
    evaluation = Evaluation(config, setting.parent, tmp_path / "first")
    evaluation.run()
    backend = evaluation._backend
    for task, adapter in zip(config.tasks, evaluation.adapters.values(), strict=True):
        factors = {n: m.factors() for n, m in adapter.modules.items()}
        pairs = {n: (A.float(), B.float()) for n, (A, B) in factors.items()}
        inputs = [row.input for row in evaluation.rows[task.name]]
        answers = backend.answers(inputs, TEMPLATE, [], 8, pairs)
        rows = [{"input": i, "output": a} for i, a in zip(inputs, answers, strict=True)]
        (setting.parent / task.data).write_text("\n".join(map(json.dumps, rows)))
    results = Evaluation(config, setting.parent, tmp_path / "second").run()
    by_label = {r.label: r for r in results}
    own, exact = by_label["own"], by_label["spectral M=3 R=12"]
    assert own.scores == exact.scores and own.average > 50
    assert by_label["zero-shot"].average < own.average
    assert by_label["spectral M=1 R=12"].scores != own.scores
    assert by_label["zero-shot"].s_percent == 0 and own.s_percent == 100


def test_batched_answers_are_pefts(setting, tmp_path):
    """The patched model against PeftModel, row by row."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = read_config(setting)
    evaluation = Evaluation(config, setting.parent, tmp_path / "out")
    evaluation.run()
    backend = evaluation._backend
    adapter = list(evaluation.adapters.values())[1]
    pairs = {n: tuple(f.float() for f in m.factors()) for n, m in adapter.modules.items()}
    texts = ["a", "a much longer text than the first", "third"]
    got = backend.answers(texts, TEMPLATE, [], 10, pairs)
    base = AutoModelForCausalLM.from_pretrained(config.base_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter.folder))
    for text, answer in zip(texts, got, strict=True):
        ids = torch.tensor([encode_prompt(backend.tokenizer, TEMPLATE, text)])
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False
        )
        tokens = made[0, ids.shape[1] :].tolist()
        assert answer == backend.tokenizer.decode(tokens, skip_special_tokens=True)
    # The end token, 2, counts too.
    right = ["y", "a right answer", ""]
    nats, count = backend.nats(list(zip(texts, right, strict=True)), TEMPLATE, [2], pairs)
    lost = 0.0
    for text, answer in zip(texts, right, strict=True):
        prompt = encode_prompt(backend.tokenizer, TEMPLATE, text)
        told = [*backend.tokenizer.encode(answer).ids, 2]
        ids = torch.tensor([prompt + told])
        labels = torch.tensor([[-100] * len(prompt) + told])
        with torch.inference_mode():
            lost += float(model(input_ids=ids, labels=labels).loss) * len(told)
    assert count == sum(map(len, right)) + 3 and nats == pytest.approx(lost, rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(setting, tmp_path):
    setting.write_text(setting.read_text() + "device: cuda\n")
    result = hydrapack("eval", setting, "-o", tmp_path / "out")
    assert result.returncode == 2 and "device: cuda: PyTorch finds no such GPU" in result.stderr


def test_command_resumes(setting, tmp_path):
    """Killed in the midst, the next run ends with the same table as one that was not."""
    whole = hydrapack("eval", setting, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "spectral M=3" in whole.stdout
    out = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "hydrapack", "eval", str(setting), "-o", str(out)],
        stdout=subprocess.DEVNULL,
    )

    def answered():
        # Those being written are hidden.
        return [p for p in (out / "cache").glob("*.json") if not p.name.startswith(".")]

    while process.poll() is None and len(answered()) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in answered()}
    assert len(kept) >= 4 and not (out / "results.json").exists()
    assert hydrapack("eval", setting, "-o", out).returncode == 0
    for name, moment in kept.items():
        assert (out / "cache" / name).stat().st_mtime_ns == moment

    def table(folder):
        results = json.loads((folder / "results.json").read_text())["results"]
        return [(r["label"], r["s_percent"], r["scores"]) for r in results]

    assert table(out) == table(tmp_path / "whole")
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.md").read_text().count("\n") == 7


def test_a_plot_that_fails_leaves_nothing(setting, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from hydrapack.cli.eval import evaluate

    content = yaml.safe_load(setting.read_text())
    setting.write_text(yaml.safe_dump({**content, "rows": 1, "methods": [{"method": "own"}]}))
    out, drawn = tmp_path / "out", []

    def fail(self, target, **options):
        drawn.append(target)
        target.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="no font"):
        evaluate(setting, out)
    assert len(drawn) == 1 and drawn[0].suffix == ".png"
    assert sorted(p.name for p in out.iterdir()) == ["cache", "results.json", "results.md"]


def test_executorch_backend(setting, tmp_path):
    """In float32 the device answers as PyTorch does: the bare base, each adapter and a merge."""
    content = yaml.safe_load(setting.read_text())
    device = {"backend": "executorch", "program": "fp32"}
    content["methods"] = [
        *({"method": method, **more} for method in ("zero-shot", "own") for more in ({}, device)),
        {"method": "own", "bits": 8, **device},
        {"method": "spectral", "heads": [3], "bits": 8, **device},
    ]
    content["tasks"][1]["prompt_template"] = "Mine: {input}\n"
    for task in content["tasks"]:
        rows = [{"input": "text", "output": "nine ten eleven"}, {"input": "b", "output": "x"}]
        (tmp_path / task["data"]).write_text("\n".join(map(json.dumps, rows)))
    config = EvalConfig.model_validate({**content, "rows": 2})
    evaluation = Evaluation(config, setting.parent, tmp_path / "out")
    results = evaluation.run()
    bare, bare_device, own, own_device, own_8, merged = results
    for torch_row, device_row in ((bare, bare_device), (own, own_device)):
        assert torch_row.scores == device_row.scores
        assert device_row.nats == pytest.approx(torch_row.nats, rel=1e-4)
    assert bare.nats != pytest.approx(own.nats, rel=1e-2)
    assert own_8.nats == pytest.approx(own.nats, rel=0.05) and own_8.nats != own_device.nats
    assert merged.label == "spectral M=3, 8 bits, ExecuTorch fp32" and set(merged.scores)
    parameters = sum(a.parameters for a in evaluation.adapters.values())
    values = merged.s_percent / 100 * parameters
    assert values < merged.stored_bytes < 1.5 * values
    assert [r.stored_bytes for r in results[:3]] == [0, 0, 4 * parameters]
    assert parameters < own_8.stored_bytes < own_device.stored_bytes
    package = evaluation._package_folder(evaluation.cases()[-1]) / "package"
    prompts = [task.prompt_template for task in read_package(package).tasks]
    assert prompts == [TEMPLATE, "Mine: {input}\n", TEMPLATE]
    assert "| average | nats |" in markdown(results)
    # A program of another base that lies where this one's would.
    (beside,) = (tmp_path / "out").glob("*.pte.json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "get_weights_sha256": "0"}))
    with pytest.raises(HydrapackError, match=r"weights_sha256 is 0.*or give another `output`"):
        Evaluation(config, setting.parent, tmp_path / "out").run()


def test_a_budgets_plan_is_kept(setting, exported, tmp_path, monkeypatch):
    """A row of a budget is rounded, packed and counted at the planned bits of each module."""
    program = exported(4, quant="fp32", max_context=256)
    (tmp_path / "out").mkdir()
    for file in program.parent.iterdir():
        name = file.name.replace("model.pte", "model-fp32-r4.pte")
        (tmp_path / "out" / name).symlink_to(file)
    content = yaml.safe_load(setting.read_text())
    budget = {"method": "spectral", "budget": "64kB"}
    content["methods"] = [
        budget,
        {**budget, "backend": "executorch", "program": "fp32"},
        {**budget, "bits": 4},
        {**budget, "bits": 4, "backend": "executorch", "program": "fp32"},
    ]
    config = EvalConfig.model_validate({**content, "rows": 1})
    evaluation = Evaluation(config, setting.parent, tmp_path / "out")
    taken = []
    answers = TorchBackend.answers

    def spy(self, inputs, template, stop, count, pairs, progress):
        taken.append(pairs)
        return answers(self, inputs, template, stop, count, pairs, progress)

    monkeypatch.setattr(TorchBackend, "answers", spy)
    peft, packed, four, packed_four = evaluation.run()
    assert len(taken) == 6
    folders = [evaluation._package_folder(case) for case in evaluation.cases()[1::2]]
    for rows, bits, pairs, folder in (
        ((peft, packed), None, taken[0], folders[0]),
        ((four, packed_four), 4, taken[3], folders[1]),
    ):
        merge = merge_budget(list(evaluation.adapters.values()), 64_000, bits=bits)
        widths = merge.info.bits
        assert (set(widths.values()) == {4}) == (bits == 4)
        stored = 0
        for name, module in merge.modules.items():
            part = store(module, Precision(widths[name], widths[name]))
            stored += part.bytes
            rounded = part.dequantize()
            assert torch.equal(pairs[name][0], rounded.shared())
            assert torch.equal(pairs[name][1], rounded.head(module.assignment[0]))
        manifest = read_package(folder / "package")
        assert {m.name: (m.bits_a, m.bits_b) for m in manifest.modules} == {
            name: (width, width) for name, width in widths.items()
        }
        for row in rows:
            assert row.bits == (bits or "planned")
            assert ("planned bits" if bits is None else "4 bits") in row.label
            assert row.stored_bytes == stored == manifest.storage.tensor_bytes
    # Each row has its own answers: PEFT's and ExecuTorch's, planned and not.
    assert len(list((tmp_path / "out" / "cache").iterdir())) == 2 * 4 * 3


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ({"budget": "much"}, r"methods: budget much: give a size"),
        ({"budget": "1MB", "heads": [2]}, "budget 1MB: chooses heads"),
        ({"budget": "1MB", "output_rank": 4}, "budget 1MB: chooses heads"),
        ({"budget": "1MB", "method": "ties"}, "budget 1MB: chooses heads"),
        ({"bits": 5}, "bits"),
        ({"method": "own", "bits": 8}, "own, 8 bits: adapters are rounded where they are packed"),
        ({"method": "zero-shot", "bits": 8}, "zero-shot stores nothing"),
    ],
)
def test_methods_that_do_not_fit(setting, method, match):
    content = yaml.safe_load(setting.read_text())
    content["methods"] = [{"method": "spectral", **method}]
    setting.write_text(yaml.safe_dump(content))
    with pytest.raises(HydrapackError, match=match) as caught:
        read_config(setting)
    assert "eval.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_groups(setting, tmp_path):
    """A table for each group; M = N is its own; answers are shared between groups."""
    content = yaml.safe_load(setting.read_text())
    names = [task["name"] for task in content["tasks"]]
    content["groups"] = {"pair": names[:2], "all": names}
    content["methods"] = [{"method": "own"}, {"method": "spectral", "heads": [1, 2, "N"]}]
    config = EvalConfig.model_validate({**content, "rows": 2})
    found = Evaluation(config, setting.parent, tmp_path / "out", tmp_path / "answers").run()
    assert [(r.group, r.label, len(r.scores)) for r in found] == [
        *[("pair", label, 2) for label in ("own", "spectral M=1", "spectral M=2")],
        *[("all", f, 3) for f in ("own", "spectral M=1", "spectral M=2", "spectral M=3")],
    ]
    own = {r.group: r for r in found if r.label == "own"}
    assert own["pair"].scores.items() <= own["all"].scores.items()
    # Two own in both groups, and each merge's.
    assert len(list((tmp_path / "answers").iterdir())) == 2 * (3 + 2 * 2 + 3 * 3)
    assert markdown(found).count("### ") == 2
    plot(found, tmp_path / "plot.png")
    assert all(r.merge_seconds > 0 for r in found if r.method == "spectral")
    assert Path(tmp_path / "plot.png").stat().st_size > 1000


def test_quick(setting):
    content = yaml.safe_load(setting.read_text())
    content["methods"] = [{"method": "spectral"}, {"method": "hydraopt", "heads": [1, 2]}]
    setting.write_text(yaml.safe_dump(content))
    config = read_config(setting)
    quick = quick_config(config)

    def steps(config):
        return [m.own.steps for m in config.methods if m.method == "hydraopt"]

    assert quick.rows == 20 and set(steps(quick)) == {50}
    assert config.rows is None and set(steps(config)) == {200}
    assert len(quick.methods) == len(config.methods)
    few = config.model_copy(update={"rows": 5})
    assert quick_config(few).rows == 5


def test_groups_that_do_not_fit(setting):
    content = yaml.safe_load(setting.read_text())
    for members in (["none"], [], [content["tasks"][0]["name"]] * 2):
        setting.write_text(yaml.safe_dump({**content, "groups": {"g": members}}))
        with pytest.raises(HydrapackError, match="groups: 'g'"):
            read_config(setting)


def test_bfloat16_base(setting, tmp_path):
    """The base is rounded, A and B are not: an exact merge still scores as its adapters."""
    content = yaml.safe_load(setting.read_text())
    content["methods"] = [
        {"method": "own"},
        {"method": "spectral", "heads": [3], "rank": 12},
    ]
    config = EvalConfig.model_validate({**content, "dtype": "bfloat16"})
    evaluation = Evaluation(config, setting.parent, tmp_path / "out")
    own, exact = evaluation.run()
    assert own.scores == exact.scores
    assert evaluation._backend.model.dtype == torch.bfloat16


def test_peak_memory():
    # Freed in small blocks, which the allocator keeps: they must not hide the next peak.
    blocks = [torch.ones(20_000) for _ in range(2000)]
    del blocks
    with PeakMemory() as peak:
        blocks = [torch.ones(20_000) for _ in range(1000)]
        del blocks
    assert 79e6 <= peak.bytes < 160e6
    with PeakMemory() as peak:
        block = torch.ones(25_000_000)
        del block
    assert 99e6 <= peak.bytes < 200e6
    with PeakMemory() as peak:
        pass
    assert peak.bytes < 50e6


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", r"d\.jsonl:2: not JSON"),
        ("[1]", r"d\.jsonl:2: needs a text under 'input'"),
        ('{"input": 5, "output": "x"}', "'input'"),
        ('{"input": "x"}', "'output'"),
        ('{"input": "x", "output": null}', "'output'"),
        ('{"input": "x", "outputs": []}', "'outputs'"),
        ('{"input": "x", "outputs": ["a", 1]}', "'outputs'"),
        ('{"input": "x", "output": "a", "outputs": ["b"]}', "'output'"),
    ],
)
def test_malformed_rows(tmp_path, line, match):
    path = tmp_path / "d.jsonl"
    path.write_text('{"input": "x", "output": "y"}\n' + line + "\n")
    with pytest.raises(HydrapackError, match=match):
        read_rows(path, None)


def test_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"input": "x", "outputs": ["y", "z"]}\n\n{"input": "a", "output": "b"}\n')
    assert [r.outputs for r in read_rows(path, None)] == [("y", "z"), ("b",)]
    assert len(read_rows(path, 1)) == 1
    path.write_text("\n")
    with pytest.raises(HydrapackError, match="has no text"):
        read_rows(path, None)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("tasks"), "tasks: Field required"),
        (lambda c: c.update(more=1), "more: Extra"),
        (lambda c: c["tasks"][0].update(metric="bleu"), "metric 'bleu': choose one of"),
        (lambda c: c["tasks"][1].update(name=c["tasks"][0]["name"]), "a name twice"),
        (lambda c: c["methods"][0].update(heads=[0]), "heads"),
    ],
)
def test_malformed_configs(setting, change, match):
    content = yaml.safe_load(setting.read_text())
    change(content)
    setting.write_text(yaml.safe_dump(content))
    with pytest.raises(HydrapackError, match=match):
        read_config(setting)
    setting.write_text("a: [")
    with pytest.raises(HydrapackError, match="not YAML"):
        read_config(setting)


def test_analyze(tmp_path):
    """One start is told from many; identical adapters are alike to the end."""
    alike = [write_adapter(tmp_path / f"a{k}", seed=k, shared_seed=9) for k in range(3)]
    apart = [write_adapter(tmp_path / f"b{k}", seed=k) for k in range(3)]
    found = analyze(read_adapters([str(f) for f in alike]))
    other = analyze(read_adapters([str(f) for f in apart]))
    assert found.advice.startswith("suited") and other.advice.startswith("badly suited")
    assert found.mean("a_cca") > 0.9 > 0.4 > found.mean("b_cca")
    assert found.mean("a_mae") < 0.3 < found.mean("b_mae")
    assert max(found.relative_errors.values()) < min(other.relative_errors.values())
    same = analyze(read_adapters([f"x={alike[0]}", f"y={alike[0]}"]))
    assert len(same.modules) == len(found.modules) == 8
    for module in same.modules:
        assert module.a_mae == module.b_mae == 0
        assert module.a_cca == pytest.approx(1) and module.b_cca == pytest.approx(1)
    with pytest.raises(HydrapackError, match="two adapters or more"):
        analyze(read_adapters([str(alike[0])]))
    done = hydrapack("analyze", *alike, "-o", tmp_path / "out")
    assert done.returncode == 0 and "suited" in done.stdout
    assert {"analysis.json", "similarity.png"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_gates(setting, tmp_path):
    """A score below its floor or too far below the last release's fails the build, by name."""
    content = yaml.safe_load(setting.read_text())
    content["methods"] = [{"method": "own"}, {"method": "spectral", "heads": [1], "rank": 4}]
    setting.write_text(yaml.safe_dump(content))
    gates = tmp_path / "gates.toml"
    out, junit = tmp_path / "out", tmp_path / "gates.xml"
    last = tmp_path / "last.json"
    command = ("eval", setting, "-o", out, "--gate", gates)

    gates.write_text('[[gate]]\ntask = "task0"\nmin_score = 0\n')
    assert hydrapack(*command).returncode == 0
    document = json.loads((out / "results.json").read_text())
    document["results"][1]["scores"] = dict.fromkeys(("task0", "task1"), 90.0)
    last.write_text(json.dumps(document))

    gates.write_text(
        '[[gate]]\ntask = "task0"\nmin_score = 99\nmax_drop = 100\n'
        '[[gate]]\ntask = "task1"\nmax_drop = 1.5\nrow = "spectral M=1 R=4"\n'
    )
    done = hydrapack(*command, "--against", last, "--junit", junit, "--json")
    assert done.returncode == 1, done.stderr
    found = {c["name"]: c for c in json.loads(done.stdout)["gates"]}
    assert {n: c["passed"] for n, c in found.items()} == {
        "task0 score": False,
        "task0 drop": True,
        "task1 drop": False,
    }
    assert "at least 99" in found["task0 score"]["detail"]
    assert found["task1 drop"]["values"]["baseline"] == 90
    assert "gates" not in json.loads((out / "results.json").read_text())
    assert 'failures="2"' in junit.read_text()

    # What cannot be judged is refused before anything is answered.
    for text, options, said in (
        ('[[gate]]\ntask = "task0"\n', (), "give min_score or max_drop"),
        ('[[gate]]\ntask = "task9"\nmin_score = 1\n', (), "task 'task9': 0 rows fit"),
        ('[[gate]]\ntask = "task0"\nmin_score = 101\n', (), "gate.0.min_score"),
        ('[[gate]]\ntask = "task0"\nmax_drop = 1\n', (), "give --against"),
        ('[[gate]]\ntask = "task2"\nmax_drop = 1\n', ("--against", last), "last.json: task"),
        ('[[gate]]\ntask = "task0"\nmin_score = 1\nrow = "x"\n', (), "one of: 'own'"),
        ("gate = 1", (), "gate"),
        ("[[gate", (), "not TOML"),
    ):
        gates.write_text(text)
        done = hydrapack(*command[:3], tmp_path / "none", *command[4:], *options)
        assert done.returncode == 2 and said in done.stderr, (text, done.stderr)
        assert not (tmp_path / "none" / "results.json").exists()
    last.write_text(json.dumps({**document, "metrics": {"task0": "squad-f1"}}))
    gates.write_text('[[gate]]\ntask = "task0"\nmax_drop = 1\n')
    done = hydrapack(*command, "--against", last)
    assert done.returncode == 2 and "another metric (squad-f1, here rouge-l)" in done.stderr
    assert "go with --gate" in hydrapack(*command[:4], "--junit", junit).stderr
