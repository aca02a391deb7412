"""``Records`` in one SQLite file, shared by every process of a keep.

WAL so that readers never wait for a writer; ``synchronous=FULL`` so that a commit that returned survives a power cut
(sqlite.org/pragma.html#pragma_synchronous). Deleted records stay as tombstones, so that ``since`` can tell of them.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.records.memory import check_distinct, check_expectation
from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable

SCHEMA_VERSION = 1
"""What ``_SCHEMA`` makes; a later version is reached by migrations and by changing both."""
APPLICATION_ID = 0x6D6B6570  # "mkep", so that `file` and we know the database
BUSY_TIMEOUT = 5.0
Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}
"""By the version they start from. Version 1 is the first, so there is none yet."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE record (
    kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB, revision INTEGER NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;
CREATE INDEX record_revision ON record (revision, kind, key);
INSERT INTO meta VALUES ('schema_version', 1), ('revision', 0);
"""


class Upgrade(NamedTuple):
    """What ``upgrade`` did: schema versions, and the backup it made first (None when there was nothing to do)."""

    before: int
    after: int
    backup: Path | None


class SqliteRecords:
    """``Records`` of one keep. Threads share the connection under a lock; processes share the file."""

    def __init__(self, path: Path, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        """Open existing records. ``busy_timeout``: seconds to wait for another writer.

        Raises Missing (no such file), Invalid (another schema version), NotTrusted (not records of modelkeep), Unavailable.
        """
        if not path.is_file():
            raise Missing(f"there are no records at {path}")
        if not path.stat().st_size:  # SQLite would take it for a new database and write to it
            raise NotTrusted(f"{path} does not hold records of modelkeep, it is empty: restore it from a backup")
        self._path = path
        self._lock = threading.Lock()
        self._connection = _connect(path, busy_timeout)
        self._identity = _identity_of(path)
        try:
            _check_version(self._connection, path)
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(cls, path: Path) -> "SqliteRecords":
        """Make empty records at ``path``, readable by their owner alone. Raises Conflict (exists), Unavailable."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError as cause:
            raise Conflict(f"there are records at {path} already") from cause
        except OSError as cause:
            raise Unavailable(f"cannot make the records at {path}: {cause.strerror}") from cause
        with closing(_connect(path, BUSY_TIMEOUT)) as connection, _failures(path):
            connection.executescript(f"BEGIN IMMEDIATE;PRAGMA application_id={APPLICATION_ID};{_SCHEMA}COMMIT;")
        return cls(path)

    def get(self, kind: str, key: str) -> Record:
        """The current record. Raises Missing, Unavailable."""
        rows = self._rows("SELECT kind, key, CAST(body AS BLOB), revision FROM record WHERE kind = ? AND key = ?", kind, key)
        if not rows or rows[0].body is None:
            raise Missing(f"there is no {kind} record {key}")
        return rows[0]

    def scan(self, kind: str, prefix: str = "") -> list[Record]:
        """Current records of a kind whose key begins with ``prefix``, ordered by key. Raises Unavailable."""
        query = "SELECT kind, key, CAST(body AS BLOB), revision FROM record WHERE kind = ? AND body IS NOT NULL"
        if prefix:
            query += " AND key >= ? AND substr(key, 1, length(?)) = ?"
            return self._rows(query + " ORDER BY key", kind, prefix, prefix, prefix)
        return self._rows(query + " ORDER BY key", kind)

    def commit(self, changes: Sequence[Change]) -> int:
        """Apply all or none, durably; every change of one commit gets the revision returned.

        Raises Conflict (an expectation fails), Invalid (a record named twice), Unavailable (disk full, locked for too long).
        """
        check_distinct(changes)
        if not changes:
            return self.revision()
        with self._lock, _failures(self._path), _transaction(self._connection) as connection:
            for change in changes:
                check_expectation(change, _revision_of(connection, change))
            revision = _meta(connection, "revision") + 1
            connection.executemany(
                "INSERT INTO record VALUES (?, ?, ?, ?) "
                "ON CONFLICT (kind, key) DO UPDATE SET body = excluded.body, revision = excluded.revision",
                [(change.kind, change.key, change.body, revision) for change in changes],
            )
            connection.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
        return revision

    def revision(self) -> int:
        """The latest global revision; 0 when nothing was ever committed.

        Raises Unavailable, also when the file was deleted or another was put in its place: what is open is then nobody's.
        """
        if _identity_of(self._path) != self._identity:
            raise Unavailable(f"the records at {self._path} were replaced while they were in use: restart what uses them")
        with self._lock, _failures(self._path):
            return _meta(self._connection, "revision")

    def since(self, revision: int) -> list[Record]:
        """Records (deletions too) changed after ``revision``, oldest change first. Raises Unavailable."""
        query = "SELECT kind, key, CAST(body AS BLOB), revision FROM record WHERE revision > ? ORDER BY revision, kind, key"
        return self._rows(query, revision)

    def prune(self, kinds: Collection[str]) -> None:
        """Drop what is left of deleted records of ``kinds``. Raises Unavailable."""
        marks = ", ".join("?" * len(kinds))
        with self._lock, _failures(self._path), _transaction(self._connection) as connection:
            connection.execute(f"DELETE FROM record WHERE body IS NULL AND kind IN ({marks})", tuple(kinds))  # noqa: S608

    def expunge(self, kinds: Collection[str]) -> None:
        """Remove what is left of deleted records of ``kinds``, and build the file anew without its free pages and log.

        Other processes go on meanwhile, but that one may not read for longer than the busy timeout. Raises Unavailable.
        """
        self.prune(kinds)
        with self._lock, _failures(self._path):
            self._connection.execute("VACUUM")  # through memory (temp_store): a copy elsewhere on disk would not be erased
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise Unavailable(
                f"the records at {self._path} are being read, so what was deleted lingers in their log: try again"
            )

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._connection.close()

    def _rows(self, query: str, *values: str | int) -> list[Record]:
        # The queries cast bodies to BLOB: one that somebody put there as text is then bytes, too, and is judged as such.
        with self._lock, _failures(self._path):
            return [Record(*row) for row in self._connection.execute(query, values)]


