"""Leases of shared limits: N replicas exceed no limit by more than one lease each, whatever they and the place do."""

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lease_history
import pytest
from access_house import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, precondition, rule
from lease_history import ALICE, LEASE, LIMITS, Break, Line, faults, most_above, read
from services import Redis

from modelkeep.access.leases import IDLE, MOST_AT_ONCE, Lease, Leases, largest
from modelkeep.access.limits import Limits
from modelkeep.access.rates import Rate, Rates
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.adapters.state.memory import MemoryAllowances
from modelkeep.errors import NotTrusted, OverBudget, Unavailable


class Place(MemoryAllowances):
    """The place that counts, which can be away, and which counts how often it was asked."""

    def __init__(self, monotonic):
        super().__init__(monotonic)
        self.away, self.calls, self.granted = False, 0, {}

    def _reach(self):
        self.calls += 1
        if self.away:
            raise Unavailable("the place is away")

    def grant(self, wants):
        self._reach()
        found = super().grant(wants)
        for want, answer in zip(wants, found.given, strict=True):
            self.granted[want.name] = self.granted.get(want.name, 0.0) + answer.units
        return found

    def give_back(self, epoch, units):
        self._reach()
        super().give_back(epoch, units)


class Desk:
    """A clock, a place, and a replica whose exchanges the test makes."""

    def __init__(self, *, account=(0.5, 40.0), size=1000, **rates):
        self.clock = FakeClock()
        self.place = Place(self.clock.monotonic)
        self.leases = Leases(self.place, self.clock.monotonic, size=size)
        self.limits = Limits(self.clock.monotonic, Rates(account=account, **rates), cells=self.leases)

    def exchange(self, rounds=10):
        while self.leases.work() and rounds:
            rounds -= 1

    def ask(self, times=1, credential="key:1"):
        """Requests that wait for an exchange when they must."""

        async def run():
            asking = asyncio.ensure_future(self.limits.admit(ALICE, credential))
            await asyncio.sleep(0)
            while not asking.done():
                self.exchange()
                await asyncio.sleep(0)
            return await asking

        for count in range(times):
            try:
                asyncio.run(run())
            except OverBudget:
                return count
        return times

    def lease(self) -> Lease:
        return next(iter(self.leases._table.values()))


def test_the_burst_is_let_through_and_not_one_request_more():
    desk = Desk()
    assert desk.ask(100) == 40
    desk.clock.advance(2.0)
    assert desk.ask(10) == 1


def test_a_lease_in_hand_asks_nobody_and_is_topped_up_at_half():
    desk = Desk(account=(100.0, 800.0))
    for _ in range(60):
        desk.ask(3)
        desk.exchange()
    assert desk.lease().size == largest(desk.lease().rate) == 100.0
    desk.exchange()
    before, held = desk.place.calls, desk.lease().held
    assert held >= 50
    for _ in range(int(held - 50)):
        desk.ask()
    assert desk.place.calls == before
    desk.ask()
    desk.exchange()
    assert desk.place.calls == before + 1 and desk.lease().held == 100.0


def test_small_limits_have_small_leases_and_rare_users_small_ones():
    assert [largest(Rate("account", 1.0, burst)) for burst in (1, 8, 9, 800)] == [1, 1, 9 / 8, 100]
    desk = Desk(account=(100.0, 800.0))
    for _ in range(8):
        desk.ask(2)
        desk.exchange()
    grown = desk.lease().size
    for _ in range(10):
        desk.clock.advance(3.0)
        desk.ask()
        desk.exchange()
    assert desk.lease().size < grown and desk.lease().size == 1.0


def test_the_place_is_away_then_nothing_is_let_through_when_the_lease_ends():
    """P5."""
    desk = Desk(account=(100.0, 800.0))
    for _ in range(10):
        desk.ask(5)
        desk.exchange()
    desk.place.away = True
    held = desk.lease().held
    assert held > 3
    assert desk.ask(2) == 2
    desk.clock.advance(LEASE - 0.001)
    assert desk.ask() == 1, "the lease in hand is good until it ends"
    desk.clock.advance(0.002)
    with pytest.raises(Unavailable, match="away"):
        desk.ask()
    with pytest.raises(Unavailable, match="away"):
        desk.limits.check()
    desk.place.away = False
    desk.clock.advance(0.2)
    assert desk.ask() == 1
    desk.limits.check()


def test_while_the_place_is_away_nobody_waits_for_it_each_time():
    desk = Desk()
    desk.place.away = True
    for _ in range(50):
        with pytest.raises(Unavailable):
            desk.ask()
    assert desk.place.calls == 1


