"""What only a database server can do wrong: end, hang, be put back, be another keep's, refuse, and be asked by many at once."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress

import psycopg
import pytest
from free_ports import free_port
from hypothesis import example, given, settings
from hypothesis import strategies as st
from services import Postgres, certificate

from modelkeep.adapters.records import pool
from modelkeep.adapters.records.pool import parse_target
from modelkeep.adapters.records.postgres import KEPT, SCHEMA_VERSION, PostgresRecords, upgrade
from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

ORIGIN = "keep.example/postgres"


@pytest.fixture
def url(postgres):
    made = postgres.database()
    yield made
    postgres.take_back(made)


@pytest.fixture
def records(url):
    with closing(PostgresRecords.create(url, ORIGIN)) as made:
        yield made


@pytest.fixture
def restarted(postgres):
    """A test that stops the server leaves it running, whatever happens."""
    yield postgres
    with suppress(AssertionError, ProcessLookupError):
        postgres.pause(go_on=True)
    postgres.stop()
    postgres.start()


# -- known answers ------------------------------------------------------------------------------------------------------------


def test_urls():
    found = parse_target("postgresql://keep:hunter2@db.example:5433/models?sslrootcert=/ca.pem", {})
    assert str(found) == "the database postgresql://keep@db.example:5433/models"
    assert (found.parameters["sslmode"], found.parameters["sslrootcert"]) == ("verify-full", "/ca.pem")
    assert found.parameters["target_session_attrs"] == "read-write"
    assert "hunter2" not in repr(found)
    assert parse_target("postgres://db.example/models", {}).parameters["sslrootcert"] == "system"
    assert parse_target("postgresql:///models", {"PGHOST": "db.example"}).parameters["sslmode"] == "verify-full"
    assert parse_target("postgresql://db.example/models?sslmode=disable", {}).parameters["sslmode"] == "disable"
    for far in ({"PGHOSTADDR": "192.0.2.1"}, {"PGSERVICE": "models"}):  # whatever the URL says, it is not this machine
        assert parse_target("postgresql://localhost/models", far).parameters["sslmode"] == "verify-full"
    assert parse_target("postgresql://localhost/models?hostaddr=192.0.2.1", {}).parameters["sslmode"] == "verify-full"
    for here in ("postgresql:///models", "postgresql://localhost/models", "postgresql:///models?host=/run/postgresql"):
        assert "sslmode" not in parse_target(here, {}).parameters


@pytest.mark.parametrize(
    "url",
    [
        "", "mysql://x/y", "postgresql://", "postgresql:///", "postgresql://u:hunter2@h:port/db", "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hunter2%zz@h/db", "postgresql://u:hunter2@h/db?colour=red", "host=h password=hunter2 dbname=db",
        "postgresql://u:pa@hunter2@h/db", "postgresql://u:12/hunter2@h/db", "postgresql://u:1/2/hunter2@h/db",
        "postgresql://u:hunter2@h/db?sslmode=prefer", "postgresql://u:hunter2@h/db?sslmode=allow",
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_quoting_the_password(url):
    with pytest.raises(Invalid) as refusal:
        parse_target(url, {})
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@settings(max_examples=200, deadline=None)
@example("postgresql://%80")
@given(st.text(max_size=60).map("postgresql://".__add__) | st.text(max_size=30))
def test_any_text_is_a_target_or_invalid(url):
    with suppress(Invalid):
        assert parse_target(url, {}).parameters["dbname"]


def test_a_connection_is_told_what_a_keep_needs(postgres, url):
    name = url.partition("?")[0].rpartition("/")[2]
    postgres.run(
        "postgres",
        f"ALTER DATABASE {name} SET synchronous_commit = off",
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'",
    )
    with closing(PostgresRecords.create(url, ORIGIN)) as records, records._pool.connection() as connection:
        show = lambda name: connection.execute(f"SHOW {name}").fetchone()[0]  # noqa: E731
        assert show("synchronous_commit") == "on" and show("default_transaction_isolation") == "read committed"
        assert show("statement_timeout") == "5s" == show("lock_timeout") and show("search_path") == "pg_catalog"
        assert show("application_name") == "modelkeep"
    postgres.run("postgres", f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    with closing(PostgresRecords(url, ORIGIN)) as records, records._pool.connection() as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)


def test_keys_sort_by_bytes_in_whatever_locale(postgres):
    postgres.run("postgres", "CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
    names = ["a", "B", "b", "é", "z", "_", "A", "\U0001f600", "\uffff"]
    with closing(PostgresRecords.create(postgres.url("icu"), ORIGIN)) as records:
        records.commit([Change("k", name, b"") for name in names])
        assert [record.key for record in records.scan("k")] == sorted(names)


def test_what_postgresql_cannot_hold_is_invalid(records):
    for name in ("nul\0", "half\ud800"):
        with pytest.raises(Invalid):
            records.commit([Change("a", name, b"1")])
        with pytest.raises(Missing):  # a stranger may ask for any name
            records.get("a", name)
        assert records.scan("a", name) == [] == records.scan(name)
    assert records.revision() == 0 and records.commit([Change("a", "x", bytes(range(256)))]) == 1
    assert records.get("a", "x").body == bytes(range(256))


# -- making and opening -------------------------------------------------------------------------------------------------------


def test_a_database_with_a_keep_in_it_is_refused_and_not_touched(url, records):
    records.commit([Change("a", "x", b"1")])
    for origin in (ORIGIN, "keep.example/other"):
        with pytest.raises(Conflict, match=f"holds the records of the keep {ORIGIN} already"):
            PostgresRecords.create(url, origin)
    assert records.get("a", "x").body == b"1"


def test_opening_what_is_not_there_or_another_keeps(url, postgres):
    with pytest.raises(Missing, match="there are no records at the database"):
        PostgresRecords(url, ORIGIN)
    PostgresRecords.create(url, ORIGIN).close()
    with pytest.raises(Invalid, match=r"holds the records of the keep keep\.example/postgres, not of"):
        PostgresRecords(url, "keep.example/other")
    with pytest.raises(Unavailable, match="does not exist"):
        PostgresRecords(postgres.url("nothing"), ORIGIN)
    postgres.run("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(Invalid, match="ENCODING 'UTF8'"):
        PostgresRecords.create(postgres.url("latin"), ORIGIN)


def test_abandoned_records_leave_room_for_others(url):
    PostgresRecords.create(url, ORIGIN).abandon()
    PostgresRecords.create(url, "keep.example/other").close()


def test_two_make_records_at_once(url):
    outcomes = []

    def make(number):
        try:
            PostgresRecords.create(url, f"keep.example/{number}").close()
            outcomes.append("made")
        except Conflict:
            outcomes.append("refused")

    workers = [threading.Thread(target=make, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == ["made", "refused", "refused", "refused"]


GRANTS = """
CREATE ROLE keep_user LOGIN;
GRANT USAGE ON SCHEMA modelkeep TO keep_user;
GRANT SELECT, INSERT, UPDATE ON modelkeep.record TO keep_user;
GRANT SELECT, UPDATE ON modelkeep.meta TO keep_user;
GRANT SELECT, INSERT, DELETE ON modelkeep.moment TO keep_user;
"""
"""The least that a keep needs, as docs/stores.md says it."""


def test_the_grants_of_the_manual_suffice_and_are_the_least(postgres, url, records):
    postgres.run(url, *filter(str.strip, GRANTS.split(";")))
    limited = url.replace(f"{postgres.user}@", "keep_user@")
    with closing(PostgresRecords(limited, ORIGIN)) as mine:
        for number in range(3):
            mine.commit([Change("a", "x", b"%d" % number)])
        mine.commit([Change("a", "x", None)])
        assert mine.revision() == 4 and [r.body for r in mine.since(0)] == [None] and mine.scan("a") == []
    for line in GRANTS.strip().splitlines()[2:]:
        table = line.split()[line.split().index("ON") + 1]
        postgres.run(url, f"REVOKE ALL ON {table} FROM keep_user")
        with (
            pytest.raises(Unavailable, match=r"grant what docs/stores\.md lists"),
            closing(PostgresRecords(limited, ORIGIN)) as mine,
        ):
            mine.commit([Change("a", "x", b"2")])
        postgres.run(url, line)
    postgres.run(url, "REVOKE ALL ON SCHEMA modelkeep FROM keep_user")
    with pytest.raises(Unavailable):
        PostgresRecords(limited, ORIGIN)


# -- order and concurrency ----------------------------------------------------------------------------------------------------

CHILD = """
import sys
from modelkeep.adapters.records.postgres import PostgresRecords
from modelkeep.core.ports import Change
from modelkeep.errors import Conflict
records, wins = PostgresRecords(sys.argv[1], sys.argv[2]), 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    while True:
        found = records.get("a", "n")
        try:
            records.commit([Change("a", "n", b"%d" % (int(found.body) + 1), found.revision),
                            Change("b", f"{sys.argv[3]}-{wins}", found.body, 0)])
            wins += 1
            break
        except Conflict:
            pass
