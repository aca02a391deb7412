import asyncio
from contextlib import suppress

import pytest
from access_house import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from lease_history import most_above
from msgspec.structs import astuple

from modelkeep.access.cells import Schedule, Schedules
from modelkeep.access.limits import Limiter, Limits, address_key, gcra
from modelkeep.access.rates import Override, Rate, Rates
from modelkeep.access.steady import SteadyTime
from modelkeep.core.values import Principal
from modelkeep.errors import OverBudget, TooLarge, Unavailable


def test_known_answers_of_the_virtual_schedule():
    """T = 1 s, τ = 2 s: three at once, then one a second (ITU-T I.371, Annex A)."""
    tat, answers = 0.0, []
    for now in (10.0, 10.0, 10.0, 10.0, 10.5, 11.0, 11.0, 20.0):
        tat, wait = gcra(tat, now, 1.0, 2.0)
        answers.append(wait)
    assert answers == [0, 0, 0, 1.0, 0.5, 0, 1.0, 0]


@given(st.lists(st.floats(0, 0.5), max_size=200), st.integers(1, 20), st.floats(0.5, 50))
def test_no_window_ever_holds_more_than_burst_plus_rate(gaps, burst, rate):
    now, tat, passed = 1000.0, 0.0, []
    for gap in gaps:
        now += gap
        tat, wait = gcra(tat, now, 1 / rate, (burst - 1) / rate)
        if not wait:
            passed.append(now)
    for start in range(len(passed)):
        for end in range(start, len(passed)):
            assert end - start + 1 <= burst + rate * (passed[end] - passed[start]) + 1e-3


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=100))
def test_waiting_as_told_is_enough(gaps):
    now, tat = 1000.0, 0.0
    for gap in gaps:
        now += gap
        tat, wait = gcra(tat, now, 0.7, 1.4)
        if wait:
            now += wait
            tat, wait = gcra(tat, now, 0.7, 1.4)
            assert wait == 0


def limiter(clock, **options):
    return Limiter(clock.monotonic, **({"rate": 10, "burst": 5, "what": "requests"} | options))


def spend(limit, key, most=1000, **options):
    for count in range(most):
        try:
            limit.take(key, **options)
        except OverBudget:
            return count
    return most


def test_keys_are_limited_apart():
    clock = FakeClock()
    limit = limiter(clock)
    assert spend(limit, "a") == 5
    assert spend(limit, "b") == 5
    clock.advance(0.3)
    assert spend(limit, "a") == 3
    with pytest.raises(OverBudget) as caught:
        limit.take("a")
    assert caught.value.retry_after == pytest.approx(0.1)
    assert "0.1 s" in str(caught.value)


def test_a_slowed_principal_gets_a_tenth():
    clock = FakeClock()
    limit = limiter(clock)
    spend(limit, "a", slower=10)
    passed = 0
    for _ in range(1000):
        clock.advance(0.01)
        passed += spend(limit, "a", most=1, slower=10)
    assert 9 <= passed <= 11


def test_setting_the_wall_clock_unlocks_nothing():
    clock = FakeClock()
    limit = limiter(clock)
    spend(limit, "a")
    for jump in (-86_400, 10 * 86_400):
        clock.wall += jump
        assert spend(limit, "a") == 0


def test_check_counts_nothing_and_charge_does():
    limit = limiter(FakeClock())
    for _ in range(20):
        limit.check("a")
    for _ in range(20):
        limit.charge("a")
    with pytest.raises(OverBudget) as caught:
        limit.check("a")
    assert caught.value.retry_after <= 0.1 + 1e-9


def test_a_full_table_forgets_only_who_has_recovered():
    clock = FakeClock()
    limit = limiter(clock, size=3)
    spend(limit, "a")
    clock.advance(0.2)
    limit.take("b")
    clock.advance(0.15)  # b has recovered, a has not
    limit.take("c")
    assert spend(limit, "d") == 5
    assert spend(limit, "a") == 3
    assert "b" not in limit._table and len(limit._table) == 3


def test_beyond_the_table_all_share_one_allowance():
    clock = FakeClock()
    limit = limiter(clock, size=2)
    spend(limit, "a"), spend(limit, "b")
    assert sum(spend(limit, f"new{number}") for number in range(50)) == 5
    assert len(limit._table) == 2
    clock.advance(5)
    assert spend(limit, "new1") == 5


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:" + "x" * 100, "unix:" + "x" * 59),
    ],
)
def test_addresses_are_limited_by_customer(address, key):
    assert address_key(address) == key


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 100)), max_size=30))
def test_steady_time_never_stands_still_nor_goes_back(moves):
    clock = FakeClock()
    steady = SteadyTime(clock)
    before = steady.now_ns()
    for jump, elapsed in moves:
        clock.wall = max(0.0, clock.wall + jump + elapsed)
        clock.up += elapsed
        after = steady.now_ns()
        assert after >= before + int(elapsed * 1e9) - 1000
        assert after >= clock.now_ns()
        before = after


