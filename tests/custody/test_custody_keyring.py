"""The key ring: passphrases, recovery, rotation, states; files swapped, damaged, opened to others; and cut-off changes."""

import contextlib
import json
import stat

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key
from rich.pretty import pretty_repr

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.crypto.notes import NoteVerifier
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody import keys
from modelkeep.custody.keyring import Custodian, Keyring, Unlocked, releases_origin
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Sealed, Unavailable

WORD, NEW = b"correct horse", b"battery staple"


def opened(store, word=WORD, families=keys.FAMILIES):
    return Keyring.open(store, families, word)


def test_every_family_has_a_private_compartment(ring, store, tmp_path):
    files = sorted(path for path in (tmp_path / "keys").glob("*.keep"))
    assert [path.stem for path in files] == sorted(keys.FAMILIES) == store.families()
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert opened(store).inventory() == ring.inventory()
    assert {info.state for info in ring.inventory()} == {"primary"}


def test_secrets_survive_and_differ(ring, store):
    again = opened(store)
    singles = [family for family in keys.FAMILIES if family != keys.STATEMENT_SIGNING]
    assert [again.secret(family) for family in singles] == [ring.secret(family) for family in singles]
    assert len({ring.secret(family) for family in singles}) == len(singles)
    assert again.statement_signer().public == ring.statement_signer().public
    assert load_der_private_key(ring.secret(keys.TLS_CA), None).curve.name == "secp256r1"


def test_the_trust_root_speaks_of_these_keys(ring):
    trust = ring.trust
    assert trust.identities[0].public == ring.statement_signer().public
    signer = ring.note_signer(keys.LOG_SIGNING, releases_origin("keep.example"))
    assert NoteVerifier.parse(trust.releases_log).name == "keep.example/releases"
    assert signer.vkey == trust.releases_log
    assert ring.token_key().public_key().public_bytes_raw() == trust.token_key
    assert ring.note_signer(keys.AUDIT_LOG, "keep.example/audit/1").public == trust.audit_key
    assert TrustRoot.parse(trust.encode()) == trust


def test_a_process_has_only_the_compartments_that_it_opened(ring, store):
    gateway = opened(store, families=keys.GATEWAY_FAMILIES)
    for use in (
        gateway.statement_signer,
        gateway.token_key,
        lambda: gateway.note_signer(keys.LOG_SIGNING, "keep.example/releases"),
        lambda: gateway.hand_over([keys.LOG_SIGNING]),
    ):
        with pytest.raises(Sealed):
            use()
    assert gateway.secret(keys.WATERMARK) == ring.secret(keys.WATERMARK)
    handed = Keyring.receive(ring.hand_over(keys.GATEWAY_FAMILIES))
    assert handed.families == gateway.families
    with pytest.raises(Sealed):
        handed.statement_signer()
    assert handed.trust == ring.trust


@pytest.mark.parametrize("data", [b"", b"{}", b'["x"]', b'["AAAA"]', b"[]"])
def test_a_malformed_hand_over(data):
    with pytest.raises((NotTrusted, Invalid)):
        Keyring.receive(data)


def test_wrong_passphrase_is_one_clear_line(ring, store, custodian):
    with pytest.raises(NotTrusted, match=r"^wrong passphrase, or damaged compartment keys/model-kek\.keep"):
        opened(store, b"wrong")
    with pytest.raises(NotTrusted, match="wrong passphrase"):
        custodian.change_passphrase(b"wrong", NEW)
    with pytest.raises(Invalid, match="empty"):
        custodian.change_passphrase(WORD, b"")
    opened(store)


def test_creation_never_touches_an_existing_ring(ring, custodian, store, identity):
    with pytest.raises(Conflict):
        custodian.create(NEW, recipient_of(identity), origin="x", now_ns=1)
    opened(store)


def test_change_of_passphrase(ring, store, custodian):
    custodian.change_passphrase(WORD, NEW)
    assert opened(store, NEW).secret(keys.WATERMARK) == ring.secret(keys.WATERMARK)
    with pytest.raises(NotTrusted):
        opened(store)


