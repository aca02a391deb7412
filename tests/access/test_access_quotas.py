"""A quota is never exceeded, whatever the replicas do and whenever they die."""

import multiprocessing
import os
import threading

import pytest
from access_house import FakeClock, FlakyRecords
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from modelkeep.access.quotas import IDLE, LARGEST_LEASE, Granted, Quotas, granted_of, lease_size, parse_granted
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.core.ports import Record
from modelkeep.errors import Conflict, NotTrusted, OverBudget, Unavailable

LIMIT = 40


def take_all(quotas, name="key:1", limit=LIMIT, most=10_000):
    for count in range(most):
        try:
            quotas.take(name, limit)
        except OverBudget:
            return count
    return most


def granted(records, name="key:1"):
    return granted_of(records, name)


def test_lease_sizes():
    assert [lease_size(limit, 0) for limit in (1, 15, 32, 1000, 10**6)] == [1, 1, 2, 62, LARGEST_LEASE]
    assert lease_size(1000, 990) == 10 and lease_size(1000, 1000) == lease_size(1000, 2000) == 0


@pytest.mark.parametrize("limit", [1, 2, 15, 16, 17, 40, 1000])
def test_exactly_the_quota_is_let_through(limit):
    assert take_all(Quotas(FlakyRecords(), FakeClock().monotonic), limit=limit) == limit


def test_no_quota_means_no_quota():
    records = FlakyRecords()
    quotas = Quotas(records, FakeClock().monotonic)
    for _ in range(100):
        quotas.take("key:1", None)
    assert records.calls == 0


def test_a_restart_does_not_renew_it():
    records = FlakyRecords()
    assert take_all(Quotas(records, FakeClock().monotonic), most=11) == 11
    assert take_all(Quotas(records, FakeClock().monotonic)) == LIMIT - 12  # one request of a lease of two was lost


def test_a_graceful_stop_loses_nothing():
    records = FlakyRecords()
    first = Quotas(records, FakeClock().monotonic)
    take_all(first, most=11)
    first.give_back()
    assert granted(records) == 11
    assert take_all(Quotas(records, FakeClock().monotonic)) == LIMIT - 11


def test_idle_leases_go_back_and_come_again():
    records, clock = FlakyRecords(), FakeClock()
    quotas = Quotas(records, clock.monotonic)
    quotas.take("key:1", 1000)
    clock.advance(IDLE + 1)
    quotas.refill()
    assert granted(records) == 1 and not quotas._leases
    assert take_all(quotas, limit=1000) == 999


def test_refill_keeps_the_records_off_the_path():
    records, clock = FlakyRecords(), FakeClock()
    quotas = Quotas(records, clock.monotonic)
    quotas.take("key:1", 1000)
    asked = 0
    for _ in range(20):
        quotas.refill()
        calls = records.calls
        for _ in range(25):
            quotas.take("key:1", 1000)
        asked += records.calls - calls
    assert asked == 0


def test_a_spent_quota_does_not_reach_the_records_with_every_request():
    records, clock = FlakyRecords(), FakeClock()
    quotas = Quotas(records, clock.monotonic)
    take_all(quotas)
    calls = records.calls
    for _ in range(100):
        with pytest.raises(OverBudget, match="40 rows") as caught:
            quotas.take("key:1", LIMIT)
    assert records.calls == calls and caught.value.retry_after > 0


def test_a_batch_counts_its_rows_and_all_of_them_or_none():
    records, clock = FlakyRecords(), FakeClock()
    quotas = Quotas(records, clock.monotonic)
    quotas.take("key:1", LIMIT, 30)
    assert granted(records) == 30, "as many as it needs, though a lease is smaller"
    with pytest.raises(OverBudget, match="fewer than 11 left"):
        quotas.take("key:1", LIMIT, 11)
    other = Quotas(records, clock.monotonic)
    other.take("key:1", LIMIT, 7)
    assert take_all(quotas) + take_all(other) == 3
    with pytest.raises(OverBudget, match="is spent"):
        other.take("key:1", LIMIT, 1)


