"""Backup and restore: one sealed file, a keep made of it or none, erasures done again, and a log that owns up to it."""

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import msgspec
import pytest
from advisories import snapshot
from commandline import PASSPHRASE, Cli, copy_keep

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.refresh import REFRESH, Lifetimes, Scope, begin_family, write_family
from modelkeep.access.sessions import Proof
from modelkeep.app.audits import new_audit, recover_all
from modelkeep.app.backups import restore_backup, verify_backup
from modelkeep.app.keep import Keep
from modelkeep.app.offline import check_logs, verify_source
from modelkeep.app.shelf import keep_shelf
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.crypto.notes import Checkpoint
from modelkeep.custody.keys import AUDIT_LOG, AUDIT_SUBJECT
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.cosigned import WITNESSED
from modelkeep.operations.backup import Manifest, Part, check_parts, encode_manifest, parse_manifest
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.bodies import SUBJECT_KEY, SubjectKeys
from modelkeep.workflows.breakglass import Glass

WORD = PASSPHRASE.encode()


@pytest.fixture(scope="module")
def first(template, tmp_path_factory):
    """A folder with a keep in which alice has an audit key, and a backup of it. Copy the keep; never change it."""
    folder = tmp_path_factory.mktemp("backups")
    keep = Keep.open(copy_keep(template, folder / "keep"), WORD)
    subject_keys(keep).key(alice(keep))
    keep.backup_create(out=str(folder / "one.backup"))
    return folder


@pytest.fixture
def keep(first, tmp_path):
    return Keep.open(copy_keep(first / "keep", tmp_path / "keep"), WORD)


@pytest.fixture
def made(first):
    return first / "one.backup"


def alice(keep):
    return parse_account(keep.premises.records.get("account", "alice")).subject


def subject_keys(keep):
    here = keep.premises
    return SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, here.decisions().epochs())


def restore(backup, to, **more):
    return restore_backup(str(backup), str(to), WORD, **{"identity": "", "newer": "", **more})


def head_of(keep):
    return keep.premises.view().checkpoint


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".restoring")]


def test_a_keep_comes_back_whole_under_a_log_that_names_its_predecessor(keep, made, tmp_path):
    before, key = head_of(keep), subject_keys(keep).existing(alice(keep))
    told = verify_backup(str(made), WORD, "")
    assert (told.origin, told.log_size) == (keep.premises.trust.origin, before.size - 1)  # the act of backing up came after
    done = restore(made, tmp_path / "again")
    again = Keep.open(tmp_path / "again", WORD)
    assert (done.before, done.log_size, done.lost, done.log_index) == (before.origin, before.size - 1, 0, before.size - 1)
    checked = again.log_verify()[0]
    assert (
        checked.origin == done.log != before.origin
        and f"succeeds {before.origin} from entry {done.log_index}" in checked.detail
    )
    assert verify_source(str(tmp_path / "again"))[0] == checked
    assert again.status().releases == keep.status().releases
    assert again.user_list() == keep.user_list()
    assert subject_keys(again).existing(alice(again)) == key
    assert again.log_show(last=1)[0].type == "succession"
    again.user_add(name="carol", roles=(Role.ANALYST,))
    again.log_verify()
    assert left_over(tmp_path) == []
    second = again.backup_create(out=str(tmp_path / "two.backup"))  # and the successor has a successor
    assert second.log_size == head_of(again).size - 1
    third = restore(tmp_path / "two.backup", tmp_path / "third")
    detail = Keep.open(tmp_path / "third", WORD).log_verify()[0].detail
    assert detail.count("succeeds") == 2 and third.before == done.log