print(wins)
"""


def test_processes_lose_no_update_and_since_misses_nothing(url, records):
    """A reader that asks only for what is new must end with all of it: no revision may appear below one that it has seen."""
    records.commit([Change("a", "n", b"0")])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, url, ORIGIN, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "pqr"
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    seen, latest = {}, 0
    while any(child.poll() is None for child in children) or latest < records.revision():
        for record in records.since(latest):
            assert record.revision > latest
            seen[record.kind, record.key] = record
        latest = max([latest, *(record.revision for record in seen.values())])
    for child in children:
        assert child.communicate()[0] == "60\n"
    assert records.get("a", "n").body == b"180" and records.revision() == 181
    assert sorted(seen.values(), key=lambda r: (r.revision, r.kind, r.key)) == records.since(0)
    assert sorted(int(r.body) for r in records.scan("b")) == list(range(180))


def test_a_writer_that_waits_is_given_the_next_revision_not_one_of_its_own_time(url, records, postgres):
    """One writer holds the counter; another waits for it, and a reader sees neither until they are committed, in this order."""
    with closing(psycopg.connect(url)) as slow, closing(PostgresRecords(url, ORIGIN)) as other:
        slow.execute("UPDATE modelkeep.meta SET revision = revision + 1")
        slow.execute("INSERT INTO modelkeep.record VALUES ('a', 'slow', '', 1)")
        slow.execute("INSERT INTO modelkeep.moment VALUES (1, '\\x01')")
        waiting = threading.Thread(target=other.commit, args=([Change("a", "quick", b"")],))
        waiting.start()
        while not postgres.run(url, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            time.sleep(0.01)
        assert records.since(0) == [] and records.revision() == 0
        slow.commit()
        waiting.join()
    assert [(r.key, r.revision) for r in records.since(0)] == [("slow", 1), ("quick", 2)]


def test_a_process_killed_in_a_transaction_leaves_nothing(url, records):
    dying = """
