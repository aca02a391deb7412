"""Rotate, move, compromise: cut off at every step, resumed; nothing is lost, no key strands a body, no second key is made."""

import itertools
import tempfile
from pathlib import Path

import msgspec
import pytest
from rotation_house import DAY, HSM, RotationHouse
from workflow_house import Cut

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.container.recipients import unlock
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, Resource
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody import keys
from modelkeep.custody.keyring import Custodian
from modelkeep.custody.metadata import CARD_SUBJECT, About, Classification
from modelkeep.custody.releases import RECIPIENTS, RELEASE, Release
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.statements import make_statement
from modelkeep.serving.bodies import SUBJECT_KEY, SubjectKeys
from modelkeep.workflows.bodies import parts, referred
from modelkeep.workflows.describe import describe, read_card
from modelkeep.workflows.holdings import Bodies, wrapped_under
from modelkeep.workflows.key_rotation import PLAN, carry_out_due, compromise, find, move, rewrap_only, rotate
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.verify import verify_release

ONE, TWO, THREE = (ReleaseRef("credit", n) for n in (1, 2, 3))
FIRST, SECOND = "file:model-kek/1", "file:model-kek/2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where houses stand: in memory if possible, because each of some hundred waits for the disk some dozens of times."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path_factory.mktemp("houses")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="modelkeep-test-") as name:
        yield Path(name)


