"""Evidence that workers share: one suite for evidence of this process and of an owner, and what only an owner must do.

The links are queues of this test; the owner and the workers are the real ones, and so is the guard.
"""

import threading
import time

import msgspec
import numpy as np
import pytest
from sharing import FEATURES, ONE, TWO, Log, OwnersHouse, answer, soon, told

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.state.memory import MemoryAllowances
from modelkeep.core.ports import Want
from modelkeep.core.tallies import Series
from modelkeep.errors import Invalid, OverBudget, Unavailable
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.layer import Inner
from modelkeep.workflows.evidence import OwnEvidence
from modelkeep.workflows.sharing import (
    PART_ROWS,
    Answered,
    Answers,
    Beat,
    Borrow,
    Borrowed,
    Examined,
    Follow,
    GiveBack,
    Tally,
    answered,
    encode,
    for_owner,
    for_worker,
    parts,
)
from modelkeep.workflows.watch import ROWS_BEHIND, UNSEEN_ROWS, Calibrated, Cleared, Erased, Observation, explained
from modelkeep.workflows.worker import SharedAllowances, SharedEvidence


@pytest.fixture(scope="module")
def profile():
    return fit_profile(np.random.default_rng(1).normal(size=(240, FEATURES)), told, seed=1)


@pytest.fixture
def house(profile):
    made = OwnersHouse(profile).start()
    yield made
    made.stop()


def thief(rng, rows=16):
    return rng.uniform(-9, 9, (rows, FEATURES)).astype(np.float32)


# -- one suite, two kinds of evidence --


@pytest.fixture(params=["own", "shared"])
def evidence(request, profile):
    if request.param == "own":
        yield OwnEvidence(Log(), Guard)
        return
    made = OwnersHouse(profile).start()
    yield made.worker(workers=1)
    made.stop()


def test_what_is_handed_over_is_in_the_verdict_once_work_returns(evidence, profile):
    watch = evidence.watch(ONE, profile)
    assert evidence.watch(ONE, profile) is watch and dict(evidence.by_release()) == {ONE: watch}
    assert watch.rung("ada") is Rung.MARK and watch.verdict("ada").queries == 0 and watch.subjects() == []
    rng = np.random.default_rng(2)
    watch.reserve("ada", 3)
    watch.reserve("ben", 2)
    watch.submit(answer(0, "ada", rng.normal(size=(3, FEATURES))))
    watch.submit(answer(1, "ben", rng.normal(size=(2, FEATURES))))
    assert (watch.behind("ada"), watch.rows_behind()) == (3, 5)
    assert watch.work() == {"ada": 3, "ben": 2}
    assert (watch.verdict("ada").queries, watch.verdict("ben").queries) == (3, 2)
    assert sorted(watch.subjects()) == ["ada", "ben"]
    watch.release("ada", 3)
    watch.release("ben", 2)
    assert (watch.behind("ada"), watch.rows_behind()) == (0, 0)
    assert watch.work() == {}


def test_a_thief_is_seen_and_the_others_are_not(evidence, profile):
    watch, rng, at = evidence.watch(ONE, profile), np.random.default_rng(3), 0
    while watch.rung("thief") is not Rung.ALARM:
        watch.submit(answer(at, "thief", thief(rng)))
        watch.submit(answer(at + 1, "honest", rng.normal(size=(1, FEATURES))))
        watch.work()
        at += 2
        assert at < 200
    assert (watch.alarmed(), watch.alarms) == (["thief"], 1)
    assert watch.verdict("thief").alarmed_at and watch.rung("honest") is Rung.MARK


def test_the_evidence_is_the_same_wherever_it_is_kept(evidence, profile):
    watch, guard, rng = evidence.watch(ONE, profile), Guard(profile), np.random.default_rng(4)
    for at in range(12):
        one = answer(at, "ada", thief(rng, 5) if at % 2 else rng.normal(size=(5, FEATURES)))
        watch.submit(one)
        watch.work()
        guard.observe("ada", np.asarray(one.x, np.float64), one.probs)
    assert watch.verdict("ada") == guard.verdict("ada")


