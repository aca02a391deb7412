"""One conformance suite for ``Records``, run on every adapter; then what only SQLite can do wrong."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.adapters.records.postgres import PostgresRecords
from modelkeep.adapters.records.signed import SignedRecords
from modelkeep.adapters.records.sqlite import SCHEMA_VERSION, SqliteRecords, upgrade
from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable


@pytest.fixture(params=["memory", "sqlite", "signed", "postgres"])
def records(request, tmp_path):
    if request.param in ("memory", "signed"):
        yield MemoryRecords() if request.param == "memory" else signed(MemoryRecords())
        return
    if request.param == "sqlite":
        made = SqliteRecords.create(tmp_path / "records.db")
        yield made
        made.close()
        return
    postgres = request.getfixturevalue("postgres")
    url = postgres.database()
    made = PostgresRecords.create(url, "keep.example/ports")
    yield made
    made.close()
    postgres.take_back(url)


SIGNING = Ed25519PrivateKey.generate()


def signed(inner, key=SIGNING):
    return SignedRecords(inner, {"a", "r"}, lambda: [SIGNING.public_key().public_bytes_raw()], lambda: key)


def test_what_somebody_else_wrote_into_a_signed_kind_is_not_trusted():
    inner = MemoryRecords()
    mine = signed(inner)
    mine.commit([Change("a", "root", b"genuine"), Change("a", "guest", b"small"), Change("free", "x", b"1")])
    genuine, guest = inner.get("a", "root").body, inner.get("a", "guest").body
    assert mine.get("free", "x").body == b"1" == inner.get("free", "x").body
    stranger = signed(inner, Ed25519PrivateKey.generate())
    for forged in (b"genuine", b"", genuine[:-1], genuine[:64] + b"forged!", guest, bytes(64) + b"genuine"):
        inner.commit([Change("a", "root", forged)])
        for read in (lambda: mine.get("a", "root"), lambda: mine.scan("a"), lambda: mine.since(0)):
            with pytest.raises(NotTrusted, match="was not written by this keep"):
                read()
    stranger.commit([Change("a", "root", b"genuine")])
    with pytest.raises(NotTrusted):
        mine.get("a", "root")
    inner.commit([Change("r", "root", genuine)])
    with pytest.raises(NotTrusted):
        mine.get("r", "root")


def test_empty(records):
    assert records.revision() == 0
    assert records.scan("a") == [] == records.since(0)
    with pytest.raises(Missing, match="no a record x"):
        records.get("a", "x")


def test_an_expunged_record_leaves_nothing_behind(records):
    records.commit([Change("a", "x", b"1"), Change("a", "y", b"2"), Change("b", "x", b"3")])
    before = records.commit([Change("a", "x", None), Change("b", "x", None)])
    records.expunge(["a"])
    assert [(r.kind, r.key, r.body) for r in records.since(0)] == [("a", "y", b"2"), ("b", "x", None)]
    assert records.revision() == before
    records.expunge(["a", "b", "c"])
    assert [r.key for r in records.since(0)] == ["y"]
    assert records.commit([Change("a", "x", b"4", 0)]) == before + 1


def test_what_is_pruned_is_told_of_no_more_and_nothing_else_goes(records):
    records.commit([Change("a", "x", b"1"), Change("a", "y", b"2"), Change("b", "x", b"3")])
    before = records.commit([Change("a", "x", None), Change("b", "x", None)])
    records.prune(["a", "c"])
    assert [(r.kind, r.key, r.body) for r in records.since(0)] == [("a", "y", b"2"), ("b", "x", None)]
    assert records.revision() == before
    assert records.commit([Change("a", "x", b"4", 0)]) == before + 1
    assert records.get("a", "x").body == b"4"


def test_what_is_put_is_got(records):
    revision = records.commit([Change("a", "x", b"1"), Change("a", "y", b""), Change("b", "x", b"\x00\xff")])
    assert records.get("a", "x") == Record("a", "x", b"1", revision)
    assert records.get("b", "x").body == b"\x00\xff"
    assert [(r.key, r.body) for r in records.scan("a")] == [("x", b"1"), ("y", b"")]
    assert records.revision() == revision == 1


def test_scan_by_prefix(records):
    names = ["m@1", "m@10", "m@2", "m", "n@1", "m_1", "m%1", "M@1", "mé@1"]
    records.commit([Change("r", name, b"") for name in names])
    assert [r.key for r in records.scan("r", "m@")] == ["m@1", "m@10", "m@2"]
    assert [r.key for r in records.scan("r", "m%")] == ["m%1"]
    assert [r.key for r in records.scan("r", "m_")] == ["m_1"]
    assert sorted(names) == [r.key for r in records.scan("r")]


def test_expectations(records):
    first = records.commit([Change("a", "x", b"1", 0)])
    with pytest.raises(Conflict, match="expected absent, found at revision 1"):
        records.commit([Change("a", "x", b"2", 0)])
    second = records.commit([Change("a", "x", b"2", first)])
    with pytest.raises(Conflict, match="expected at revision 1"):
        records.commit([Change("a", "x", b"3", first)])
    with pytest.raises(Conflict, match="found absent"):
        records.commit([Change("a", "other", b"3", 5)])
    assert records.get("a", "x") == Record("a", "x", b"2", second)


def test_deletion_leaves_a_tombstone_for_since_and_can_be_undone(records):
    records.commit([Change("a", "x", b"1")])
    gone = records.commit([Change("a", "x", None)])
    with pytest.raises(Missing):
        records.get("a", "x")
    assert records.scan("a") == []
    assert records.since(1) == [Record("a", "x", None, gone)]
    with pytest.raises(Conflict):
        records.commit([Change("a", "x", b"2", gone)])
    again = records.commit([Change("a", "x", b"2", 0)])
    assert records.since(gone) == [Record("a", "x", b"2", again)]


def test_all_or_none(records):
    records.commit([Change("a", "x", b"1")])
    with pytest.raises(Conflict):
        records.commit([Change("a", "y", b"2"), Change("a", "x", b"2", 0), Change("a", "z", None)])
    assert [r.key for r in records.scan("a")] == ["x"]
    assert records.revision() == 1


def test_a_record_named_twice_is_refused(records):
    with pytest.raises(Invalid):
        records.commit([Change("a", "x", b"1"), Change("a", "x", b"2")])
    assert records.revision() == 0


def test_an_empty_commit_changes_nothing(records):
    assert records.commit([]) == 0


def test_since_is_in_order_and_tells_the_latest_only(records):
    for body in (b"1", b"2"):
        records.commit([Change("a", "x", body), Change("b", body.decode(), body)])
    assert [(r.kind, r.key, r.revision) for r in records.since(0)] == [("b", "1", 1), ("a", "x", 2), ("b", "2", 2)]
    assert records.since(2) == []


def test_threads_lose_no_update(records):
    records.commit([Change("a", "n", b"0")])

    def add():
        for _ in range(15):
            while True:
                found = records.get("a", "n")
                try:
                    records.commit([Change("a", "n", b"%d" % (int(found.body) + 1), found.revision)])
                    break
                except Conflict:
                    continue

    workers = [threading.Thread(target=add) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert records.get("a", "n").body == b"45"


KEYS, KINDS = st.sampled_from(["a", "b", "ab"]), st.sampled_from(["k", "l"])
BODIES = st.one_of(st.none(), st.binary(max_size=4))


@pytest.fixture(params=["sqlite", "postgres"])
def fresh(request, tmp_path):
    """Makes empty records of one adapter, as often as it is asked to."""
    if request.param == "sqlite":
        counter = iter(range(10_000))
        yield lambda: SqliteRecords.create(tmp_path / f"{next(counter)}.db")
        return
    postgres = request.getfixturevalue("postgres")
    url = postgres.database()

    def make():
        postgres.run(url, "DROP SCHEMA IF EXISTS modelkeep CASCADE")
        return PostgresRecords.create(url, "keep.example/ports")

    yield make
    postgres.take_back(url)


def test_adapters_agree(fresh):
    """The adapters answer alike whatever is done to them."""

    class Twins(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.one = MemoryRecords()
            self.two = fresh()

        @rule(changes=st.lists(st.builds(Change, KINDS, KEYS, BODIES, st.one_of(st.none(), st.integers(0, 4))), max_size=3))
        def commit(self, changes):
            assert outcome(self.one, changes) == outcome(self.two, changes)

        @rule(kind=KINDS, prefix=st.sampled_from(["", "a", "b"]), revision=st.integers(0, 4))
        def read(self, kind, prefix, revision):
            assert self.one.scan(kind, prefix) == self.two.scan(kind, prefix)
            assert self.one.since(revision) == self.two.since(revision)

        @invariant()
        def same_revision(self):
            assert self.one.revision() == self.two.revision()

        def teardown(self):
            self.two.close()

    few = settings(max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Twins, settings=few)


def outcome(records, changes):
    try:
        return records.commit(changes)
    except ModelkeepError as error:
        return type(error), str(error)


# -- SQLite alone -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.db"


def test_private_and_durable_settings(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "x", b"1")])
        assert [stat.S_IMODE(p.stat().st_mode) for p in sorted(path.parent.iterdir())] == [0o600] * 3  # db, -shm, -wal
        pragma = records._connection.execute
        assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
        assert pragma("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_create_never_touches_an_existing_file(path):
    path.write_bytes(b"mine")
    with pytest.raises(Conflict):
        SqliteRecords.create(path)
    assert path.read_bytes() == b"mine"


def test_reopening_finds_everything(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "x", b"1")])
    with closing(SqliteRecords(path)) as records:
        assert records.get("a", "x").body == b"1"


def test_opening_what_is_not_records(path):
    with pytest.raises(Missing):
        SqliteRecords(path)
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(NotTrusted, match="not a database"):
        SqliteRecords(path)
    path.write_bytes(b"")
    with pytest.raises(NotTrusted, match="does not hold records"):
        SqliteRecords(path)


CHILD = """
import sys
from pathlib import Path
from modelkeep.adapters.records.signed import SignedRecords
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.core.ports import Change
from modelkeep.errors import Conflict
records, wins, losses = SqliteRecords(Path(sys.argv[1])), 0, 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    while True:
        found = records.get("a", "n")
        try:
            records.commit([Change("a", "n", b"%d" % (int(found.body) + 1), found.revision),
                            Change("b", f"{sys.argv[2]}-{wins}", found.body, 0)])
            wins += 1
            break
        except Conflict:
            losses += 1
