"""Change, verify, export, rewrap: the log decides; damage is named; nothing is believed that was not signed."""

import threading

import msgspec
import pytest
from workflow_house import House

from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, ReleaseState, Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody import keys
from modelkeep.custody.releases import RECIPIENTS, RELEASE, Release
from modelkeep.custody.signing import state_statement
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted
from modelkeep.ledger.statements import sign_statement
from modelkeep.workflows.holdings import Bodies, wrapped_under
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.registry import MODEL, PROFILE
from modelkeep.workflows.release_state import change_state, export_release
from modelkeep.workflows.rewrap import rewrap
from modelkeep.workflows.verify import check_stored, verify_release

FIRST = ReleaseRef("credit", 1)


@pytest.fixture
def made(house, model, calibration):
    return publish(house.desk(), model, "credit", actor="ada", calibration=calibration)


def test_changes_are_logged_with_their_actor(house, made):
    desk = house.desk()
    change_state(desk, FIRST, "promote", actor="mel")
    after = change_state(desk, FIRST, "quarantine", actor="operator@local", reason="odd answers")
    assert [(e.verb, e.actor, e.reason) for e in after.history[1:]] == [
        ("promote", "mel", ""),
        ("quarantine", "operator@local", "odd answers"),
    ]
    assert house.registry().release(FIRST) == after


def test_verbs_that_end_serving_wait_out_the_lease(house, made):
    desk = house.desk()
    start = house.clock.seconds
    change_state(desk, FIRST, "promote", actor="mel")
    assert house.clock.seconds == start
    change_state(desk, FIRST, "quarantine", actor="mel")
    assert house.clock.seconds == start + 1.0


def test_impossible_changes_are_refused_and_not_logged(house, made):
    desk = house.desk()
    for verb, error in (("reinstate", Conflict), ("publish", Invalid), ("export", Invalid), ("explode", Invalid)):
        with pytest.raises(error):
            change_state(desk, FIRST, verb, actor="mel")
    with pytest.raises(Missing):
        change_state(desk, ReleaseRef("credit", 2), "promote", actor="mel")
    assert house.registry().refresh().size == 4


def test_a_change_that_lost_a_race_says_so(house, made):
    """Quarantine is logged between another's look and their promotion: the promotion has no effect and is told."""
    desk = house.desk()
    append = desk.log.append

    def racing(entries, **more):
        change_state(house.desk(), FIRST, "quarantine", actor="ops")
        return append(entries, **more)

    desk.log.append = racing
    with pytest.raises(Conflict, match="changed meanwhile"):
        change_state(desk, FIRST, "promote", actor="mel")
    assert house.registry().release(FIRST).state is ReleaseState.QUARANTINED


def test_concurrent_changes_agree_with_one_order(house, made):
    outcomes = []

    def work(verb):
        try:
            outcomes.append(change_state(house.desk(), FIRST, verb, actor=verb).state)
        except Conflict:
            outcomes.append(None)

    workers = [threading.Thread(target=work, args=(verb,)) for verb in ("promote", "quarantine", "retire", "promote")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outcomes) == 4
    assert house.registry().release(FIRST).state is ReleaseState.RETIRED


def test_an_edited_record_changes_nothing(house, made):
    """The attacker has the database, not the keys."""
    record = house.records.get(RELEASE, "credit@1")
    forged = msgspec.structs.replace(Release.parse(record.body), state=ReleaseState.PROMOTED, model=digest_of(b"evil"))
    house.records.commit([Change(RELEASE, "credit@1", forged.encode())])
    found = house.registry().release(FIRST)
    assert found == made
    with pytest.raises(NotTrusted, match="record of credit@1 was altered"):
        verify_release(house.registry(), house.trust, FIRST)
    change_state(house.desk(), FIRST, "quarantine", actor="ops")
    house.records.commit([Change(RELEASE, "credit@1", forged.encode())])
    assert house.registry().release(FIRST).state is ReleaseState.QUARANTINED


def test_an_invented_record_is_no_release(house, made):
    body = house.records.get(RELEASE, "credit@1").body
    house.records.commit([Change(RELEASE, "credit@9", body.replace(b'"version":1', b'"version":9'))])
    with pytest.raises(Missing):
        house.registry().release(ReleaseRef("credit", 9))


