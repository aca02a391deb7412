"""The life of keys as verbs: an HSM, the pin, who may, what is due by itself, and processes that see each other's changes."""

import socket
import threading

import pytest
from commandline import PASSPHRASE, copy_keep
from softhsm import Token

from modelkeep.app.control import CONTROL, open_control
from modelkeep.app.handover import RingWatch, decode, encode, follow_ring, open_for, send_ring
from modelkeep.app.keep import Keep
from modelkeep.app.keyverbs import COMPROMISES, KEYS, ROTATIONS, TURNING
from modelkeep.app.sections import KeySettings
from modelkeep.app.settings import parse
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role, to_json
from modelkeep.custody.keyring import Keyring, Unlocked
from modelkeep.custody.keys import FAMILIES, GATEWAY_FAMILIES, MODEL_KEK, ROTATABLE
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Sealed, Unavailable
from modelkeep.workflows.key_rotation import PLAN, Plan

WORD = PASSPHRASE.encode()
FIRST, SECOND = "file:model-kek/1", "file:model-kek/2"


@pytest.fixture
def folder(template, tmp_path):
    return copy_keep(template, tmp_path / "keep")


@pytest.fixture
def keep(folder):
    return Keep.open(folder, WORD)


def states(keep):
    (family,) = [each for each in keep.keys_list() if each.family == MODEL_KEK]
    return {key.key_id: key.state for key in family.versions}


def held(keep):
    return {row.key_id: row.things for row in keep.keys_inventory().keys if row.family == MODEL_KEK}


def test_every_family_that_can_rotate_has_a_way_to():
    assert {*TURNING, *ROTATIONS} == {*ROTATABLE}
    assert ROTATIONS.keys() == COMPROMISES.keys()
    assert all(callable(getattr(Keep, name)) for name in (*ROTATIONS.values(), *COMPROMISES.values()))


# -- an HSM --


def test_model_keys_move_to_an_hsm_rotate_there_and_come_back(keep, folder, subject):
    """PKCS #11 on a real token: what is under it opens with the token and not without."""
    token = Token()
    place = token.uri("models")
    done = keep.keys_move(place)
    key_id = place.partition("?")[0]
    assert done.primary == f"{key_id}/1" and done.changed == 2
    assert held(keep) == {f"{key_id}/1": 2, FIRST: 0}
    assert keep.keys_list()[[each.family for each in keep.keys_list()].index(MODEL_KEK)].place == key_id
    fresh = Keep.open(folder, WORD)
    assert fresh.export(ref="risk@1").model == subject.onnx
    assert fresh.keys_rotate(family=MODEL_KEK).primary == f"{key_id}/2"
    made = fresh.publish(name="risk", filename="m.onnx", model=subject.onnx, reference=subject.reference)
    assert made.ref == "risk@2"
    assert held(fresh)[f"{key_id}/1"] == 0 < held(fresh)[f"{key_id}/2"]
    with token.pulled():
        away = Keep.open(folder, WORD)
        with pytest.raises(Unavailable):
            away.export(ref="risk@1")
        assert states(away) == {FIRST: "pending-destruction", away.premises.wrapping().uri: "unreachable"}
    assert Keep.open(folder, WORD).keys_move("ring").primary == SECOND
    with token.pulled():
        assert Keep.open(folder, WORD).export(ref="risk@1").model == subject.onnx


def test_a_pin_has_to_agree_with_where_keys_are(folder, tmp_path):
    place, other = f"file:{tmp_path}/there.keys", f"file:{tmp_path}/elsewhere.keys"

    def pinned(uri):
        text = (folder / "modelkeep.toml").read_text().partition("[keys]")[0]
        (folder / "modelkeep.toml").write_text(text + f'[keys]\nmodel_kek = "{uri}"\n')
        return Keep.open(folder, WORD)

    with pytest.raises(Invalid, match="keys move"):
        pinned(place).export(ref="risk@1")
    with pytest.raises(Invalid, match="change or remove that setting"):
        pinned(place).keys_move(other)
    assert pinned(place).keys_move(place).changed == 2
    pinned(place).export(ref="risk@1")
    with pytest.raises(Invalid, match="keys move"):
        pinned(other).keys_rotate(family=MODEL_KEK)
    pinned("").export(ref="risk@1")


