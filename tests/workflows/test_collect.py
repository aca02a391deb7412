"""Collection: what nobody refers to goes, what anybody refers to stays, whatever is cut off, raced or held."""

import contextlib

import pytest
from workflow_house import ORIGIN, Cut

from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, ReleaseState
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.workflows.aliases import remove_alias, set_alias
from modelkeep.workflows.bodies import store
from modelkeep.workflows.collect import collect, plan_collection
from modelkeep.workflows.describe import add_hold, remove_hold
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.release_state import change_state, export_release
from modelkeep.workflows.verify import check_stored, verify_release

FIRST, SECOND = ReleaseRef("credit", 1), ReleaseRef("credit", 2)
DAY = 86_400 * 10**9


@pytest.fixture
def retired(house, model, calibration):
    """credit@1, retired two days ago."""
    publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
    made = change_state(house.desk(), FIRST, "retire", actor="ada", reason="old")
    house.clock.sleep(2 * 86_400)
    return made


def run(house, retired_for=DAY):
    return collect(house.desk(), ORIGIN, actor="ops", retired_for=retired_for)


def stored(house):
    return set(house.blobs.all())


def bodies(evidence):
    return {body.sealed for body in (evidence.body, evidence.profile_body) if body}


def removals(house):
    """Digests whose removal is in the log."""
    view = house.registry().view
    size = view.refresh().size
    found = []
    for entry in view.entries(0, size):
        from modelkeep.crypto.dsse import parse_envelope
        from modelkeep.ledger.statements import parse_statement

        said = parse_statement(parse_envelope(entry).unverified_payload())
        if said.predicate.get("verb") == "collect" and "about" in said.predicate:
            found.append(said.predicate["about"])
    return found


def test_a_retired_release_gives_up_its_bodies_and_stays_in_the_log(house, retired, model):
    done = run(house)
    assert (done.releases, {body.sealed for body in done.bodies}) == ((FIRST,), bodies(retired))
    assert stored(house) == set() and house.records.scan(RECIPIENTS) == []
    assert set(removals(house)) == bodies(retired)
    after = house.registry().release(FIRST)
    assert after.state is ReleaseState.COLLECTED
    verified = verify_release(house.registry(), house.trust, FIRST)
    assert not verified.opened and "collected: its sealed bodies were given up" in verified.checks[-1]
    check_stored(house.registry(), after)
    for act in (lambda: export_release(house.desk(), FIRST, actor="ada"), lambda: change(house, "reinstate")):
        with pytest.raises(Conflict, match="a collected release cannot"):
            act()
    again = run(house)
    assert (again.releases, again.bodies, again.kept) == ((), (), ())
    assert publish(house.desk(), model, "credit", actor="ada").ref == SECOND  # never version 1 again


def change(house, verb):
    return change_state(house.desk(), FIRST, verb, actor="ada", reason="why")


def test_a_dry_run_says_the_same_and_changes_nothing(house, retired):
    before = (house.records.revision(), stored(house), house.registry().refresh().size)
    planned = plan_collection(house.desk(), DAY)
    assert before == (house.records.revision(), stored(house), house.registry().refresh().size)
    done = run(house)
    assert (planned.releases, planned.bodies) == (done.releases, done.bodies)


def test_nothing_is_due_before_its_time_or_without_being_asked(house, retired):
    assert run(house, None).releases == () == run(house, 3 * DAY).releases
    assert stored(house) == bodies(retired)
    assert verify_release(house.registry(), house.trust, FIRST).opened


@pytest.mark.parametrize("verbs", [(), ("promote",), ("quarantine",), ("quarantine", "reinstate")])
def test_what_is_not_retired_is_never_collected(house, model, verbs):
    made = publish(house.desk(), model, "credit", actor="ada")
    for verb in verbs:
        change(house, verb)
    house.clock.sleep(1e6)
    assert run(house, 0).bodies == ()
    assert stored(house) == bodies(made)


def test_a_hold_keeps_it_until_the_last_one_is_removed(house, retired):
    holds = [add_hold(house.desk(), FIRST, actor="legal", reason=f"case {n}") for n in (7, 8)]
    for hold in holds:
        done = run(house)
        assert (done.releases, done.bodies) == ((), ()) and "is held by" in done.kept[0].why
        removed = remove_hold(house.desk(), hold.id, actor="legal", reason="closed")
        assert (removed.lifted_by, removed.lifted_why) == ("legal", "closed")
    assert run(house).releases == (FIRST,)
    with pytest.raises(Conflict, match="was collected: there is nothing left to hold"):
        add_hold(house.desk(), FIRST, actor="legal", reason="too late")
    for hold_id, error in ((holds[0].id, Conflict), ("ff" * 16, Missing), ("", Missing)):
        with pytest.raises(error):
            remove_hold(house.desk(), hold_id, actor="legal", reason="again")
    with pytest.raises(Invalid):
        add_hold(house.desk(), FIRST, actor="legal", reason=" ")