def test_a_stranger_with_the_log_key_alone_promotes_nothing(house, made):
    """Whoever holds the releases log's key, but no statement identity, can add entries that count for nothing."""
    desk = house.desk()
    eve = StatementSigner(house.ring.statement_signer().name, bytes([7]) * 32, bytes([7]) * 32)
    said = state_statement(made_resource(made), FIRST, "promote", actor="ada", at=1, nonce=bytes(16), reason="")
    desk.log.append([sign_statement(said, eve), b"junk"])
    assert house.registry().release(FIRST).state is ReleaseState.PUBLISHED
    assert house.registry().refresh().problem_count == 2


def made_resource(evidence):
    return Resource(evidence.filename, evidence.model)


def test_verify_with_and_without_keys(house, made):
    full = verify_release(house.registry(), house.trust, FIRST, signer="keep.example/statement-signing/1")
    bare = verify_release(house.registry(keyless=True), house.trust, FIRST)
    assert (full.opened, bare.opened) == (True, False)
    assert (full.log_index, full.log_size, len(full.checks), len(bare.checks)) == (3, 4, 6, 4)
    with pytest.raises(NotTrusted, match=r"not by ci@acme\.eu"):
        verify_release(house.registry(), house.trust, FIRST, signer="ci@acme.eu")
    with pytest.raises(Missing):
        verify_release(house.registry(), house.trust, ReleaseRef("credit", 2))


def spoil(kind, house, made):
    blobs, stored, sealed, profile = house.blobs, house.blobs.stored, made.body.sealed, made.profile_body.sealed
    swap = house.records.get(RECIPIENTS, profile).body
    return {
        "a flipped bit in the model": lambda: stored.update({sealed: flip(stored[sealed])}),
        "a flipped bit in the profile": lambda: stored.update(
            {made.profile_body.sealed: flip(stored[made.profile_body.sealed])}
        ),
        "truncated": lambda: stored.update({sealed: stored[sealed][:-1]}),
        "plaintext in its place": lambda: stored.update({sealed: b"\x08\x07" + bytes(400)}),
        "gone": lambda: blobs.delete(sealed),
        "another sealed body": lambda: stored.update({sealed: stored[profile]}),
        "recipients gone": lambda: house.records.commit([Change(RECIPIENTS, sealed, None)]),
        "recipients of another body": lambda: house.records.commit([Change(RECIPIENTS, sealed, swap)]),
        "recipients altered": lambda: house.records.commit(
            [Change(RECIPIENTS, sealed, flip(house.records.get(RECIPIENTS, sealed).body))]
        ),
        "record gone": lambda: house.records.commit([Change(RELEASE, "credit@1", None)]),
        "record malformed": lambda: house.records.commit([Change(RELEASE, "credit@1", b"{}")]),
    }[kind]()


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