# -- every limit together ---------------------------------------------------------------------------------------------------

ALICE = Principal("alice", "sub_1", ("analyst",), "key:1", ())
BOB = Principal("bob", "sub_2", ("analyst",), "key:2", ())


def limits(clock=None, **options):
    """Limits of which only those that are named are there."""
    flight = {name: options.pop(name) for name in ("in_flight", "in_flight_total") if name in options}
    rates = Rates(**({"account": (0.0, 1.0), "cost": (0.0, 1.0)} | options))
    return Limits((clock or FakeClock()).monotonic, rates, **flight)


def admitted(limit, principal=ALICE, credential="key:1", most=1000):
    for count in range(most):
        try:
            asyncio.run(limit.admit(principal, credential))
        except OverBudget:
            return count
    return most


def taken(limit, units=1.0, principal=ALICE, model="risk", most=1000, **options):
    for count in range(most):
        try:
            asyncio.run(limit.take(principal, model, units, **options))
        except OverBudget:
            return count
    return most


def policy_of(call):
    with pytest.raises(OverBudget) as caught:
        asyncio.run(call)
    return caught.value.policy


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 12)), max_size=120),
    st.integers(1, 10),
    st.floats(0.5, 20),
)  # fmt: skip
def test_a_schedule_never_lets_more_units_through_than_burst_and_rate(steps, burst, rate):
    cell, now, uses = Schedule(Rate("rows", rate, burst, "rows")), 1000.0, []
    for gap, asked in steps:
        now += gap
        units = min(asked, burst)
        try:
            assert cell.take(units, now)
        except OverBudget as refusal:
            assert cell.left(now) < units
            after = now + refusal.retry_after
            assert cell.take(units, after), "waiting as told is enough"
            cell.put_back(units)
            continue
        uses.append((now, now, units))
    assert most_above(uses, rate) <= burst + 1e-3


def test_known_answers_of_a_schedule():
    cell = Schedule(Rate("rows", 2.0, 4.0, "rows"))
    assert cell.left(10.0) == 4.0 and cell.take(3.0, 10.0)
    assert (cell.left(10.0), cell.reset(10.0), cell.left(10.5), cell.left(99.0)) == (1.0, 1.5, 2.0, 4.0)
    with pytest.raises(OverBudget) as caught:
        cell.take(2.0, 10.0)
    assert caught.value.retry_after == pytest.approx(0.5)
    assert (caught.value.policy, caught.value.terms) == ("rows", 'q=4;w=2;modelkeep-unit="rows"')
    with pytest.raises(OverBudget):
        cell.take(4.5, 99.0)
    assert cell.take(4.0, 11.5) and cell.left(11.5) == 0.0


def test_every_dimension_is_limited_by_itself():
    assert admitted(limits(account=(0.1, 5.0))) == 5
    assert admitted(limits(key=(0.1, 4.0))) == 4
    assert taken(limits(cost=(0.1, 6.0)), 2.0) == 3
    assert taken(limits(model=(0.1, 6.0)), 3.0) == 2
    assert taken(limits(account_model=(0.1, 6.0)), 1.0) == 6
    assert admitted(limits(), most=300) == taken(limits(), most=300) == 300


def test_what_is_apart_and_what_is_together():
    clock = FakeClock()
    found = limits(clock, account=(0.1, 10.0), key=(0.1, 6.0), cost=(0.1, 10.0), model=(0.1, 14.0), account_model=(0.1, 6.0))
    assert admitted(found) == 6, "the credential"
    assert admitted(found, credential="key:2") == 4, "another credential of the same account"
    assert admitted(found, BOB, "key:3") == 6, "somebody else"
    assert taken(found) == 6, "this account on this model"
    assert taken(found, model="other") == 4, "this account on all models"
    assert taken(found, principal=BOB) == 6
    assert policy_of(found.take(BOB, "risk", 1.0)) == "account-model"
    carol = Principal("carol", "sub_3", (), "key:9", ())
    assert taken(found, principal=carol) == 2, "everybody on this model"
    assert policy_of(found.take(carol, "risk", 1.0)) == "model"