def test_what_witnesses_and_advisories_need_comes_back_too(template, desk, tmp_path):
    cli = Cli(copy_keep(template, tmp_path / "keep"), desk / "pass", (("MODELKEEP_INTEL_MAX_AGE_DAYS", "3650"),))
    (tmp_path / "all.zip").write_bytes(snapshot())
    cli("intel", "import", str(tmp_path / "all.zip"), code=0)
    vkey = cli("--json", "witness", "init", str(tmp_path / "w"), "--name", "w.example", code=0).json["vkeys"][0]
    policy = cli.keep / "asked.txt"
    policy.write_text(f"witness w {vkey} http://127.0.0.1:1\nquorum w\n")
    policy.chmod(0o600)
    with (cli.keep / "modelkeep.toml").open("a") as stream:
        stream.write('[witness]\npolicy = "asked.txt"\n')
    shutil.copy(cli.keep / "log" / "releases" / "checkpoint", cli.keep / "log" / "releases" / WITNESSED)
    cli("backup", "create", str(tmp_path / "b"), code=0)
    cli("backup", "verify", str(tmp_path / "b"), code=0)
    cli("backup", "restore", str(tmp_path / "b"), str(tmp_path / "again"), "--no-later-erasures", code=0)
    again = replace(cli, keep=tmp_path / "again")
    assert (again.keep / "asked.txt").read_bytes() == policy.read_bytes() and not (again.keep / "witness").exists()
    assert again("--json", "witness", "status", code=0).json["witnessed"] == 0  # nobody saw the successor yet
    assert again("intel", "show", code=0).out.splitlines()[0] == cli("intel", "show", code=0).out.splitlines()[0]


def test_what_was_erased_after_the_backup_is_erased_again(keep, made, tmp_path):
    subject = alice(keep)
    wrapped = keep.premises.records.get(SUBJECT_KEY, subject).body[-112:]
    keep.premises.data_salts().salt("loans")
    keep.log_erase(subject="alice", forget=True)
    keep.log_erase(dataset="loans")
    done = restore(made, tmp_path / "again", newer=str(keep.premises.directory))
    again = Keep.open(tmp_path / "again", WORD)
    assert (done.erased, done.lost) == (3, head_of(keep).size - done.log_size)
    with pytest.raises(Missing):
        subject_keys(again).existing(subject)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file())
    assert wrapped not in everything and b'"alice"' not in everything
    assert [row.name for row in again.user_list()] == ["admin", "bob"]
    assert [row.what for row in again.log_erasures()] == ["subject", "account", "dataset"]
    assert f"{keep.premises.trust.releases_origin}/" in again.log_show(last=3)[-1].summary
    again.premises.records.commit([Change(SUBJECT_KEY, subject, b"\0\1x" + wrapped)])  # the old row, from the old backup
    with pytest.raises(Missing):
        subject_keys(again).existing(subject)


def test_nobody_is_logged_in_after_a_restore(keep, tmp_path):
    """A refresh token that was used since the backup would count again, and a session that was ended since."""
    here, now = keep.premises, int(time.time())
    account = parse_account(here.records.get(ACCOUNT, "alice"))
    token = begin_family(account, Scope(1), Proof(now), Lifetimes(9999, 9999), now, here.entropy)
    here.records.commit([write_family(token.id, token.family, 0)])
    keep.backup_create(out=str(tmp_path / "made"))
    restore(tmp_path / "made", tmp_path / "again")
    records = Keep.open(tmp_path / "again", WORD).premises.records
    assert records.scan(REFRESH) == []
    after = parse_account(records.get(ACCOUNT, "alice"))
    assert after.generation > account.generation + 1000, "nor can a later login of the lost keep have come so far"
    assert msgspec.structs.replace(after, generation=0) == msgspec.structs.replace(account, generation=0)


