"""Publishing: the whole road once; then cut off, starved and raced at every step."""

import contextlib
import threading

import msgspec
import pytest
from workflow_house import Cut

from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, ReleaseState, Resource, digest_of
from modelkeep.custody.releases import COUNTER, RECIPIENTS, RELEASE, Counter, Release
from modelkeep.custody.trust import TrustedIdentity
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.predicates import Release as ReleasePredicate
from modelkeep.ledger.statements import make_statement, sign_statement
from modelkeep.workflows.publish import ModelFile, publish, settle
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.release_state import export_release
from modelkeep.workflows.verify import verify_release

FIRST = ReleaseRef("credit", 1)


def bodies(evidence):
    return {body.sealed for body in (evidence.body, evidence.profile_body) if body}


def test_the_whole_road(house, model, calibration):
    desk = house.desk()
    made = publish(desk, model, "credit", actor="ada", calibration=calibration)
    assert (made.ref, made.state, made.model) == (FIRST, ReleaseState.PUBLISHED, digest_of(model.data))
    assert made.entries == {"scan": 0, "sealing": 1, "profile": 2, "release": 3}
    assert made.signer == "keep.example/statement-signing/1"
    assert (made.scan.clean, made.format, made.size) == (True, "safetensors", len(model.data))
    assert house.registry().release(FIRST) == made  # another process sees the same
    record = Release.parse(house.records.get(RELEASE, "credit@1").body)
    assert (record.state, record.claim, record.entries) == (ReleaseState.PUBLISHED, "", made.entries)
    assert set(house.blobs.stored) == bodies(made)
    assert bytes(export_release(desk, FIRST, actor="ada")) == model.data
    assert settle(house.desk()).bodies == 0
    assert list((house.root / "claims").iterdir()) == []


def test_no_plaintext_is_stored(house, calibration):
    canary = b"canary-weights-0123456789abcdef!"
    head = b'{"w":{"dtype":"U8","shape":[32],"data_offsets":[0,32]}}'
    made = ModelFile(len(head).to_bytes(8, "little") + head + canary, "m.safetensors")
    publish(house.desk(), made, "credit", actor="ada", calibration=calibration)
    stored = [*house.blobs.stored.values(), *(r.body for r in house.records.since(0) if r.body)]
    stored += [path.read_bytes() for path in house.root.rglob("*") if path.is_file()]
    assert all(canary not in data for data in stored)


def test_versions_rise(house, model, another):
    desk = house.desk()
    assert [publish(desk, another(i), "credit", actor="ada").ref.version for i in range(3)] == [1, 2, 3]
    assert publish(desk, model, "other", actor="ada").ref == ReleaseRef("other", 1)
    assert publish(desk, model, "credit", actor="ada").ref.version == 4  # the same bytes may be released again


@pytest.mark.parametrize(
    ("data", "filename", "name", "error"),
    [
        (b"\x80\x04\x95\x05", "m.pkl", "credit", NotTrusted),
        (b"", "m.onnx", "credit", NotTrusted),
        (b"junk", "m.safetensors", "credit", NotTrusted),
        (None, "../m.safetensors", "credit", Invalid),
        (None, "m.safetensors", "../credit", Invalid),
        (None, "m.safetensors", "Credit", Invalid),
        (None, "m.safetensors", "", Invalid),
    ],
)
def test_refusals_leave_nothing(house, model, data, filename, name, error):
    with pytest.raises(error):
        publish(house.desk(), ModelFile(model.data if data is None else data, filename), name, actor="ada")
    assert (house.records.revision(), list(house.blobs.all()), house.registry().refresh().size) == (0, [], 0)


def run(house, model, calibration, *, at, after, error):
    """Publish with a fault at one step; returns whether it returned."""
    house.faults.arm(at, after=after, error=error)
    try:
        publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
        return True
    except (house.faults.error, Unavailable) as cause:
        assert error is not Unavailable or "full" in str(cause)
        return False
    finally:
        house.faults.arm(0)


def steps_of(house, model, calibration):
    house.faults.arm(0)
    publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
    return house.faults.count


def check_settled(house, model):
    """Nothing pending; either the release, whole, or nothing at all but a version that is never given again."""
    pending = [Release.parse(r.body).ref for r in house.records.scan(RELEASE)]
    try:
        found = house.registry().release(FIRST)
    except Missing:
        assert pending == []
        assert house.records.scan(RECIPIENTS) == []
        assert list(house.blobs.all()) == []
        return False
    assert pending == [FIRST]
    verified = verify_release(house.registry(), house.trust, FIRST)
    assert verified.opened
    assert bodies(found) == set(house.blobs.all())
    opened = house.registry().open_body(found.body, found.model, MODEL)
    assert bytes(opened.read_source()) == model.data
    return True


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 16))
def test_cut_off_at_every_step_then_settled(house, model, calibration, at, after):
    returned = run(house, model, calibration, at=at, after=after, error=Cut)
    logged = len(list(house.registry().refresh().releases())) == 1
    done = settle(house.desk())
    assert check_settled(house, model) is logged
    assert logged or not returned
    assert done.underway == ()
    again = settle(house.desk())
    assert (again.completed, again.collected, again.bodies) == ((), (), 0)
    retry = publish(house.desk(), model, "credit", actor="ada", calibration=calibration).ref.version
    assert retry == Counter.parse(house.records.get(COUNTER, "credit").body).last


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 16))
def test_a_full_disk_at_every_step_undoes_or_completes_at_once(house, model, calibration, at, after):
    returned = run(house, model, calibration, at=at, after=after, error=Unavailable)
    logged = len(list(house.registry().refresh().releases())) == 1
    assert returned is logged
    settle(house.desk())
    assert check_settled(house, model) is logged