def _identity_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as cause:
        raise Unavailable(f"cannot look at the records at {path}: {cause.strerror}") from cause
    return found.st_dev, found.st_ino


def upgrade(path: Path, *, migrations: Mapping[int, Migration] = MIGRATIONS, to: int = SCHEMA_VERSION) -> Upgrade:
    """Bring records to schema version ``to``, one transaction a version, after a backup beside them.

    The backup is ``<name>.v<version>.bak`` (``.2``, ``.3`` ... when taken); it is complete and synced before the first change.
    Raises Invalid (a newer schema), NotTrusted (not records of modelkeep), Missing, Unavailable.
    """
    if not path.is_file():
        raise Missing(f"there are no records at {path}")
    with closing(_connect(path, BUSY_TIMEOUT)) as connection:
        before = _schema_version(connection, path)
        if before > to:
            raise Invalid(_newer(path, before, to))
        if before == to:
            return Upgrade(before, to, None)
        backup = _back_up(connection, path, before)
        with _failures(path):
            for version in range(before, to):
                with _transaction(connection):
                    if _meta(connection, "schema_version") != version:  # another process was quicker
                        continue
                    migrations[version](connection)
                    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version + 1,))
    return Upgrade(before, to, backup)


def _connect(path: Path, busy_timeout: float) -> sqlite3.Connection:
    with _failures(path):
        uri = f"{path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
            connection.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            connection.close()
            raise
        return connection


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    with _failures(path):
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise NotTrusted(f"{path} does not hold records of modelkeep")
        return _meta(connection, "schema_version")


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    version = _schema_version(connection, path)
    if version > SCHEMA_VERSION:
        raise Invalid(_newer(path, version, SCHEMA_VERSION))
    if version < SCHEMA_VERSION:
        raise Invalid(f"the records at {path} have schema version {version}: run `modelkeep upgrade`")


def _newer(path: Path, found: int, known: int) -> str:
    return f"the records at {path} have schema version {found}, this modelkeep knows up to {known}: install a newer modelkeep"


def _meta(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise NotTrusted(f"the records lack their {name}: restore them from a backup")
    return int(row[0])


def _revision_of(connection: sqlite3.Connection, change: Change) -> int:
    query = "SELECT revision FROM record WHERE kind = ? AND key = ? AND body IS NOT NULL"
    row = connection.execute(query, (change.kind, change.key)).fetchone()
    return int(row[0]) if row else 0


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed at the end of the block, rolled back by any exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """SQLite's errors in our words."""
    try:
        yield
    except sqlite3.Error as cause:
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # sqlite.org/rescode.html: the rest is detail
        if primary == sqlite3.SQLITE_NOTADB:
            raise NotTrusted(f"{path} is not a database: restore it from a backup") from cause
        if primary == sqlite3.SQLITE_CORRUPT:
            raise NotTrusted(f"the records at {path} are damaged ({cause}): restore them from a backup") from cause
        raise Unavailable(f"the records at {path} failed: {cause}") from cause


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> Path:
    backup = _free_name(path.with_name(f"{path.name}.v{version}.bak"))
    with closing(_connect(backup, BUSY_TIMEOUT)) as target, _failures(backup):
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
    for synced in (backup, backup.parent):
        handle = os.open(synced, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return backup


def _free_name(path: Path) -> Path:
    """Make an empty file (0600) at ``path``, or at the first free numbered name after it."""
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.name}.{number}")
        try:
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            continue
        except OSError as cause:
            raise Unavailable(f"cannot make the backup {candidate}: {cause.strerror}") from cause
        return candidate
    raise Unavailable(f"too many backups beside {path}: remove some")