import os, signal, sys
from modelkeep.adapters.records import postgres
records = postgres.PostgresRecords(sys.argv[1], sys.argv[2])
with records._pool.connection() as connection, connection.transaction():
    connection.execute(postgres._NEXT, (0,))
    connection.execute(postgres._WRITE, (1, ["a"], ["x"], [b"1"]))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", dying, url, ORIGIN], check=False).returncode == -9
    assert records.since(0) == [] and records.revision() == 0
    assert records.commit([Change("a", "x", b"2", 0)]) == 1


def test_locked_for_too_long(url, records, monkeypatch):
    monkeypatch.setattr(pool, "_SETUP", pool._SETUP.replace("'5000'", "'100'"))
    with closing(psycopg.connect(url)) as greedy, closing(PostgresRecords(url, ORIGIN)) as hasty:
        greedy.execute("SELECT * FROM modelkeep.meta FOR UPDATE")
        with pytest.raises(Unavailable, match="locked or busy"):
            hasty.commit([Change("a", "x", b"1")])
        assert hasty.scan("a") == [] and hasty.revision() == 0  # readers never wait
        greedy.rollback()
        assert hasty.commit([Change("a", "x", b"1")]) == 1


def test_more_threads_than_connections(url, records):
    done = []
    workers = [
        threading.Thread(target=lambda n=n: done.append(records.commit([Change("t", str(n), b"")])))
        for n in range(5 * pool.SIZE)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(done) == list(range(1, 5 * pool.SIZE + 1))
    assert len(records._pool._idle) <= pool.SIZE


def test_no_connection_free(records, monkeypatch):
    held = [records._pool.connection() for _ in range(pool.SIZE)]
    for one in held:
        one.__enter__()
    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="all 4 connections are busy"):
        patch.setattr(pool, "ANSWER_SECONDS", 0.05)
        records.revision()
    for one in held:
        one.__exit__(None, None, None)
    assert records.revision() == 0


