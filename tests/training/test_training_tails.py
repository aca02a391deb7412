"""Tails against scipy's, which computes them in other ways."""

import math
from fractions import Fraction

import pytest
from scipy import stats

from modelkeep.training.tails import SMALLEST, binomial_tail, student_tail


@pytest.mark.parametrize("freedom", [1, 2, 5, 19, 40, 1000])
@pytest.mark.parametrize("t", [-30.0, -2.0, -0.1, 0.0, 0.3, 1.0, 2.5, 6.9, 15.0, 60.0])
def test_students_tail_is_scipys(t, freedom):
    assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9)


@pytest.mark.parametrize(("trials", "chance"), [(1, 0.5), (20, 0.1), (999, 0.25), (4000, 0.01)])
def test_the_binomial_tail_is_scipys(trials, chance):
    for hits in {0, 1, trials // 10, trials // 2, trials}:
        assert binomial_tail(hits, trials, chance) == pytest.approx(
            max(SMALLEST, stats.binom.sf(hits - 1, trials, chance)), rel=1e-8
        )


@pytest.mark.parametrize(("hits", "trials"), [(64, 64), (63, 64), (40, 64), (1, 64), (0, 64), (3, 5), (600, 1000)])
@pytest.mark.parametrize("chance", [Fraction(1, 2), Fraction(3, 5), Fraction(1, 50)])
def test_the_binomial_tail_is_the_sum_of_its_terms(hits, trials, chance):
    exact = sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(hits, trials + 1))
    told, wanted = binomial_tail(hits, trials, float(chance)), max(SMALLEST, float(exact))
    assert told == wanted if chance == Fraction(1, 2) else told == pytest.approx(wanted, rel=1e-8)


def test_ends_and_what_makes_no_sense():
    assert student_tail(float("inf"), 3) == SMALLEST and student_tail(float("-inf"), 3) == 1.0
    assert student_tail(float("nan"), 3) == 1.0
    assert binomial_tail(1, 3, 0.0) == SMALLEST and binomial_tail(3, 3, 1.0) == 1.0 and binomial_tail(0, 0, 0.3) == 1.0
    with pytest.raises(ValueError, match="degree"):
        student_tail(1.0, 0)
    for hits, trials, chance in ((4, 3, 0.5), (-1, 3, 0.5), (1, 3, 1.5)):
        with pytest.raises(ValueError, match="binomial"):
            binomial_tail(hits, trials, chance)
