"""Step-up, last uses, challenges and scopes: the parts without a server."""

import threading

import pytest
from access_house import NOW, FlakyRecords

from modelkeep.access.authorize import authorize, check_scope
from modelkeep.access.challenges import APPROVE, CHALLENGE, SECONDS, STEP_UP, forget_challenges, make_challenge, take_challenge
from modelkeep.access.quotas import QUOTA, Quotas, granted_of
from modelkeep.access.stepup import OFF, StepUp, StepUpTerms, forget_old_events, quota_id
from modelkeep.access.uses import EVERY, KEY_USE, Uses, last_uses
from modelkeep.access.view import Grant
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied, StepUpRequired, TooLarge, Unauthenticated, Unavailable
from modelkeep.policy.engine import KEEP, Engine, account, model


def grant(mfa_at=0, kind="session", subject="sub_1"):
    who = Principal("anna", subject, (Role.ANALYST,), f"{kind}:1")
    return Grant(who, kind, NOW + 10_000, 100, f"{kind}:1", mfa_at)


def step_up(house, **terms):
    return StepUp(StepUpTerms(**terms), Quotas(house.records, house.clock.monotonic), house.clock)


def ask(one, mine, rung=0):
    """One request, as the gateway counts it."""
    if not one.held(mine, rung):
        one.take(mine)


def how_many(one, mine, most=1_000):
    for number in range(most):
        try:
            ask(one, mine)
        except StepUpRequired:
            return number
    return most


def test_when_it_is_off_nothing_is_asked_and_nothing_counted(house):
    one = StepUp(OFF, Quotas(house.records, house.clock.monotonic), house.clock)
    calls = house.records.calls
    assert all(one.held(grant(), 3) for _ in range(100)) and house.records.calls == calls


@pytest.mark.parametrize("most", [1, 2, 16, 100])
def test_gateways_together_let_through_what_one_event_is_good_for(house, most):
    several = [step_up(house, requests=most) for _ in range(3)]
    mine, through = grant(NOW), 0
    for turn in range(4 * most + 12):
        try:
            ask(several[turn % 3], mine)
            through += 1
        except StepUpRequired:
            continue
    assert through == most


def test_rows_of_a_batch_are_counted_and_a_batch_beyond_all_is_told_so(house):
    one = step_up(house, requests=5)
    for rows, through in ((3, True), (3, False), (2, True), (1, False)):
        try:
            if not one.held(grant(NOW), 0, rows):
                one.take(grant(NOW), rows)
            assert through
        except StepUpRequired:
            assert not through
    assert not one.held(grant(NOW), 0, 6)
    with pytest.raises(TooLarge, match="5 rows"):
        one.take(grant(NOW), 6)