# -- ends, hangs, comes back --------------------------------------------------------------------------------------------------


def every_call(records):
    yield lambda: records.get("a", "x")
    yield lambda: records.scan("a")
    yield lambda: records.since(0)
    yield records.revision
    yield lambda: records.commit([Change("a", "x", b"2")])


@pytest.mark.parametrize("how", [2, 3, 9], ids=["fast", "immediate", "killed"])
def test_a_server_that_ends_and_comes_back(restarted, records, how):
    records.commit([Change("a", "x", b"1")])
    restarted.stop(how)
    for call in every_call(records):
        with pytest.raises(Unavailable, match=r"^the database postgresql://"):
            call()
    restarted.start()
    assert records.get("a", "x").body == b"1" and records.revision() == 1
    assert records.commit([Change("a", "x", b"2", 1)]) == 2


def test_a_restart_between_two_calls_is_not_noticed(restarted, records):
    records.commit([Change("a", "x", b"1")])
    for call in (records.revision, lambda: records.commit([Change("a", "y", b"1")]), lambda: records.scan("a")):
        restarted.stop()
        restarted.start()
        call()


def test_a_server_that_hangs(restarted, records, monkeypatch):
    """It takes connections and says nothing: libpq would wait for ever."""
    monkeypatch.setitem(records._target.parameters, "connect_timeout", 2)  # the least that libpq knows
    records.revision()
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 0.2)
    restarted.pause()
    for call in (records.revision, lambda: records.commit([Change("a", "x", b"1")])):  # on the connection it has, on a new one
        with pytest.raises(Unavailable):
            call()
    restarted.pause(go_on=True)
    monkeypatch.setattr(pool, "ANSWER_SECONDS", 60.0)
    monkeypatch.setitem(records._target.parameters, "connect_timeout", 60)
    assert records.commit([Change("a", "x", b"1", 0)]) == 1