def test_only_the_operator_moves_keys(keep, tmp_path):
    mel = Principal("mel", "sub_mel", (Role.ML_ENGINEER,), "local")
    for act in (
        lambda who: who.keys_move("ring"),
        lambda who: who.keys_list(),
        lambda who: who.keys_rotate(family=MODEL_KEK),
        lambda who: who.keys_destroy(family=MODEL_KEK, version="1", now=True, reason="x"),
        lambda who: who.keys_compromise(family=MODEL_KEK, version="1", reason="x"),
        lambda who: who.keys_due(),
    ):
        with pytest.raises(Denied):
            act(keep.acting_as(mel))


# -- states --


def test_a_key_from_its_first_to_its_last_day(keep):
    with pytest.raises(Conflict, match="in use"):
        keep.keys_disable(family=MODEL_KEK, version="1")
    assert keep.keys_new(family=MODEL_KEK).primary == SECOND
    with pytest.raises(Conflict, match="2 things are wrapped under"):
        keep.keys_disable(family=MODEL_KEK, version="1")
    with pytest.raises(Conflict, match="disable it first"):
        keep.keys_destroy(family=MODEL_KEK, version="1", now=True, reason="x")
    assert keep.keys_rotate(family=MODEL_KEK, rewrap_only=True).changed == 2
    assert keep.keys_disable(family=MODEL_KEK, version="1").state == "disabled"
    assert keep.keys_enable(family=MODEL_KEK, version=FIRST).state == "decrypt-only"
    keep.keys_disable(family=MODEL_KEK, version="1")
    pending = keep.keys_destroy(family=MODEL_KEK, version="1")
    assert pending.state == "pending-destruction" and pending.due > keep.premises.clock.now_ns()
    with pytest.raises(Conflict, match="not due"):
        keep.keys_destroy(family=MODEL_KEK, version="1")
    assert keep.keys_cancel(family=MODEL_KEK, version="1").state == "disabled"
    with pytest.raises(Invalid, match="reason"):
        keep.keys_destroy(family=MODEL_KEK, version="1", now=True)
    assert keep.keys_destroy(family=MODEL_KEK, version="1", now=True, reason="audit").state == "destroyed"
    for act in (keep.keys_enable, keep.keys_cancel, keep.keys_destroy):
        with pytest.raises(Conflict):
            act(family=MODEL_KEK, version="1")
    said = [(row.about, row.summary) for row in keep.log_show(last=40) if row.type == "act"]
    assert [words.split()[0] for about, words in said if about == FIRST] == [
        "keys.disable", "keys.enable", "keys.disable", "keys.destroy", "keys.cancel", "keys.destroy",
    ]  # fmt: skip


def test_destruction_is_refused_while_something_is_wrapped(keep, folder):
    old = keep.premises.records.scan(RECIPIENTS)[0]
    keep.keys_rotate(family=MODEL_KEK)
    keep.premises.records.commit([Change(RECIPIENTS, old.key, old.body)])
    with pytest.raises(Conflict, match="1 thing is wrapped under"):
        keep.keys_destroy(family=MODEL_KEK, version="1", now=True, reason="x")
    assert states(keep)[FIRST] == "pending-destruction"


@pytest.mark.parametrize("family", ["watermark", "log-signing", "audit-log", "nonsense", ""])
def test_families_that_nothing_can_be_done_to(keep, family):
    for act in (keep.keys_rotate, keep.keys_new):
        with pytest.raises(Invalid, match="possible are"):
            act(family=family)


def test_inventory_tells_what_disagrees(keep):
    assert keep.keys_inventory().problems == ()
    (body, *_) = sorted(keep.premises.blobs.all())
    keep.premises.blobs.delete(body)
    keep.premises.blobs.put([b"stray"])
    one, two = sorted(keep.keys_inventory().problems)
    assert {body in one, body in two} == {True, False} and "the body is gone" in one + two and "neither wrapped" in one + two
    keep.premises.records.commit([Change(RECIPIENTS, body, None)])
    assert any("recipients are gone" in problem for problem in keep.keys_inventory().problems)