def test_recovery(ring, store, custodian, identity):
    with pytest.raises(NotTrusted, match="wrong recovery identity"):
        custodian.recover(generate_identity(), NEW)
    with pytest.raises(Invalid):
        custodian.recover("modelkeep-recovery-oops", NEW)
    assert custodian.recover(identity, NEW).inventory() == ring.inventory()
    assert opened(store, NEW).secret(keys.WATERMARK) == ring.secret(keys.WATERMARK)
    assert custodian.recover(identity, WORD).trust == ring.trust  # the recovery recipient is kept


class Cut(BaseException):
    """The power fails."""


@pytest.mark.parametrize("at", range(1, 40))
def test_a_change_of_passphrase_cut_off_anywhere_is_done_or_has_not_begun(ring, store, custodian, monkeypatch, tmp_path, at):
    from modelkeep.adapters.keys import file as module

    left = [at]

    def failing(act):
        def step(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise Cut
            return act(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_folder", failing(module.sync_folder))
        patch.setattr(FileKeys, "_write", staticmethod(failing(FileKeys._write)))
        for name in ("mkdir", "rename", "rmdir"):
            patch.setattr(module.Path, name, failing(getattr(module.Path, name)))
        try:
            custodian.change_passphrase(WORD, NEW)
            assert left[0] > 0
        except Cut:
            pass
    results = []
    for word in (WORD, NEW):
        with contextlib.suppress(NotTrusted):
            results.append(opened(FileKeys(tmp_path / "keys"), word).secret(keys.WATERMARK))
    assert results == [ring.secret(keys.WATERMARK)]
    assert sorted(p.name for p in (tmp_path / "keys").iterdir()) == sorted([".lock", *(f"{f}.keep" for f in keys.FAMILIES)])


def test_the_number_of_steps_above_covers_a_whole_change(ring, custodian, monkeypatch):
    from modelkeep.adapters.keys import file as module

    done = []
    monkeypatch.setattr(module, "sync_folder", lambda path, act=module.sync_folder: (done.append(1), act(path)))
    monkeypatch.setattr(
        FileKeys, "_write", staticmethod(lambda path, data, act=FileKeys._write: (done.append(1), act(path, data)))
    )
    for name in ("mkdir", "rename", "rmdir"):
        act = getattr(module.Path, name)
        monkeypatch.setattr(module.Path, name, lambda *a, act=act, **k: (done.append(1), act(*a, **k))[1])
    custodian.change_passphrase(WORD, NEW)
    assert len(done) < 39


def test_swapped_damaged_and_open_files(ring, store, tmp_path):
    kek, subject = tmp_path / "keys" / "model-kek.keep", tmp_path / "keys" / "audit-subject.keep"
    good = kek.read_bytes()
    kek.write_bytes(subject.read_bytes())
    with pytest.raises(NotTrusted, match="another file was put in its place"):
        opened(store)
    for damaged in (good[:-1], good[:50], b"", good[:100] + bytes([good[100] ^ 1]) + good[101:], b"{}"):
        kek.write_bytes(damaged)
        with pytest.raises(NotTrusted, match=r"keys/model-kek\.keep"):
            opened(store)
    kek.write_bytes(good)
    kek.chmod(0o644)
    with pytest.raises(NotTrusted, match="0600"):
        opened(store)
    kek.unlink()
    kek.symlink_to(subject)
    with pytest.raises(Unavailable):
        opened(store)
    kek.unlink()
    with pytest.raises(Missing, match=r"model-kek\.keep"):
        opened(store)


def test_a_compartment_put_back_from_before_a_rotation_is_noticed(ring, store, custodian, tmp_path):
    path = tmp_path / "keys" / "statement-signing.keep"
    old = path.read_bytes()
    custodian.rotate(WORD, keys.STATEMENT_SIGNING, now_ns=2, log_size=7)
    path.write_bytes(old)
    with pytest.raises(NotTrusted, match="different trust roots"):
        opened(store)


def test_rotation_of_a_wrapping_key(ring, custodian, store):
    before = ring.wrapper()
    wrapped = before.wrap(bytes(32), b"context")
    after = custodian.rotate(WORD, keys.MODEL_KEK, now_ns=2, log_size=0)
    assert after.wrapper().key_id == "file:model-kek/2"
    assert [w.key_id for w in after.wrappers()] == ["file:model-kek/2", "file:model-kek/1"]
    old = opened(store).wrapper(version=1)
    assert old.unwrap(wrapped, b"context") == bytes(32)
    with pytest.raises(Denied, match="decrypt-only"):
        old.wrap(bytes(32), b"context")
    for key, context in ((after.wrapper(), b"context"), (old, b"Context")):
        with pytest.raises(NotTrusted):
            key.unwrap(wrapped, context)


def test_states_of_a_wrapping_key(ring, custodian):
    wrapped = ring.wrapper().wrap(bytes(32), b"c")
    custodian.rotate(WORD, keys.MODEL_KEK, now_ns=2, log_size=0)

    def let(event, version=1):
        return custodian.set_state(WORD, keys.MODEL_KEK, version, event, log_size=0)

    with pytest.raises(Denied):
        let(keys.DISABLE).wrapper(version=1).unwrap(wrapped, b"c")
    assert let(keys.ENABLE).wrapper(version=1).unwrap(wrapped, b"c") == bytes(32)
    with pytest.raises(Conflict):
        let(keys.DESTROY)
    let(keys.DISABLE)
    gone = let(keys.DESTROY)
    with pytest.raises(Denied, match="destroyed"):
        gone.wrapper(version=1).unwrap(wrapped, b"c")
    assert [w.key_id for w in gone.wrappers()] == ["file:model-kek/2"]
    with pytest.raises(Denied, match="rotate it"):
        let(keys.COMPROMISE, 2).wrapper()
    for event, version, error in (("explode", 2, Invalid), (keys.DISABLE, 9, Missing)):
        with pytest.raises(error):
            let(event, version)


def test_rotation_of_the_statement_identity(ring, custodian):
    after = custodian.rotate(WORD, keys.STATEMENT_SIGNING, now_ns=2, log_size=7)
    old, new = after.trust.identities
    assert (old.public, old.first, old.until) == (ring.statement_signer().public, 0, 7)
    assert (new.public, new.first, new.until) == (after.statement_signer().public, 7, None)
    assert new.public.name == "keep.example/statement-signing/2"
    third = custodian.rotate(WORD, keys.STATEMENT_SIGNING, now_ns=3, log_size=9).trust.identities
    assert [(i.first, i.until) for i in third] == [(0, 7), (7, 9), (9, None)]


def test_a_compromised_identity_ends_where_the_log_stood(ring, custodian):
    after = custodian.set_state(WORD, keys.STATEMENT_SIGNING, 1, keys.COMPROMISE, log_size=5)
    assert after.trust.identities[0].until == 5
    with pytest.raises(Denied):
        after.statement_signer()


def test_rotation_of_the_token_key_and_of_what_cannot_rotate(ring, custodian):
    after = custodian.rotate(WORD, keys.TOKEN_SIGNING, now_ns=2, log_size=0)
    assert after.trust.token_key == after.token_key().public_key().public_bytes_raw() != ring.trust.token_key
    for family in (keys.LOG_SIGNING, keys.AUDIT_LOG, keys.WATERMARK, "nonsense"):
        with pytest.raises(Invalid):
            custodian.rotate(WORD, family, now_ns=2, log_size=0)


def test_no_secret_is_ever_shown(ring):
    shown = "".join(
        show(thing)
        for thing in (ring, ring.wrapper(), ring.statement_signer(), *ring._compartments.values())
        for show in (repr, str, pretty_repr)
    )
    for family in keys.WRAPPING_FAMILIES:
        secret = ring.secret(family)
        for form in (secret.hex(), repr(secret)[2:-1], json.dumps(list(secret))):
            assert form not in shown


def test_misuse(ring):
    for use in (
        lambda: ring.wrapper(keys.WATERMARK),
        lambda: ring.note_signer(keys.TOKEN_SIGNING, "x"),
        lambda: ring.secret(keys.STATEMENT_SIGNING),
        lambda: Keyring([]),
    ):
        with pytest.raises(Invalid):
            use()


def test_a_store_without_its_folder(tmp_path):
    with pytest.raises(Missing):
        opened(FileKeys(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing):
        Custodian(FileKeys(tmp_path / "empty"), None).change_passphrase(WORD, NEW)


@pytest.mark.parametrize("table", [keys.WRAPPING_STATES, keys.SIGNING_STATES])
def test_state_tables(table):
    assert all(origin != keys.DESTROYED for origin, _ in table)
    assert table[keys.PENDING, keys.ENTER] == keys.PRIMARY
    assert all(state in {origin for origin, _ in table} | {keys.DESTROYED} for state in table.values())


# -- who goes on changing the ring, and where keys are made --


def test_what_a_passphrase_was_stretched_to_opens_and_seals_until_the_passphrase_changes(ring, store, custodian):
    opened_once, unlocked = Keyring.unlock(store, [keys.MODEL_KEK], WORD)
    again = Unlocked.receive(unlocked.hand_over())
    assert Keyring.open(store, keys.FAMILIES, again).inventory() == ring.inventory()
    assert opened_once.families == (keys.MODEL_KEK,)
    custodian.rotate(again, keys.MODEL_KEK, now_ns=2, log_size=0)  # without the passphrase
    custodian.rotate(WORD, keys.MODEL_KEK, now_ns=3, log_size=0)  # with it: the other still holds afterwards
    custodian.set_state(again, keys.MODEL_KEK, 1, keys.DISABLE, log_size=0)
    assert opened(store).wrapper().key_id == Keyring.open(store, keys.FAMILIES, again).wrapper().key_id == "file:model-kek/3"
    custodian.change_passphrase(WORD, NEW)
    for use in (
        lambda: Keyring.open(store, keys.FAMILIES, again),
        lambda: custodian.rotate(again, keys.MODEL_KEK, now_ns=4, log_size=0),
    ):
        with pytest.raises(NotTrusted, match="changed since this process started"):
            use()
    assert WORD not in unlocked.hand_over()


def test_keys_are_made_elsewhere_and_here_again(ring, store, custodian):
    assert ring.places(keys.MODEL_KEK) == ("",)
    there = custodian.move(WORD, keys.MODEL_KEK, "hsm:one")
    assert opened(store).places(keys.MODEL_KEK) == there.places(keys.MODEL_KEK) == ("", "hsm:one")
    with pytest.raises(Denied, match="no primary"):
        there.wrapper()
    assert custodian.move(WORD, keys.MODEL_KEK, "hsm:two").places(keys.MODEL_KEK) == ("", "hsm:one", "hsm:two")
    back = custodian.move(WORD, keys.MODEL_KEK, "")
    assert back.places(keys.MODEL_KEK) == ("hsm:one", "hsm:two", "")
    for family in (keys.AUDIT_SUBJECT, keys.STATEMENT_SIGNING, keys.WATERMARK):
        with pytest.raises(Invalid, match="lives in the key ring"):
            custodian.move(WORD, family, "hsm:one")


def test_a_scheduled_end_and_its_cancellation(ring, custodian):
    custodian.rotate(WORD, keys.MODEL_KEK, now_ns=2, log_size=0)

    def let(event, **more):
        return custodian.set_state(WORD, keys.MODEL_KEK, 1, event, log_size=0, **more).inventory()

    def first(found):
        return next((info.state, info.due) for info in found if (info.family, info.version) == (keys.MODEL_KEK, 1))

    with pytest.raises(Conflict):
        let(keys.SCHEDULE, due=9)
    let(keys.DISABLE)
    assert first(let(keys.SCHEDULE, due=9)) == ("pending-destruction", 9)
    assert first(let(keys.CANCEL)) == ("disabled", 0)
    let(keys.SCHEDULE, due=9)
    assert first(let(keys.COMPROMISE)) == ("pending-destruction", 9)  # which opens nothing, and stays what it is
    assert first(let(keys.CANCEL)) == ("compromised", 0)
    assert first(let(keys.SCHEDULE, due=9)) == ("pending-destruction", 9)
    assert first(let(keys.CANCEL)) == ("compromised", 0)  # never merely disabled again
    let(keys.SCHEDULE, due=9)
    assert first(let(keys.DESTROY)) == ("destroyed", 0)