@pytest.mark.parametrize("kept", ["own", "shared"])
def test_a_calibration_is_in_force_once_it_is_taken_in(profile, kept):
    house = OwnersHouse(profile).start()
    mine = house.worker(workers=1) if kept == "shared" else OwnEvidence(Log(), Guard)
    take = house.owner.decided if kept == "shared" else mine.take
    watch, rng = mine.watch(ONE, profile), np.random.default_rng(3)
    watch.submit(answer(0, "thief", thief(rng)))
    watch.submit(answer(1, "ada", thief(rng, 5)))
    watch.work()
    assert watch.verdict("ada").log_m > 0.0 and watch.rung("thief") is Rung.ALARM
    never = tuple([0.9] * len(profile.kappa))  # a null that nobody can leave
    take(Calibrated(TWO, 4, never))
    take(Calibrated(ONE, 5, never))
    soon(lambda: watch.verdict("ada").log_m < 0.0)
    assert watch.rung("thief") is Rung.ALARM, "an alarm waits for its review"
    take(Calibrated(ONE, 5, tuple(profile.kappa)))
    watch.submit(answer(2, "ada", thief(rng, 200)))
    watch.work()
    assert watch.rung("ada") is Rung.MARK, "what was taken in is not taken in again"
    take(Calibrated(ONE, 6, never[1:]))
    if kept == "own":
        with pytest.raises(Unavailable):
            watch.rung("ada")
    house.stop()


def test_what_comes_back_after_a_restart_is_judged_by_the_calibration_of_its_time(profile):
    log, rng = Log(), np.random.default_rng(3)
    log.calibrated = [Calibrated(ONE, 5, tuple([0.9] * len(profile.kappa)))]
    for at in range(3):
        log.write(answer(at, "thief", thief(rng)))
    log.publish()
    again = OwnEvidence(log, Guard).watch(ONE, profile)
    assert again.rung("thief") is Rung.ALARM and again.verdict("thief").log_m < 0.0