def test_a_compromise_opens_an_incident_before_anything_else(keep):
    (body, *_) = sorted(keep.premises.blobs.all())
    keep.premises.blobs.delete(body)
    with pytest.raises(NotTrusted):
        keep.keys_compromise(family=MODEL_KEK, version="1", reason="a laptop was stolen")
    (incident,) = [row for row in keep.incidents() if row.id.startswith(KEYS)]
    assert "a laptop was stolen" in incident.detail
    for reason in ("", "x" * 3000):
        with pytest.raises(Invalid):
            keep.keys_compromise(family=MODEL_KEK, version="1", reason=reason)
    with pytest.raises(Missing):
        keep.keys_compromise(family=MODEL_KEK, version="7", reason="x")


# -- by itself --


def with_settings(folder, text):
    path = folder / "modelkeep.toml"
    path.write_text(path.read_text().partition("[keys]")[0] + "[keys]\n" + text)
    return Keep.open(folder, WORD).acting_as(CONTROL)


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [("", 0), ("90s", 90), ("5m", 300), ("2h", 7200), ("30d", 30 * 86_400), ("0d", None), ("d", None), ("1w", None)],
)
def test_ttl(ttl, seconds):
    if seconds is None:
        with pytest.raises(Invalid):
            parse({"keys": {"ttl": ttl}}, {}, "here")
    else:
        assert parse({"keys": {"ttl": ttl}}, {}, "here").keys.ttl_ns == seconds * 10**9
    assert KeySettings().ttl_ns == 0


def test_nothing_is_due_in_a_keep_as_it_is_made(keep):
    keep.acting_as(CONTROL).keys_due()
    assert states(keep) == {FIRST: "primary"}


def test_a_key_that_is_old_enough_is_rotated_once(folder):
    with_settings(folder, 'ttl = "1h"\n').keys_due()
    keep = with_settings(folder, 'ttl = "1s"\n')
    assert states(keep) == {FIRST: "primary"}
    keep.keys_due()
    assert states(keep)[FIRST] == "pending-destruction" and states(keep)[SECOND] == "primary"
    with_settings(folder, 'ttl = "1h"\n').keys_due()
    assert len(states(keep)) == 2


def test_control_goes_on_with_what_somebody_was_cut_off_in(keep):
    keep.premises.records.commit([Change(PLAN, MODEL_KEK, to_json(Plan((FIRST,), 1, 7)), 0)])
    keep.acting_as(CONTROL).keys_due()
    assert states(keep) == {FIRST: "pending-destruction", SECOND: "primary"}
    assert keep.premises.records.scan(PLAN) == []


def test_what_fails_by_itself_opens_one_incident(folder):
    keep = with_settings(folder, 'ttl = "1s"\n')
    record = keep.premises.records.scan(RECIPIENTS)[0]
    keep.premises.records.commit([Change(RECIPIENTS, record.key, record.body[:-1] + bytes([record.body[-1] ^ 1]))])
    for _ in range(2):
        with pytest.raises(NotTrusted):
            keep.keys_due()
    (incident,) = [row for row in keep.incidents() if row.id.startswith(KEYS)]
    assert incident.id == f"{KEYS}:{MODEL_KEK}" and "could not be done" in incident.detail
    assert states(keep) == {FIRST: "decrypt-only", SECOND: "primary"}


# -- several processes --


def test_a_process_that_runs_sees_what_another_one_rotated(folder):
    one, other = Keep.open(folder, WORD), Keep.open(folder, WORD)
    assert one.keyring([MODEL_KEK]).wrapper().key_id == FIRST
    other.keys_rotate(family=MODEL_KEK)
    assert one.premises.desk().wrapper.key_id == SECOND
    assert states(one) == states(other)