def test_what_is_put_back_can_be_taken_again_and_goes_back_with_the_lease():
    records = FlakyRecords()
    quotas = Quotas(records, FakeClock().monotonic)
    quotas.take("key:1", LIMIT, 30)
    quotas.put_back("key:1", LIMIT, 30)
    assert take_all(quotas, most=25) == 25
    quotas.give_back()
    assert granted(records) == 25
    quotas.put_back("key:1", None, 3)  # no quota, nothing to put back
    assert granted(records) == 25 and take_all(quotas) == LIMIT - 25


def test_a_lease_takes_back_no_more_than_it_gave():
    quotas = Quotas(FlakyRecords(), FakeClock().monotonic)
    quotas.take("key:1", LIMIT)
    for _ in range(5):
        quotas.put_back("key:1", LIMIT, 100)
    assert take_all(quotas) == LIMIT


def test_a_lease_that_went_back_meanwhile_takes_nothing_back():
    records, clock = FlakyRecords(), FakeClock()
    quotas = Quotas(records, clock.monotonic)
    quotas.take("key:1", LIMIT, 7)
    clock.advance(IDLE + 1)
    quotas.refill()
    calls = records.calls
    quotas.put_back("key:1", LIMIT, 7)
    assert records.calls == calls and take_all(quotas) == LIMIT - 7
    changed = Quotas(FlakyRecords(), clock.monotonic)
    changed.take("key:1", LIMIT, 7)
    changed.take("key:1", 2 * LIMIT)
    changed.put_back("key:1", LIMIT, 7)
    assert take_all(changed, limit=2 * LIMIT) == 2 * LIMIT - 8


def test_a_raised_quota_takes_effect_at_once_and_a_lowered_one_too():
    quotas = Quotas(FlakyRecords(), FakeClock().monotonic)
    assert take_all(quotas) == LIMIT
    assert take_all(quotas, limit=100) == 60
    assert take_all(quotas, limit=50) == 0
    fresh = Quotas(FlakyRecords(), FakeClock().monotonic)
    take_all(fresh, limit=1000, most=10)
    assert take_all(fresh, limit=12) == 2


def test_no_records_no_new_lease():
    records = FlakyRecords()
    quotas = Quotas(records, FakeClock().monotonic)
    quotas.take("key:1", 1000)
    records.down = True
    for _ in range(lease_size(1000, 0) - 1):
        quotas.take("key:1", 1000)
    with pytest.raises(Unavailable):
        quotas.take("key:1", 1000)
    with pytest.raises(Unavailable):
        quotas.refill()


@pytest.mark.parametrize("limit", [1, 30, 1000])
def test_a_lease_is_debited_with_compare_and_set(limit):
    """Another gateway spends everything between our read and our write."""
    clock, passed = FakeClock(), []

    class Racing(FlakyRecords):
        def commit(self, changes):
            if not passed:
                passed.append(0)  # the other one's commits come through here, too
                passed[0] = take_all(Quotas(self, clock.monotonic), limit=limit)
            return super().commit(changes)

    assert take_all(Quotas(Racing(), clock.monotonic), limit=limit) == 0
    assert passed == [limit]


def test_endless_conflicts_end():
    class Busy(FlakyRecords):
        def commit(self, changes):
            raise Conflict("somebody was first")

    with pytest.raises(Unavailable, match="at once"):
        Quotas(Busy(), FakeClock().monotonic).take("key:1", LIMIT)


@pytest.mark.parametrize("body", [b"", b"{", b'{"granted":"0"}'])
def test_a_damaged_record_is_not_trusted(body):
    with pytest.raises(NotTrusted):
        parse_granted(Record("quota", "key:1", body, 1))
    assert Granted().granted == 0


