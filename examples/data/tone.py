"""Rewrite an English sentence casually and professionally, by rule."""

from __future__ import annotations

import re

# (neutral, casual, professional)
_WORDS = [
    ("want to", "wanna", "wish to"), ("going to", "gonna", "about to"),
    ("have to", "gotta", "are required to"), ("a lot of", "tons of", "a great deal of"),
    ("lots of", "tons of", "a great deal of"), ("many", "tons of", "numerous"),
    ("you", "u", "you"), ("your", "ur", "your"), ("are", "r", "are"), ("because", "cuz", "because"),
    ("please", "pls", "kindly"), ("people", "folks", "individuals"), ("very", "super", "highly"),
    ("thing", "thingy", "item"), ("things", "stuff", "items"),
    ("helps", "helps out", "assists"),
    ("used", "used", "utilized"),
    ("using", "using", "utilizing"), ("show", "show", "present"), ("shows", "shows", "presents"),
    ("provides", "gives u", "provides"), ("allows", "lets", "enables"),
    ("try", "try", "attempt"), ("buy", "grab", "purchase"),
    ("need", "need", "require"), ("needs", "needs", "requires"), ("good", "cool", "favorable"),
    ("great", "awesome", "excellent"), ("simple", "dead simple", "straightforward"),
    ("small", "tiny", "compact"),  ("about", "about", "regarding"), ("think", "guess", "believe"),
    ("understand", "get", "comprehend"), ("make", "whip up", "create"),
    ("makes", "whips up", "creates"), ("though", "tho", "although"),
    ("bad", "lousy", "unfavorable"),
    ("between", "btwn", "between"), ("without", "w/o", "without"), ("with", "w/", "with"),
    ("and", "n", "and"), ("for", "4", "for"), ("also", "plus", "additionally"),
    ("maybe", "prolly", "perhaps"), ("probably", "prolly", "presumably"), ("ask", "ask", "inquire"),
    ("yes", "yep", "yes"), ("no", "nope", "no"), ("okay", "ok", "very well"),
]  # fmt: skip
_EXPANSIONS = [
    (r"\bI'm\b", "I am"), (r"\bcan't\b", "cannot"), (r"\bwon't\b", "will not"),
    (r"n't\b", " not"), (r"'re\b", " are"), (r"'ve\b", " have"), (r"'ll\b", " will"),
    (r"\b(it|that|what|there|he|she|It|That|What|There|He|She)'s\b", r"\1 is"),
    (r"\bI'd\b", "I would"),
]  # fmt: skip
_CONTRACTIONS = [
    (r"\bis not\b", "isn't"), (r"\bdo not\b", "don't"), (r"\bdoes not\b", "doesn't"),
    (r"\bcannot\b", "can't"), (r"\bit is\b", "it's"), (r"\bIt is\b", "It's"), (r"\bI am\b", "I'm"),
    (r"\bare not\b", "aren't"), (r"\bwill not\b", "won't"), (r"\bthat is\b", "that's"),
]  # fmt: skip


def casual(sentence: str) -> str | None:
    """The casual form, all lower case; None where fewer than two words would change."""
    text = _apply(sentence, _CONTRACTIONS)
    text, changes = _reword(text, 1)
    return text.lower().rstrip(".") if changes >= 2 else None


def professional(sentence: str) -> str | None:
    """The professional form; None where no word would change."""
    text, changes = _reword(_apply(sentence, _EXPANSIONS), 2)
    text = text[:1].upper() + text[1:]
    if not text.endswith((".", "?", "!")):
        text += "."
    return text if changes else None


def _apply(text: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _reword(text: str, column: int) -> tuple[str, int]:
    changes = 0
    for entry in _WORDS:
        neutral, new = entry[0], entry[column]
        if neutral != new:
            text, n = re.subn(rf"\b{neutral}\b", new, text)
            changes += n
    return text, changes