def test_a_connection_that_the_server_ends_in_the_middle(url, records, postgres):
    def interrupt(connection, *_):
        postgres.run("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'modelkeep'")

    with pytest.raises(Unavailable, match="failed"), records._pool.connection() as connection:
        interrupt(connection)
        connection.execute("SELECT 1")
    assert records.commit([Change("a", "x", b"1")]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk(postgres, url, records):
    small = postgres.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    shutil.chown(small, postgres.user, postgres.user)
    try:
        postgres.run("postgres", f"CREATE TABLESPACE small LOCATION '{small}'")
        postgres.run(url, "ALTER TABLE modelkeep.record SET TABLESPACE small")
        records.commit([Change("a", "x", b"1")])
        with pytest.raises(Unavailable, match="No space left on device"):
            records.commit([Change("a", "x", b"2"), *(Change("a", f"big{n}", os.urandom(1500)) for n in range(400))])
        assert [r.body for r in records.scan("a")] == [b"1"] and records.revision() == 1
        assert records.commit([Change("a", "x", b"2", 1)]) == 2
    finally:
        postgres.run(url, "ALTER TABLE modelkeep.record SET TABLESPACE pg_default")
        postgres.run("postgres", "CHECKPOINT", "DROP TABLESPACE small")
        subprocess.run(["umount", "-l", small], check=True)  # the server still holds dropped files open


def test_a_standby_is_not_read(postgres, url, records):
    """It may lag behind: a revoked key would live on. A database that is read-only stands in for it."""
    name = url.partition("?")[0].rpartition("/")[2]
    postgres.run("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        PostgresRecords(url, ORIGIN)


def test_passwords_are_never_told(restarted, postgres):
    """Wrong password, no server, no such host: each tells where it failed, and never with what."""
    for where in (
        f"nobody:hunter2@/db?host={postgres.folder}",
        "keep:hunter2@127.0.0.1:1/db",
        "keep:hunter2@no-host.invalid/db?sslmode=disable",
    ):
        with pytest.raises(Unavailable) as failure:
            PostgresRecords(f"postgresql://{where}", ORIGIN)
        assert "hunter2" not in str(failure.value) and "postgresql://" in str(failure.value)
        assert "\n" not in str(failure.value) and failure.value.__suppress_context__


# -- over a network -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A server that is reached over TCP, with a certificate for db.example and a password: URLs for it, by their parameters."""
    folder = tmp_path_factory.mktemp("authority")
    ca, _, authority, key = certificate("authority")
    crt, pem, *_ = certificate("db.example", authority, key)
    (folder / "ca.pem").write_bytes(ca)
    (folder / "other.pem").write_bytes(certificate("authority")[0])
    port = free_port()
    hba = b"local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
    server = Postgres(
        "-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", port=port,
        files={"server.crt": crt, "server.key": pem, "pg_hba.conf": hba},
    )  # fmt: skip
    server.run("postgres", "CREATE ROLE keep LOGIN PASSWORD 'hunter2'", "CREATE DATABASE keep OWNER keep")

    def url(host, *, password="hunter2", **terms):
        more = "&".join(f"{name}={value}" for name, value in {"hostaddr": "127.0.0.1", **terms}.items())
        return f"postgresql://keep:{password}@{host}:{port}/keep?{more}"

    yield url, folder
    server.close()


def test_a_remote_server_must_prove_its_name(remote):
    url, folder = remote
    good = url("db.example", sslrootcert=folder / "ca.pem")
    with closing(PostgresRecords.create(good, ORIGIN)) as records:
        assert records.commit([Change("a", "x", b"1")]) == 1
        with records._pool.connection() as connection:
            assert connection.pgconn.ssl_in_use
    for bad in (
        url("db.example", sslrootcert=folder / "other.pem"),
        url("db.evil", sslrootcert=folder / "ca.pem"),
        url("db.example"),  # the system's authorities do not know it
        url("db.example", sslrootcert=folder / "ca.pem", sslmode="disable"),  # the server wants TLS
    ):
        with pytest.raises(Unavailable, match="failed") as failure:
            PostgresRecords(bad, ORIGIN)
        assert "hunter2" not in str(failure.value) and "\n" not in str(failure.value)
    PostgresRecords(url("db.example", sslmode="require"), ORIGIN).close()  # asked for in so many words


def test_a_wrong_password_is_not_told(remote):
    url, folder = remote
    with pytest.raises(Unavailable, match="password authentication failed for user") as failure:
        PostgresRecords(url("db.example", password="hunter3", sslrootcert=folder / "ca.pem"), ORIGIN)
    assert "hunter3" not in str(failure.value)
    with pytest.raises(Unavailable) as failure:  # a password that is also a word of the message
        PostgresRecords(url("db.example", password="authentication", sslrootcert=folder / "ca.pem"), ORIGIN)
    assert "authentication" not in str(failure.value)


# -- put back, exchanged ------------------------------------------------------------------------------------------------------


def dump(postgres, url):
    return {name: postgres.run(url, f"SELECT * FROM modelkeep.{name}") for name in ("meta", "record", "moment")}


def restore(url, tables):
    with closing(psycopg.connect(url)) as connection:
        for name, rows in tables.items():
            connection.execute(f"DELETE FROM modelkeep.{name}")
            for row in rows:
                connection.execute(f"INSERT INTO modelkeep.{name} VALUES ({', '.join(['%s'] * len(row))})", row)
        connection.commit()


REPLACED = "was put back or exchanged while it was in use: restart what uses it"


def test_put_back_to_an_earlier_state(postgres, url, records):
    records.commit([Change("a", "x", b"1")])
    backup = dump(postgres, url)
    records.commit([Change("a", "x", b"2")])
    restore(url, backup)
    with pytest.raises(Unavailable, match=REPLACED):
        records.revision()
    with pytest.raises(Unavailable, match=REPLACED):
        records.commit([Change("a", "x", b"3")])
    with closing(PostgresRecords(url, ORIGIN)) as anew:
        assert anew.revision() == 1 and anew.get("a", "x").body == b"1"


def test_put_back_and_then_moved_on_past_what_was_seen(postgres, url, records):
    """By its number the revision has only grown; by its mark it is another history."""
    records.commit([Change("a", "x", b"1")])
    backup = dump(postgres, url)
    records.commit([Change("a", "x", b"2")])
    restore(url, backup)
    with closing(PostgresRecords(url, ORIGIN)) as other:
        for number in range(5):
            other.commit([Change("b", str(number), b"")])
    for look in (records.revision, lambda: records.commit([Change("a", "x", b"3")])):
        with pytest.raises(Unavailable, match=REPLACED):
            look()
    with closing(PostgresRecords(url, ORIGIN)) as anew:
        assert anew.revision() == 6


def test_marks_are_kept_for_a_while_and_a_long_sleep_is_no_exchange(url, records, monkeypatch):
    from modelkeep.adapters.records import postgres as module

    assert KEPT >= 10_000
    monkeypatch.setattr(module, "KEPT", 3)
    with closing(PostgresRecords(url, ORIGIN)) as other:
        for number in range(10):
            other.commit([Change("b", str(number), b"")])
    assert records.revision() == 10  # it had seen revision 0, whose mark is gone
    with closing(psycopg.connect(url)) as connection:
        assert connection.execute("SELECT min(revision), count(*) FROM modelkeep.moment").fetchone() == (8, 3)


def test_exchanged_for_another_keep_or_nothing_while_in_use(url, records, restarted):
    """A reader must never take this for the absence of a record."""
    records.commit([Change("a", "x", b"1")])
    restarted.run(url, "UPDATE modelkeep.meta SET origin = 'keep.example/other'")
    restarted.stop()
    restarted.start()
    with pytest.raises(Unavailable, match="exchanged while it was in use"):
        records.get("a", "x")
    restarted.run(url, "DROP SCHEMA modelkeep CASCADE")
    for call in every_call(records):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM modelkeep.meta",
        "DELETE FROM modelkeep.moment",
        "DROP TABLE modelkeep.record",
        "ALTER TABLE modelkeep.record DROP COLUMN body",
        "DROP SCHEMA modelkeep CASCADE",
        "UPDATE modelkeep.meta SET revision = revision - 1",
    ],
)
def test_damage_by_somebody_else_is_never_the_absence_of_a_record(postgres, url, records, damage):
    records.commit([Change("a", "x", b"1")])
    records.commit([Change("a", "x", b"2")])
    postgres.run(url, damage)
    refused = 0
    for call in every_call(records):
        try:
            call()
        except (Unavailable, NotTrusted):
            refused += 1
        except ModelkeepError as wrong:
            raise AssertionError(repr(wrong)) from wrong
    assert refused


