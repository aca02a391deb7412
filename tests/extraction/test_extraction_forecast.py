import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.extraction.budget import days, forecast


@pytest.mark.parametrize(
    ("learnt", "now", "text"),
    [
        ([(1, 10), (2, 20), (3, 30)], 3.0, "at this rate the budget is spent in 7 days; it begins anew in 27 days"),
        ([(1, 1), (2, 2), (3, 3)], 3.0, "at this rate it lasts until it begins anew in 27 days"),
        ([(1, 50), (2, 120)], 2.0, "the budget is spent; it begins anew in 28 days"),
        ([(1, 99)], 29.5, "nothing was asked lately; the budget begins anew in less than a day"),
        ([], 0.0, "nothing was asked lately; the budget begins anew in 30 days"),
        ([(0.01, 60.0)], 0.01, "at this rate the budget is spent in less than a day; it begins anew in 29 days"),
        ([(1, 80), (20, 80), (26, 90)], 27.0, "at this rate it lasts until it begins anew in 3 days"),
        ([(1, 10), (13, 10), (20, 45)], 20.0, "at this rate it lasts until it begins anew in 10 days"),
        ([(1, 10), (13, 10), (20, 80)], 20.0, "at this rate the budget is spent in 2 days; it begins anew in 10 days"),
    ],
)
def test_known_forecasts(learnt, now, text):
    assert forecast(learnt, 100.0, now=now, begins=0.0, ends=30.0).text == text


def test_only_the_last_days_count_and_only_this_period():
    found = forecast([(1, 70), (13, 70), (20, 84)], 100.0, now=20.0, begins=0.0, ends=30.0)
    assert (found.rate, found.left) == (2.0, 8.0)
    assert forecast([(5, 70), (12, 10)], 100.0, now=12.0, begins=10.0, ends=30.0).rate == 5.0


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1e6)), max_size=20),
    st.floats(1e-3, 1e6),
    st.floats(0, 29.99),
    st.floats(1.0, 100.0),
)
def test_a_larger_budget_lasts_longer_and_a_forecast_has_words(learnt, limit, now, factor):
    learnt = list(zip(sorted(day for day, _ in learnt), sorted(total for _, total in learnt), strict=True))
    usual, larger = (forecast(learnt, each, now=now, begins=0.0, ends=30.0) for each in (limit, limit * factor))
    assert 0.0 <= usual.left <= larger.left and usual.rate == larger.rate >= 0.0 and usual.resets == 30.0 - now
    assert "begins anew in" in usual.text and not math.isnan(usual.left)


def test_what_is_no_period_is_refused():
    for now, begins, ends, limit in ((5, 6, 30, 1), (30, 0, 30, 1), (5, 0, 30, 0), (5, 0, 30, math.inf)):
        with pytest.raises(Invalid):
            forecast([], limit, now=now, begins=begins, ends=ends)


def test_days_in_words():
    assert [days(n) for n in (0.2, 1.0, 1.99, 9.5, 1234.0)] == ["less than a day", "1 day", "1 day", "9 days", "1,234 days"]
