"""Sealed files from Python: laws for every input, races, providers that refuse, a rewrap that was cut off."""

import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelkeep
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.adapters.tails import Journal, journal_of
from modelkeep.app import files as app_files
from modelkeep.app.filechanges import RecipientChange, each_file, reencrypt_file, rewrap_file
from modelkeep.app.fileinspect import inspect_file
from modelkeep.app.filekeys import TYPED, Keychain, Party, xwing_id
from modelkeep.app.files import FileSealed, open_file, seal_file, stream_opened, stream_sealed, unseal
from modelkeep.container import BytesReader, KmsRecipient, pack_bytes, split_file, unpack_bytes
from modelkeep.container.file import rewrap_tail
from modelkeep.container.recipients import Passphrase
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_id, recipient_of
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

PEOPLE = [generate_identity() for _ in range(4)]
RECIPIENTS = [recipient_of(each) for each in PEOPLE]
IDS = [xwing_id(recipient_id(each)) for each in RECIPIENTS]


@pytest.fixture
def keys(tmp_path):
    """Files with the identities of four people."""
    paths = []
    for number, identity in enumerate(PEOPLE):
        path = tmp_path / f"{number}.key"
        path.write_text(identity + "\n")
        paths.append(str(path))
    return paths


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(os.urandom(70_000))
    return path


def body_of(path):
    raw = Path(path).read_bytes()
    return hashlib.sha256(raw[: split_file(BytesReader(raw)).body.size]).hexdigest()


def test_the_public_names(tmp_path, source, keys):
    sealed = modelkeep.seal_file(str(source), RECIPIENTS[:1])
    assert isinstance(sealed, FileSealed) and sealed.size == 70_000 and sealed.recipients == (IDS[0],)
    assert sealed.model_digest == "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    found = modelkeep.inspect_file(sealed.sealed)
    assert found.claims.model_digest == sealed.model_digest
    change = modelkeep.RecipientChange(add=modelkeep.Keychain().recipients(RECIPIENTS[1:2]))
    assert modelkeep.rewrap_file(sealed.sealed, change, keys[:1]).recipients == (IDS[0], IDS[1])
    modelkeep.reencrypt_file(sealed.sealed, modelkeep.RecipientChange(remove=(IDS[0],)), keys[1:2])
    opened = modelkeep.open_file(sealed.sealed, keys[1:2], out=str(tmp_path / "back"))
    assert opened.size == 70_000 and (tmp_path / "back").read_bytes() == source.read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["rewrap", "reencrypt"]), st.sets(st.integers(0, 3)), st.sets(st.integers(0, 3)))))