print(wins, losses)
"""


def test_two_processes_lose_no_update(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "n", b"0")])
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name in ("p", "q")
        ]
        for child in children:
            assert child.stdout.readline() == "ready\n"
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        results = [child.communicate(timeout=60)[0].split() for child in children]
        assert [child.returncode for child in children] == [0, 0]
        assert [int(wins) for wins, _ in results] == [60, 60]
        assert records.get("a", "n").body == b"120"
        assert sorted(int(r.body) for r in records.scan("b")) == list(range(120))  # each step was taken by exactly one
        assert records.revision() == 121


def test_a_process_killed_in_a_transaction_leaves_nothing(path):
    SqliteRecords.create(path).close()
    dying = """
import os, signal, sys
from pathlib import Path
from modelkeep.adapters.records import sqlite
records = sqlite.SqliteRecords(Path(sys.argv[1]))
with sqlite._transaction(records._connection) as connection:
    connection.execute("INSERT INTO record VALUES ('a', 'x', x'31', 1)")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", dying, str(path)], check=False).returncode == -9
    with closing(SqliteRecords(path)) as records:
        assert records.since(0) == []
        assert records.commit([Change("a", "x", b"2", 0)]) == 1


def test_disk_full(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "x", b"1")])
        pages = records._connection.execute("PRAGMA page_count").fetchone()[0]
        records._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(Unavailable, match="full"):
            records.commit([Change("a", "x", b"2"), Change("a", "big", bytes(1 << 20))])
        assert [r.body for r in records.scan("a")] == [b"1"]
        records._connection.execute("PRAGMA max_page_count = 1000000")
        assert records.commit([Change("a", "x", b"2", 1)]) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_disk_full_on_a_real_filesystem(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with closing(SqliteRecords.create(tmp_path / "records.db")) as records:
            records.commit([Change("a", "x", b"1")])
            with pytest.raises(Unavailable):
                records.commit([Change("a", "x", None), Change("a", "big", os.urandom(1 << 20))])
            assert [(r.key, r.body) for r in records.scan("a")] == [("x", b"1")]
        with closing(SqliteRecords(tmp_path / "records.db")) as records:
            assert records.get("a", "x").body == b"1"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_locked_for_too_long(path):
    with closing(SqliteRecords.create(path)) as records, closing(SqliteRecords(path, busy_timeout=0.05)) as other:
        records._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            other.commit([Change("a", "x", b"1")])
        assert other.scan("a") == []  # readers never wait
        records._connection.execute("ROLLBACK")
        other.commit([Change("a", "x", b"1")])


def set_version(path, version):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version,))