# -- versions -----------------------------------------------------------------------------------------------------------------


def test_another_schema_version(postgres, url, records):
    postgres.run(url, f"UPDATE modelkeep.meta SET schema_version = {SCHEMA_VERSION + 1}")
    for act in (lambda: PostgresRecords(url, ORIGIN), lambda: upgrade(url)):
        with pytest.raises(Invalid, match="install a newer modelkeep"):
            act()
    postgres.run(url, "UPDATE modelkeep.meta SET schema_version = 0")
    with pytest.raises(Invalid, match="run `modelkeep upgrade`"):
        PostgresRecords(url, ORIGIN)


STEPS = {
    1: lambda c: c.execute("ALTER TABLE modelkeep.record ADD extra TEXT"),
    2: lambda c: c.execute("ALTER TABLE modelkeep.record DROP extra"),
}


def test_upgrade_copies_first_and_goes_version_by_version(postgres, url, records):
    records.commit([Change("a", "x", b"1")])
    assert upgrade(url) == (SCHEMA_VERSION, SCHEMA_VERSION, "")
    assert upgrade(url, migrations=STEPS, to=3) == (1, 3, "modelkeep.record_v1_bak")
    assert postgres.run(url, "SELECT kind, key, body, revision FROM modelkeep.record_v1_bak") == [("a", "x", b"1", 1)]
    with pytest.raises(Missing):
        upgrade(postgres.database())


def test_a_failed_migration_changes_nothing_and_keeps_both_copies(postgres, url, records):
    records.commit([Change("a", "x", b"1")])

    def broken(connection):
        connection.execute("DELETE FROM modelkeep.record")
        connection.execute("NO SUCH STATEMENT")

    for name in ("record_v1_bak", "record_v1_bak_2"):
        with pytest.raises(Unavailable):
            upgrade(url, migrations={1: broken}, to=2)
        assert postgres.run(url, f"SELECT count(*) FROM modelkeep.{name}") == [(1,)]
    assert records.get("a", "x") == Record("a", "x", b"1", 1)
    assert json.dumps(upgrade(url)._asdict()) == '{"before": 1, "after": 1, "backup": ""}'
