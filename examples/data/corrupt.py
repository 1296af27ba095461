"""Put the grammar errors that learners make into a correct English sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_SWAPS = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has",
    "does": "do", "do": "does", "a": "an", "an": "a", "this": "these", "these": "this",
    "in": "on", "on": "in", "for": "to", "to": "for", "of": "from", "with": "by", "at": "in",
    "its": "it's", "their": "there", "than": "then", "which": "wich", "can": "cans",
}  # fmt: skip


def _swap(words: list[str], rng: random.Random) -> list[str]:
    spots = [i for i, w in enumerate(words) if w in _SWAPS]
    return _replace(words, spots, rng, lambda w: _SWAPS[w])


def _drop_article(words: list[str], rng: random.Random) -> list[str]:
    spots = [i for i, w in enumerate(words) if w in ("a", "an", "the")]
    if not spots:
        return words
    i = rng.choice(spots)
    return words[:i] + words[i + 1 :]


def _third_person(words: list[str], rng: random.Random) -> list[str]:
    spots = [i for i, w in enumerate(words) if re.fullmatch(r"[a-z]{4,}[^s]s", w)]
    return _replace(words, spots, rng, lambda w: w[:-1])


def _verb_form(words: list[str], rng: random.Random) -> list[str]:
    spots = [i for i, w in enumerate(words) if re.fullmatch(r"[a-z]{3,}(ed|ing)", w)]
    return _replace(words, spots, rng, lambda w: re.sub(r"(ed|ing)$", "", w))


def _typo(words: list[str], rng: random.Random) -> list[str]:
    spots = [i for i, w in enumerate(words) if re.fullmatch(r"[a-z]{5,}", w)]
    at = rng.randrange(1, 4)
    return _replace(words, spots, rng, lambda w: w[:at] + w[at + 1] + w[at] + w[at + 2 :])


def _twice(words: list[str], rng: random.Random) -> list[str]:
    i = rng.randrange(len(words) - 1)
    return words[: i + 1] + words[i:]


def _replace(
    words: list[str], spots: list[int], rng: random.Random, change: Callable[[str], str]
) -> list[str]:
    if not spots:
        return words
    i = rng.choice(spots)
    return [*words[:i], change(words[i]), *words[i + 1 :]]


_ERRORS = [_swap, _swap, _drop_article, _third_person, _verb_form, _typo, _twice]


def corrupt(sentence: str, rng: random.Random) -> str:
    """One to three errors; the sentence itself where no rule applies."""
    words = sentence.split()
    for error in rng.sample(_ERRORS, rng.randint(1, 3)):
        words = error(words, rng)
    return " ".join(words)