def test_the_newer_log_must_be_of_this_keep_and_newer(keep, made, template, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(template / "log", older)
    keep.act("note", "something")
    keep.backup_create(out=str(tmp_path / "two.backup"))
    with pytest.raises(Conflict, match="it is older"):
        restore(tmp_path / "two.backup", tmp_path / "again", newer=str(older))
    stranger = Keep.open(copy_keep(template, tmp_path / "stranger"), WORD)  # the same keep, continued in another way: a fork
    for number in range(5):
        stranger.act("note", f"something else {number}")
    with pytest.raises(NotTrusted, match="does not continue"):
        restore(tmp_path / "two.backup", tmp_path / "again", newer=str(tmp_path / "stranger"))
    with pytest.raises(Missing):
        restore(tmp_path / "two.backup", tmp_path / "again", newer=str(tmp_path))
    assert not (tmp_path / "again").exists() and left_over(tmp_path) == []


def test_kept_checkpoints_of_the_predecessor_are_continued_or_told_to_be_lost(keep, made, tmp_path):
    early = head_of(keep)
    keep.act("note", "after the backup")
    late = head_of(keep)
    restore(made, tmp_path / "silent")
    restore(made, tmp_path / "open", newer=str(keep.premises.directory))
    silent, owned = (Keep.open(tmp_path / name, WORD).premises for name in ("silent", "open"))
    size = early.size - 1
    first = Checkpoint(early.origin, size, keep.premises.view().root_at(size))
    for here in (silent, owned):
        assert "succeeds" in check_logs(keep_shelf(here.directory / "log"), here.trust, [first])[0].detail
    with pytest.raises(NotTrusted, match=f"restored from a backup: entries {size} to {late.size - 1} .* are lost"):
        check_logs(keep_shelf(silent.directory / "log"), silent.trust, [late])
    detail = check_logs(keep_shelf(owned.directory / "log"), owned.trust, [early, late])[0].detail
    assert f"entries {size} to {late.size - 1}" in detail and "as entry" in detail
    ours = early.origin
    assert silent.trust.releases_log != owned.trust.releases_log  # two restores of one backup are two logs
    for forged in (Checkpoint(ours, 2, bytes(32)), Checkpoint(ours, late.size, bytes(32)), Checkpoint("x", 1, b"")):
        with pytest.raises(NotTrusted):
            check_logs(keep_shelf(owned.directory / "log"), owned.trust, [forged])
    with pytest.raises(NotTrusted):  # whoever believes the old trust root is told that this is another log
        check_logs(keep_shelf(silent.directory / "log"), keep.premises.trust)


def test_an_audit_log_that_was_open_is_taken_as_far_as_it_had_come(keep, tmp_path):
    here = keep.premises
    instance, log = new_audit(here, here.keyring([AUDIT_LOG]), "gateway", Glass(None, here.clock.now_ns))
    durable = threading.Semaphore(0)
    for _ in range(300):
        entry = AuditEntry("predict", subject="sub_1", release="risk@1", outcome="ok")
        log.submit(entry, b"sealed" * 50, lambda _: durable.release())
    for _ in range(300):
        assert durable.acquire(timeout=60)
    log.publish()
    keep.backup_create(out=str(tmp_path / "one.backup"))
    log.stop()
    restore(tmp_path / "one.backup", tmp_path / "again")
    again = Keep.open(tmp_path / "again", WORD)
    recover_all(again.premises, again.premises.keyring([AUDIT_LOG]), lambda _: None)
    found = next(checked for checked in again.log_verify() if checked.origin.endswith(instance))
    assert "300 bodies" in found.detail and found.detail.endswith("closed") and found.size == 302


@pytest.mark.parametrize("where", [9, 0.1, 0.9, -30, "cut", "plain"])
def test_an_altered_backup_makes_no_keep(made, tmp_path, where):
    data = bytearray(made.read_bytes())
    if where == "cut":
        del data[-1000:]
    elif where == "plain":
        data[:] = b"not sealed at all" * 100
    else:
        data[int(where * len(data)) if isinstance(where, float) else where] ^= 1
    (tmp_path / "altered").write_bytes(data)
    with pytest.raises(NotTrusted):
        restore(tmp_path / "altered", tmp_path / "again")
    assert not (tmp_path / "again").exists() and left_over(tmp_path) == []


def test_only_the_passphrase_or_the_recovery_identity_opens_it_and_nothing_is_overwritten(keep, made, template, tmp_path):
    with pytest.raises(NotTrusted):
        restore_backup(str(made), str(tmp_path / "again"), b"another passphrase", identity="", newer="")
    identity = msgspec.json.decode((template.parent / "init.json").read_bytes())["recovery"]
    restore_backup(str(made), str(tmp_path / "again"), b"a new passphrase", identity=identity, newer="")
    assert Keep.open(tmp_path / "again", b"a new passphrase").act("note", "it is open") > 0
    with pytest.raises(NotTrusted):
        Keep.open(tmp_path / "again", WORD).act("note", "it is not")
    with pytest.raises(Conflict, match="holds something already"):
        restore(made, tmp_path / "again")
    with pytest.raises(Conflict):
        keep.backup_create(out=str(made))
    with pytest.raises(Missing):
        restore(tmp_path / "nothing.backup", tmp_path / "new")
    (tmp_path / "new").mkdir()
    restore(made, tmp_path / "new")  # an empty folder may be there
    assert b"model-kek" not in made.read_bytes() and b"modelkeep.local" not in made.read_bytes()


STAGES = {"unpacking": "keys", "records": "records.db", "log": "log/releases/tile"}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_there_is_no_keep_and_the_next_restore_clears_up(made, desk, tmp_path, stage):
    command = [sys.executable, "-m", "modelkeep", "--passphrase-file", str(desk / "pass"), "backup", "restore", str(made)]
    for _ in range(20):  # it may be done before it is killed
        process = subprocess.Popen([*command, str(tmp_path / "again"), "--no-later-erasures"])
        while process.poll() is None and not list(tmp_path.glob(f".again.*.restoring/{STAGES[stage]}")):
            time.sleep(0.002)
        process.kill()
        if process.wait():
            break
        shutil.rmtree(tmp_path / "again")
    assert not (tmp_path / "again").exists() and len(left_over(tmp_path)) == 1
    restore(made, tmp_path / "again")
    assert left_over(tmp_path) == []
    Keep.open(tmp_path / "again", WORD).log_verify()


PARTS = (Part("modelkeep.toml", 1), Part("trust.toml", 2), Part("records", 3))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "../x",
        "log/../../x",
        "log/.hidden",
        "log//x",
        "blobs/",
        "other/x",
        "x",
        "records/x",
        "keys/a\0",
        "keys",
    ],
)
def test_a_manifest_cannot_name_what_no_keep_has(name):
    with pytest.raises(Invalid):
        check_parts((*PARTS, Part(name, 1)))