def test_who_is_refused_is_refused_without_asking_again_for_a_while():
    desk = Desk()
    desk.ask(100)
    calls = desk.place.calls
    for _ in range(50):
        assert desk.ask() == 0
    assert desk.place.calls == calls
    try:
        asyncio.run(desk.limits.admit(ALICE, "key:1"))
    except OverBudget as refusal:
        assert 1.5 < refusal.retry_after <= 2.0 and refusal.policy == "account"


def test_a_place_that_forgot_ends_every_lease():
    desk = Desk(account=(100.0, 800.0))
    for _ in range(10):
        desk.ask(5)
        desk.exchange()
    assert desk.lease().held > 5
    desk.place.forget()
    desk.leases.ask_soon(desk.lease())
    desk.exchange()
    with pytest.raises(Unavailable, match="was lost"):
        desk.ask()
    desk.clock.advance(8.01)
    assert desk.ask() == 1


def test_a_lease_in_use_is_renewed_and_an_unused_one_given_back():
    desk = Desk(account=(0.001, 400.0))
    for _ in range(8):
        desk.ask(3)
        desk.exchange()
    held = desk.lease().held
    assert held > 4
    desk.clock.advance(LEASE - 0.3)
    desk.ask()
    desk.leases.tend()
    desk.exchange()
    desk.clock.advance(0.5)
    assert desk.ask(1) == 1
    calls = desk.place.calls
    assert desk.place.calls == calls, "renewed"
    desk.clock.advance(2 * LEASE)
    desk.leases.tend()
    assert desk.lease().held == 0
    assert desk.ask(1000) == 400 - 26, "what was not used was not lost"


def test_an_idle_process_stays_in_touch():
    desk = Desk()
    for _ in range(3):
        desk.clock.advance(IDLE)
        desk.leases.tend()
    assert desk.place.calls == 3
    desk.place.away = True
    desk.clock.advance(IDLE)
    desk.leases.tend()
    with pytest.raises(Unavailable):
        desk.limits.check()


def test_a_graceful_stop_returns_everything():
    desk = Desk()
    desk.ask(3)
    desk.exchange()
    desk.leases.stop()
    other = Leases(desk.place, desk.clock.monotonic)
    desk.limits = Limits(desk.clock.monotonic, Rates(account=(0.5, 40.0)), cells=other)
    desk.leases = other
    assert desk.ask(100) == 37


def test_requests_that_wait_together_share_one_exchange():
    desk = Desk(account=(1.0, 400.0))

    async def run():
        asking = [asyncio.ensure_future(desk.limits.admit(ALICE, "key:1")) for _ in range(30)]
        await asyncio.sleep(0)
        desk.leases.work()
        return await asyncio.gather(*asking)

    assert len(asyncio.run(run())) == 30
    assert desk.place.calls == 1


def test_what_is_refused_in_one_limit_is_not_used_up_in_another():
    desk = Desk(account=(0.001, 100.0), key=(0.001, 5.0))
    assert desk.ask(50) == 5
    assert desk.ask(50, credential="key:2") == 5
    table = {lease.name: lease for lease in desk.leases._table.values()}
    assert table["account/sub_1"].held == desk.place.granted["account/sub_1"] - 10


def test_a_lowered_limit_is_counted_beside_the_usual_one():
    desk = Desk(account=(10.0, 100.0), cost=(10.0, 1000.0))

    async def run(share):
        asking = asyncio.ensure_future(desk.limits.take(ALICE, "risk", 50.0, share))
        await asyncio.sleep(0)
        while not asking.done():
            desk.exchange()
            await asyncio.sleep(0)
        return await asking

    asyncio.run(run(0.1)), asyncio.run(run(0.1))
    with pytest.raises(OverBudget):
        asyncio.run(run(0.1))
    assert {name: units for name, units in desk.place.granted.items() if units >= 100} == {
        "rows/sub_1": pytest.approx(100, abs=60),
        "rows@0.1/sub_1": 100.0,
    }
    asyncio.run(run(1.0))


def test_too_many_cells_are_refused_until_some_are_idle():
    desk = Desk(account=(0.0, 1.0), key=(1.0, 5.0), size=3)
    assert [desk.ask(credential=f"key:{number}") for number in range(3)] == [1, 1, 1]
    with pytest.raises(Unavailable, match="too many"):
        desk.ask(credential="key:9")
    desk.exchange()
    desk.clock.advance(2.1)
    assert desk.ask(credential="key:9") == 1
    assert len(desk.leases) == 1


