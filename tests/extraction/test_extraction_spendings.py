"""What was learnt of budgets is written down when it moved, in the period that it is of, and gone with who is forgotten."""

import pytest

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import NotTrusted
from modelkeep.extraction.budget import quoted
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT
from modelkeep.extraction.verdicts import Terms
from modelkeep.workflows.spendings import LEARNT, Spendings, spendings
from modelkeep.workflows.watch import Agreed, Erased, Observation, Today, Watch

REF = ReleaseRef("m", 1)
DAY = 86_400_000_000_000
NETWORK = "net-00000000000000aa"
LENT = DEFAULT._replace(questions=100.0, cluster=2.0, days=10)


class Tick(SystemClock):
    """A clock whose time of day is set by hand."""

    def __init__(self):
        self.wall = 30 * DAY + DAY // 2

    def now_ns(self):
        return self.wall


@pytest.fixture
def house(digits):
    return House(digits)


class House:
    """A watch, what is stored of it, and somebody who asks."""

    def __init__(self, case, records=None):
        self.case, self.clock, self.records = case, Tick(), records or MemoryRecords()
        self.watch, self.asked = Watch(Guard(case.profile, ladder=LENT)), 0
        self.spendings = Spendings(self.records, self.clock, lambda: {REF: self.watch})
        self.watch.take(Today(30))

    def ask(self, rows, *subjects):
        for i in range(rows):
            x = self.case.unseen[self.asked : self.asked + 1]
            who = subjects[i % len(subjects)]
            self.watch.offer(Observation(self.asked, who, x, self.case.predict(x), "one", 0.0, (NETWORK,)))
            self.asked += 1
        self.watch.work()
        self.spendings.look()

    def stored(self):
        return {one.name: one.spending for one in spendings(self.records)}

    def revision(self, name):
        return self.records.get(LEARNT, f"m@1/{name}").revision


def test_what_is_written_and_when(house):
    house.ask(5, "a")
    assert house.stored() == {}, "less than a tenth"
    house.ask(10, "a", "b")
    first = house.stored()
    assert set(first) == {"a"} and first["a"].learnt == pytest.approx(house.watch.verdict("a").budget.equivalent)
    assert (first["a"].limit, first["a"].begins, first["a"].measure, first["a"].accounts) == (100.0, 30, "agreement", ())
    house.clock.wall += DAY
    house.ask(60, "a", "b", "c")
    assert house.stored()[NETWORK].accounts == ("a", "b", "c") and house.stored()[NETWORK].limit == 200.0
    before = house.revision("a")
    house.ask(1, "a")
    assert house.revision("a") == before, "nothing is written again for a question"
    points = house.stored()["a"].points
    assert [at for at, _ in points] == [house.clock.wall - DAY, house.clock.wall] and points[0][1] < points[1][1]


def test_a_forecast_is_of_the_last_days_and_of_its_period(house):
    house.ask(60, "a", "b")
    house.clock.wall += 2 * DAY
    house.ask(60, "a", "b")
    spent = house.stored()[NETWORK]
    ahead = spent.forecast(LENT.days, house.clock.wall)
    assert ahead.rate == pytest.approx(spent.learnt / 2.5) and ahead.resets == 7.5
    assert ahead.lasts == ahead.left == pytest.approx((200.0 - spent.learnt) / ahead.rate)
    assert "at this rate the budget is spent in " in ahead.text
    assert spent.forecast(LENT.days, house.clock.wall + 8 * DAY) is None, "its period is over"
    house.clock.wall += 8 * DAY
    house.watch.take(Today(40))
    house.ask(40, "a", "b")
    anew = house.stored()[NETWORK]
    assert anew.begins == 40 and len(anew.points) == 1 and anew.learnt < spent.learnt


