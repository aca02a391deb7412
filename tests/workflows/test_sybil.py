"""One thief, several accounts: turns, counts, and what becomes of the questions of an account that is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.errors import Invalid, ModelkeepError, OverBudget, ReviewRequired, Unauthenticated, Unavailable
from modelkeep.extraction.attacks import Array
from modelkeep.workflows.sybil import Sybil


class Account:
    """Answers each row with its own number, until it has answered ``limit`` rows."""

    def __init__(self, limit: int = 10**9, error: ModelkeepError | None = None) -> None:
        self.limit, self.error, self.rows = limit, error or ReviewRequired("held"), []

    def predict(self, x: Array) -> Array:
        if len(self.rows) + len(x) > self.limit:
            raise self.error
        self.rows += x[:, 0].tolist()
        return np.column_stack([x[:, 0], -x[:, 0]])


def rows(first: int, count: int) -> Array:
    return np.arange(first, first + count, dtype=np.float64)[:, None]


@given(st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_questions_are_dealt_round_robin_however_they_are_cut(accounts: int, batches: list[int]) -> None:
    asked = [Account() for _ in range(accounts)]
    thief, at = Sybil(asked), 0
    for batch in batches:
        np.testing.assert_array_equal(thief.predict(rows(at, batch))[:, 0], np.arange(at, at + batch))
        at += batch
    assert thief.answered == [len(one.rows) for one in asked]
    for number, one in enumerate(asked):
        assert one.rows == list(range(number, at, accounts))


@pytest.mark.parametrize("error", [ReviewRequired("held"), OverBudget("slow down", 1.0)])
def test_the_questions_of_a_refused_account_are_dealt_to_the_others(error: ModelkeepError) -> None:
    asked = [Account(), Account(4, error), Account()]
    thief = Sybil(asked)
    for at in range(0, 60, 6):
        np.testing.assert_array_equal(thief.predict(rows(at, 6))[:, 0], np.arange(at, at + 6))
    assert thief.answered[1] == 4
    assert sum(thief.answered) == 60
    assert abs(thief.answered[0] - thief.answered[2]) <= 2


def test_when_the_last_account_is_refused_the_refusal_is_told() -> None:
    thief = Sybil([Account(3), Account(5)])
    with pytest.raises(ReviewRequired):
        for at in range(100):
            thief.predict(rows(at, 1))
    assert thief.answered == [3, 5]


def test_a_wrong_key_among_good_ones_is_an_error_not_a_defence() -> None:
    with pytest.raises(Unauthenticated):
        Sybil([Account(), Account(0, Unauthenticated("unknown key"))]).predict(rows(0, 2))


def test_a_broken_gateway_is_an_error() -> None:
    thief = Sybil([Account(), Account(1, Unavailable("no answer"))])
    thief.predict(rows(0, 2))
    with pytest.raises(Unavailable):
        thief.predict(rows(2, 2))


def test_a_thief_needs_an_account() -> None:
    with pytest.raises(Invalid, match="at least one"):
        Sybil([])