def test_a_refusal_debits_nothing():
    found = limits(account=(0.1, 5.0), key=(0.1, 2.0), cost=(0.1, 9.0), model=(0.1, 3.0))
    assert admitted(found, credential="key:1") == 2
    for _ in range(10):
        assert admitted(found, credential="key:1") == 0
    assert admitted(found, credential="key:2") == 2 and admitted(found, credential="key:3") == 1
    assert taken(found) == 3
    for _ in range(10):
        assert taken(found) == 0
    assert taken(found, model="other", most=3) == 3 and taken(found, model="third") == 3


def test_a_batch_weighs_its_rows_and_one_that_never_fits_says_so():
    clock = FakeClock()
    found = limits(clock, cost=(100.0, 1000.0))
    assert taken(found, 500.0) == 2
    clock.advance(4.99)
    assert taken(found, 500.0) == 0
    clock.advance(0.02)
    assert taken(found, 500.0) == 1
    with pytest.raises(TooLarge, match=r"1,001 rows at once.*1,000 at most"):
        asyncio.run(found.take(ALICE, "risk", 1001.0))


def test_an_account_on_a_higher_rung_has_a_tenth():
    clock = FakeClock()
    found = limits(clock, account=(10.0, 50.0), cost=(10.0, 100.0), model=(10.0, 100.0))
    assert taken(found, 1.0, share=0.1) == 5, "a tenth of the requests"
    found = limits(clock, cost=(10.0, 100.0), model=(10.0, 100.0))
    assert taken(found, 2.0, share=0.1) == 5, "a tenth of the rows"
    passed = 0
    for _ in range(1000):
        clock.advance(0.01)
        passed += taken(found, 1.0, share=0.1, most=1)
    assert 9 <= passed <= 11
    assert taken(found, 1.0, principal=BOB, most=200) >= 88, "what everybody shares is not lowered"
    tight = limits(clock, account=(10.0, 5.0))
    assert admitted(tight, most=1) == taken(tight, 1.0, share=0.1) == 1, "a tenth of a small burst is not nothing"
    clock.advance(0.9)
    assert taken(tight, share=0.1) == 0
    clock.advance(0.2)
    assert taken(tight, share=0.1) == 1
    found = limits(clock, account=(10.0, 5.0), cost=(10.0, 100.0))
    with pytest.raises(TooLarge, match="10 at most"):
        asyncio.run(found.take(ALICE, "risk", 11.0, 0.1))
    counted = asyncio.run(found.take(ALICE, "risk", 7.0, 0.1))
    assert astuple(found.tightest(counted))[:2] == (Rate("account", 1.0, 1.0, share=0.1), 0.0)


def test_exceptions_of_accounts_keys_and_models():
    own = Override(rate=0.1, burst=7.0, cost_rate=0.1, cost_burst=9.0, cost=3.0)
    found = limits(account=(0.1, 2.0), cost=(0.1, 3.0), accounts={"alice": own})
    assert (admitted(found), admitted(found, BOB, "key:2"), taken(found), taken(found, principal=BOB)) == (7, 2, 9, 3)
    found = limits(account=(0.1, 2.0), accounts={"alice": Override(rate=0.0)})
    assert (admitted(found, most=100), admitted(found, BOB)) == (100, 2)
    found = limits(keys={"1": own})
    assert (admitted(found), admitted(found, credential="key:2", most=20)) == (7, 20)
    assert admitted(found, credential="session:1", most=20) == 20
    found = limits(models={"risk": own})
    assert taken(found) == 7, "from everybody"
    assert taken(found, model="other", most=20) == 20
    found = limits(account_model=(0.1, 4.0), models={"risk": own})
    assert (taken(found, model="other"), taken(found, principal=BOB)) == (4, 7)
    assert (found.row_cost("risk", 0.002), found.row_cost("other", 0.002)) == (3.0, 1.0)
    timed = limits(timed=True, cost=(0.1, 10.0), models={"risk": own})
    assert (timed.row_cost("risk", 0.002), timed.row_cost("other", 0.002)) == (6.0, 2.0)
    assert taken(timed, 2.0, model="other") == 5 and policy_of(timed.take(ALICE, "other", 2.0)) == "time"


def test_the_tightest_limit_is_told():
    clock = FakeClock()
    found = limits(clock, account=(10.0, 50.0), key=(1.0, 20.0), cost=(100.0, 1000.0))
    counted = [*asyncio.run(found.admit(ALICE, "key:1")), *asyncio.run(found.take(ALICE, "risk", 985.0))]
    assert astuple(found.tightest(counted)) == (Rate("rows", 100.0, 1000.0, "rows"), pytest.approx(15.0), pytest.approx(9.85))
    clock.advance(1.0)
    assert astuple(found.tightest(counted))[:2] == (Rate("key", 1.0, 20.0), 20.0)
    assert found.tightest([]) is None