def test_a_newer_schema_is_refused_and_not_touched(path):
    SqliteRecords.create(path).close()
    set_version(path, SCHEMA_VERSION + 1)
    for act in (SqliteRecords, upgrade):
        with pytest.raises(Invalid, match="install a newer modelkeep"):
            act(path)
    assert [p.name for p in path.parent.glob("*.bak*")] == []


def test_an_older_schema_asks_for_upgrade(path):
    SqliteRecords.create(path).close()
    set_version(path, 0)
    with pytest.raises(Invalid, match="run `modelkeep upgrade`"):
        SqliteRecords(path)


def test_upgrade_backs_up_first_and_goes_version_by_version(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "x", b"1")])
    steps = {1: lambda c: c.execute("CREATE TABLE extra (x)"), 2: lambda c: c.execute("DROP TABLE extra")}
    done = upgrade(path, migrations=steps, to=3)
    assert (done.before, done.after, done.backup.name) == (1, 3, "records.db.v1.bak")
    assert stat.S_IMODE(done.backup.stat().st_mode) == 0o600
    with closing(SqliteRecords(done.backup)) as kept:
        assert kept.get("a", "x").body == b"1"


def test_a_failed_migration_changes_nothing_and_keeps_both_backups(path):
    with closing(SqliteRecords.create(path)) as records:
        records.commit([Change("a", "x", b"1")])

    def broken(connection):
        connection.execute("DELETE FROM record")
        connection.execute("NO SUCH STATEMENT")

    for name in ("records.db.v1.bak", "records.db.v1.bak.2"):
        with pytest.raises(Unavailable):
            upgrade(path, migrations={1: broken}, to=2)
        assert (path.parent / name).is_file()
    with closing(SqliteRecords(path)) as records:
        assert records.get("a", "x").body == b"1"