def test_an_explanation_is_charged_to_the_budget_and_accuses_nobody(evidence, profile):
    watch, rng = evidence.watch(ONE, profile), np.random.default_rng(6)
    watch.submit(explained(0, "ada", FEATURES, "1-gateway-0"))
    assert watch.work() == {"ada": 0} and watch.subjects() == ["ada"]
    assert watch.verdict("ada").budget.equivalent == FEATURES + 1
    for at in range(1, 1 + 1000 // (FEATURES + 1)):
        watch.submit(explained(at, "ada", FEATURES, "1-gateway-0"))
    watch.submit(answer(5000, "ben", rng.normal(size=(3, FEATURES)), "1-gateway-0"))
    assert watch.work()["ben"] == 3
    verdict = watch.verdict("ada")
    assert verdict.budget.share >= 1.0 and watch.rung("ada") is Rung.QUANTISED
    assert (verdict.queries, verdict.uncovered, verdict.alarmed_at, watch.alarms) == (0, True, None, 0)
    assert watch.rung("ben") is Rung.MARK


def test_the_backlog_of_an_account_is_bounded(evidence, profile):
    watch = evidence.watch(ONE, profile)
    watch.reserve("ada", ROWS_BEHIND)
    with pytest.raises(OverBudget):
        watch.reserve("ada", 1)
    watch.reserve("ben", 1)
    assert watch.unseen_rows == UNSEEN_ROWS


def test_who_gave_up_serves_nobody(evidence, profile):
    watch = evidence.watch(ONE, profile)
    watch.give_up()
    with pytest.raises(Unavailable, match="restart the gateway"):
        watch.rung("ada")


# -- several workers --


def test_an_account_that_goes_round_the_workers_is_judged_as_one(house, profile):
    watches = [house.worker().watch(ONE, profile) for _ in range(3)]
    alone, rng = Guard(profile), np.random.default_rng(5)
    for turn in range(60):
        one = answer(turn // 3, "thief", thief(rng, 1), f"1-gateway-{turn % 3}")
        watches[turn % 3].submit(one)
        watches[turn % 3].work()
        alone.observe("thief", np.asarray(one.x, np.float64), one.probs)
        for watch in watches:
            soon(lambda watch=watch: watch.verdict("thief") == alone.verdict("thief"))
    assert alone.verdict("thief").rung is Rung.ALARM and all(watch.rung("thief") is Rung.ALARM for watch in watches)


def test_the_bounds_are_divided_so_that_together_they_are_those_of_one(house, profile):
    watches = [house.worker(workers=4).watch(ONE, profile) for _ in range(4)]
    assert sum(watch.unseen_rows for watch in watches) == UNSEEN_ROWS
    for watch in watches:
        watch.reserve("ada", ROWS_BEHIND // 4)
        with pytest.raises(OverBudget):
            watch.reserve("ada", 1)


def test_a_worker_that_comes_later_is_told_everything(house, profile):
    first, rng = house.worker().watch(ONE, profile), np.random.default_rng(6)
    for at in range(1100):
        first.submit(answer(at, f"account {at}", rng.normal(size=(1, FEATURES))))
    first.work()
    late = house.worker().watch(ONE, profile)
    assert len(late.subjects()) == 1100
    assert all(late.verdict(name) == first.verdict(name) for name in first.subjects())


def test_a_batch_is_sent_in_parts_and_in_order():
    x = np.zeros((100, FEATURES), np.float32)
    cut = parts([answer(at, "ada", x) for at in range(7)])
    assert [one.at for part in cut for one in part] == list(range(7))
    assert all(sum(one.rows for one in part) <= PART_ROWS for part in cut) and len(cut) == 4
    assert len(parts([answer(0, "ada", np.zeros((1000, FEATURES)))])) == 1
    assert parts([]) == []
    wide = Observation(3, "ada", np.full((2, FEATURES), 0.1), np.empty((2, 0)), "i", covariates=("net-00000000000000aa",))
    (back,) = [one.observation() for part in parts([wide]) for one in part]
    assert (back.x == wide.x).all() and back.probs.shape == (2, 0) and (back.at, back.instance) == (3, "i")
    assert back.covariates == wide.covariates


def test_accounts_that_share_a_network_are_one_over_all_workers(house, profile):
    """Each account asks another worker, and everybody is told what becomes of all."""
    workers, rng, net = [house.worker() for _ in range(2)], np.random.default_rng(5), ("net-00000000000000aa",)
    watches = [worker.watch(ONE, profile) for worker in workers]
    for turn in range(80):
        one = answer(turn // 2, f"thief-{turn % 6}", thief(rng, 1), f"1-gateway-{turn % 2}")
        watches[turn % 2].submit(msgspec.structs.replace(one, covariates=net))
        watches[turn % 2].work()
        if watches[turn % 2].verdict(one.subject).cases:
            break
    assert all(watch.alarmed() == [] for watch in watches)
    soon(lambda: all(watch.verdict(f"thief-{i}").cases == net for watch in watches for i in range(6)))
    house.owner.decided(Cleared(net[0], 1))
    soon(lambda: all(watch.verdict(f"thief-{i}").cases == () for watch in watches for i in range(6)))
    with pytest.raises(Invalid):
        bad = msgspec.structs.replace(answer(99, "ada", thief(rng, 1)), covariates=("sub_1",))
        house.owner._kept[str(ONE)].checked(answered(bad))


def test_what_was_decided_reaches_every_worker(house, profile):
    watches, rng, at = [house.worker().watch(ONE, profile) for _ in range(2)], np.random.default_rng(7), 0
    while watches[0].rung("thief") is not Rung.ALARM:
        watches[0].submit(answer(at, "thief", thief(rng)))
        watches[0].work()
        at += 1
    soon(lambda: watches[1].rung("thief") is Rung.ALARM)
    house.owner.decided(Cleared("thief", 1))
    soon(lambda: all(watch.rung("thief") is not Rung.ALARM and watch.alarms == 0 for watch in watches))
    assert watches[1].verdict("thief").queries == 16 * at
    house.owner.decided(Erased("thief"))
    soon(lambda: all(watch.subjects() == [] for watch in watches))
    assert house.log.forgotten == ["thief"]


# -- the owner is gone --


def test_a_worker_drops_the_key_of_whoever_is_erased_from_its_memory():
    """docs/erasure.md says so of every gateway; workers kept it until they ended."""
    dropped = []
    worker = SharedEvidence(SystemClock(), workers=2, publish=lambda: None, forget=dropped.append)
    for decision in (Erased("sub_1"), Cleared("sub_2", 7)):
        worker.take(decision)
    assert dropped == ["sub_1"]


def test_without_an_owner_nothing_is_served_and_its_successor_knows_all(house, profile):
    log, rng = house.log, np.random.default_rng(8)
    shared = [house.worker() for _ in range(2)]
    watches = [one.watch(ONE, profile) for one in shared]

    def ask(number, at):
        one = answer(at, "ada", rng.normal(size=(2, FEATURES)), f"1-gateway-{number}")
        log.write(one)
        watches[number].submit(one)

    for at in range(5):
        ask(0, at)
        watches[0].work()
        ask(1, at)
        watches[1].work()
    before = house.owner._evidence.by_release()[ONE].verdict("ada")
    ask(0, 5)  # answered, and on its way when the owner dies
    house.die()
    for watch in watches:
        with pytest.raises(Unavailable):
            watch.rung("ada")
        assert watch.verdict("ada").queries <= 20  # what was told last is still shown
    with pytest.raises(Unavailable):
        watches[0].work()
    with pytest.raises(Unavailable):
        shared[0].check()
    house.start()
    for one in shared:
        house.link(one)
    soon(lambda: all(watch.ready for watch in watches))
    soon(lambda: not failing(watches[0]))
    watches[0].work()
    after = house.owner._evidence.by_release()[ONE].verdict("ada")
    assert (before.queries, after.queries) == (20, 22)
    ask(1, 5)
    assert watches[1].work() == {"ada": 2}
    soon(lambda: watches[0].verdict("ada").queries == 24)


def failing(watch):
    try:
        watch.rung("ada")
    except Unavailable:
        return True
    return False


def test_what_is_sent_twice_counts_once(house, profile):
    shared = house.worker()
    watch, rng = shared.watch(ONE, profile), np.random.default_rng(9)
    wire = house.wires[0]
    wire.held = []  # the owner examines, and its answer is lost
    one = answer(0, "ada", rng.normal(size=(3, FEATURES)))
    watch.submit(one)
    refused = []

    def work():
        try:
            watch.work()
        except Unavailable:
            refused.append(True)

    sender = threading.Thread(target=work)
    sender.start()
    soon(lambda: any(isinstance(for_worker(frame), Examined) for frame in wire.held))
    wire.cut = True
    house.calls.append(lambda: house.owner.left(wire))
    shared.lost()
    sender.join()
    assert refused
    house.link(shared)
    soon(lambda: watch.ready and not failing(watch))
    assert watch.work() == {"ada": 3}
    assert watch.verdict("ada").queries == 3


def test_what_a_dead_worker_answered_and_did_not_say_is_found_in_its_log(house, profile):
    living, dying = (house.worker().watch(ONE, profile) for _ in range(2))
    rng = np.random.default_rng(10)
    for at in range(4):
        one = answer(at, "ada", rng.normal(size=(1, FEATURES)), "1-gateway-dead")
        house.log.write(one)
        if at < 2:
            dying.submit(one)
            dying.work()
    assert living.verdict("ada").queries <= 2
    dead = house.wires[1]
    dead.cut = True
    house.calls.append(lambda: house.owner.left(dead))
    soon(lambda: living.verdict("ada").queries == 4)
    assert house.finished >= 1 and not house.owner.failure


def test_a_damaged_log_of_a_dead_worker_ends_the_owner(house, profile):
    from modelkeep.errors import NotTrusted

    house.worker().watch(ONE, profile)

    def damaged(_ref, _taken, _logs):
        raise NotTrusted("record 3 is altered")
        yield

    house.log.later = damaged
    house.calls.append(lambda: house.owner.left(house.wires[0]))
    soon(lambda: "record 3 is altered" in house.owner.failure)


class Ahead(SystemClock):
    """A clock that is so many ``seconds`` ahead."""

    seconds = 0.0

    def monotonic(self):
        return super().monotonic() + self.seconds


def test_a_silent_owner_denies_when_its_last_beat_is_a_second_old(house, profile):
    clock = Ahead()
    shared = house.worker(clock=clock)
    watch = shared.watch(ONE, profile)
    soon(lambda: not failing(watch))
    house.wires[0].held = []
    began = time.monotonic()
    clock.seconds = 1.0
    assert failing(watch)
    shared.received(encode(Beat(began - 5)))  # one that was long under way says nothing about now
    assert failing(watch)


def test_a_release_that_cannot_be_rebuilt_is_refused_with_its_reason_and_tried_again(house, profile):
    shared = house.worker()
    with pytest.raises(Unavailable, match="has no extraction profile"):
        shared.watch(TWO, profile)
    shared.watch(ONE, profile)
    house._open = lambda _ref: profile
    house.owner._profile_of = house._open
    house.log.of = lambda _ref: iter(())
    soon(lambda: shared.by_release()[TWO].ready)


# -- a worker that lies --


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"junk that is no message",
        encode(Beat(1.0)),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 2, False, b"\0" * 9, b"")])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 0, False, b"", b"")])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 1, False, b"\0" * 20, b"\0" * 24)])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 1, False, b"\0" * 16, b"\0" * 16)])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 1, False, b"\xff" * 16, b"\0" * 24)])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "", 1, False, b"\0" * 16, b"\0" * 24)])),
        encode(Answers(1, "risk@1", [Answered("", 0, "ada", 1, False, b"\0" * 16, b"\0" * 24)])),
        encode(Answers(1, "risk@1", [Answered("i", -1, "ada", 1, False, b"\0" * 16, b"\0" * 24)])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 0, False, b"", b"", 1.0)])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 0, False, b"", b"", float("nan"))])),
        encode(Answers(1, "risk@1", [Answered("i", 0, "ada", 1, False, b"\0" * 16, b"\0" * 24, FEATURES + 1.0)])),
        encode(Answers(1, "risk@2", [])),
        encode(Follow("no release", {})),
    ],
    ids=range(17),
)
def test_who_sends_junk_is_cut_off_and_nobody_else_is_hurt(house, profile, frame):
    honest, liar = house.worker().watch(ONE, profile), house.worker()
    liar.watch(ONE, profile)
    house.wires[1].up(frame)
    soon(lambda: house.wires[1].cut)
    assert len(house.errors) == 1
    with pytest.raises(Unavailable):
        liar.check()
    honest.submit(answer(0, "ada", np.zeros((1, FEATURES))))
    assert honest.work() == {"ada": 1}
    soon(lambda: not failing(honest))