def test_after_any_changes_exactly_the_recipients_open_it(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("law")
    names = []
    for number, identity in enumerate(PEOPLE):
        (folder / f"{number}.key").write_text(identity)
        names.append(str(folder / f"{number}.key"))
    (folder / "x").write_bytes(b"contents")
    path = seal_file(str(folder / "x"), [RECIPIENTS[0]]).sealed
    now, body = {0}, body_of(path)
    for verb, adds, removes in steps:
        change = RecipientChange(
            add=Keychain().recipients([RECIPIENTS[n] for n in sorted(adds)]), remove=tuple(IDS[n] for n in sorted(removes))
        )
        after = (now | adds) - removes
        who = [names[n] for n in sorted(now)]
        act = rewrap_file if verb == "rewrap" else reencrypt_file
        if (verb == "rewrap" and not (adds or removes)) or adds & removes or not after:
            with pytest.raises(Invalid):
                act(path, change, who)
            continue
        done = act(path, change, who)
        assert set(done.recipients) == {IDS[n] for n in after}
        changed = body_of(path) != body
        assert changed == (verb == "reencrypt")
        now, body = after, body_of(path)
    for n in range(4):
        out = folder / f"out{n}"
        if n in now:
            open_file(path, [names[n]], out=str(out))
            assert out.read_bytes() == b"contents"
        else:
            with pytest.raises(NotTrusted, match="other recipients"):
                open_file(path, [names[n]], out=str(out))


def test_pipes(source, keys):
    parts = []
    stream_sealed(str(source), RECIPIENTS[:1], lambda chunk: parts.append(bytes(chunk)))
    path = source.with_name("p.keep")
    path.write_bytes(b"".join(parts))
    back = []
    stream_opened(str(path), keys[:1], lambda chunk: back.append(bytes(chunk)))
    assert b"".join(back) == source.read_bytes()


def test_nobody_to_seal_for(source):
    with pytest.raises(Invalid, match="nobody"):
        seal_file(str(source))
    with pytest.raises(Invalid, match="nobody"):
        stream_sealed(str(source), [], lambda _: None)


def test_a_source_that_changes_meanwhile_is_not_sealed(source):
    def scribble(_):
        source.write_bytes(b"y" * 70_000)

    with pytest.raises(Conflict, match="changed while"):
        seal_file(str(source), RECIPIENTS[:1], watch=scribble, remove_plaintext=True)
    assert source.exists() and not source.with_name("m.bin.keep").exists()


def test_a_source_that_shrinks_meanwhile_is_not_sealed(tmp_path):
    big = tmp_path / "big"
    big.write_bytes(os.urandom(20 << 20))

    def cut(_):
        os.truncate(big, 10)

    with pytest.raises(NotTrusted, match="truncated"):
        seal_file(str(big), RECIPIENTS[:1], watch=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_an_output_that_comes_meanwhile_is_not_overwritten(source):
    target = source.with_name("m.bin.keep")

    def come(_):
        target.write_text("mine")

    with pytest.raises(Conflict, match="exists already"):
        seal_file(str(source), RECIPIENTS[:1], watch=come)
    assert target.read_text() == "mine"


class SealOnly:
    """A provider's key that this machine may wrap under and not unwrap with, or that wraps something else."""

    key_id = "vault:transit/k/1"

    def __init__(self, error):
        self.error = error

    def wrap(self, key, context):
        return b"w" * 100

    def unwrap(self, wrapped, context):
        raise self.error


class OneParty(Keychain):
    def __init__(self, wrapper):
        super().__init__()
        self.party = Party(wrapper.key_id, KmsRecipient(wrapper))

    def recipients(self, texts, *, passphrase=None):
        return (self.party,)


@pytest.mark.parametrize(
    "error",
    [Denied("no permission to decrypt"), NotTrusted("made under another key"), Unavailable("gone")],
    ids=lambda e: e.code,
)
def test_the_plaintext_stays_when_a_provider_does_not_open_what_it_sealed(source, error):
    with pytest.raises(type(error)):
        seal_file(str(source), ["vault:transit/k"], keychain=OneParty(SealOnly(error)), remove_plaintext=True)
    assert source.exists() and not source.with_name("m.bin.keep").exists()
    seal_file(str(source), ["vault:transit/k"], keychain=OneParty(SealOnly(error)))


def test_the_plaintext_is_compared_before_it_is_removed(source):
    with app_files.NewFile(source.with_name("x")) as new:
        dek = app_files.Noticing(Passphrase(b"word", Argon2Params(32, 1, 1)))
        new.write(app_files.pack_file(BytesReader(b"z" * 70_000), [dek], purpose="file"))
        with pytest.raises(NotTrusted, match="nothing was removed"):
            app_files._read_back(new, dek.dek, (), BytesReader(source.read_bytes()))


def test_a_replaced_original_is_not_removed(source):
    other = source.with_name("other")
    other.write_bytes(b"newer")
    stat = source.stat()

    def swap(_):
        if other.exists():
            os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            other.replace(source)

    with pytest.raises(Conflict, match="replaced"):
        seal_file(str(source), RECIPIENTS[:1], watch=swap, remove_plaintext=True)
    assert source.read_bytes() == b"newer"


def test_a_file_that_is_removed_while_it_is_reencrypted(source, keys):
    path = source.with_name("m.bin.keep")
    seal_file(str(source), RECIPIENTS[:1])
    with pytest.raises(Conflict, match="removed by another"):
        reencrypt_file(str(path), RecipientChange(), keys[:1], watch=lambda _: path.unlink(missing_ok=True))
    assert not path.exists()


def test_reencrypting_never_brings_a_removed_version_of_a_key_back(source, tmp_path):
    uri, chain = f"file:{tmp_path / 'ring.keep'}", Keychain(lambda _: b"the passphrase of a ring")
    ring = open_keys(uri, passphrase=lambda: b"the passphrase of a ring")
    ring.create()
    path = seal_file(str(source), [uri], keychain=chain).sealed
    first, second = ring.wrapper(1).key_id, ring.rotate().key_id
    rewrap_file(path, RecipientChange(add=chain.recipients([uri])), [uri], keychain=chain)
    with pytest.raises(Invalid, match="which is to be removed"):
        reencrypt_file(path, RecipientChange(remove=(second,)), [uri], keychain=chain)
    assert {row.id for row in inspect_file(path).recipients} == {first, second}


# -- a rewrap that was cut off --


@pytest.fixture
def torn(source, keys):
    """A sealed file whose rewrap to the second person was cut off half way, as after a crash."""
    path = source.with_name("m.bin.keep")
    seal_file(str(source), RECIPIENTS[:1])
    raw = path.read_bytes()
    parts = split_file(BytesReader(raw))
    dek = unseal(str(path), BytesReader(raw), keys[:1]).dek
    more = [party.recipient for party in Keychain().recipients(RECIPIENTS[1:3])]
    tail = rewrap_tail(BytesReader(raw), [app_files.DataKey(dek)], more, purpose="file", keep=[])
    journal_of(path).write_bytes(Journal(parts.header_hash, parts.body.size, tail).encode())
    path.write_bytes(raw[: parts.body.size] + tail[:900])
    return path


def test_readers_read_through_the_journal_and_write_nothing(torn, keys, tmp_path):
    before = torn.read_bytes()
    found = inspect_file(str(torn))
    assert found.pending and [row.id for row in found.recipients] == [IDS[1], IDS[2]]
    open_file(str(torn), keys[1:2], out=str(tmp_path / "back"))
    assert torn.read_bytes() == before and journal_of(torn).exists()


def test_the_next_rewrap_finishes_it(torn, keys, tmp_path):
    done = rewrap_file(str(torn), RecipientChange(remove=(IDS[2],)), keys[1:2])
    assert done.recipients == (IDS[1],) and not journal_of(torn).exists()
    open_file(str(torn), keys[1:2], out=str(tmp_path / "back"))


def test_without_its_journal_it_is_refused_plainly(torn, keys):
    journal_of(torn).unlink()
    with pytest.raises(NotTrusted, match="cut off"):
        open_file(str(torn), keys[1:2], out=str(torn) + ".out")


def test_with_a_wrong_journal_that_is_said(torn, keys):
    journal_of(torn).write_bytes(Journal(b"\1" * 32, 5, b"x").encode())
    with pytest.raises(NotTrusted, match="does not belong to it"):
        open_file(str(torn), keys[1:2], out=str(torn) + ".out")


# -- many at once --


def test_several_people_rewrap_one_file_at_once_and_nothing_is_lost(source, keys):
    path = seal_file(str(source), RECIPIENTS[:1]).sealed
    body, failed = body_of(path), []

    def add(n):
        try:
            rewrap_file(path, RecipientChange(add=Keychain().recipients([RECIPIENTS[n]])), keys[:1])
        except Conflict as cause:
            failed.append(cause)

    threads = [threading.Thread(target=add, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and {row.id for row in inspect_file(path).recipients} == set(IDS) and body_of(path) == body


def test_a_long_reencryption_stops_no_reader_and_no_change_is_lost(source, keys):
    path = seal_file(str(source), RECIPIENTS[:1]).sealed
    seen, outcome = [], []

    def rewrap():
        outcome.append(rewrap_file(path, RecipientChange(add=Keychain().recipients(RECIPIENTS[1:2])), keys[:1]).recipients)

    thread = threading.Thread(target=rewrap)

    def look(_):
        if not seen:
            seen.append(inspect_file(path).claims)
            thread.start()  # it waits, and then finds the new file

    reencrypt_file(path, RecipientChange(), keys[:1], watch=look)
    thread.join()
    assert seen and outcome == [(IDS[0], IDS[1])] and len(inspect_file(path).recipients) == 2


def test_a_file_that_somebody_replaced_meanwhile_is_left_as_it_is(source, keys):
    path = seal_file(str(source), RECIPIENTS[:1]).sealed
    other = source.with_name("other.keep")
    seal_file(str(source), RECIPIENTS[1:2], out=str(other))
    raw = other.read_bytes()

    def swap(_):
        if other.exists():
            other.replace(path)

    with pytest.raises(Conflict, match="replaced"):
        reencrypt_file(path, RecipientChange(), keys[:1], watch=swap)
    assert Path(path).read_bytes() == raw


def test_many_files_with_the_file_provider(tmp_path):
    rings = {name: f"file:{tmp_path / name}" for name in ("old", "new")}
    chain = Keychain(lambda _: b"a passphrase of a ring")
    for uri in rings.values():
        open_keys(uri, passphrase=lambda: b"a passphrase of a ring").create()
    paths = []
    for number in range(40):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(os.urandom(number * 700))
        paths.append(seal_file(str(path), [rings["old"]], keychain=chain).sealed)
    bodies = [body_of(path) for path in paths]
    change = RecipientChange(add=chain.recipients([rings["new"]]), only=True)
    for expected in (True, False):  # resumable: the second run finds everything done
        work = each_file(paths, lambda path: rewrap_file(path, change, [rings["old"]], keychain=chain), threads=4)
        assert [outcome.changed for _, outcome in work] == [expected] * 40
    assert [body_of(path) for path in paths] == bodies
    out = str(tmp_path / "back")
    open_file(paths[7], [rings["new"]], out=out, keychain=chain)
    with pytest.raises(NotTrusted, match="other recipients"):
        open_file(paths[7], [rings["old"]], out=out + "2", keychain=chain)


# -- what is in a key file never comes out --


def test_no_secret_in_a_message_or_a_representation(source, keys, tmp_path):
    seal_file(str(source), RECIPIENTS[:1])
    path = str(source) + ".keep"
    secret = PEOPLE[0].removeprefix("modelkeep-recovery-")
    mistyped = tmp_path / "mistyped.key"
    mistyped.write_text(PEOPLE[0][:-3] + ("bbb\n" if PEOPLE[0].endswith("aaa") else "aaa\n"))
    joined = tmp_path / "joined.key"
    joined.write_text(PEOPLE[0] + PEOPLE[1])
    for name in (mistyped, joined):
        with pytest.raises(Invalid) as caught:
            open_file(path, [str(name)], out=str(tmp_path / "back"))
        seen = repr(caught.value) + str(caught.value.__cause__) + str(caught.value.__context__)
        assert secret[:20] not in seen and str(name) in str(caught.value)
    with pytest.raises(Invalid, match="private identity"):
        seal_file(str(source), [PEOPLE[0]], out="x")
    found = unseal(path, BytesReader(Path(path).read_bytes()), keys[:1])
    assert repr(found.dek) not in repr(found)


def test_a_passphrase_may_be_bytes_or_asked_for(source, tmp_path):
    seal_file(str(source), passphrase=b"words enough")
    asked = []

    def ask():
        asked.append(1)
        return b"words enough"

    open_file(str(source) + ".keep", passphrase=ask, out=str(tmp_path / "a"))
    open_file(str(source) + ".keep", passphrase=b"words enough", out=str(tmp_path / "b"))
    assert asked == [1] and inspect_file(str(source) + ".keep").recipients[0].id == TYPED


def test_models_exported_by_a_keep_open_too_and_keys_do_not(tmp_path):
    word = Passphrase(b"words enough", Argon2Params(32, 1, 1))
    for purpose in ("model", "keys/model-kek", "profile"):
        (tmp_path / "x.keep").write_bytes(pack_bytes(b"contents", [word], purpose=purpose))
        out = tmp_path / purpose.replace("/", "-")
        if purpose == "model":
            open_file(str(tmp_path / "x.keep"), passphrase=b"words enough", out=str(out))
            assert out.read_bytes() == b"contents"
            change = RecipientChange(add=Keychain().recipients(RECIPIENTS[:1]))
            for act in (rewrap_file, reencrypt_file):
                act(str(tmp_path / "x.keep"), change, passphrase=b"words enough")
                assert unpack_bytes((tmp_path / "x.keep").read_bytes(), [word], purpose=purpose) == b"contents"
        else:
            with pytest.raises(NotTrusted, match=purpose):
                open_file(str(tmp_path / "x.keep"), passphrase=b"words enough", out=str(out))


def test_missing_files(tmp_path, keys):
    for call in (inspect_file, lambda p: open_file(p, keys, out="x"), lambda p: seal_file(p, RECIPIENTS[:1])):
        with pytest.raises(Missing, match="no file"):
            call(str(tmp_path / "none.keep"))