@pytest.fixture
def place(folder):
    """A folder for one house after another."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def template(folder):
    """Three releases: one with a profile and a card, one whose body is shared, all under the first key."""
    import numpy as np
    from workflow_house import CountingEntropy, safetensors

    from modelkeep.core.values import digest_of
    from modelkeep.workflows.publish import Calibration, ModelFile

    root = folder / "template"
    (root / "keys").mkdir(mode=0o700, parents=True)
    custodian = Custodian(FileKeys(root / "keys"), CountingEntropy(), Argon2Params(64, 1, 1))
    ring = custodian.create(b"word", recipient_of(generate_identity()), origin="keep.example", now_ns=1)
    house = RotationHouse(root, ring)
    calibration = Calibration(lambda data, interface: {"kappa": np.arange(3.0)}, 200, digest_of(b"ref.npz"))
    for seed, fitted in ((0, calibration), (1, None), (1, None)):
        publish(house.desk(), ModelFile(safetensors(seed), "m.safetensors"), "credit", actor="ada", calibration=fitted)
    about = About(owner="ada", classification=Classification.INTERNAL, card="card.md")
    describe(house.desk(), ONE, about, b"# What it is", actor="ada")
    house.clock.sleep(10)
    return house


@pytest.fixture
def own(template, place):
    return template.copy(place)


def bodies_of(house):
    book = house.registry().refresh()
    return {(str(each.ref), what): body for each in book.releases() for body, _, what in parts(book, each)}


def acts_of(house):
    from modelkeep.ledger.predicates import Act
    from modelkeep.ledger.statements import open_statement, predicate_of

    view = house.registry().view
    found = []
    for entry in view.entries(0, view.refresh().size):
        statement, _ = open_statement(entry, *(each.public for each in house.trust.identities))
        if statement.predicate_type == Act.TYPE:
            found.append(predicate_of(statement, Act))
    return found


def states(house, family=keys.MODEL_KEK):
    house.read_ring()
    return {info.key_id: info.state for provider in house.providers(family) for info in provider.versions()}


def check_sound(house, refs=(ONE,)):
    """Everything opens and verifies, wherever it was cut off; and nothing is under a key that does not open."""
    house.read_ring()
    registry = house.registry()
    for ref in refs:
        assert verify_release(registry, house.trust, ref).opened
    book = registry.refresh()
    for evidence in book.releases():
        for body, source, what in parts(book, evidence):
            registry.open_body(body, source, what).check_model_digest()
    known = states(house)
    for key_id in wrapped_under(Bodies(registry)):
        assert known[key_id] in keys.MAY_UNWRAP, f"stranded under {key_id}, which is {known[key_id]}"


def check_done(house, primary, former):
    check_sound(house, (ONE, TWO, THREE))
    registry = house.registry()
    assert set(wrapped_under(Bodies(registry))) == {primary}
    assert states(house) == {primary: keys.PRIMARY, **former}
    needed = referred(registry)
    assert set(registry.blobs.all()) == needed == {record.key for record in registry.records.scan(RECIPIENTS)}
    assert registry.records.scan(PLAN) == []
    assert all(len(Release.parse(r.body).bodies) <= 2 for r in registry.records.scan(RELEASE))


# -- the stories, uninterrupted --


def test_a_rotation_from_end_to_end(own):
    before, blobs = bodies_of(own), {digest: own.blobs.read(digest, 0, own.blobs.size(digest)) for digest in own.blobs.all()}
    told = []
    done = rotate(own.wheel(progress=lambda *said: told.append(said)))
    assert (done.primary, done.changed, done.current, done.resealed) == (SECOND, 4, 0, 0)
    (retired,) = done.retired
    assert (retired.key_id, retired.state, retired.due) == (FIRST, keys.PENDING_DESTRUCTION, own.clock.now_ns() + 7 * DAY)
    assert bodies_of(own) == before  # ciphertext, signatures and log are the same
    assert blobs == {digest: own.blobs.read(digest, 0, own.blobs.size(digest)) for digest in own.blobs.all()}
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})
    assert [act.verb for act in acts_of(own)] == ["keys.rotate", "keys.rewrap", "keys.disable", "keys.destroy"]
    assert told == [("rewrap", 0, 4), ("rewrap", 4, 4)]


def test_the_grace_period_ends_in_destruction(own):
    rotate(own.wheel())
    assert carry_out_due(own.wheel()) == []
    own.clock.sleep(6.9 * 86_400)
    assert carry_out_due(own.wheel()) == []
    own.clock.sleep(0.2 * 86_400)
    (gone,) = carry_out_due(own.wheel())
    assert (gone.key_id, gone.state) == (FIRST, keys.DESTROYED)
    check_done(own, SECOND, {FIRST: keys.DESTROYED})
    assert acts_of(own)[-1].verb == "keys.destroyed"
    assert own.read_ring().wrapper(version=1).key.material == {}


def test_destruction_waits_when_something_came_back_under_the_key(own):
    """A backup of the records, say, put back after the rotation."""
    old = own.records.scan(RECIPIENTS)[0]
    rotate(own.wheel())
    own.records.commit([Change(RECIPIENTS, old.key, old.body)])
    own.clock.sleep(8 * 86_400)
    with pytest.raises(Conflict, match="1 thing is wrapped under file:model-kek/1"):
        carry_out_due(own.wheel())
    for act in (keys.CANCEL, keys.ENABLE):
        getattr(own.ring_keys(), act)(1)
    rewrap_only(own.wheel())
    check_sound(own)
    rotate(own.wheel())
    check_done(own, "file:model-kek/3", {FIRST: keys.PENDING_DESTRUCTION, SECOND: keys.PENDING_DESTRUCTION})


def test_keeping_the_old_key_and_retiring_it_later(own):
    done = rotate(own.wheel(), keep_old=True)
    assert done.retired == ()
    check_done(own, SECOND, {FIRST: keys.DECRYPT_ONLY})
    rotate(own.wheel())
    check_done(own, "file:model-kek/3", {FIRST: keys.PENDING_DESTRUCTION, SECOND: keys.PENDING_DESTRUCTION})


def test_rewrapping_alone_makes_no_key_and_changes_nothing_twice(own):
    own.ring_keys().rotate()
    assert rewrap_only(own.wheel()).changed == 4
    assert rewrap_only(own.wheel()).changed == 0
    check_done(own, SECOND, {FIRST: keys.DECRYPT_ONLY})


def test_moving_to_an_hsm_and_back(own):
    done = move(own.wheel(), HSM)
    assert (done.primary, done.changed) == (f"{HSM}/1", 4)
    check_done(own, f"{HSM}/1", {FIRST: keys.PENDING_DESTRUCTION})
    assert own.read_ring().places(keys.MODEL_KEK) == ("", HSM)
    publish(own.desk(), model(9), "credit", actor="ada")
    assert rotate(own.wheel()).primary == f"{HSM}/2"
    check_done(own, f"{HSM}/2", {f"{HSM}/1": keys.PENDING_DESTRUCTION, FIRST: keys.PENDING_DESTRUCTION})
    with pytest.raises(Conflict, match="already"):
        move(own.wheel(), HSM)
    back = move(own.wheel(), "")
    assert back.primary == SECOND
    # A primary that is left behind in a provider is its owner's to end: nothing is wrapped under it.
    hsm = {f"{HSM}/1": keys.PENDING_DESTRUCTION, f"{HSM}/2": keys.PRIMARY}
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION, **hsm})
    assert [each.state for each in back.retired] == [keys.PRIMARY]


def model(seed):
    from workflow_house import safetensors

    from modelkeep.workflows.publish import ModelFile

    return ModelFile(safetensors(seed), "m.safetensors")


def data_keys(house):
    registry = house.registry()
    found = {}
    for name, body in bodies_of(house).items():
        block = registry.records.get(RECIPIENTS, body.sealed).body
        purpose = {"model": "model", "extraction-profile": "extraction-profile", "model-card": "model-card"}[name[1]]
        found[name] = unlock(block, bytes.fromhex(body.header), registry.openers, purpose=purpose)
    return found


def test_a_compromised_primary_takes_every_data_key_with_it(own):
    before, known = data_keys(own), own.registry().release(ONE)
    done = compromise(own.wheel(), FIRST, "a backup tape was lost")
    after = data_keys(own)
    assert (done.primary, done.resealed) == (SECOND, 3)
    assert not set(before.values()) & set(after.values())
    assert before.keys() == after.keys()
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})
    now = own.registry().release(ONE)
    assert (now.model, now.state, now.history, now.profile_digest) == (
        known.model,
        known.state,
        known.history,
        known.profile_digest,
    )
    assert now.body != known.body and now.profile_body != known.profile_body
    verbs = [act.verb for act in acts_of(own)]
    assert verbs == ["keys.compromise", "keys.rotate", "keys.reencrypt", "keys.rewrap", "keys.destroy"]
    assert acts_of(own)[0].detail == {"reason": "a backup tape was lost"}
    # Two releases with the same content share the new body as they shared the old one.
    bodies = bodies_of(own)
    assert bodies[str(TWO), "model"] == bodies[str(THREE), "model"]


def test_cancelling_the_end_of_a_compromised_key_leaves_it_compromised(own):
    compromise(own.wheel(), FIRST, "lost")
    own.read_ring()
    assert own.ring_keys().cancel(1).state == keys.COMPROMISED


def test_a_former_key_exposes_what_it_wrapped_once_and_nothing_newer(own):
    """Whoever has the former key and an old copy of the records has data keys that a rotation only wrapped again."""
    rotate(own.wheel(), keep_old=True)
    own.clock.sleep(10)
    publish(own.desk(), model(7), "credit", actor="ada")
    before = data_keys(own)
    done = compromise(own.wheel(), FIRST, "an old disk was sold")
    after = data_keys(own)
    assert (done.primary, done.resealed) == (SECOND, 3)  # no new primary: the one in use is not known to anybody
    newer = ("credit@4", "model")
    assert before.pop(newer) == after.pop(newer)
    assert not set(before.values()) & set(after.values())
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


def test_a_body_that_is_spoken_of_again_is_no_newer(own):
    """Metadata said again about the same card: its body was wrapped under the former key all the same."""
    about = About("risk", Classification.INTERNAL, card="card.md")
    card = describe(own.desk(), ONE, about, b"# Card", actor="ada").card
    own.clock.sleep(10)
    rotate(own.wheel(), keep_old=True)
    own.clock.sleep(10)
    book = own.registry().refresh()
    known, described = book.release(ONE), book.catalogue.described(ONE)
    said = msgspec.structs.replace(described.said, at=own.clock.now_ns(), id="ab" * 16)
    subjects = Resource(known.filename, known.model), Resource(CARD_SUBJECT, described.card_digest)
    own.desk().log_statements([make_statement(said, *subjects)])
    assert own.registry().refresh().catalogue.described(ONE).said == said
    compromise(own.wheel(), FIRST, "an old disk was sold")
    assert card.sealed not in set(own.registry().blobs.all())
    assert read_card(own.registry(), ONE) == b"# Card"


def test_a_compromise_after_destruction_still_exposes(own):
    rotate(own.wheel())
    own.clock.sleep(8 * 86_400)
    carry_out_due(own.wheel())
    before = data_keys(own)
    assert compromise(own.wheel(), FIRST, "found in an old core dump").resealed == 3
    assert not set(before.values()) & set(data_keys(own).values())
    check_done(own, SECOND, {FIRST: keys.DESTROYED})


def test_a_compromised_key_in_a_provider_is_disabled_there(own):
    move(own.wheel(), HSM)
    before = data_keys(own)
    done = compromise(own.wheel(), f"{HSM}/1", "the token was stolen")
    assert (done.primary, done.resealed) == (f"{HSM}/2", 3)
    assert not set(before.values()) & set(data_keys(own).values())
    check_done(own, f"{HSM}/2", {f"{HSM}/1": keys.PENDING_DESTRUCTION, FIRST: keys.PENDING_DESTRUCTION})


def test_one_damaged_body_stops_the_end_of_the_key_and_nothing_else(own):
    lost = bodies_of(own)[str(ONE), "model"]
    own.blobs.delete(lost.sealed)
    with pytest.raises(NotTrusted):
        compromise(own.wheel(), FIRST, "lost")
    held = wrapped_under(Bodies(own.registry()))
    assert held == {FIRST: 3, SECOND: 1}  # model, profile and card of the one; what the others share has a fresh data key
    assert states(own)[FIRST] == keys.COMPROMISED


def test_a_damaged_block_does_not_stop_the_others_from_being_rewrapped(own):
    first = own.records.scan(RECIPIENTS)[0]
    own.records.commit([Change(RECIPIENTS, first.key, first.body[:-1] + bytes([first.body[-1] ^ 1]))])
    with pytest.raises(NotTrusted):
        rotate(own.wheel())
    assert wrapped_under(Bodies(own.registry())) == {FIRST: 1, SECOND: 3}
    assert states(own)[FIRST] == keys.DECRYPT_ONLY
    own.records.commit([Change(RECIPIENTS, first.key, first.body)])
    rotate(own.wheel())
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


# -- audit-subject --


def test_keys_of_accounts_are_wrapped_anew(own):
    def subjects():
        own.read_ring()
        return SubjectKeys(own.records, own.ring_keys(keys.AUDIT_SUBJECT), own.desk().entropy)

    before = {name: subjects().key(name) for name in ("sub_a", "sub_b")}
    old_form = own.records.get(SUBJECT_KEY, "sub_b")
    own.records.commit([Change(SUBJECT_KEY, "sub_b", old_form.body[-112:])])  # as it was before keys could rotate
    done = rotate(own.wheel(keys.AUDIT_SUBJECT))
    assert (done.primary, done.changed) == ("file:audit-subject/2", 2)
    assert {name: subjects().existing(name) for name in before} == before
    assert states(own, keys.AUDIT_SUBJECT) == {
        "file:audit-subject/1": keys.PENDING_DESTRUCTION,
        "file:audit-subject/2": keys.PRIMARY,
    }
    stolen = own.records.get(SUBJECT_KEY, "sub_a")
    other = stolen.body[:-1] + bytes([stolen.body[-1] ^ 1])
    for body in (stolen.body[:5], b"", b"\xff\xff" + stolen.body[2:], other, b"\0\1\xff" + bytes(112)):
        own.records.commit([Change(SUBJECT_KEY, "sub_a", body)])
        with pytest.raises(NotTrusted):
            subjects().existing("sub_a")


# -- cut off anywhere --


def story(name):
    return {
        "rotate": (lambda house: rotate(house.wheel()), SECOND, {FIRST: keys.PENDING_DESTRUCTION}),
        "move": (lambda house: move(house.wheel(), HSM), f"{HSM}/1", {FIRST: keys.PENDING_DESTRUCTION}),
        "compromise": (lambda house: compromise(house.wheel(), FIRST, "lost"), SECOND, {FIRST: keys.PENDING_DESTRUCTION}),
    }[name]


def cut_at_every_step(template, place, name):
    """Yields the house after a cut before each durable step of a story: after the step before it is the same moment."""
    tell, _, _ = story(name)
    for at in itertools.count(1):
        house = template.copy(place / f"{at}")
        house.faults.arm(at)
        try:
            tell(house)
        except Cut:
            house.faults.arm(0)
            yield at, house
        else:
            assert house.faults.count == at - 1
            return


@pytest.mark.parametrize("name", ["rotate", "move", "compromise"])
def test_cut_off_at_every_step_and_resumed(template, place, name):
    tell, primary, former = story(name)
    steps = 0
    for at, house in cut_at_every_step(template, place, name):
        steps = at
        if at % 2:  # the next process settles first, as control does
            settle(house.desk())
        check_sound(house)
        if house.records.scan(PLAN) and at % 3 == 0:
            rotate(house.wheel())  # it goes on with whatever was cut off
        elif house.records.scan(PLAN) or primary not in states(house):  # else the cut came when all was done
            tell(house)
        settle(house.desk())
        check_done(house, primary, former)
        assert {act.verb for act in acts_of(house)} >= {"keys.rewrap", "keys.destroy"}
    assert steps > 10


@pytest.mark.parametrize("step", range(3, 24, 4))
def test_cut_off_twice(own, step):
    house = own
    for at in (step, 2):
        house.faults.arm(at)
        with pytest.raises(Cut):
            compromise(house.wheel(), FIRST, "lost")
        house.faults.arm(0)
        check_sound(house)
    compromise(house.wheel(), FIRST, "lost")
    settle(house.desk())
    check_done(house, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_full_disk_is_no_cut(own, at):
    own.faults.arm(at, error=Unavailable)
    with pytest.raises(Unavailable):
        rotate(own.wheel())
    own.faults.arm(0)
    check_sound(own)
    rotate(own.wheel())
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


# -- others at work --


def test_one_at_a_time(own):
    wheel = own.wheel()
    with wheel.desk.claims.hold(wheel.claim):
        for tell in (rotate, rewrap_only, lambda each: move(each, HSM), lambda each: compromise(each, FIRST, "x")):
            with pytest.raises(Conflict, match="holds the claim"):
                tell(own.wheel())


def test_a_plan_cut_off_is_finished_before_anything_else_begins(own):
    own.faults.arm(4)
    with pytest.raises(Cut):
        rotate(own.wheel())
    own.faults.arm(0)
    for tell in (lambda each: move(each, HSM), lambda each: compromise(each, FIRST, "x")):
        with pytest.raises(Conflict, match="finish it first"):
            tell(own.wheel())
    rotate(own.wheel())
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


def test_a_publisher_that_began_before_is_waited_for(own, monkeypatch):
    """It holds its claim, and wraps under the former key when the new one is there already."""
    wheel, late = own.wheel(), own.desk()
    release = Release.parse(late.registry.records.get(RELEASE, str(ONE)).body)
    pending = Release(
        ref=ReleaseRef("slow", 1), state="pending", claim="ab" * 16, model=release.model, filename="m", format="safetensors",
        size=1, actor="ada", created=1, interface=release.interface,
    )  # fmt: skip
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            held.close()
        type(own.clock).sleep(own.clock, seconds)

    import contextlib

    held = contextlib.ExitStack()
    held.enter_context(late.claims.hold(pending.claim))
    own.records.commit([Change(RELEASE, "slow@1", pending.encode(), 0)])
    monkeypatch.setattr(own.clock, "sleep", sleep, raising=False)
    rotate(wheel)
    assert len(waits) == 3
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


def test_a_publisher_that_never_ends_is_not_overtaken(own):
    with own.desk().claims.hold("ab" * 16):
        release = Release.parse(own.records.get(RELEASE, str(ONE)).body)
        import msgspec

        slow = msgspec.structs.replace(
            release, ref=ReleaseRef("slow", 1), state="pending", claim="ab" * 16, body=None, profile=None
        )
        own.records.commit([Change(RELEASE, "slow@1", slow.encode(), 0)])
        with pytest.raises(Conflict, match="slow@1 is still being published"):
            rotate(own.wheel())
        assert states(own)[FIRST] == keys.DECRYPT_ONLY
    rotate(own.wheel())
    settle(own.desk())
    check_done(own, SECOND, {FIRST: keys.PENDING_DESTRUCTION})


def test_a_key_is_found_by_version_and_by_id(own):
    rotate(own.wheel())
    wheel = own.wheel()
    assert find(wheel, "1")[1].key_id == find(wheel, FIRST)[1].key_id == FIRST
    for name, error in (("9", Missing), ("hsm:other/1", Missing), ("nonsense", Invalid)):
        with pytest.raises(error):
            find(wheel, name)


def test_a_provider_that_does_not_open_what_it_wraps_gets_nothing(own, monkeypatch):
    monkeypatch.setattr(type(own.hsm), "opens", lambda self, key_id: None)
    with pytest.raises(NotTrusted, match="does not open what it wraps"):
        move(own.wheel(), HSM)
    assert own.read_ring().places(keys.MODEL_KEK) == ("",)
    assert set(wrapped_under(Bodies(own.registry()))) == {FIRST}


def test_a_damaged_plan_is_refused(own):
    own.records.commit([Change(PLAN, keys.MODEL_KEK, b"{}")])
    with pytest.raises(NotTrusted, match="plan"):
        rotate(own.wheel())


def test_what_is_disabled_opens_nothing(own):
    rotate(own.wheel())
    own.read_ring()
    wrapper = own.ring_keys().wrapper(1)
    with pytest.raises(Denied):
        wrapper.unwrap(bytes(112), b"")
