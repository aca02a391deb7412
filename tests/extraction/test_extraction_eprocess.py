from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.extraction import eprocess


def test_restart_weights_sum_to_at_most_one():
    n = 1_000_000
    partial = eprocess.restart_weight(np.arange(n)).sum()
    tail = 1.0 / (2.2 * np.log(n + 1.0))  # integral of 1 / (x ln² x) from n + 1
    assert 0.9 < partial + tail <= 1.0


@given(st.lists(st.floats(0.001, 0.75), min_size=1, max_size=6))
def test_every_bet_is_fair_at_kappa_and_loses_below(kappas):
    kappa = np.array(kappas)
    bets = eprocess.make_bets(kappa)
    bound = kappa[bets.stream]
    assert np.allclose(bound * bets.up + (1 - bound) * bets.down, 1.0)
    for share in (0.0, 0.3, 0.9):
        rate = share * bound
        assert (rate * bets.up + (1 - rate) * bets.down <= 1.0 + 1e-12).all()
    assert (bets.up > 1).all()
    assert (bets.down >= 0).all()


@pytest.mark.parametrize("kappa", [0.03, 0.25, 0.7])
def test_expected_evidence_is_at_most_one_exactly(kappa):
    """Every event sequence of length 9, weighted by its probability under the worst case of the null."""
    bets = eprocess.make_bets(np.array([kappa]))
    total = 0.0
    for events in product((False, True), repeat=9):
        kept, restarted, chance = np.ones((1, len(bets.up))), np.zeros((1, len(bets.up))), 1.0
        for t, event in enumerate(events):
            chance *= kappa if event else 1 - kappa
            kept, restarted = eprocess.step(kept, restarted, bets.factors(np.array([[event]])), np.array([t]))
        total += chance * eprocess.evidence(kept, restarted)[0]
    weights = eprocess.restart_weight(np.arange(9)).sum()
    assert total == pytest.approx((1 + weights) / 2)
    assert total <= 1.0


def _run(events, bets):
    """Highest evidence ever, per account, for events (accounts, time, streams)."""
    accounts, length, _ = events.shape
    kept, restarted = np.ones((accounts, len(bets.up))), np.zeros((accounts, len(bets.up)))
    best = np.zeros(accounts)
    for t in range(length):
        kept, restarted = eprocess.step(kept, restarted, bets.factors(events[:, t]), np.full(accounts, t))
        best = np.maximum(best, eprocess.evidence(kept, restarted))
    return best


def test_ville_holds_in_simulation_for_dependent_streams_at_the_edge_of_the_null():
    rng = np.random.default_rng(3)
    kappa = np.array([0.4, 0.15, 0.04, 0.01])
    bets = eprocess.make_bets(kappa)
    uniform = rng.random((3000, 250, 1))  # one p-value drives all four streams
    best = _run(uniform < kappa, bets)
    for alpha in (0.2, 0.05, 0.01):
        assert (best >= 1 / alpha).mean() <= alpha + 3 * np.sqrt(alpha / 3000)


def test_a_thief_is_found_and_a_sleeper_hardly_later():
    bets = eprocess.make_bets(np.array([0.3, 0.1, 0.03]))
    rng = np.random.default_rng(4)

    def found(sleep):
        kept, restarted = np.ones((1, len(bets.up))), np.zeros((1, len(bets.up)))
        for t in range(sleep + 200):
            event = rng.random() < (0.9 if t >= sleep else 0.02)
            kept, restarted = eprocess.step(kept, restarted, bets.factors(np.array([[event] * 3])), np.array([t]))
            if eprocess.evidence(kept, restarted)[0] >= 1000:
                return t + 1 - sleep
        return 10_000

    assert found(0) <= 10
    assert 0 < found(3000) <= 20


@settings(max_examples=30)
@given(st.integers(1, 400))
def test_stakes_never_overflow(length):
    bets = eprocess.make_bets(np.array([0.01]))
    kept, restarted = np.ones((1, len(bets.up))), np.zeros((1, len(bets.up)))
    for t in range(length):
        kept, restarted = eprocess.step(kept, restarted, bets.factors(np.array([[True]])), np.array([t]))
    assert np.isfinite(eprocess.evidence(kept, restarted)).all()


def test_a_stream_that_honest_accounts_trip_all_the_time_carries_no_bet():
    assert len(eprocess.make_bets(np.array([0.9, 0.76])).stream) == 0
    assert eprocess.evidence(np.ones((2, 0)), np.ones((2, 0))).tolist() == [1.0, 1.0]


def worst(after, depth=60):
    """The largest sum of error probabilities 1 / threshold, in units of alpha, of tests that a person and a calibration end
    in whatever order: by dynamic programming from the far end, where what is left of a path is bounded in closed form."""
    value = np.empty((depth + 1, depth + 1))
    for j in reversed(range(depth + 1)):
        for r in reversed(range(depth + 1)):
            mine = 1.0 / after(r, j)
            rest = [value[r + 1, j] if r < depth else mine, value[r, j + 1] if j < depth else mine * (j + 1)]
            value[r, j] = mine + max(rest)
    return value[0, 0]


def test_all_tests_of_an_account_together_err_with_at_most_twice_alpha():
    alpha = 1e-3
    assert worst(lambda r, j: eprocess.threshold(alpha, r, j)) == pytest.approx(2 * alpha)
    reviews = sum(1 / eprocess.threshold(alpha, r, 0) for r in range(1000))
    calibrations = sum(1 / eprocess.threshold(alpha, 0, j) for j in range(100_000))
    assert reviews == pytest.approx(2 * alpha) and calibrations < 1.65 * alpha
    assert reviews * calibrations / alpha < 3.3 * alpha, "over all pairs at once"
