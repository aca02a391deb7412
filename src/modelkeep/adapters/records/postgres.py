"""``Records`` in a PostgreSQL database of their own, shared by every process of a keep.

Tables ``modelkeep.record`` and ``modelkeep.meta`` as in SQLite; text sorts by bytes (``COLLATE "C"``). A commit first takes the
one row that holds the revision, so writers queue there and revisions are committed in their order: ``since`` never misses one
that comes later (postgresql.org/docs/current/transaction-iso.html, Read Committed).

Every revision leaves a random mark in ``modelkeep.moment``. A process that finds another mark, or none, where it saw one was
connected to a database that was put back to an earlier state or exchanged, and says so instead of going on.
"""

import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from psycopg import Cursor, errors

from modelkeep.adapters.records.memory import check_distinct, check_expectation
from modelkeep.adapters.records.pool import Connection, Pool, Target, parse_target
from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

SCHEMA_VERSION = 1
"""What ``_SCHEMA`` makes; a later version is reached by migrations and by changing both."""
Migration = Callable[[Connection], object]
MIGRATIONS: Mapping[int, Migration] = {}
"""By the version they start from. Version 1 is the first, so there is none yet."""
KEPT = 65_536
"""Marks kept: a process that looked at none of the last so many revisions is not told of an exchange below them."""

_LONGEST_CHANGE = 3600
_LOCK = 0x6D6B6570  # "mkep": the advisory lock under which the tables are made and changed
_SCHEMA = (
    """CREATE TABLE modelkeep.meta (
        one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
        schema_version INTEGER NOT NULL, revision BIGINT NOT NULL, origin TEXT NOT NULL
    ) WITH (fillfactor = 10)""",
    """CREATE TABLE modelkeep.record (
        kind TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL, body BYTEA, revision BIGINT NOT NULL,
        PRIMARY KEY (kind, key)
    )""",
    "CREATE INDEX record_revision ON modelkeep.record (revision, kind, key)",
    "CREATE TABLE modelkeep.moment (revision BIGINT PRIMARY KEY, mark BYTEA NOT NULL)",
)
_TABLES = ("meta", "record", "moment")
_LOOK = """
    SELECT meta.revision, latest.mark, known.mark FROM modelkeep.meta
    LEFT JOIN modelkeep.moment AS latest ON latest.revision = meta.revision
    LEFT JOIN modelkeep.moment AS known ON known.revision = %s
"""
_NEXT = """
    UPDATE modelkeep.meta SET revision = revision + 1
    RETURNING revision, (SELECT mark FROM modelkeep.moment WHERE revision = %s)
"""
_MARK = "WITH past AS (DELETE FROM modelkeep.moment WHERE revision <= %s) INSERT INTO modelkeep.moment VALUES (%s, %s)"
_CURRENT = """
    SELECT kind, key, revision FROM modelkeep.record
    WHERE body IS NOT NULL AND (kind, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""
_WRITE = """
    INSERT INTO modelkeep.record
    SELECT kind, key, body, %s FROM unnest(%s::text[], %s::text[], %s::bytea[]) AS new (kind, key, body)
    ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body, revision = excluded.revision