def test_many_low_leases_are_topped_up_in_bounded_exchanges():
    desk = Desk(account=(0.0, 1.0), key=(1.0, 50.0), size=5000)
    with desk.leases.lock:
        for number in range(MOST_AT_ONCE + 10):
            desk.leases.ask_soon(desk.leases.cell(Rate("key", 1.0, 50.0), f"key:{number}"))
    assert desk.leases.work() and not desk.leases.work()
    assert desk.place.calls == 2


# -- any interleaving, in a world whose clock the test moves -------------------------------------------------------------------

RATE, BURST = 10.0, 64.0


class Replicas(RuleBasedStateMachine):
    """Several replicas on one place that forgets, goes away and comes back; replicas that die or stop."""

    replicas = Bundle("replicas")

    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.place = Place(self.clock.monotonic)
        self.uses, self.living, self.most_living = [], [], 0
        self.lost_at, self.away_at = [], None

    @initialize(target=replicas)
    def start_two(self):
        return multiple(self.start(), self.start())

    @rule(target=replicas)
    def start(self):
        leases = Leases(self.place, self.clock.monotonic)
        replica = (leases, leases.cell(Rate("account", RATE, BURST), "sub_1"))
        self.living.append(replica)
        self.most_living = max(self.most_living, len(self.living))
        return replica

    @rule(replica=replicas, count=st.integers(1, 12))
    def use(self, replica, count):
        leases, lease = replica
        for _ in range(count):
            now = self.clock.monotonic()
            try:
                had = lease.take(1.0, now)
                if not had:
                    leases.ask([(lease, 1.0)], lambda failure: None)
                    leases.work()
                    had = lease.take(1.0, now)
            except (OverBudget, Unavailable):
                return
            if had:
                self.uses.append((now, now, 1.0))
                assert self.away_at is None or now < self.away_at + LEASE, "P5"
                for lost in self.lost_at:
                    assert not lost + LEASE <= now < lost + BURST / RATE, "after a loss"

    @rule(replica=replicas)
    def exchange(self, replica):
        replica[0].work()

    @rule(replica=replicas)
    def tend(self, replica):
        replica[0].tend()

    @rule(replica=consumes(replicas))
    def crash(self, replica):
        self.living.remove(replica)

    @precondition(lambda self: self.away_at is None)
    @rule(replica=consumes(replicas))
    def stop(self, replica):
        replica[0].stop()
        self.living.remove(replica)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 2.0, 8.0]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: self.away_at is None)
    @rule(seconds=st.sampled_from([0.0, LEASE]))
    def go_away(self, seconds):
        self.place.away, self.away_at = True, self.clock.monotonic()
        self.clock.advance(seconds)

    @precondition(lambda self: self.away_at is not None)
    @rule()
    def come_back(self):
        self.place.away, self.away_at = False, None

    @precondition(lambda self: self.away_at is None)
    @rule()
    def forget(self):
        self.place.forget()
        self.lost_at.append(self.clock.monotonic())

    @invariant()
    def never_more_than_one_lease_each_above_the_limit(self):
        spare = self.most_living * largest(Rate("account", RATE, BURST))
        assert most_above(self.uses, RATE) <= BURST + spare + 1e-6


Replicas.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestReplicas = Replicas.TestCase


# -- the checker, and real processes on a real server ----------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 3), st.floats(0, 5)), max_size=25), st.floats(0.1, 10))
def test_the_checker_looks_at_every_window(steps, rate):
    uses = sorted(((start, start + took, units) for start, took, units in steps), key=lambda use: use[1])
    every = [
        sum(units for _, _, units in uses[i : j + 1]) - rate * (uses[j][1] - min(start for start, _, _ in uses[i:]))
        for i in range(len(uses))
        for j in range(i, len(uses))
    ]
    assert most_above(uses, rate) == pytest.approx(max([*every, 0.0]), abs=1e-6)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5)), max_size=25), st.floats(0.1, 10), st.data())
def test_the_checker_never_says_more_than_the_times_that_are_known_allow(uses, rate, data):
    exact = most_above([(at, at, units) for at, units in uses], rate)
    known = [(at - data.draw(st.floats(0, 2)), at + data.draw(st.floats(0, 2)), units) for at, units in uses]
    assert most_above(known, rate) <= exact + 1e-6


def history(kind="use", *, at=(0.0,), units=1.0, limit="account"):
    return [Line(kind, when, when, limit, units) for when in at]


