"""Prompt lookup: what is guessed, and that an answer is that of plain decoding."""

import random

import pytest
import torch
from conftest import TASKS

from hydrapack.device import Session
from hydrapack.device.lookup import CREDIT, GUESSES, Lookup

TEXT = "one two three four. one two three four. one two"


def follow(lookup, answer, most=7):
    """Guesses at each call until the answer is through, right ones skipped as a session does."""
    calls, i = [], 0
    while i < len(answer):
        if lookup.known(answer[i]) is None:
            guessed = lookup.guess(answer[i], most)
            lookup.found(guessed, torch.zeros(len(guessed) + 1, 1))
            calls.append(guessed)
        i += 1
    return calls


def test_what_followed_is_guessed():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert lookup.guess(3, 7) == [4, 5, 6, 7, 8]
    # The last place where it stood, and no more than can be of use.
    assert Lookup([1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2]).guess(3, 2) == [5, 6]
    assert Lookup([1, 2, 3, 4, 1, 2]).guess(3, 0) == []
    # Two alike guess fewer, one still fewer; none, nothing.
    assert Lookup([7, 2, 3, 4, 5, 6, 8, 2]).guess(3, 7) == [4, 5, 6]
    assert Lookup([7, 3, 4, 5, 6, 8]).guess(3, 7) == [4, 5, 6]
    assert Lookup([7, 8]).guess(3, 7) == []
    # A token that repeats is its own example, as far as it reaches.
    assert Lookup([3, 3]).guess(3, 7) == [3]


def test_right_guesses_need_no_call():
    text = [5, 6, 7, 8, 9, 10, 11]
    answer = [5, 6, 7, 8, 9, 10, 11, 1]
    calls = follow(Lookup(text), answer)
    # One token alike, then what is right goes by.
    assert calls[0] == [6, 7, 8] and len(calls) < len(answer) / 2
    assert sum(map(len, calls)) + len(calls) >= len(answer)


def test_guessing_turns_itself_off():
    """Where guesses are wrong, what they cost is bounded."""
    generator = random.Random(0)
    for _ in range(20):
        text = [generator.randrange(9) for _ in range(200)]
        answer = [generator.randrange(9) for _ in range(400)]
        wrong = follow(Lookup(text), answer)
        cost = 0.1 * sum(map(len, wrong)) - (len(answer) - len(wrong))
        assert cost <= CREDIT + 0.02 * len(answer) + 0.1 * max(GUESSES.values())


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_answers_are_those_of_plain_decoding(tiny, temperature):
    session = Session(tiny[0], tiny[1])
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 3}
    saved = 0
    for task in (*TASKS, None):
        plain = session.use(task).generate(TEXT, **options)
        text = "".join(plain)
        calls = session.stats.decode_calls
        assert calls == session.stats.decode_tokens >= len(plain.ids) - 1 > 10
        guessed = session.generate(TEXT, **options, lookup=True)
        assert "".join(guessed) == text
        assert (guessed.ids, guessed.finish) == (plain.ids, plain.finish)
        assert session.stats.decode_tokens == calls
        saved += calls - session.stats.decode_calls
    assert saved > 10


def test_the_context_and_the_length_hold(tiny):
    session = Session(tiny[0], tiny[1]).use("one")
    for count in (1, 2, 3, 8):
        plain = session.generate(TEXT, max_new_tokens=count)
        list(plain)
        guessed = session.generate(TEXT, max_new_tokens=count, lookup=True)
        list(guessed)
        assert (guessed.ids, guessed.finish) == (plain.ids, plain.finish)
        assert session.position == len(session.encode(TEXT)) + len(plain.ids) - 1
    plain = session.generate(TEXT, max_new_tokens=2000)
    list(plain)
    assert plain.finish == "context" and session.position == session.max_context
    guessed = session.generate(TEXT, max_new_tokens=2000, lookup=True)
    list(guessed)
    assert (guessed.ids, guessed.finish) == (plain.ids, "context")
    assert session.position == session.max_context


def test_text_goes_on_after_an_answer_that_was_left(tiny):
    """What was guessed and not asked for is not in the text."""
    session = Session(tiny[0], tiny[1]).use("one")
    found = []
    for lookup in (False, True):
        answer = session.generate(TEXT, max_new_tokens=60, lookup=lookup)
        for _ in range(20):
            next(answer)
        made = list(answer.ids)
        position = session.position
        found.append((made, position, session.forward([5]).argmax().item()))
    assert found[0] == found[1]