"""


class Upgrade(NamedTuple):
    """What ``upgrade`` did: schema versions, and the table to which the records were copied first ("" when none)."""

    before: int
    after: int
    backup: str


class _Moment(NamedTuple):
    """The latest revision that this process saw, and its mark."""

    revision: int
    mark: bytes


class PostgresRecords:
    """``Records`` of one keep. Threads share a small pool of connections; one that broke is replaced at the next use."""

    def __init__(self, url: str, origin: str) -> None:
        """Open existing records. ``url``: ``postgresql://USER@HOST/DATABASE?…`` as libpq reads it; ``origin``: the keep's.

        Raises Missing (no records there), Invalid (of another keep, another schema version, or no URL), Unavailable.
        """
        self._target = target = parse_target(url)
        self._pool = Pool(target, lambda connection: _check(connection, target, origin))
        self._guard = threading.Lock()
        try:
            self._seen = self._look(0)[0]
        except BaseException:
            self._pool.close()
            raise
        self._pool.check = lambda connection: _check_again(connection, target, origin)

    def __repr__(self) -> str:
        return f"PostgresRecords({str(self._target)!r})"

    @classmethod
    def create(cls, url: str, origin: str) -> "PostgresRecords":
        """Make empty records for the keep ``origin``. Raises Conflict (a keep's records are there), Invalid, Unavailable."""
        target = parse_target(url)
        with _alone(target) as connection:
            encoding = _one(connection, "SHOW server_encoding")[0]
            if encoding != "UTF8":
                raise Invalid(f"{target} has the encoding {encoding}: make the database with ENCODING 'UTF8'")
            if _exists(connection, target):
                whose = _one(connection, "SELECT origin FROM modelkeep.meta")[0]
                raise Conflict(f"{target} holds the records of the keep {whose} already: name an empty database")
            if not _one(connection, "SELECT to_regnamespace('modelkeep') IS NOT NULL")[0]:
                connection.execute("CREATE SCHEMA modelkeep")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO modelkeep.meta VALUES (TRUE, %s, 0, %s)", (SCHEMA_VERSION, origin))
            connection.execute("INSERT INTO modelkeep.moment VALUES (0, %s)", (secrets.token_bytes(16),))
        return cls(url, origin)

    def abandon(self) -> None:
        """Drop the tables that ``create`` made, and close. Raises Unavailable."""
        with _alone(self._target) as connection:
            connection.execute(f"DROP TABLE {', '.join(f'modelkeep.{name}' for name in _TABLES)}")
        self.close()

    def get(self, kind: str, key: str) -> Record:
        """The current record. Raises Missing, Unavailable."""
        query = "SELECT kind, key, body, revision FROM modelkeep.record WHERE kind = %s AND key = %s"
        rows = self._rows(query, kind, key) if _storable(kind + key) else []
        if not rows or rows[0].body is None:
            raise Missing(f"there is no {kind} record {key}")
        return rows[0]

    def scan(self, kind: str, prefix: str = "") -> list[Record]:
        """Current records of a kind whose key begins with ``prefix``, ordered by key. Raises Unavailable."""
        query = "SELECT kind, key, body, revision FROM modelkeep.record WHERE kind = %s AND body IS NOT NULL"
        if not _storable(kind + prefix):
            return []
        if prefix:
            return self._rows(query + " AND key >= %s AND starts_with(key, %s) ORDER BY key", kind, prefix, prefix)
        return self._rows(query + " ORDER BY key", kind)

    def commit(self, changes: Sequence[Change]) -> int:
        """Apply all or none, durably; every change of one commit gets the revision returned.

        Raises Conflict (an expectation fails), Invalid (a record named twice, or text that PostgreSQL cannot hold), Unavailable
        (when the connection broke at the very end it may have been applied: the next look tells).
        """
        check_distinct(changes)
        if not changes:
            return self.revision()
        kinds, keys = [change.kind for change in changes], [change.key for change in changes]
        known, mark = self._seen, secrets.token_bytes(16)
        with self._pool.connection() as connection, connection.pipeline():  # two round trips in all
            connection.execute("BEGIN")
            counted = connection.execute(_NEXT, (known.revision,))
            found = connection.execute(_CURRENT, (kinds, keys))  # a statement later: it sees what was committed before the lock
            try:
                revision, same = _row(counted)
                self._check_continues(known, revision - 1, same)
                current = {(kind, key): at for kind, key, at in found}
                for change in changes:
                    check_expectation(change, current.get((change.kind, change.key), 0))
            except ModelkeepError:
                connection.execute("ROLLBACK")
                raise
            connection.execute(_WRITE, (revision, kinds, keys, [change.body for change in changes]))
            connection.execute(_MARK, (revision - KEPT, revision, mark))
            done = connection.execute("COMMIT")
        if done.statusmessage != "COMMIT":
            raise Unavailable(f"{self._target} did not commit: try again")
        self._saw(_Moment(revision, mark))
        return int(revision)

    def revision(self) -> int:
        """The latest global revision; 0 when nothing was ever committed.

        Raises Unavailable, also when the database was put back to an earlier state or exchanged while it was in use.
        """
        known = self._seen
        now, same = self._look(known.revision)
        self._check_continues(known, now.revision, same)
        self._saw(now)
        return now.revision

    def since(self, revision: int) -> list[Record]:
        """Records (deletions too) changed after ``revision``, oldest change first. Raises Unavailable."""
        return self._rows(
            "SELECT kind, key, body, revision FROM modelkeep.record WHERE revision > %s ORDER BY revision, kind, key", revision
        )

    def prune(self, kinds: Collection[str]) -> None:
        """Drop what is left of deleted records of ``kinds``. Raises Unavailable."""
        with _alone(self._target) as connection:
            connection.execute("DELETE FROM modelkeep.record WHERE body IS NULL AND kind = ANY(%s)", (list(kinds),))

    def expunge(self, kinds: Collection[str]) -> None:
        """Remove what is left of deleted records of ``kinds``, and write the table anew without its dead rows.

        The server's write-ahead log, its replicas and its backups are its operator's: docs/erasure.md. Raises Unavailable.
        """
        self.prune(kinds)
        pool = Pool(self._target, lambda _connection: None)
        try:
            with pool.connection() as connection:
                connection.patience = _LONGEST_CHANGE
                connection.execute(f"SET statement_timeout = '{_LONGEST_CHANGE}s'")
                connection.execute("VACUUM (FULL) modelkeep.record")
        finally:
            pool.close()

    def close(self) -> None:
        """Close every connection; idempotent."""
        self._pool.close()

    def _rows(self, query: str, *values: str | int) -> list[Record]:
        with self._pool.connection() as connection:
            return [Record(*row) for row in connection.execute(query, values)]

    def _look(self, known: int) -> tuple[_Moment, bytes | None]:
        """The latest moment, and the mark of revision ``known``."""
        with self._pool.connection() as connection:
            revision, mark, same = _one(connection, _LOOK, known)
        if mark is None:
            raise NotTrusted(f"{self._target} has no mark of its revision {revision}: somebody changed it; restore a backup")
        return _Moment(revision, mark), same

    def _check_continues(self, known: _Moment, latest: int, mark: bytes | None) -> None:
        """``mark``: what now stands where ``known`` was. Raises Unavailable when it is something else."""
        forgotten = mark is None and latest - known.revision >= KEPT
        if latest < known.revision or (mark != known.mark and not forgotten):
            raise Unavailable(f"{self._target} was put back or exchanged while it was in use: restart what uses it")

    def _saw(self, moment: _Moment) -> None:
        with self._guard:
            self._seen = max(self._seen, moment, key=lambda one: one.revision)


def upgrade(url: str, *, migrations: Mapping[int, Migration] = MIGRATIONS, to: int = SCHEMA_VERSION) -> Upgrade:
    """Bring records to schema version ``to``, one transaction a version, after copying the table of records.

    The copy is ``modelkeep.record_v<version>_bak`` (``_2``, ``_3`` … when taken), committed before the first change.
    Raises Invalid (a newer schema), Missing (no records there), Unavailable.
    """
    target = parse_target(url)
    before, backup = _back_up(target, to)
    for version in range(before, to):
        with _alone(target) as connection:
            if _version(connection, target) == version:  # otherwise another process was quicker
                migrations[version](connection)
                connection.execute("UPDATE modelkeep.meta SET schema_version = %s", (version + 1,))
    return Upgrade(before, to, backup)


def _back_up(target: Target, to: int) -> tuple[int, str]:
    """The schema version found, and the name of the copy made if it is not ``to``."""
    with _alone(target) as connection:
        before = _version(connection, target)
        if before > to:
            raise Invalid(_newer(target, before, to))
        if before == to:
            return before, ""
        base = f"modelkeep.record_v{before}_bak"
        names = (base, *(f"{base}_{number}" for number in range(2, 1000)))
        free = next((name for name in names if _one(connection, "SELECT to_regclass(%s) IS NULL", name)[0]), None)
        if free is None:
            raise Unavailable(f"{target} holds too many copies {base}_…: drop some")
        connection.execute(f"CREATE TABLE {free} AS TABLE modelkeep.record")
        return before, free


@contextmanager
def _alone(target: Target) -> Iterator[Connection]:
    """A transaction on a connection of its own, which may take long, and before which all wait who make or change tables."""
    pool = Pool(target, lambda _connection: None)
    try:
        with pool.connection() as connection, connection.transaction():
            connection.patience = _LONGEST_CHANGE
            connection.execute(f"SET LOCAL statement_timeout = '{_LONGEST_CHANGE}s'")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield connection
    finally:
        pool.close()


def _exists(connection: Connection, target: Target) -> bool:
    try:
        return bool(_one(connection, "SELECT to_regclass('modelkeep.meta') IS NOT NULL")[0])
    except errors.InsufficientPrivilege:
        raise Unavailable(f"{target} does not let this user see its schema modelkeep: see docs/stores.md") from None


def _version(connection: Connection, target: Target) -> int:
    if not _exists(connection, target):
        raise Missing(f"there are no records at {target}: name the database that 'modelkeep init' was given")
    rows = connection.execute("SELECT schema_version FROM modelkeep.meta").fetchall()
    if len(rows) != 1:
        raise NotTrusted(f"{target} lacks the row that describes its records: restore them from a backup")
    return int(rows[0][0])


def _check(connection: Connection, target: Target, origin: str) -> None:
    """What the first connection is asked. Raises Missing, Invalid, NotTrusted."""
    version = _version(connection, target)
    if version > SCHEMA_VERSION:
        raise Invalid(_newer(target, version, SCHEMA_VERSION))
    if version < SCHEMA_VERSION:
        raise Invalid(f"{target} has schema version {version}: run `modelkeep upgrade`")
    whose = _one(connection, "SELECT origin FROM modelkeep.meta")[0]
    if whose != origin:
        raise Invalid(f"{target} holds the records of the keep {whose}, not of {origin}: mend [records] url")


def _check_again(connection: Connection, target: Target, origin: str) -> None:
    """What later connections are asked. Raises Unavailable alone: no caller shall take it for the absence of a record."""
    try:
        _check(connection, target, origin)
    except (Missing, Invalid, NotTrusted) as cause:
        raise Unavailable(f"{cause}; it was exchanged while it was in use, so restart what uses it") from None


def _newer(target: Target, found: int, known: int) -> str:
    return f"{target} has schema version {found}, this modelkeep knows up to {known}: install a newer modelkeep"


def _storable(text: str) -> bool:
    """Whether PostgreSQL can hold ``text``; under a name that it cannot hold there is nothing."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _one(connection: Connection, query: str, *values: Any) -> tuple[Any, ...]:
    """The one row that ``query`` finds. Raises NotTrusted when there is none."""
    return _row(connection.execute(query, values))


def _row(cursor: Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    row = cursor.fetchone()
    if row is None:
        raise NotTrusted("the records lack the row that describes them: restore them from a backup")
    return row