def test_an_owner_that_sends_junk_is_left(house):
    shared = house.worker()
    for frame in (b"", b"\xc1", encode(Follow("risk@1", {}))):
        with pytest.raises(Invalid):
            shared.received(frame)
    with pytest.raises(Invalid):
        for_owner(encode(Examined(1)))


# -- counts --


def test_any_worker_tells_the_counts_of_all(house):
    workers = [house.worker() for _ in range(3)]

    def counts(requests, lease):
        return [
            Series("requests", "r", "counter", "sum", {'{outcome="ok"}': requests}),
            Series("lease", "l", "gauge", "min", {"": lease}),
        ]

    soon(lambda: not any(_unheard(one) for one in workers))
    workers[0].tally(counts(5, 0.9))
    workers[1].tally(counts(7, 0.4))
    found = {series.name: series.rows for series in workers[2].tallied(counts(1, 0.8))}
    assert found == {"requests": {'{outcome="ok"}': 13}, "lease": {"": 0.4}}
    gone = house.wires[1]
    house.calls.append(lambda: house.owner.left(gone))
    soon(lambda: gone not in house.owner._links)
    found = {series.name: series.rows for series in workers[2].tallied(counts(2, 0.8))}
    assert found == {"requests": {'{outcome="ok"}': 14}, "lease": {"": 0.8}}
    assert isinstance(for_owner(encode(Tally(0, []))), Tally)


