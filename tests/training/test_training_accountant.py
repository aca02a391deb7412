"""The accountant against numbers of dp_accounting 0.6.0 (PLD, connect the dots, interval 1e-5), and laws for every spend."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.training.accountant import Promise, Steps, epsilon_of, noise_for

KNOWN = [
    (1.0, 0.01, 1000, 1e-5, 1.82824),
    (2.0, 0.25, 100, 1e-5, 6.44915),
    (0.8, 0.02, 500, 1e-6, 5.44031),
    (1.1, 256 / 60000, 14000, 1e-5, 2.37586),
    (4.0, 1.0, 30, 1e-5, 6.32572),
    (1.0, 1e-4, 100000, 1e-6, 0.15697),
    (0.5, 0.1, 20, 1e-5, 15.59676),
    (9.477, 0.25, 100, 1e-5, 0.99976),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "epsilon"), KNOWN)
def test_dp_accounting_says_the_same_to_a_thousandth(noise, rate, steps, delta, epsilon):
    assert epsilon_of([Steps(noise, rate, steps)], delta) == pytest.approx(epsilon, rel=1e-3)


def test_runs_with_different_noise_are_composed_and_not_added():
    spent = [Steps(2.0, 0.25, 100), Steps(1.0, 0.01, 1000), Promise(0.5, 1e-7)]
    alone = [epsilon_of([one], 1e-5) for one in spent]
    assert epsilon_of(spent, 1e-5) == pytest.approx(7.11787, rel=1e-3)
    assert max(alone) < epsilon_of(spent, 1e-5) < sum(alone)
    assert epsilon_of([Steps(2.0, 0.25, 60), Steps(2.0, 0.25, 40)], 1e-5) == epsilon_of([spent[0]], 1e-5)


def test_the_gaussian_mechanism_is_the_one_of_the_book():
    """Balle and Wang 2018, theorem 8: delta = Phi(1/2s - es) - exp(e) Phi(-1/2s - es)."""

    def phi(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for noise in (0.8, 2.0, 6.0):
        epsilon = epsilon_of([Steps(noise, 1.0, 1)], 1e-5)
        delta = phi(0.5 / noise - epsilon * noise) - math.exp(epsilon) * phi(-0.5 / noise - epsilon * noise)
        assert delta == pytest.approx(1e-5, rel=2e-2) and delta <= 1e-5


def test_promises_compose_optimally():
    """Kairouz, Oh and Viswanath 2015, theorem 3.3: (epsilon_i, 1 - (1 - delta)^k (1 - delta_i)) for k promises alike."""
    k, epsilon = 10, 0.3
    for i in (1, 2, 3):
        top = (
            sum(math.comb(k, j) * (math.exp((k - j) * epsilon) - math.exp((k - 2 * i + j) * epsilon)) for j in range(i))
            / (1 + math.exp(epsilon)) ** k
        )
        assert epsilon_of([Promise(epsilon, 0.0)] * k, top) == pytest.approx((k - 2 * i) * epsilon, abs=2e-3)
    assert epsilon_of([Promise(1.0, 1e-6), Promise(2.0, 1e-6)], 1e-5) == pytest.approx(3.0, abs=1e-3)
    assert math.isinf(epsilon_of([Promise(1.0, 1e-4)], 1e-5))


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon_of([], 1e-5) == epsilon_of([Steps(1.0, 0.1, 0), Promise(0.0, 0.0)], 1e-5) == 0.0
    assert math.isinf(epsilon_of([Steps(1e-200, 0.5, 1)], 1e-5))
    assert math.isinf(epsilon_of([Steps(1.0, 0.5, 10**15)], 1e-5))
    for wrong in (lambda: Steps(0.0, 0.1, 1), lambda: Steps(1.0, 1.1, 1), lambda: Promise(math.nan, 0.0)):
        with pytest.raises(Invalid):
            wrong()
    with pytest.raises(Invalid, match="delta"):
        epsilon_of([], 1e-12)


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1.0, 0.25, 60), (3.0, 0.02, 900), (0.2, 1.0, 10)])
def test_the_noise_found_is_just_enough(epsilon, rate, steps):
    noise = noise_for(epsilon, 1e-5, rate, steps)
    assert 0.99 * epsilon < epsilon_of([Steps(noise, rate, steps)], 1e-5) <= epsilon
    before = [Steps(noise, rate, steps)]
    more = noise_for(1.5 * epsilon, 1e-5, rate, steps, before)
    assert epsilon_of([*before, Steps(more, rate, steps)], 1e-5) <= 1.5 * epsilon
    with pytest.raises(Invalid, match="no noise"):
        noise_for(0.9 * epsilon, 1e-5, rate, steps, before)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.5, 8.0), st.floats(0.001, 1.0), st.integers(1, 300), st.floats(1.01, 1.5))
def test_more_of_anything_never_costs_less(noise, rate, steps, more):
    def cost(*given):
        return epsilon_of([Steps(*given)], 1e-5)

    base = cost(noise, rate, steps)
    assert cost(noise * more, rate, steps) <= base + 1e-9
    assert cost(noise, min(1.0, rate * more), steps) >= base * (1 - 1e-3)
    assert cost(noise, rate, steps + 1) >= base * (1 - 1e-3)


def test_a_sum_beyond_what_floats_hold_is_unbounded_and_not_cut_off():
    once = Steps(0.8217, 1.0, 300)
    assert 300 < epsilon_of([once], 1e-7) < 500
    assert math.isinf(epsilon_of([once, Steps(0.8217, 1.0, 700)], 1e-7))  # it is some 950: said to be 700 before


def test_little_noise_in_one_step_of_all_rows_is_counted_as_the_book_has_it():
    # Balle and Wang 2018, theorem 8, for noise 0.1 and 0.05: the sums are so far apart that most of their cells are empty
    assert epsilon_of([Steps(0.1, 1.0, 1)], 1e-5) == pytest.approx(91.81729, rel=1e-4)
    assert epsilon_of([Steps(0.05, 1.0, 1)], 1e-5) == pytest.approx(284.39185, rel=1e-4)
    assert 0.09 < noise_for(100.0, 1e-5, 1.0, 1) < 0.1


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, 500.1, 1e308])
def test_a_promise_that_is_none_finds_no_noise(epsilon):
    with pytest.raises(Invalid, match="above 0 and at most 500"):
        noise_for(epsilon, 1e-5, 0.5, 10)
