"""The rules by which the next token is drawn, against a reading of them in plain Python."""

import math
import random

import numpy as np
import pytest

from hydrapack.device.sampler import Sampler
from hydrapack.support.errors import Invalid


def plain_pick(logits, uniform, temperature, top_k, top_p):
    """The rules of docs/runtime-contract.md, one after the other; a full sort, no shortcut."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    temperature, top_p = float(np.float32(temperature)), float(np.float32(top_p))
    kept = order[:top_k] if top_k else order
    most = logits[order[0]]
    weight = {i: math.exp((logits[i] - most) / temperature) for i in kept}
    if top_p < 1:
        total = sum_in_order(weight[i] for i in sorted(kept))
        nucleus, reached = [], 0.0
        for i in kept:
            nucleus.append(i)
            reached += weight[i]
            if reached >= top_p * total:
                break
        kept = nucleus
    kept = sorted(kept)
    total, reached = sum_in_order(weight[i] for i in kept), 0.0
    for i in kept:
        reached += weight[i]
        if uniform * total < reached:
            return i
    return kept[-1]


def sum_in_order(values):
    total = 0.0
    for value in values:
        total += value
    return total


def test_the_generator_is_splitmix64():
    """The first outputs of the reference implementation for seed 1234567."""
    sampler = Sampler(1234567)
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [sampler.uniform() for _ in want] == [(x >> 11) / 2**53 for x in want]
    assert 0 <= Sampler((1 << 64) - 1).uniform() < 1


@pytest.mark.parametrize("seed", range(4))
def test_same_as_the_plain_reading(seed):
    generator, numbers = random.Random(seed), np.random.default_rng(seed)
    seen = set()
    for _ in range(300):
        size = generator.choice((1, 2, 3, 10, 200))
        logits = numbers.normal(0, generator.choice((0.2, 3, 30)), size).astype(np.float32)
        if generator.random() < 0.5:
            logits = np.round(logits)
        options = (
            generator.choice((0.01, 0.5, 0.7, 1, 2, 100)),
            generator.choice((0, 1, 2, 5, size, size + 3)),
            generator.choice((1, 0.99, 0.9, 0.5, 0.01)),
        )
        number = generator.randrange(1 << 64)
        want = plain_pick([float(x) for x in logits], Sampler(number).uniform(), *options)
        assert Sampler(number).pick(logits, *options) == want, (logits, options)
        seen.add(want)
    assert len(seen) > 10


def test_ties_go_to_the_lower_ids():
    logits = np.array([1, 3, 3, 0, 3, 2], dtype=np.float32)
    assert Sampler(0).pick(logits) == Sampler(0).pick(logits, temperature=1e-50) == 1
    drawn = {Sampler(seed).pick(logits, 1.0, top_k=2) for seed in range(50)}
    assert drawn == {1, 2}
    # Two of the three that are equal reach half of the weight.
    drawn = {Sampler(seed).pick(logits, 0.1, top_p=0.5) for seed in range(50)}
    assert drawn == {1, 2}


def test_frequencies():
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(0)
    counts = np.bincount([sampler.pick(logits, 1.0) for _ in range(20000)], minlength=3) / 20000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad, temperature):
    with pytest.raises(Invalid, match="NaN or infinity"):
        Sampler(0).pick(np.array([0, bad, 1], dtype=np.float32), temperature)