def test_threads_of_one_gateway():
    records, total = FlakyRecords(), []
    quotas = Quotas(records, FakeClock().monotonic)
    threads = [threading.Thread(target=lambda: total.append(take_all(quotas, limit=500))) for _ in range(4)]
    refilling = threading.Thread(target=lambda: [quotas.refill() for _ in range(200)])
    for thread in (*threads, refilling):
        thread.start()
    for thread in (*threads, refilling):
        thread.join()
    quotas.give_back()
    assert sum(total) == granted(records) <= 500


class Replicas(RuleBasedStateMachine):
    """Gateways come, take, refill, idle, lose the records, stop and crash: what passed never exceeds the quota."""

    replicas = Bundle("replicas")

    def __init__(self):
        super().__init__()
        self.records, self.clock = FlakyRecords(), FakeClock()
        self.passed = self.losses = 0
        self.living, self.asked = [], []

    @rule(target=replicas)
    def start(self):
        self.living.append(Quotas(self.records, self.clock.monotonic))
        return self.living[-1]

    @rule(replica=replicas, count=st.integers(1, 12))
    def take(self, replica, count):
        for _ in range(count):
            try:
                replica.take("key:1", LIMIT)
            except (OverBudget, Unavailable):
                return
            self.passed += 1

    @rule(replica=replicas, rows=st.integers(1, 6))
    def ask(self, replica, rows):
        """A batch whose answer comes later, or fails."""
        try:
            replica.take("key:1", LIMIT, rows)
        except (OverBudget, Unavailable):
            return
        self.asked.append((replica, rows))

    @precondition(lambda self: self.asked)
    @rule(answered=st.booleans())
    def end(self, answered):
        replica, rows = self.asked.pop(0)
        if answered or replica not in self.living:
            self.passed += rows
            return
        lease = replica._leases.get("key:1")
        before = lease.left if lease else 0
        replica.put_back("key:1", LIMIT, rows)
        if lease is None or lease.left < before + rows:
            self.losses += 1  # the lease that it came from went back

    @rule(replica=replicas)
    def refill(self, replica):
        try:
            replica.refill()
        except Unavailable:
            assert self.records.down
            self.losses += 1  # an idle lease that could not be returned is lost

    @rule(replica=consumes(replicas))
    def crash(self, replica):
        self.living.remove(replica)
        self.losses += 1

    @precondition(lambda self: not self.records.down)
    @rule(replica=consumes(replicas))
    def stop(self, replica):
        replica.give_back()
        self.living.remove(replica)

    @rule(seconds=st.sampled_from([0.5, 2.0, 61.0]), jump=st.sampled_from([0, -86_400, 86_400]))
    def wait(self, seconds, jump):
        self.clock.advance(seconds)
        self.clock.wall += jump

    @rule()
    def records_fail_or_recover(self):
        self.records.down = not self.records.down

    @invariant()
    def never_more_than_the_quota(self):
        assert self.passed + sum(rows for _, rows in self.asked) <= LIMIT

    def teardown(self):
        self.records.down = False
        self.passed += sum(rows for _, rows in self.asked)
        for replica in self.living:
            while True:
                self.clock.advance(2)
                try:
                    replica.take("key:1", LIMIT)
                except OverBudget:
                    break
                self.passed += 1
            replica.give_back()
        assert self.passed <= LIMIT
        if self.living and not self.losses:
            assert self.passed == LIMIT


Replicas.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestReplicas = Replicas.TestCase


def _gateway(path, dies, results):
    records = SqliteRecords(path)
    quotas = Quotas(records, FakeClock().monotonic)
    count = take_all(quotas, limit=300, most=20 if dies else 10_000)
    results.put(count)
    results.close()
    results.join_thread()
    if dies:
        os._exit(9)  # with a lease in hand
    records.close()


def test_processes_that_share_the_records_and_one_that_dies(tmp_path):
    path = tmp_path / "records.db"
    SqliteRecords.create(path).close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_gateway, args=(path, number == 0, results)) for number in range(4)]
    for process in processes:
        process.start()
    counts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert 300 - lease_size(300, 0) <= sum(counts) <= 300
    results.close()
    results.join_thread()
