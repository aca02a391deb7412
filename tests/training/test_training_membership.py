"""Membership inference: the published listing, known intervals, and attacks on populations that are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from modelkeep.errors import Invalid
from modelkeep.training.membership import (
    area,
    audit_one_run,
    caught,
    confidences,
    lira,
    one_run_epsilon,
    one_run_p,
    proportion,
    rmia,
)


def listing(m, r, v, eps, delta):
    """Steinke, Nasr and Jagielski 2023, appendix D, as printed."""
    q = 1 / (1 + math.exp(-eps))
    beta = stats.binom.sf(v - 1, r, q)
    alpha = total = 0
    for i in range(1, v + 1):
        total += stats.binom.pmf(v - i, r, q)
        if total > i * alpha:
            alpha = total / i
    return min(beta + alpha * delta * 2 * m, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 6.0), st.sampled_from([0.0, 1e-5, 1e-2]))
def test_the_p_value_is_that_of_the_listing(canaries, part, right, epsilon, delta):
    guesses = math.ceil(part * canaries)
    correct = round(right * guesses)
    wanted = listing(canaries, guesses, correct, epsilon, delta)
    assert one_run_p(canaries, guesses, correct, epsilon, delta) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_guessing_all_right_bounds_epsilon_as_it_must():
    """Without delta, r right guesses of r refute epsilon when (1 / (1 + exp(-epsilon)))^r < p."""
    for guesses in (10, 100, 1000):
        root = 0.05 ** (1 / guesses)
        assert one_run_epsilon(guesses, guesses, guesses, 0.0, 0.05) == pytest.approx(math.log(root / (1 - root)), abs=1e-6)
    assert one_run_epsilon(100, 100, 50, 0.0, 0.05) == 0.0
    with pytest.raises(Invalid):
        one_run_p(10, 11, 5, 1.0, 0.0)


def test_an_audit_of_randomised_response_stays_below_its_epsilon():
    """Each canary's score tells its coin with probability e^epsilon / (1 + e^epsilon): exactly epsilon-private."""
    bounds = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        included = generator.random(1000) < 0.5
        told = np.where(generator.random(1000) < math.exp(1) / (1 + math.exp(1)), included, ~included)
        bounds.append(audit_one_run(told + 0.01 * generator.random(1000), included, 1e-5).epsilon)
    assert sum(bound > 1.0 for bound in bounds) <= 2 and np.median(bounds) > 0.7
    perfect = np.arange(100.0)
    best = audit_one_run(perfect, perfect >= 50, 0.0)  # five shares were tried: each at a fifth of 5 %
    assert (best.correct, best.guesses) == (100, 100) and best.epsilon == one_run_epsilon(100, 100, 100, 0.0, 0.01)
    with pytest.raises(Invalid):
        audit_one_run(np.zeros(19), np.zeros(19, dtype=bool), 1e-5)


def test_the_area_is_that_of_the_normal_law_and_its_interval_holds_it():
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        found = area(generator.normal(0.5, 1, 150), generator.normal(0, 1, 200))
        held += found.low <= stats.norm.cdf(0.5 / math.sqrt(2)) <= found.high
    assert 50 <= held <= 60
    assert area(np.array([1.0, 1.0]), np.array([1.0, 1.0])).value == 0.5
    assert area(np.array([2.0, 3.0]), np.array([0.0, 1.0])).value == 1.0


def test_members_are_counted_above_what_few_others_reach():
    others = np.arange(1000.0)
    assert caught(np.array([989.5, 989.0, 995.0, 0.0]), others, 0.01).value == 0.5
    with pytest.raises(Invalid, match="1,000 rows"):
        caught(others, others[:999], 0.001)


def test_the_interval_of_a_share_is_the_one_of_the_tables():
    for hits, trials in ((0, 10), (3, 10), (10, 10), (81, 263)):
        low = stats.beta.ppf(0.025, hits, trials - hits + 1) if hits else 0.0
        high = stats.beta.ppf(0.975, hits + 1, trials - hits) if hits < trials else 1.0
        found = proportion(hits, trials)
        assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_shadow_models_tell_easy_rows_from_members():
    """Rows differ more in how hard they are than members do from others: the loss sees little of it, ratios see much."""
    generator = np.random.default_rng(0)
    hard, members = generator.normal(0, 3, 800), np.arange(800) < 400
    target = hard + 1.0 * members + 0.5 * generator.normal(size=800)
    inside = generator.random((8, 800)) < 0.5
    shadows = hard + 1.0 * inside + 0.5 * generator.normal(size=(8, 800))

    def told(scores):
        return area(scores[members], scores[~members]).value

    offline = lira(target, shadows, np.zeros_like(inside))
    shares = [1 / (1 + np.exp(-one)) for one in (target, shadows.mean(axis=0))]
    ratio = rmia(*shares, *(one[~members] for one in shares))
    assert told(target) < 0.65 < 0.85 < min(told(lira(target, shadows, inside)), told(offline), told(ratio) + 0.05)
    with pytest.raises(Invalid):
        lira(target, shadows, np.ones_like(inside))


def test_confidence_is_the_log_odds_of_the_own_class():
    answers = np.array([[0.9, 0.05, 0.05], [0.0, 1.0, 0.0]])
    found = confidences(answers, np.array([0, 0]))
    assert found[0] == pytest.approx(math.log(9)) and found[1] < -25