def test_a_manifest_comes_back_as_it_went_and_its_sizes_add_up():
    made = Manifest("keep.example", 1, "keep.example/releases", 2, "ab", 3, (*PARTS, Part("log/releases/checkpoint", 9)))
    assert parse_manifest(encode_manifest(made), 15) == made
    data = encode_manifest(made)
    for wrong, size in ((data, 14), (data.replace(b'"format":1', b'"format":2'), 15), (b"{}", 0)):
        with pytest.raises(NotTrusted):
            parse_manifest(wrong, size)
    for parts in ((*PARTS, PARTS[0]), PARTS[1:], (*PARTS, Part("log/x", -1))):
        with pytest.raises(Invalid):
            check_parts(parts)


def test_a_keep_with_its_stores_elsewhere_comes_back_into_an_empty_database(outside, postgres, s3_server, tmp_path):
    made = str(tmp_path / "outside.backup")
    told = outside.cli("--json", "backup", "create", made, code=0).json
    assert told["outside"] == 2  # the sealed model and its profile stay in their bucket
    taken = outside.cli("backup", "restore", made, str(tmp_path / "again"), "--no-later-erasures")
    assert taken.code != 0 and "holds the records of the keep" in taken.err
    assert not (tmp_path / "again").exists()
    elsewhere = replace(outside.cli, keep=tmp_path / "again").with_environment(MODELKEEP_RECORDS_URL=postgres.database())
    elsewhere("backup", "restore", made, str(tmp_path / "again"), "--no-later-erasures", code=0)
    assert "risk@1" in elsewhere("verify", "risk@1", code=0).out
    elsewhere("user", "add", "carol", "--role", "analyst", code=0)
    assert "succeeds" in elsewhere("log", "verify", code=0).out
    assert "forgotten" in elsewhere("log", "erase", "--subject", "alice", "--forget-account", code=0).out
    assert "alice" not in elsewhere("user", "list", code=0).out
    client, bucket = s3_server.client(), outside.bucket
    gone = next(o["Key"] for o in client.list_objects_v2(Bucket=bucket)["Contents"] if o["Key"] != "keep/origin")
    client.delete_object(Bucket=bucket, Key=gone)
    empty = elsewhere.with_environment(MODELKEEP_RECORDS_URL=postgres.database())
    lacking = empty("backup", "restore", made, str(tmp_path / "third"), "--no-later-erasures", code=1)
    assert "is gone" in lacking.err and not (tmp_path / "third").exists()
