"""The committed adapters and their held-out rows are what the docs say."""

import hashlib
import importlib
import json
from pathlib import Path

import pytest
import torch
from test_base import write_gguf

from hydrapack.adapters.collect import read_adapters
from hydrapack.bundle.format import Bundle
from hydrapack.demo.job import example_adapters, heldout_input
from hydrapack.support.errors import HydrapackError

EXAMPLES = Path(__file__).parents[1] / "examples"
TASKS = ["grammar", "qa", "reply", "summary", "tone"]
LANGUAGES = ["de", "fr", "it"]
FURTHER = [f"{task}-{code}" for task in ("reply", "summary") for code in LANGUAGES]
TABLE = json.loads((EXAMPLES / "table7.json").read_text(encoding="utf-8"))


def test_adapters():
    adapters = read_adapters(example_adapters())
    assert [a.task for a in adapters] == TASKS
    for adapter in adapters:
        assert (adapter.rank, adapter.alpha, len(adapter.modules)) == (16, 64, 120)
        assert adapter.settings.license == "Apache-2.0" and adapter.settings.language == "en"
        application = "tone-professional" if adapter.task == "tone" else adapter.task
        assert TABLE[application]["en"] in adapter.settings.prompt_template
        scores = adapter.settings.provenance["heldout_nats_per_token"]
        assert scores["adapter"] < 0.8 * scores["base"]


def test_prompts_are_the_papers():
    """Table 7 of the HydraOpt paper: five applications (tone in four styles), eight languages."""
    text = (EXAMPLES / "table7.json").read_text(encoding="utf-8")
    table = json.loads(text)
    languages = {"de", "en", "es", "fr", "it", "ja", "ko", "zh"}
    assert len(table) == 8 and all(set(prompts) == languages for prompts in table.values())
    canonical = json.dumps(table, ensure_ascii=False, sort_keys=True).encode()
    # Of the table as the paper prints it.
    assert hashlib.sha256(canonical).hexdigest() == (
        "ebcbd14d4ee9de5c939035e5f7418b7dd8f8e7106f5e1621780e96cf043ac47d"
    )


def test_adapters_of_more_languages():
    """Reply and summary in four languages, at rank 4, each with its language's prompt."""
    folders = sorted((EXAMPLES / "adapters-r4").iterdir())
    adapters = read_adapters([str(folder) for folder in folders])
    assert [a.task for a in adapters] == sorted(["reply", "summary", *FURTHER])
    for adapter in adapters:
        application, _, language = adapter.task.partition("-")
        assert (adapter.rank, adapter.alpha, len(adapter.modules)) == (4, 16, 120)
        assert adapter.settings.license == "Apache-2.0"
        assert adapter.settings.language == (language or "en")
        assert TABLE[application][language or "en"] in adapter.settings.prompt_template
        scores = adapter.settings.provenance["heldout_nats_per_token"]
        assert scores["adapter"] < scores["base"]


def test_adapters_suit_a_shared_a(smollm2_package):
    """Trained from one initialisation of A: the merge at half the parameters keeps most of each."""
    merged = Bundle.load(smollm2_package(4).parent / "bundle")
    assert merged.s_percent == pytest.approx(52, abs=0.1)
    assert max(merged.relative_errors.values()) < 0.25


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_the_trainer_takes_any_base(script, tiny_model, tmp_path):
    """A GGUF file, which it makes a folder of; every setting is an option."""
    gguf = write_gguf(tmp_path / "small.gguf", tiny_model, "Q8_0")
    rows = [{"input": f"He go {i}.", "output": f"He went {i}."} for i in range(4)]
    (tmp_path / "grammar.jsonl").write_text("\n".join(map(json.dumps, rows)))
    template = "<|user|>{instruction} {input}<|end|>"
    options = {
        "base": gguf, "data": tmp_path, "heldout": tmp_path, "out": tmp_path / "out", "rank": 2,
        "alpha": 6, "targets": "q,v", "steps": 2, "batch": 2, "lr": "1e-3", "dtype": "float32",
        "save-dtype": "float16", "max-tokens": 250, "template": template, "license": "MIT",
    }  # fmt: skip
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    script("train_adapters").main(["grammar", *given])
    (adapter,) = read_adapters([str(tmp_path / "out" / "grammar")])
    assert (adapter.rank, adapter.alpha, adapter.base_model) == (2, 6, "small")
    assert {name.rsplit(".", 1)[1] for name in adapter.modules} == {"q_proj", "v_proj"}
    assert adapter.modules["model.layers.0.self_attn.q_proj"].A.dtype == torch.float16
    prompt = template.replace("{instruction}", TABLE["grammar"]["en"])
    assert (adapter.settings.prompt_template, adapter.settings.stop) == (prompt, ["</s>"])
    assert adapter.settings.license == "MIT"
    with pytest.raises(SystemExit, match="no chat template; give --template"):
        script("train_adapters").main(["grammar", "--base", str(tmp_path / "small")])


