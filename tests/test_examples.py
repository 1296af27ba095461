"""The committed adapters and their held-out rows are what the docs say."""

import hashlib
import json
from pathlib import Path

import pytest

from hydrapack.adapters.collect import read_adapters
from hydrapack.demo.job import example_adapters, heldout_input
from hydrapack.errors import InputError
from hydrapack.merge.adapters import merge_adapters

EXAMPLES = Path(__file__).parents[1] / "examples"
TASKS = ["grammar", "qa", "reply", "summary", "tone"]


def test_adapters():
    adapters = read_adapters(example_adapters())
    assert [a.task for a in adapters] == TASKS
    prompts = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    for adapter in adapters:
        assert (adapter.rank, adapter.alpha, len(adapter.modules)) == (16, 64, 120)
        assert adapter.card.license == "Apache-2.0" and adapter.card.language == "en"
        assert prompts[adapter.task] in adapter.card.prompt_template
        scores = adapter.card.provenance["heldout_nats_per_token"]
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
    own = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    for task, prompt in own.items():
        assert table["tone-professional" if task == "tone" else task]["en"] == prompt


def test_adapters_suit_a_shared_a():
    """Trained from one initialisation of A: the merge at half the parameters keeps most of each."""
    merged = merge_adapters(read_adapters(example_adapters()))
    assert merged.s_percent == pytest.approx(52, abs=0.1)
    assert max(merged.relative_errors.values()) < 0.25


def test_heldout_rows():
    for task in TASKS:
        lines = (EXAMPLES / "data" / "heldout" / f"{task}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        assert len(rows) == 120
        assert all(set(row) == {"input", "output"} and row["output"] for row in rows)
        assert len({row["input"].lower() for row in rows}) == 120
    with pytest.raises(InputError, match="rows 0 to 119"):
        heldout_input("tone", 120)