def test_a_larger_budget_is_written_at_once_and_who_is_forgotten_is_gone(house):
    house.ask(60, "a", "b")
    assert house.stored()["a"].limit == 100.0
    house.watch.take(Agreed("a", Terms(3.0)))
    house.spendings.look()
    assert house.stored()["a"].limit == 300.0 and house.stored()[NETWORK].limit == 400.0
    house.watch.take(Agreed(NETWORK, Terms(2.0)))
    house.spendings.look()
    assert house.stored()[NETWORK].limit == 600.0
    house.watch.take(Erased("a"))
    house.spendings.look()
    assert "a" not in house.stored()
    assert (house.stored()[NETWORK].accounts, house.stored()[NETWORK].learnt) == (("b",), 0.0)


def test_gateways_whose_clocks_differ_put_no_record_back(digits):
    """Where a period begins, each wrote its own over the other's, in turn, for as long as the clocks differ."""
    ahead = House(digits)
    behind = House(digits, ahead.records)
    for one, day in ((ahead, 40), (behind, 39)):
        one.watch.take(Today(day))
        one.clock.wall = day * DAY + 5
    behind.ask(40, "a", "b")
    assert behind.stored()["a"].begins == 30
    ahead.ask(40, "a", "b")
    told = ahead.stored()["a"]
    assert told.begins == 40
    behind.ask(40, "a", "b")
    assert ahead.stored()["a"] == told
    behind.watch.take(Today(40))
    behind.clock.wall = 40 * DAY
    behind.ask(4, "a", "b")  # it saw less of the period: not what was asked where the clock was ahead
    assert behind.watch.learnt("a").budget.equivalent < told.learnt / 2.0
    assert ahead.stored()["a"] == told
    behind.ask(70, "a", "b")
    assert ahead.stored()["a"].learnt > told.learnt and ahead.stored()["a"].begins == 40
    behind.watch.take(LENT._replace(days=7))
    behind.clock.wall = 44 * DAY
    behind.watch.take(Today(44))
    behind.ask(20, "a", "b")
    assert ahead.stored()["a"].begins == 42
    behind.watch.take(LENT._replace(days=30))
    behind.ask(60, "a", "b")
    assert ahead.stored()["a"].begins == 30, "a longer period may have begun earlier"


def test_a_damaged_record_is_written_anew(house):
    house.ask(60, "a")
    whole = house.stored()["a"]
    house.records.commit([Change(LEARNT, "m@1/a", b"{", house.revision("a"))])
    house.ask(30, "a")
    assert house.stored()["a"].learnt > whole.learnt and len(house.stored()["a"].points) == 1


WHOLE = b'{"begins":1,"learnt":1,"limit":1,"fidelity":1,"measure":"","accounts":[],"points":[[1,1]]}'


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        (b'"learnt":1,', b""),
        (b'"limit":1', b'"limit":0'),
        (b'"begins":1', b'"begins":-1'),
        (b"[[1,1]]", b"[[-1" + b"0" * 400 + b",1]]"),  # no float is as low
        (b'"accounts":[]', b'"accounts":["\xff"]'),
    ],
)
def test_a_damaged_record_is_not_believed(said, instead):
    records = MemoryRecords()
    records.commit([Change(LEARNT, "m@1/a", WHOLE, 0)])
    [whole] = spendings(records)
    assert whole.spending.forecast(10, DAY) is not None
    records.commit([Change(LEARNT, "m@1/a", WHOLE.replace(said, instead), 1)])
    with pytest.raises(NotTrusted, match="damaged"):
        list(spendings(records))


def test_the_quote_says_what_was_measured():
    assert quoted(412.3, 1000.0, 0.907, "agreement") == (
        "learnt as much as 412 natural questions (limit 1,000), which gives a simple copy that agrees on about 91% of rows"
    )
    assert quoted(4000.0, 5000.0, 0.93, "agreement").endswith("on at least 93% of rows"), "the curve ends before"
    assert quoted(412.3, 1000.0, 0.93, "R²").endswith("that explains about 93% of the variance of the answers (R²)")
    assert quoted(412.3, 1000.0, 1.0, "") == "learnt as much as 412 natural questions (limit 1,000)"
