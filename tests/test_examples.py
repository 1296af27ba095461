"""The committed adapters and their held-out rows are what the docs say."""

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