def _unheard(shared):
    try:
        shared.check()
    except Unavailable:
        return True
    return False


# -- limits --


def want(name="account/a", need=1.0, most=4.0, rate=0.001, burst=10.0):
    return Want(name, rate, burst, need, most)


def test_workers_share_limits_and_a_killed_owner_forgets_none(house):
    shared = [house.worker() for _ in range(3)]
    soon(lambda: not any(_unheard(one) for one in shared))
    places = [SharedAllowances(one) for one in shared]
    granted = [place.grant([want(), want("account/b")]).given for place in places]
    assert [given[0].units for given in granted] == [4.0, 4.0, 2.0] and granted[2][0].wait == 0.0
    before = time.monotonic()
    first = places[0].grant([want()])
    assert first.given[0].units == 0.0 and first.given[0].wait > 0.0
    assert before < first.until < time.monotonic() + 1.1
    places[1].give_back(first.epoch, [(want(), 3.0)])
    soon(lambda: places[2].grant([want(most=3.0)]).given[0].units == 3.0)
    house.die()
    with pytest.raises(Unavailable):
        places[0].grant([want()])
    with pytest.raises(Unavailable):
        places[0].give_back(first.epoch, [(want(), 3.0)])
    house.start(lost=True)
    for one in shared:
        house.link(one)
    soon(lambda: not any(_unheard(one) for one in shared))
    second = places[0].grant([want()])
    assert second.epoch != first.epoch and second.given[0].lost and second.given[0].units == 0.0
    places[1].give_back(first.epoch, [(want(), 3.0)])  # of an owner that is gone: it counts for nothing
    assert places[1].grant([want()]).given[0].lost
    for place in places:
        place.close()