def test_a_hold_that_comes_between_the_look_and_the_log_wins(house, retired):
    """The fold refuses the collection of what is held at that place in the log, whoever wrote it."""
    desk = house.desk()
    log = desk.log.append

    def late(entries, **more):
        desk.log.append = log
        add_hold(house.desk(), FIRST, actor="legal", reason="just in time")
        return log(entries, **more)

    desk.log.append = late
    done = collect(desk, ORIGIN, actor="ops", retired_for=DAY)
    assert (done.releases, done.bodies) == ((), ()) and "without effect" in done.kept[0].why
    assert stored(house) == bodies(retired)
    assert house.registry().release(FIRST).state is ReleaseState.RETIRED


def test_an_alias_keeps_it(house, retired, another):
    publish(house.desk(), another(1), "credit", actor="ada")
    with pytest.raises(Conflict, match="retired"):
        set_alias(house.desk(), FIRST, "champion", actor="ada")
    set_alias(house.desk(), SECOND, "champion", actor="ada")
    change_state(house.desk(), SECOND, "retire", actor="ada", reason="old")
    done = run(house, 0)
    assert done.releases == (FIRST,) and "alias champion names it" in done.kept[0].why
    remove_alias(house.desk(), "credit", "champion", actor="ada")
    assert run(house, 0).releases == (SECOND,)


def test_the_same_file_again_shares_its_body(house, model, calibration, another):
    first = publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
    second = publish(house.desk(), model, "credit", actor="bo", calibration=calibration)
    other = publish(house.desk(), model, "fraud", actor="bo")
    assert (second.ref, second.body, second.profile_body) == (SECOND, first.body, first.profile_body)
    assert other.body == first.body and stored(house) == bodies(first)
    assert publish(house.desk(), another(1), "credit", actor="ada").body != first.body
    for ref in (FIRST, SECOND, other.ref):
        assert verify_release(house.registry(), house.trust, ref).opened


def test_a_shared_body_stays_until_the_last_release_gave_it_up(house, model):
    publish(house.desk(), model, "credit", actor="ada")
    publish(house.desk(), model, "credit", actor="ada")
    change(house, "retire")
    done = run(house, 0)
    assert (done.releases, done.bodies) == ((FIRST,), ())
    assert verify_release(house.registry(), house.trust, SECOND).opened
    assert publish(house.desk(), model, "fraud", actor="ada").body == house.registry().release(SECOND).body
    change_state(house.desk(), ReleaseRef("fraud", 1), "retire", actor="ada", reason="old")
    change_state(house.desk(), SECOND, "retire", actor="ada", reason="old")
    assert len(run(house, 0).bodies) == 1 and stored(house) == set()


@pytest.mark.parametrize("spoil", ["gone", "altered", "recipients", "quarantined", "collected"])
def test_what_is_not_sound_is_not_shared(house, model, spoil):
    made = publish(house.desk(), model, "credit", actor="ada")
    sealed = made.body.sealed
    body, block = house.blobs.stored[sealed], house.records.get(RECIPIENTS, sealed).body
    {
        "gone": lambda: house.blobs.delete(sealed),
        "altered": lambda: house.blobs.stored.update({sealed: body[:-1] + bytes([body[-1] ^ 1])}),
        "recipients": lambda: house.records.commit([Change(RECIPIENTS, sealed, block[:-1] + bytes([block[-1] ^ 1]))]),
        "quarantined": lambda: change(house, "quarantine"),
        "collected": lambda: (change(house, "retire"), run(house, 0)),
    }[spoil]()
    again = publish(house.desk(), model, "credit", actor="ada")
    assert again.body.sealed != sealed
    assert verify_release(house.registry(), house.trust, SECOND).opened


def test_a_shared_body_is_not_taken_from_the_others_when_publishing_fails(house, model):
    made = publish(house.desk(), model, "credit", actor="ada")
    for at in range(1, 12):
        for error in (Unavailable, Cut):
            house.faults.arm(at, error=error)
            with contextlib.suppress(Unavailable, Cut):
                publish(house.desk(), model, "credit", actor="bo")
            house.faults.arm(0)
            settle(house.desk())
            run(house, None)
            assert stored(house) == {made.body.sealed}
            assert verify_release(house.registry(), house.trust, FIRST).opened