@pytest.mark.parametrize("at", range(1, 8))
def test_settling_cut_off_at_every_step_can_be_settled(house, model, calibration, at):
    for fault in (4, 5):  # before and after the pending record names its bodies
        run(house, model, calibration, at=fault, after=False, error=Cut)
    house.faults.arm(at)
    with contextlib.suppress(Cut):
        settle(house.desk())
    house.faults.arm(0)
    settle(house.desk())
    check_settled(house, model)
    assert list(house.blobs.all()) == []


def test_the_steps_above_cover_all_of_it(house, model, calibration):
    assert steps_of(house, model, calibration) < 15


def test_a_live_publisher_is_never_collected(house, model, calibration):
    """Settled between any two of its steps, a publisher in progress still succeeds."""
    desk, other = house.desk(), house.desk()
    seen = []

    def settling(act):
        result = act()
        house.faults.step = original
        seen.append(settle(other))
        house.faults.step = settling
        return result

    original, house.faults.step = house.faults.step, settling
    made = publish(desk, model, "credit", actor="ada", calibration=calibration)
    house.faults.step = original
    assert any(outcome.underway == ("credit@1",) for outcome in seen)
    assert all(outcome.collected == () and outcome.bodies == 0 for outcome in seen)
    assert bodies(made) == set(house.blobs.all())
    assert check_settled(house, model)


def test_concurrent_publishers_all_succeed(house, another):
    made, lock = [], threading.Lock()

    def work(seed):
        found = publish(house.desk(), another(seed), "credit", actor=f"user-{seed}")
        with lock:
            made.append((found.ref.version, seed, found.model))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(version for version, _, _ in made) == [1, 2, 3, 4, 5]
    book = house.registry().refresh()
    assert {(e.ref.version, e.model) for e in book.releases()} == {(version, model) for version, _, model in made}
    assert book.problem_count == 0
    assert settle(house.desk()).bodies == 0


def test_a_version_is_not_reused_when_the_records_forget_it(house, model):
    publish(house.desk(), model, "credit", actor="ada")
    house.records.commit([Change(COUNTER, "credit", None), Change(RELEASE, "credit@1", None)])
    assert publish(house.desk(), model, "credit", actor="ada").ref.version == 2


def test_a_pending_record_that_claims_a_release_of_others_is_not_completed(house, model, calibration):
    """An attacker's record naming other bodies for a logged version is collected, without touching the real ones."""
    made = publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
    record = house.records.get(RELEASE, "credit@1")
    forged = msgspec.structs.replace(
        Release.parse(record.body),
        state=ReleaseState.PENDING,
        claim="ab" * 16,
        model=digest_of(b"evil"),
        body=None,
        profile=None,
    )
    house.records.commit([Change(RELEASE, "credit@1", forged.encode(), record.revision)])
    done = settle(house.desk())
    assert (done.completed, done.collected, done.bodies) == ((), ("credit@1",), 0)
    assert bodies(made) == set(house.blobs.all())


def test_a_release_statement_without_its_evidence_takes_no_version(house, model, another):
    """Someone with the keys logs that very version between reservation and log, but names no evidence for it."""
    desk, other = house.desk(), publish(house.desk(), another(9), "other", actor="eve")
    said = ReleasePredicate(
        actor="eve", at=1, name="credit", version=1, filename="x", format="onnx", size=1, interface=other.interface,
        evidence={"sealing": digest_of(b"none")},
    )  # fmt: skip
    hollow = sign_statement(make_statement(said, Resource("x", other.model)), desk.signer)
    append = desk.log.append
    desk.log.append = lambda entries, **more: (append([hollow]), append(entries, **more))[1]
    assert publish(desk, model, "credit", actor="ada").ref == FIRST
    assert house.registry().refresh().problem_count == 1


def same_but_scan(found):
    """The very same file was scanned again, which counts for every release of it."""
    return msgspec.structs.replace(found, entries={**found.entries, "scan": 0}, scan=None)


def test_the_log_refuses_a_second_release_of_a_version(house, model, another):
    first = publish(house.desk(), model, "credit", actor="ada")
    house.records.commit([Change(COUNTER, "credit", None), Change(RELEASE, "credit@1", None)])
    desk = house.desk()
    desk.registry.book.last_version = lambda name: 0  # a publisher that believes the records alone
    for again in (another(5), model):  # other bytes, and the very same ones
        house.clock.sleep(1)
        with pytest.raises(Conflict, match="does not count: credit@1 was released before"):
            publish(desk, again, "credit", actor="ada")
        assert same_but_scan(house.registry().release(FIRST)) == same_but_scan(first)
        house.records.commit([Change(COUNTER, "credit", None)])
    settle(house.desk())
    assert bodies(first) == set(house.blobs.all())


def test_a_dead_publisher_takes_no_body_that_another_record_names(house, model):
    """A release whose signer was compromised is in no log that counts; its record keeps the body until it is signed again."""
    made = publish(house.desk(), model, "credit", actor="ada")
    known = Release.parse(house.records.get(RELEASE, "credit@1").body)
    lost = TrustedIdentity(house.desk().signer.public, until=0, compromised=True)
    desk = house.desk()
    desk.registry.rebase(msgspec.structs.replace(house.trust, identities=(lost,)))
    dead = msgspec.structs.replace(known, ref=ReleaseRef("credit", 2), state=ReleaseState.PENDING, claim="ab" * 16, entries={})
    house.records.commit([Change(RELEASE, "credit@2", dead.encode(), 0)])
    assert settle(desk).collected == ("credit@2",)
    assert bodies(made) == set(house.blobs.all()) and house.records.get(RECIPIENTS, made.body.sealed).body
    assert verify_release(house.registry(), house.trust, FIRST).opened
