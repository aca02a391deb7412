"""What a request is charged: both counts or none, and put back when it was for nothing."""

import pytest
from access_house import NOW

from modelkeep.access.charges import Charges
from modelkeep.access.quotas import Quotas
from modelkeep.access.stepup import OFF, StepUp, StepUpTerms
from modelkeep.access.view import Grant
from modelkeep.core.values import Principal, Role
from modelkeep.errors import OverBudget, StepUpRequired, TooLarge, Unavailable


def grant(quota=10, kind="key", credential="key:1"):
    return Grant(Principal("anna", "sub_1", (Role.ANALYST,), credential), kind, NOW + 10_000, quota, credential, 0)


def charges(house, terms=OFF):
    quotas = Quotas(house.records, house.clock.monotonic)
    return Charges(StepUp(terms, quotas, house.clock), quotas)


def charge(one, mine, rows=1):
    """As a request does."""
    if not one.held(mine, 0, rows):
        one.take(mine, rows)


def rows_left(one, mine, most=100):
    for number in range(most):
        try:
            charge(one, mine)
        except (OverBudget, StepUpRequired):
            return number
    return most


def test_an_answer_that_fails_costs_nothing(house):
    one, mine = charges(house, StepUpTerms(requests=8)), grant(quota=6)
    for _ in range(20):
        charge(one, mine, 5)
        one.put_back(mine, 5)
    assert rows_left(one, mine) == 6
    assert rows_left(one, grant(credential="key:2")) == 2, "of the eight that the account has since its last factor"


@pytest.mark.parametrize("rows", [1, 3])
def test_what_the_quota_refuses_does_not_count_for_the_second_factor(house, rows):
    one, spent = charges(house, StepUpTerms(requests=8)), grant(quota=rows)
    charge(one, spent, rows)
    for _ in range(20):
        with pytest.raises(OverBudget):
            charge(one, spent, rows)
    assert rows_left(one, grant(quota=50, credential="key:2")) == 8 - rows


def test_nor_does_what_cannot_be_counted(house):
    one, mine = charges(house, StepUpTerms(requests=64)), grant(quota=1000)
    charge(one, mine)
    house.records.down = True
    for _ in range(20):
        with pytest.raises(Unavailable):
            charge(one, grant(quota=1000, credential="key:2"))
    house.records.down = False
    house.clock.advance(2)
    assert rows_left(one, mine) == 63


def test_what_is_not_counted_is_not_put_back_either(house):
    for terms, mine in (
        (OFF, grant(quota=None)),
        (StepUpTerms(rung=1), grant(quota=None)),
        (StepUpTerms(requests=2, keys=False), grant(quota=None)),
    ):
        one, calls = charges(house, terms), house.records.calls
        for _ in range(5):
            charge(one, mine, 3)
            one.put_back(mine, 3)
        assert house.records.calls == calls


def test_more_than_any_factor_is_good_for_is_told_so(house):
    one = charges(house, StepUpTerms(requests=4))
    with pytest.raises(TooLarge, match="good for 4 rows here, and this counts as 7"):
        charge(one, grant(), 7)
    assert rows_left(one, grant()) == 4
