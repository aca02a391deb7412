import pytest
from access_house import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.limits import Limiter, address_key, gcra
from modelkeep.access.steady import SteadyTime
from modelkeep.errors import OverBudget


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