@pytest.mark.parametrize(
    ("lines", "breaks", "words"),
    [
        (history(at=[0.0] * 111), [], "use of account: 111.0 above the rate"),
        (history("grant", at=[1.0, 1.01], units=41.0), [], "grant of account: 81.6 above the rate"),
        (history("grant", at=[6.0]), [Break("lost", 4.9, 5.0)], "granted 1.00 s after it was lost"),
        (history(at=[6.5]), [Break("lost", 4.9, 5.0)], "used 1.50 s after it was lost"),
        (history(at=[6.5], limit="rows"), [Break("silent", 5.0, 7.0)], "used 1.50 s into silence"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_is_wrong(lines, breaks, words):
    assert any(words in fault for fault in faults(lines, breaks, 3))


def test_the_checker_finds_nothing_in_what_is_right():
    lines = history(at=[0.0] * 80) + history(at=[number / 40 for number in range(200)]) + history("grant", at=[0.0] * 80)
    assert faults(lines, [Break("lost", 9.9, 10.0), Break("silent", 20.0, 22.0)], 3) == []


class Crowd:
    """Replicas in processes of their own."""

    def __init__(self, server: Redis, folder: Path) -> None:
        self.path = folder / "history"
        self.path.touch()
        self._arguments = [server.url, str(self.path), str(folder / "records.db")]
        SqliteRecords.create(folder / "records.db").close()
        self.living: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self):
        command = [sys.executable, lease_history.__file__, *self._arguments]
        self.living.append(subprocess.Popen(command))
        self.started += 1

    def kill(self, choose: random.Random):
        victim = self.living.pop(choose.randrange(len(self.living)))
        victim.kill()
        victim.wait()

    def wait_for(self, enough):
        """Wait until ``enough`` of what they have written, while they live."""
        end = time.monotonic() + 120
        while not enough(read(self.path)):
            assert time.monotonic() < end and any(one.poll() is None for one in self.living)
            time.sleep(0.1)

    def end(self):
        self.path.with_name("history.over").touch()
        return [one.wait(60) for one in self.living]


def test_replicas_that_are_killed_on_a_server_that_forgets_restarts_and_hangs(tmp_path):
    """P6 and P5 over a recorded history."""
    choose = random.Random(11)
    server = Redis()
    crowd, breaks = Crowd(server, tmp_path), []

    def pause(low, high):
        time.sleep(choose.uniform(low, high))

    def loses(how):
        start = time.monotonic()
        how()
        breaks.append(Break("lost", start, time.monotonic()))

    def restart():
        server.stop()
        server.start()

    def goes_on(lines):
        last = max(one.end for one in breaks)
        late = [(line.limit, line.end - last) for line in lines if line.kind == "use"]
        return all(
            sum(limit == name and since > rate.window for limit, since in late) * 2 > rate.per_second
            for name, rate in LIMITS.items()
        )

    try:
        for _ in range(3):
            crowd.start()
        crowd.wait_for(lambda lines: sum(line.kind == "use" for line in lines) >= 150)
        crowd.kill(choose)
        crowd.start()
        pause(0.3, 0.8)
        loses(server.flush)
        pause(2.5, 3.0)
        start = time.monotonic()
        server.pause()
        pause(1.5, 1.8)
        crowd.wait_for(lambda lines: any(line.kind == "down" and line.start > start for line in lines))
        breaks.append(Break("silent", start, time.monotonic()))
        server.pause(go_on=True)
        pause(0.3, 0.6)
        stopped = crowd.living[0]
        stopped.send_signal(signal.SIGSTOP)
        loses(restart)
        pause(1.2, 1.5)
        stopped.send_signal(signal.SIGCONT)
        crowd.kill(choose)
        crowd.wait_for(goes_on)
        assert set(crowd.end()) == {0}
    finally:
        for one in crowd.living:
            one.kill()
            one.wait()
        server.close()
    lines = read(crowd.path)
    assert faults(lines, breaks, crowd.started) == []
    assert {line.kind for line in lines} == {"use", "grant", "refused", "down"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("broken", "lives"), [(NotTrusted("the records are damaged"), True), (ValueError("no number"), False)])
def test_whatever_the_place_raises_denies_and_says_so(broken, lives, monkeypatch):
    """It ended the thread: requests waited until they were cut, and health knew of nothing."""
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)  # hardened processes end

    class Broken(Place):
        def grant(self, wants):
            raise broken

    leases = Leases(Broken(time.monotonic), time.monotonic)
    limits = Limits(time.monotonic, Rates(), cells=leases)

    async def asked():
        await asyncio.wait_for(limits.admit(ALICE, "key:1"), 60.0)

    leases.start()
    if lives:
        with pytest.raises(Unavailable, match="damaged"):
            asyncio.run(asked())
    else:
        leases._thread.join(60)  # it stays in touch by itself, twice a second
    with pytest.raises(Unavailable):
        asyncio.run(asked())
    assert limits.trouble() and leases._thread.is_alive() is lives
    leases.stop()
