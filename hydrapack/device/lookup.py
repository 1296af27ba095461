"""Prompt lookup: guess that the answer goes on as the text did where its last tokens stood before.

Grammar, tone and answers out of a text repeat their input. A call of the program checks several
guesses at once, for little more than one token costs; what it finds wrong is thrown away, so the
answer is that of plain decoding (docs/runtime-contract.md says how exactly). After
https://github.com/apoorvumang/prompt-lookup-decoding. The C++ runtime guesses alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

GUESSES = {3: 5, 2: 3, 1: 3}
"""Tokens that must stand alike -> how many are guessed after them."""
COST = 0.1
"""Of one guess, in plain steps; what guessing may lose is counted with it."""
CREDIT, MOST_CREDIT, EARNED = 1.5, 4.0, 0.02
"""Steps that wrong guesses may cost before none are made: at first, at most, a plain step earns."""
ONE_TOKEN = 1.5
"""Credit from which one token alike is enough."""


class Lookup:
    """The guesses of one answer, and the logits that a call found after them."""

    def __init__(self, ids: Sequence[int]) -> None:
        """``ids``: the prompt."""
        self._text: list[int] = []
        # Where the last n tokens stand: n tokens -> the place after them.
        self._after: dict[tuple[int, ...], int] = {}
        self._credit = CREDIT
        self._guessed: list[int] = []
        self._logits: list[torch.Tensor] = []
        for token in ids:
            self._add(token)

    def known(self, token: int) -> torch.Tensor | None:
        """Logits (V,) after ``token`` joined the text, where the last call has them."""
        if not self._guessed:
            return None
        if self._guessed[0] != token:
            self._guessed, self._logits = [], []
            return None
        self._add(token)
        self._credit = min(self._credit + 1, MOST_CREDIT)
        self._guessed = self._guessed[1:]
        return self._logits.pop(0)

    def guess(self, token: int, most: int) -> list[int]:
        """``token`` joins the text: at most ``most`` guesses of what comes after it."""
        self._add(token)
        found: list[int] = []
        if self._credit > 0 and most > 0:
            for alike, count in GUESSES.items():
                place = self._after.get(tuple(self._text[-alike:]))
                if place is not None and (alike > 1 or self._credit >= ONE_TOKEN):
                    found = self._text[place : place + min(count, most)]
                    break
        self._credit += EARNED if not found else -COST * len(found)
        return found

    def found(self, guessed: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits (1 + guesses, V) of a call -> those after its first token; the rest are kept."""
        self._guessed, self._logits = list(guessed), list(logits[1:])
        return logits[0]

    def _add(self, token: int) -> None:
        self._text.append(token)
        for alike in GUESSES:
            if len(self._text) > alike:
                # Up to the token before: the last tokens are to find where they stood earlier.
                self._after[tuple(self._text[-alike - 1 : -1])] = len(self._text) - 1