def test_in_threads_too(house):
    one, through = step_up(house, requests=64), []
    threads = [threading.Thread(target=lambda: through.append(how_many(one, grant(NOW), 64))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(through) == 64


def test_a_later_event_is_good_for_as_many_again_and_an_older_one_for_no_more(house):
    one = step_up(house, requests=5)
    assert how_many(one, grant(NOW)) == 5
    assert how_many(one, grant(NOW + 1)) == 5
    assert how_many(one, grant(NOW)) == 0
    assert how_many(one, grant(0)) == 5, "what has no event has an allowance of its own, once"
    assert how_many(one, grant(0)) == how_many(one, grant(0, "key")) == 0
    assert how_many(one, grant(NOW, subject="sub_2")) == 5


def test_risk_asks_for_a_recent_event_and_volume_does_not(house):
    one = step_up(house, rung=1, seconds=900)
    assert one.held(grant(0), 0)
    with pytest.raises(StepUpRequired) as asked:
        one.held(grant(0), 1)
    assert asked.value.max_age == 900
    fresh = grant(int(house.clock.wall))
    assert one.held(fresh, 1) and one.held(fresh, 2)
    house.clock.advance(899)
    assert one.held(fresh, 2)
    house.clock.advance(1)
    with pytest.raises(StepUpRequired):
        one.held(fresh, 1)
    assert one.held(fresh, 0)
    assert step_up(house, requests=5, seconds=60).held(fresh, 2) is False, "no rung is set: only the count is asked"


def test_a_rung_below_the_setting_asks_nothing(house):
    one = step_up(house, rung=2)
    assert one.held(grant(0), 1)
    with pytest.raises(StepUpRequired):
        one.held(grant(0), 2)


def test_setting_the_clock_back_makes_no_event_recent(house):
    one, fresh = step_up(house, rung=1, seconds=60), grant(int(house.clock.wall))
    house.clock.advance(61)
    house.clock.wall -= 3_600
    with pytest.raises(StepUpRequired):
        one.held(fresh, 1)


def test_keys_are_asked_for_an_approval_or_exempt(house):
    mine = grant(0, "key")
    with pytest.raises(StepUpRequired, match="modelkeep step-up approve"):
        step_up(house, rung=1).held(mine, 1)
    exempt = step_up(house, requests=1, rung=1, keys=False)
    assert all(exempt.held(mine, 2) for _ in range(5))
    assert how_many(exempt, grant(0)) == 1, "sessions are not exempt"


def test_records_that_cannot_be_asked_let_nobody_through(house):
    one = step_up(house, requests=5)
    house.records.down = True
    with pytest.raises(Unavailable):
        ask(one, grant(NOW))


def test_counts_of_old_events_are_dropped_and_what_may_still_count_stays(house):
    one = step_up(house, requests=5)
    for at in (0, NOW, NOW + 10, NOW + 500):
        assert how_many(one, grant(at)) == 5
    changes = forget_old_events(house.records.scan(QUOTA), NOW + 111, 100)
    assert [change.key for change in changes] == [quota_id(grant(NOW)), quota_id(grant(NOW + 10))]
    house.records.commit(changes)
    assert granted_of(house.records, quota_id(grant(0))) == 5, "the allowance of what has no event is for ever"
    assert forget_old_events(house.records.scan(QUOTA), NOW + 10**6, 100) == [], "nor is the newest dropped: a key may use it"


# -- when keys were last used --


def test_last_uses_are_written_every_minute_in_one_go(house):
    uses = Uses(house.records, house.clock)
    calls = house.records.calls
    for _ in range(1_000):
        uses.note("key:a")
        uses.note("session:b")
        uses.flush_when_due()
    assert house.records.calls == calls, "nothing is asked on the way"
    house.clock.advance(EVERY)
    uses.note("key:c")
    uses.flush_when_due()
    assert last_uses(house.records.scan(KEY_USE)) == {"a": NOW, "c": NOW + int(EVERY)}
    revision = house.records.revision()
    house.clock.advance(EVERY)
    uses.flush_when_due()
    assert house.records.revision() == revision, "nothing new, nothing written"


def test_an_earlier_use_that_another_gateway_writes_late_changes_nothing(house):
    late, soon = Uses(house.records, house.clock), Uses(house.records, house.clock)
    late.note("key:a")
    house.clock.advance(30)
    soon.note("key:a")
    soon.flush()
    late.flush()
    assert last_uses(house.records.scan(KEY_USE)) == {"a": NOW + 30}


def test_uses_that_met_another_writer_are_written_the_next_time(house):
    class Interfering(FlakyRecords):
        def commit(self, changes):
            Uses.flush(other)
            return super().commit(changes)

    other = Uses(house.records, house.clock)
    mine = Uses(house.records, house.clock)
    interfering = Interfering()
    interfering.__dict__.update(house.records.__dict__)
    mine._records = interfering
    other.note("key:a")
    house.clock.advance(5)
    mine.note("key:a")
    mine.flush()
    assert last_uses(house.records.scan(KEY_USE)) == {"a": NOW}
    mine._records = house.records
    mine.flush()
    assert last_uses(house.records.scan(KEY_USE)) == {"a": NOW + 5}


@pytest.mark.parametrize("body", [b"", b"{", b'{"at":"x"}', b"\xff"])
def test_a_damaged_last_use_costs_what_it_said_and_nothing_else(house, body):
    uses = Uses(house.records, house.clock)
    house.records.commit([Change(KEY_USE, key, body) for key in ("a", "idle")])
    for key in ("a", "b"):
        uses.note(f"key:{key}")
    uses.flush()
    assert last_uses(house.records.scan(KEY_USE)) == {"a": NOW, "b": NOW, "idle": 0}


# -- challenges --


def test_a_challenge_is_taken_once_by_whom_and_for_what_it_was_made(house):
    def make():
        id_, made, change = make_challenge(STEP_UP, "session:1", NOW + SECONDS, house.entropy)
        house.records.commit([change])
        return id_, made.value

    id_, value = make()
    assert take_challenge(house.records, id_, STEP_UP, "session:1", NOW) == value and len(value) == 32
    for purpose, credential, now in ((STEP_UP, "session:1", NOW), (APPROVE, "session:1", NOW), (STEP_UP, "session:2", NOW)):
        with pytest.raises(Unauthenticated):
            take_challenge(house.records, id_, purpose, credential, now)
        id_, _ = make()
        wrong = (
            (purpose, credential, now)
            if (purpose, credential) != (STEP_UP, "session:1")
            else (STEP_UP, "session:1", NOW + SECONDS)
        )
        with pytest.raises(Unauthenticated):
            take_challenge(house.records, id_, *wrong)
        with pytest.raises(Unauthenticated):
            take_challenge(house.records, id_, STEP_UP, "session:1", NOW)


def test_challenges_that_nobody_answered_are_dropped(house):
    _, _, change = make_challenge(STEP_UP, "session:1", NOW + SECONDS, house.entropy)
    house.records.commit([change])
    assert forget_challenges(house.records.scan(CHALLENGE), NOW) == []
    house.records.commit(forget_challenges(house.records.scan(CHALLENGE), NOW + SECONDS))
    assert house.records.scan(CHALLENGE) == []


# -- scopes --


def test_a_scope_of_actions_is_a_wall_that_no_policy_moves():
    engine = Engine()
    boss = Principal("boss", "sub_b", (Role.ADMIN,), "session:1", (), ("predict", "mfa.own"))
    authorize(engine, boss, "predict", model("iris"))
    authorize(engine, boss, "mfa.own", account("boss"))
    for action, target in (("show", model("iris")), ("user.add", KEEP), ("explain", model("iris")), ("", KEEP)):
        with pytest.raises(Denied, match="may only predict"):
            authorize(engine, boss, action, target)
    both = Principal("boss", "sub_b", (Role.ADMIN,), "session:1", ("iris",), ("predict",))
    check_scope(both, "predict", model("iris"))
    for action, target in (("predict", model("other")), ("show", model("iris")), ("predict", KEEP)):
        with pytest.raises(Denied):
            check_scope(both, action, target)
    nobody = Principal("ann", "sub_a", (), "key:1", (), ("predict",))
    with pytest.raises(Denied):
        authorize(engine, nobody, "predict", model("iris"))  # a scope gives nothing either