def test_prompts_of_the_trainer(script):
    """A task is a row of Table 7, with a language or without, the tone's four styles included."""
    application = script("train_adapters").application
    assert application("tone") == ("tone-professional", "en", TABLE["tone-professional"]["en"])
    assert application("tone-casual")[:2] == ("tone-casual", "en")
    assert application("qa-ko") == ("qa", "ko", TABLE["qa"]["ko"])
    for unknown in ("poems", "qa-xx", "poems-de"):
        with pytest.raises(SystemExit, match=f"{unknown}: Table 7 has no such task"):
            application(unknown)


def test_a_gguf_becomes_a_folder(script, tiny_model, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    gguf = write_gguf(tmp_path / "small.gguf", tiny_model, "Q4_0")
    convert = script("gguf_folder").main
    with pytest.raises(SystemExit):
        convert([str(gguf), str(tmp_path / "other"), "--sha256", "0" * 64])
    assert "has SHA-256" in capsys.readouterr().err and not (tmp_path / "other").exists()
    convert([str(gguf), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert {"tokenizer.json", "config.json"} <= {p.name for p in (tmp_path / "hf").iterdir()}


# Held-out rows stay as they are: scores of different versions are compared.
HELDOUT = {
    "grammar": (120, "758897d286692439"),
    "qa-de": (120, "16fd71e6dbeadbca"),
    "qa-es": (120, "a1f8495cd36a8f06"),
    "qa-fr": (120, "a91ac2a981bbcffe"),
    "qa-it": (120, "fc9aecbfa3ab5321"),
    "qa-ja": (120, "f53e67641120a16a"),
    "qa-ko": (120, "3d93aa858bebec87"),
    "qa-zh": (120, "4c79c0565929d658"),
    "qa": (120, "483a67dd2695d33b"),
    "reply-de": (17, "1f8cbff657b2c2db"),
    "reply-es": (57, "8ba800c466024499"),
    "reply-fr": (14, "bdb70133f8606e87"),
    "reply-it": (93, "e084aa11e195d753"),
    "reply-ja": (94, "fce41b3e3d95344c"),
    "reply-ko": (82, "3285d091d473a91b"),
    "reply-zh": (83, "eba84bf1417603be"),
    "reply": (120, "e4ca330a69cbf324"),
    "summary-de": (120, "ff3efd1f4027e442"),
    "summary-es": (120, "ec18c31205969231"),
    "summary-fr": (120, "46eec947a33c35ea"),
    "summary-it": (120, "000ff7a379da4f57"),
    "summary-ja": (120, "bfdf94780a6da761"),
    "summary-ko": (120, "24123fb12a2f1584"),
    "summary-zh": (120, "0b8461dc3e774929"),
    "summary": (120, "28d35cfacbc303a4"),
    "tone-casual": (120, "344e893c4e87b03c"),
    "tone": (120, "8e6077b89f6a083f"),
}


def test_heldout_rows():
    folder = EXAMPLES / "data" / "heldout"
    assert {path.stem for path in folder.iterdir()} == set(HELDOUT)
    for task, (count, sha256) in HELDOUT.items():
        content = (folder / f"{task}.jsonl").read_bytes()
        assert hashlib.sha256(content).hexdigest()[:16] == sha256, task
        rows = [json.loads(line) for line in content.decode().splitlines()]
        assert len(rows) == count
        assert all(set(row) == {"input", "output"} and row["output"] for row in rows)
        assert len({row["input"].lower() for row in rows}) == count
    with pytest.raises(HydrapackError, match="rows 0 to 119"):
        heldout_input("tone", 120)