def test_an_answer_that_comes_too_late_is_not_kept(house):
    """Each stayed in memory for as long as the link was up."""
    worker = house.worker()
    soon(lambda: not _unheard(worker))
    for number in range(10_000, 10_010):
        worker.received(encode(Borrowed(number, MemoryAllowances().grant([want()]))))
    assert SharedAllowances(worker).grant([want()]).given[0].units == 4.0
    assert worker._replies == {}


@pytest.mark.parametrize(
    "frame",
    [
        encode(Borrow(1, [want(rate=0.0)])),
        encode(Borrow(1, [want(rate=-1.0)])),
        encode(Borrow(1, [want(burst=float("inf"))])),
        encode(Borrow(1, [want(need=float("nan"))])),
        encode(Borrow(1, [want(need=-1.0)])),
        encode(Borrow(1, [want(name="")])),
        encode(GiveBack("memory", [(want(), -5.0)])),
        encode(GiveBack("memory", [(want(), float("inf"))])),
    ],
    ids=range(8),
)
def test_what_would_break_the_count_of_a_limit_cuts_its_worker_off(house, frame):
    liar, honest = house.worker(), house.worker()
    soon(lambda: not _unheard(honest))
    house.wires[0].up(frame)
    soon(lambda: house.wires[0].cut)
    assert _unheard(liar) and SharedAllowances(honest).grant([want()]).given[0].units == 4.0


# -- an inner layer --


def seen(x):
    """What the model's inner layer holds."""
    return np.tanh(np.asarray(x, np.float64) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.3, 0.0, 1.0], [1.0, 1.0, 1.0]]))


@pytest.fixture(scope="module")
def deep():
    rows = np.random.default_rng(1).normal(size=(240, FEATURES))
    return fit_profile(rows, told, seed=1, inner=Inner("hidden", seen))


def answer_of(deep, at, subject, x):
    plain = answer(at, subject, x)
    return msgspec.structs.replace(plain, hidden=deep.layer.project(seen(plain.x)))


def test_an_owner_judges_by_the_coordinates_that_workers_send(deep):
    house = OwnersHouse(deep).start()
    try:
        watch, own = house.worker().watch(ONE, deep), Guard(deep)
        rng = np.random.default_rng(5)
        for at in range(6):
            one = answer_of(deep, at, "eve", thief(rng, 8))
            own.observe("eve", one.x, one.probs, one.hidden)
            watch.submit(one)
        watch.work()
        assert watch.verdict("eve") == own.verdict("eve") and own.verdict("eve").alarmed_at
    finally:
        house.stop()


@pytest.mark.parametrize("hidden", [None, np.zeros((2, 2), np.float32), np.full((2, 3), np.nan, np.float32)])
def test_a_worker_that_sends_other_coordinates_is_cut_off(deep, hidden):
    house = OwnersHouse(deep).start()
    try:
        house.worker().watch(ONE, deep)
        lie = msgspec.structs.replace(answer_of(deep, 0, "ada", np.zeros((2, FEATURES))), hidden=hidden)
        house.wires[0].up(encode(Answers(1, "risk@1", [answered(lie)])))
        soon(lambda: house.wires[0].cut)
        assert len(house.errors) == 1
    finally:
        house.stop()


def test_coordinates_of_a_release_that_looks_at_no_layer_are_refused(house, profile):
    house.worker().watch(ONE, profile)
    lie = msgspec.structs.replace(answer(0, "ada", np.zeros((2, FEATURES))), hidden=np.zeros((2, 3), np.float32))
    house.wires[0].up(encode(Answers(1, "risk@1", [answered(lie)])))
    soon(lambda: house.wires[0].cut)