def test_a_body_collected_while_it_is_being_shared_is_sealed_anew(house, retired, model, calibration):
    """The collector acts between the publisher's look at the body and the commit that would share it."""
    desk = house.desk()
    commit = desk.registry.records._port.commit
    calls = []

    class Racing:
        def __getattr__(self, name):
            return getattr(house.records, name)

        def commit(self, changes):
            if any(change.kind == RECIPIENTS and change.expected for change in changes) and not calls:
                calls.append(run(house))
            return commit(changes)

    object.__setattr__(desk.registry, "records", Racing())
    made = publish(desk, model, "credit", actor="bo", calibration=calibration)
    assert calls[0].releases == (FIRST,) and len(calls[0].bodies) == 2
    assert not bodies(made) & bodies(retired) and stored(house) == bodies(made)
    assert verify_release(house.registry(), house.trust, SECOND).opened


def test_a_body_shared_while_it_is_being_collected_stays(house, retired, model):
    """The publisher acts after the collector let go of the release, and before it takes the body."""
    desk = house.desk()
    commit, calls = house.records.commit, []

    class Racing:
        def __getattr__(self, name):
            return getattr(house.records, name)

        def commit(self, changes):
            if any(change.kind == RECIPIENTS and change.body is None for change in changes) and not calls:
                shared = store(early, model.data, retired.model, MODEL)
                assert shared.reused
                calls.append(shared)
                commit([shared.change])
            return commit(changes)

    early = house.desk()
    early.registry.refresh()  # it read the log before the collection, and reads no more of it
    object.__setattr__(early.registry, "view", Still(early.registry.view))
    object.__setattr__(desk.registry, "records", Racing())
    done = collect(desk, ORIGIN, actor="ops", retired_for=DAY)
    assert calls and retired.body.sealed not in {body.sealed for body in done.bodies}
    assert retired.body.sealed in stored(house)


class Still:
    """A log view that sees nothing new."""

    def __init__(self, view):
        self._view, self.checkpoint = view, view.checkpoint

    def refresh(self):
        return self.checkpoint

    def __getattr__(self, name):
        return getattr(self._view, name)


def steps_of(house):
    house.faults.arm(0)
    run(house)
    return house.faults.count


STEPS = 14


def test_the_steps_below_cover_all_of_it(house, retired):
    assert steps_of(house) < STEPS


@pytest.mark.parametrize("error", [Cut, Unavailable], ids=["cut", "full"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, STEPS))
def test_cut_off_at_every_step(house, retired, another, at, after, error):
    """The release is there, whole, or it is collected; the other one is untouched; run again, it is done, and all logged."""
    other = publish(house.desk(), another(3), "fraud", actor="ada")
    house.faults.arm(at, after=after, error=error)
    with contextlib.suppress(Cut, Unavailable):
        run(house)
    house.faults.arm(0)
    settle(house.desk())
    found = house.registry().release(FIRST)
    verified = verify_release(house.registry(), house.trust, FIRST)
    assert verified.opened is (found.state is ReleaseState.RETIRED)
    assert bodies(other) <= stored(house)
    assert verify_release(house.registry(), house.trust, other.ref).opened
    run(house)
    assert house.registry().release(FIRST).state is ReleaseState.COLLECTED
    assert stored(house) == bodies(other)
    assert {record.key for record in house.records.scan(RECIPIENTS)} == bodies(other)
    assert bodies(retired) <= set(removals(house))
    assert house.registry().refresh().problem_count == 0


def test_leftovers_that_no_release_has_are_removed_and_logged(house, model):
    made = publish(house.desk(), model, "credit", actor="ada")
    stray = house.blobs.put([b"left behind"])
    done = run(house, None)
    assert [(body.sealed, body.size, body.why) for body in done.bodies] == [(stray, 11, "no release was published with it")]
    assert removals(house) == [stray] and stored(house) == bodies(made)


def test_beside_a_live_publisher_only_known_bodies_go(house, retired, another):
    stray = house.blobs.put([b"somebody is about to refer to this"])
    desk = house.desk()
    seen, planned = [], []

    def between(act):
        result = act()
        if not seen:
            house.faults.step = original
            planned.append(plan_collection(house.desk(), DAY))
            seen.append(run(house))
        return result

    original, house.faults.step = house.faults.step, between
    made = publish(desk, another(5), "fraud", actor="ada")
    house.faults.step = original
    assert planned[0].underway == seen[0].underway and planned[0].bodies == seen[0].bodies
    assert seen[0].underway == ("fraud@1",) and {body.sealed for body in seen[0].bodies} == bodies(retired)
    assert stored(house) == bodies(made) | {stray}
    assert verify_release(house.registry(), house.trust, made.ref).opened


def test_a_missing_body_of_a_release_that_was_not_collected_is_damage(house, retired):
    house.blobs.delete(retired.body.sealed)
    with pytest.raises(NotTrusted, match="is gone"):
        verify_release(house.registry(), house.trust, FIRST)