def test_control_rotates_without_the_passphrase(folder):
    """It has what the passphrase was stretched to, through the pipe that children are started with."""
    operator = Keep.open(folder, WORD)
    opened = decode(encode(open_for(operator.premises, FAMILIES)))
    assert opened.unlocked is not None and WORD not in encode(opened)
    control = open_control(folder, opened, lambda _text: None)
    try:
        assert control.keep.keys_rotate(family=MODEL_KEK).primary == SECOND
        assert operator.premises.desk().wrapper.key_id == SECOND  # the operator's passphrase opens it as before
        operator.keys_passwd(b"another passphrase of the test")
        with pytest.raises(NotTrusted, match="start it again"):
            control.keep.keys_rotate(family=MODEL_KEK)
    finally:
        control.audit.stop()
    assert "kek" not in repr(opened.unlocked)


def test_a_gateway_gets_no_way_to_change_keys(folder):
    opened = open_for(Keep.open(folder, WORD).premises, GATEWAY_FAMILIES)
    assert opened.unlocked is None and decode(encode(opened)).unlocked is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'[[1,2,3],"AA==","AA=="]', b'[[65536,3],"AA==","AA=="]'])
def test_a_malformed_way_to_change_keys(data):
    with pytest.raises((NotTrusted, Invalid)):
        Unlocked.receive(data)


def test_a_changed_ring_reaches_whoever_follows(folder):
    keep = Keep.open(folder, WORD)
    ring = keep.keyring(GATEWAY_FAMILIES)
    ours, theirs = socket.socketpair()
    got, said, taken = [], [], threading.Event()

    def take(keyring):
        got.append(keyring)
        taken.set()
        if len(got) == 1:
            raise Invalid("not this one")

    thread = follow_ring(theirs.detach(), take, said.append)
    with ours:
        send_ring(ours, ring)
        assert taken.wait(60)
        keep.keys_rotate(family=MODEL_KEK)
        send_ring(ours, Keyring.receive(keep.keyring(FAMILIES).hand_over(GATEWAY_FAMILIES)))
    thread.join(60)
    assert not thread.is_alive()
    assert [each.wrapper().key_id for each in got] == [FIRST, SECOND]
    assert said == ["the changed keys were not taken over: not this one"]
    with pytest.raises(Unavailable):
        gone, end = socket.socketpair()
        end.close()
        with gone:
            send_ring(gone, ring)


def test_a_watch_tells_once_for_every_change(folder, monkeypatch):
    keep, other = Keep.open(folder, WORD), Keep.open(folder, WORD)
    keep.keyring([MODEL_KEK])
    renewed, said = [], []
    watch = RingWatch(keep.premises, said.append)
    watch.renew = lambda: renewed.append(keep.keyring([MODEL_KEK]).wrapper().key_id)
    monkeypatch.setattr("modelkeep.app.handover.LOOK_SECONDS", 0.0)
    watch.look()
    assert renewed == []
    other.keys_new(family=MODEL_KEK)
    for _ in range(3):
        watch.look()
    assert renewed == [SECOND] and len(said) == 1
    other.keys_passwd(b"another passphrase of the test")
    for _ in range(3):
        watch.look()
    assert renewed == [SECOND] and "the passphrase was changed" in said[1] and len(said) == 2


def test_a_watch_tries_again_what_failed_once(folder, monkeypatch):
    keep, other = Keep.open(folder, WORD), Keep.open(folder, WORD)
    said, failures = [], [Unavailable("not this time"), Unavailable("nor now")]

    def renew():
        if failures:
            raise failures.pop()

    watch = RingWatch(keep.premises, said.append)
    watch.renew = renew
    monkeypatch.setattr("modelkeep.app.handover.LOOK_SECONDS", 0.0)
    other.keys_new(family=MODEL_KEK)
    for _ in range(4):
        watch.look()
    assert [each.partition(":")[0] for each in said] == ["the key ring changed and could not be opened", "the key ring changed"]


def test_a_handed_ring_cannot_be_changed(folder):
    ring = Keep.open(folder, WORD).keyring([MODEL_KEK])
    for act in (lambda keys: keys.rotate(), lambda keys: keys.disable(1), lambda keys: keys.destroy(1, grace_days=7)):
        with pytest.raises(Sealed):
            act(RingKeys(MODEL_KEK, lambda: ring))