KINDS = {
    "a flipped bit in the model": "sealed model of credit@1 is damaged: .*altered",
    "a flipped bit in the profile": "sealed extraction-profile of credit@1 is damaged",
    "truncated": "sealed model of credit@1 is damaged: .*cut",
    "plaintext in its place": "sealed model of credit@1 is damaged",
    "gone": "sealed model of credit@1 is gone",
    "another sealed body": "sealed model of credit@1 is damaged",
    "recipients gone": "cannot be opened",
    "recipients of another body": "another file was put in its place",
    "recipients altered": "recipient block|does not open",
    "record gone": "the record of credit@1 is gone",
    "record malformed": "malformed",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_is_one_clear_line(house, made, kind):
    spoil(kind, house, made)
    with pytest.raises(NotTrusted, match=KINDS[kind]) as caught:
        verify_release(house.registry(), house.trust, FIRST)
    assert "\n" not in str(caught.value)
    if "recipients" not in kind:
        with pytest.raises(NotTrusted):
            check_stored(house.registry(keyless=True), house.registry().release(FIRST))
    if "record" not in kind and "profile" not in kind:
        with pytest.raises(NotTrusted):
            export_release(house.desk(), FIRST, actor="ada")
        assert house.registry().refresh().size == 4  # a failed export hands nothing out, and logs nothing


def test_damage_to_the_log_is_refused(house, made):
    path = house.root / "log" / "tile" / "entries" / "000.p" / "4"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(NotTrusted):
        verify_release(house.registry(), house.trust, FIRST)
    path.unlink()
    with pytest.raises(NotTrusted):
        house.registry().refresh()


def test_a_log_put_back_from_before_a_quarantine_is_refused_by_who_saw_it(house, made):
    old = {p: p.read_bytes() for p in (house.root / "log").rglob("*") if p.is_file()}
    watcher = house.registry()
    change_state(house.desk(), FIRST, "quarantine", actor="ops")
    assert watcher.release(FIRST).state is ReleaseState.QUARANTINED
    for path, data in old.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with pytest.raises(NotTrusted):
        watcher.refresh()
    assert watcher.book.release(FIRST).state is ReleaseState.QUARANTINED


def test_export_is_logged_before_it_is_handed_out(house, made, model):
    assert bytes(export_release(house.desk(), FIRST, actor="ada", reason="audit")) == model.data
    last = house.registry().release(FIRST).history[-1]
    assert (last.verb, last.actor, last.reason) == ("export", "ada", "audit")
    change_state(house.desk(), FIRST, "quarantine", actor="ops")
    with pytest.raises(Conflict):
        export_release(house.desk(), FIRST, actor="ada")


def test_a_profile_does_not_open_as_a_model(house, made):
    registry = house.registry()
    registry.open_body(made.profile_body, made.profile_digest, PROFILE)
    with pytest.raises(NotTrusted):
        registry.open_body(made.profile_body, made.profile_digest, MODEL)
    with pytest.raises(NotTrusted):
        registry.open_body(made.body, digest_of(b"other"), MODEL)
    with pytest.raises(NotTrusted, match="none of the keys"):
        house.registry(keyless=True).open_body(made.body, made.model, MODEL)


@pytest.fixture
def own(tmp_path_factory, custodian):
    """A house whose keys may change."""
    ring = custodian.create(b"word", recipient_of(generate_identity()), origin="keep.example", now_ns=1)
    return House(tmp_path_factory.mktemp("own"), ring)


def test_rotation_rewraps_everything_and_the_old_key_can_go(own, custodian, another, calibration):
    for seed in range(3):
        publish(own.desk(), another(seed), "credit", actor="ada", calibration=calibration)
    before = own.registry().release(FIRST)
    own.ring = custodian.rotate(b"word", keys.MODEL_KEK, now_ns=2, log_size=0)
    own.faults.arm(3, error=InterruptedError)  # cut off after two of four: three models, and the profile that they share
    with pytest.raises(InterruptedError):
        rewrap(Bodies(own.registry()), own.keys.wrapper(), batch=1)
    own.faults.arm(0)
    assert wrapped_under(Bodies(own.registry())) == {"file:model-kek/1": 2, "file:model-kek/2": 2}
    done = rewrap(Bodies(own.registry()), own.keys.wrapper())
    assert (done.changed, done.current) == (2, 2)
    assert wrapped_under(Bodies(own.registry())) == {"file:model-kek/2": 4}
    for event in (keys.DISABLE, keys.DESTROY):
        own.ring = custodian.set_state(b"word", keys.MODEL_KEK, 1, event, log_size=0)
    assert own.registry().release(FIRST) == before
    assert verify_release(own.registry(), own.trust, FIRST).opened
    assert settle(own.desk()).bodies == 0


def test_a_disabled_key_opens_nothing(own, custodian, model):
    made = publish(own.desk(), model, "credit", actor="ada")
    custodian.rotate(b"word", keys.MODEL_KEK, now_ns=2, log_size=0)
    own.ring = custodian.set_state(b"word", keys.MODEL_KEK, 1, keys.DISABLE, log_size=0)
    with pytest.raises((Denied, NotTrusted)):
        own.registry().open_body(made.body, made.model, MODEL)


def test_after_rotating_the_statement_identity_only_the_new_one_counts(own, custodian, model):
    publish(own.desk(), model, "credit", actor="ada")
    old = own.desk()
    size = own.registry().refresh().size
    own.ring = custodian.rotate(b"word", keys.STATEMENT_SIGNING, now_ns=2, log_size=size)
    late = state_statement(
        made_resource(own.registry().release(FIRST)), FIRST, "promote", actor="x", at=1, nonce=bytes(16), reason=""
    )
    old.log_statements([late])
    assert own.registry().release(FIRST).state is ReleaseState.PUBLISHED
    assert change_state(own.desk(), FIRST, "promote", actor="mel").state is ReleaseState.PROMOTED
    assert verify_release(own.registry(), own.trust, FIRST).signer == "keep.example/statement-signing/1"