def test_terms_are_what_the_draft_says():
    assert Rate("account", 100.0, 200.0).terms == "q=200;w=2"
    assert Rate("account", 3.0, 1.0).terms == "q=1;w=1"
    assert Rate("time", 0.5, 100.0, "milliseconds").terms == 'q=100;w=200;modelkeep-unit="milliseconds"'


def test_requests_in_flight():
    found = limits(in_flight=2, in_flight_total=3)
    found.enter("a"), found.enter("a"), found.enter("b")
    with pytest.raises(OverBudget, match="2 requests of this account") as caught:
        found.enter("a")
    assert (caught.value.policy, caught.value.terms) == ("in-flight", 'q=2;qu="concurrent-requests"')
    with pytest.raises(Unavailable, match="too many requests"):
        found.enter("b")
    found.leave("a")
    found.enter("b")
    for subject in ("a", "b", "b"):
        found.leave(subject)
    assert found._flying == {} and found._flying_in_all == 0
    free = limits()
    for _ in range(2000):
        free.enter("a")


def test_addresses_are_counted_before_anybody_is_known():
    clock = FakeClock()
    found = limits(clock, address=(10.0, 5.0))

    def knocks(address):
        for count in range(100):
            try:
                found.knock(address)
            except OverBudget as refusal:
                assert refusal.policy == "address"
                return count
        return 100

    assert knocks("192.0.2.1") == 5
    assert knocks("2001:db8::1") == 5
    assert knocks("2001:db8::2") == 0, "the same /64"
    assert knocks("2001:db8:0:1::1") == 5
    clock.advance(0.3)
    assert knocks("192.0.2.1") == 3
    assert limits().knock("192.0.2.1") is None


def test_looking_is_counted_apart():
    found = limits(account=(0.1, 3.0))
    for _ in range(3):
        found.look(ALICE)
    with pytest.raises(OverBudget):
        found.look(ALICE)
    assert admitted(found) == 3
    limits().look(ALICE)


def test_a_table_that_is_full_forgets_only_who_has_recovered():
    clock = FakeClock()
    table = Schedules(clock.monotonic, size=2)
    rate = Rate("account", 1.0, 2.0)
    first, second = table.cell(rate, "a"), table.cell(rate, "b")
    first.take(2.0, clock.up), second.take(1.0, clock.up)
    assert table.cell(rate, "c") is table.cell(rate, "d"), "no room: they share one"
    clock.advance(1.5)
    third = table.cell(rate, "c")
    assert third is not table.cell(rate, "e") and table.cell(rate, "a") is first and table.forgotten == 1 and len(table) == 2
    assert table.cell(rate, "b") is table.cell(rate, "e")


def test_cells_that_were_forgotten_are_not_used_any_more():
    clock = FakeClock()
    found = limits(clock, account=(1.0, 2.0))
    found._cells._size = 1
    assert admitted(found) == 2
    clock.advance(5)
    assert admitted(found, BOB, "key:2") == 2
    clock.advance(5)
    assert admitted(found) == 2 and admitted(found) == 0


def test_a_cell_that_was_forgotten_to_make_room_for_the_next_one_counts_nothing():
    """Who had two keys then had the limit of his account twice."""
    clock = FakeClock()
    cells = Schedules(clock.monotonic, size=3)
    limits = Limits(clock.monotonic, Rates(account=(0.001, 4.0), key=(0.001, 100.0)), cells=cells)

    def asked(principal, credential):
        try:
            asyncio.run(limits.admit(principal, credential))
        except OverBudget:
            return 0
        return 1

    asked(Principal("bob", "sub_bob", (), "key:bob"), "key:bob")
    clock.advance(100_000.0)  # both are idle, and there is room for one more
    alice = Principal("alice", "sub_alice", (), "key:0")
    assert sum(asked(alice, f"key:{number % 2}") for number in range(20)) == 4


def test_addresses_of_one_network_share_its_limit_also_after_it_was_forgotten():
    """One of them was remembered with the cell of before, the next had a fresh one."""
    clock = FakeClock()
    limits = Limits(clock.monotonic, Rates(address=(0.001, 4.0)))
    limits._here = Schedules(clock.monotonic, size=2)

    def let_in(address, times):
        done = 0
        with suppress(OverBudget):
            for _ in range(times):
                limits.knock(address)
                done += 1
        return done

    let_in("2001:db8::1", 1), let_in("192.0.2.1", 1)
    clock.advance(100_000.0)  # all are idle, and the table is full
    let_in("192.0.2.2", 1)
    assert let_in("2001:db8::2", 9) + let_in("2001:db8::1", 9) == 4
