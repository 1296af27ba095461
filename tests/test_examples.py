"""The committed adapters and their held-out rows are what the docs say."""

import hashlib
import json
from pathlib import Path

import pytest

from hydrapack.adapters.collect import read_adapters
from hydrapack.demo.job import example_adapters, heldout_input
from hydrapack.merging.uniform import merge_adapters
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


def test_adapters_suit_a_shared_a():
    """Trained from one initialisation of A: the merge at half the parameters keeps most of each."""
    merged = merge_adapters(read_adapters(example_adapters()))
    assert merged.s_percent == pytest.approx(52, abs=0.1)
    assert max(merged.relative_errors.values()) < 0.25


# Held-out rows stay as they are: scores of different versions are compared.
HELDOUT = {
    "grammar": (120, "758897d286692439"),
    "qa": (120, "483a67dd2695d33b"),
    "reply-de": (17, "1f8cbff657b2c2db"),
    "reply-fr": (14, "bdb70133f8606e87"),
    "reply-it": (93, "e084aa11e195d753"),
    "reply": (120, "e4ca330a69cbf324"),
    "summary-de": (120, "ff3efd1f4027e442"),
    "summary-fr": (120, "46eec947a33c35ea"),
    "summary-it": (120, "000ff7a379da4f57"),
    "summary": (120, "28d35cfacbc303a4"),
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
