"""The circuit breaker: its table, a story told by hand, and laws for every sequence of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.errors import Unavailable
from modelkeep.serving.breaker import TABLE, Breaker, Signal, State, Thresholds

SMALL = Thresholds(window=10, failures=3, share=0.5, seconds=2.0)


def feed(breaker, outcomes, now=0.0):
    for good in outcomes:
        permit = breaker.enter(now)
        (breaker.succeeded if good else breaker.failed)(permit, now)
        breaker.abandoned(permit)


def test_the_table_has_an_arrow_for_whatever_can_be_told_in_a_state():
    told = {Signal.SUCCESS, Signal.FAILURE, Signal.TRIPPED}
    for state in (State.CLOSED, State.HALF_OPEN):
        assert {signal for (origin, signal) in TABLE if origin is state} == told
    assert {signal for (origin, signal) in TABLE if origin is State.OPEN} == {Signal.WAITED}


def test_it_opens_waits_sees_and_closes():
    breaker = Breaker(SMALL)
    feed(breaker, [False, False])
    assert breaker.state(0.0) is State.CLOSED
    feed(breaker, [False])
    assert breaker.state(0.0) is State.OPEN
    with pytest.raises(Unavailable, match=r"left alone for 0\.5 s more"):
        breaker.enter(1.5)
    assert breaker.wait(1.5) == 0.5
    assert breaker.state(2.0) is State.HALF_OPEN
    probe = breaker.enter(2.0)
    with pytest.raises(Unavailable, match="another request is seeing"):
        breaker.enter(2.0)
    breaker.succeeded(probe, 2.1)
    assert breaker.state(2.1) is State.CLOSED
    feed(breaker, [False, False], 3.0)  # what failed before is forgotten
    assert breaker.state(3.0) is State.CLOSED


def test_a_probe_that_fails_opens_it_again_and_one_that_is_cut_off_lets_another_see():
    breaker = Breaker(SMALL)
    feed(breaker, [False] * 3)
    breaker.failed(breaker.enter(2.0), 2.5)
    assert breaker.state(2.6) is State.OPEN
    assert breaker.wait(2.5) == 2.0
    cut = breaker.enter(4.5)
    breaker.abandoned(cut)
    breaker.succeeded(breaker.enter(4.6), 4.7)
    assert breaker.state(4.7) is State.CLOSED


def test_who_asks_a_poisonous_question_now_and_then_shuts_nobody_out():
    breaker = Breaker(SMALL)
    feed(breaker, [True, True, False] * 200)
    assert breaker.state(0.0) is State.CLOSED


def test_answers_to_what_was_asked_before_the_trouble_change_nothing():
    breaker = Breaker(SMALL)
    early = [breaker.enter(0.0) for _ in range(6)]
    for permit in early[:3]:
        breaker.failed(permit, 1.0)
    assert breaker.state(1.0) is State.OPEN
    breaker.succeeded(early[3], 1.1)
    assert breaker.state(1.1) is State.OPEN
    probe = breaker.enter(3.0)
    breaker.succeeded(early[4], 3.1)
    breaker.failed(early[5], 3.1)
    breaker.abandoned(early[5])
    assert breaker.state(3.1) is State.HALF_OPEN
    with pytest.raises(Unavailable):
        breaker.enter(3.1)
    breaker.succeeded(probe, 3.2)
    assert breaker.state(3.2) is State.CLOSED


STEP = st.tuples(st.sampled_from(["good", "bad", "cut"]), st.floats(0, 3))


@given(st.lists(STEP, max_size=80), st.integers(1, 8), st.floats(0.1, 1.0))
def test_it_never_sticks_and_never_opens_without_enough_failures(steps, failures, share):
    thresholds = Thresholds(window=10, failures=failures, share=share, seconds=1.0)
    breaker, now, last = Breaker(thresholds), 0.0, []
    for what, pause in steps:
        now += pause
        before = breaker.state(now)
        try:
            permit = breaker.enter(now)
        except Unavailable:
            assert before is State.OPEN
            continue
        assert before is not State.OPEN
        if what != "cut":
            (breaker.succeeded if what == "good" else breaker.failed)(permit, now)
            last = [*last, what][-10:]
        breaker.abandoned(permit)
        if breaker.state(now) is State.OPEN and before is State.CLOSED:
            assert what == "bad"
            assert last.count("bad") >= failures and last.count("bad") >= share * len(last)
        if breaker.state(now) is not before:
            last = []
    breaker.succeeded(breaker.enter(now + 1.0), now + 1.0)  # once it waited, it always lets one through
    assert breaker.state(now + 1.0) is State.CLOSED