def test_upgrade_of_current_records_does_nothing(path):
    SqliteRecords.create(path).close()
    assert upgrade(path) == (SCHEMA_VERSION, SCHEMA_VERSION, None)
    with pytest.raises(Missing):
        upgrade(path.with_name("other.db"))


def test_sqlite_overwrites_what_was_expunged_while_others_read(tmp_path):
    secrets = [os.urandom(112) for _ in range(300)]
    made = SqliteRecords.create(tmp_path / "records.db")
    with closing(made), closing(SqliteRecords(tmp_path / "records.db")) as other:
        made.commit([Change("s", f"name-{n:04}", secret) for n, secret in enumerate(secrets)])
        other.commit([Change("s", f"name-{n:04}", secret + b"!") for n, secret in enumerate(secrets)])
        made.commit([Change("s", f"name-{n:04}", None) for n in range(0, 300, 2)])
        assert len(other.scan("s")) == 150
        made.expunge(["s"])
        held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert [n for n, secret in enumerate(secrets) if secret in held] == list(range(1, 300, 2))
        assert b"name-0000" not in held and b"name-0001" in held
        assert len(other.scan("s")) == 150 and other.commit([Change("s", "new", b"1")]) == made.revision()


def test_sqlite_says_when_a_reader_kept_it_from_overwriting(tmp_path):
    made = SqliteRecords.create(tmp_path / "records.db")
    quick = SqliteRecords(tmp_path / "records.db", busy_timeout=0.05)
    made.commit([Change("s", "x", b"1")])
    made.commit([Change("s", "x", None)])
    reader = sqlite3.connect(tmp_path / "records.db", isolation_level=None)
    with closing(made), closing(quick), closing(reader):
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM record").fetchall()
        with pytest.raises(Unavailable, match="try again"):
            quick.expunge(["s"])
        reader.execute("COMMIT")
        quick.expunge(["s"])
