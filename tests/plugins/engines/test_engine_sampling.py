"""How the next tokens are chosen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelwright.core.api.generation import Sampling
from modelwright.plugins.engines.decoding import choose, generator

PROBABILITIES = [0.5, 0.25, 0.15, 0.1]


def draw(logits, count, *, logprobs=False, **settings):
    """`count` tokens for one distribution, one row each, each with a seed of its own."""
    rows = torch.tensor(logits).expand(count, -1)
    return choose(rows, [Sampling(**settings)] * count, [generator(seed) for seed in range(count)], [logprobs] * count)


def shares(tokens, size=4):
    return [tokens.count(token) / len(tokens) for token in range(size)]


def log(probabilities):
    return [math.log(p) for p in probabilities]


def test_samples_follow_the_softmax():
    """At temperature 1 a token is drawn as often as its probability says."""
    got = shares(draw(log(PROBABILITIES), 4000, temperature=1.0).tokens)
    assert got == pytest.approx(PROBABILITIES, abs=0.03)


def test_temperature_sharpens_and_flattens():
    """Logits are divided by the temperature: probabilities to the power of 1/T, normalised."""
    for temperature in (0.5, 2.0):
        powers = [p ** (1 / temperature) for p in PROBABILITIES]
        expected = [power / sum(powers) for power in powers]
        got = shares(draw(log(PROBABILITIES), 4000, temperature=temperature).tokens)
        assert got == pytest.approx(expected, abs=0.03)


def test_top_p_counts_after_the_temperature():
    """At temperature 2 the likeliest two no longer reach 0.65; at 0.5 the first alone does."""
    logits = log(PROBABILITIES)
    assert set(draw(logits, 500, temperature=0.5, top_p=0.65).tokens) == {0}
    assert set(draw(logits, 500, temperature=1.0, top_p=0.65).tokens) == {0, 1}
    assert set(draw(logits, 500, temperature=2.0, top_p=0.65).tokens) == {0, 1, 2}


def test_top_p_counts_what_top_k_left():
    """top_k comes first: of 0.5 and 0.25 the first is two thirds, which reaches 0.6."""
    assert set(draw(log(PROBABILITIES), 500, temperature=1.0, top_k=2, top_p=0.6).tokens) == {0}


def test_truncated_samples_follow_the_rest():
    """What is left is drawn by its own proportions."""
    got = shares(draw(log(PROBABILITIES), 4000, temperature=1.0, top_k=2).tokens)
    assert got == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    seed=st.integers(-(2**70), 2**70),
)
def test_a_sample_is_among_the_allowed(logits, temperature, top_k, top_p, seed):
    """The token has a weight, is one of the top_k, and the likelier ones do not reach top_p without it."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    token = choose(torch.tensor([logits]), [sampling], [generator(seed)], [False]).tokens[0]
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    ranked = sorted(weights, reverse=True)[: top_k or None]
    likelier = [weight for weight in ranked if weight > weights[token]]
    assert weights[token] > 0
    assert len(likelier) < (top_k or len(logits))
    assert sum(likelier) < top_p * sum(ranked) + 1e-4


def test_a_row_does_not_depend_on_its_neighbours():
    """A row with a seed draws the same beside greedy rows, truncated rows and rows of other seeds."""
    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    settings_ = [
        Sampling(temperature=1.0),
        Sampling(),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=1.3),
    ]
    together = choose(logits, settings_, [generator(seed) for seed in range(5)], [False] * 5).tokens
    for row in range(5):
        alone = choose(logits[row : row + 1], [settings_[row]], [generator(row)], [False]).tokens
        assert alone == [together[row]]
    assert together[1] == logits[1].argmax()


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e9])
def test_extreme_temperatures_are_numbers(temperature):
    """Next to 0 the likeliest token, next to infinity any token; never an error."""
    tokens = draw([100.0, 1.0, 2.0, 3.0], 200, temperature=temperature).tokens
    assert set(tokens) == ({0} if temperature < 1 else {0, 1, 2, 3})


def test_tokens_that_are_ruled_out_are_never_drawn():
    """A logit of minus infinity is a probability of 0."""
    assert set(draw([0.0, -math.inf, 0.0, -math.inf], 500, temperature=5.0).tokens) == {0, 2}


def test_logprobs_are_of_the_plain_softmax():
    """At any temperature, the log-probability is that of the model's own distribution."""
    chosen = draw(log(PROBABILITIES), 50, temperature=3.0, logprobs=True)
    assert chosen.logprobs == pytest.approx([math.log(PROBABILITIES[token]) for token in chosen.tokens], abs=1e-5)
    assert draw(log(PROBABILITIES), 1, temperature=3.0).logprobs == [None]


def test_logits_that_are_no_numbers_are_reported():
    """Such a row is marked, greedy or sampled, and the others are chosen all the same."""
    logits = torch.tensor([[0.0, math.nan], [0.0, 1.0], [math.inf, 0.0]])
    for temperature in (0.0, 1.0):
        chosen = choose(logits, [Sampling(temperature=temperature)] * 3, [generator(0)] * 3, [False] * 3)
        assert chosen.valid == [False, True, False]


def test_no_seed_is_a_new_one_each_time():
    """Two generators without a seed give different numbers."""
    assert generator(None).initial_seed() != generator(None).initial_seed()
