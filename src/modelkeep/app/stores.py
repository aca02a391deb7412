"""Where a keep's blobs, records and shared limits are: a URL of the settings to the adapter that speaks it.

Empty = in the keep's folder, and for limits in each process by itself.

An adapter of an outside system is imported when a URL names it, so that a keep in a folder needs nothing of it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modelkeep.access.epochs import KeptEpoch
from modelkeep.adapters.blobs.local import LocalBlobs
from modelkeep.adapters.records import sqlite
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.app.settings import Settings
from modelkeep.core.ports import Allowances, Blobs, Entropy, Records
from modelkeep.errors import Invalid, ModelkeepError

if TYPE_CHECKING:
    from modelkeep.adapters.blobs.s3 import S3Blobs
    from modelkeep.adapters.records.postgres import PostgresRecords
    from modelkeep.adapters.state.redis import RedisAllowances

RECORDS_FILE, BLOBS_FOLDER = "records.db", "blobs"

Undo = Callable[[], None]


class _Place(Protocol):
    def abandon(self) -> None: ...


def open_records(directory: Path, settings: Settings, origin: str) -> Records:
    """The records of the keep ``origin``. Raises Missing, Invalid (another keep's, another schema), NotTrusted, Unavailable."""
    url = settings.records.url
    if not url:
        return SqliteRecords(directory / RECORDS_FILE)
    return _postgres(url)(url, origin)


def create_records(directory: Path, settings: Settings, origin: str) -> tuple[Records, Undo]:
    """Empty records for a new keep ``origin``, and what takes them away. Raises Conflict (not empty), Invalid, Unavailable."""
    url = settings.records.url
    if not url:
        return SqliteRecords.create(directory / RECORDS_FILE), _nothing
    made = _postgres(url).create(url, origin)
    return made, _abandon(made)


def upgrade_records(directory: Path, settings: Settings) -> tuple[int, int, str]:
    """Migrate the records: schema versions before and after, and where the copy made first is ("" when none was needed).

    Raises Invalid (a newer schema), Missing, NotTrusted, Unavailable.
    """
    url = settings.records.url
    if not url:
        done = sqlite.upgrade(directory / RECORDS_FILE)
        return done.before, done.after, str(done.backup or "")
    _postgres(url)
    from modelkeep.adapters.records import postgres

    return postgres.upgrade(url)


def open_blobs(directory: Path, settings: Settings, origin: str) -> Blobs:
    """The blobs of the keep ``origin``; nothing is asked of an outside store yet. Raises Invalid, Unavailable."""
    url = settings.blobs.url
    if not url:
        return LocalBlobs(directory / BLOBS_FOLDER)
    return _s3(url)(url, origin)


def create_blobs(settings: Settings, origin: str) -> Undo:
    """Take the place of a new keep's blobs; returns what gives it up. Raises Conflict (not empty), Invalid, Unavailable."""
    url = settings.blobs.url
    if not url:
        return _nothing
    return _abandon(_s3(url).create(url, origin))


def open_state(settings: Settings, origin: str, records: Records, entropy: Entropy) -> Allowances | None:
    """Where the limits of the keep ``origin`` are counted for all gateways; None = in each by itself. Nothing is asked of it
    yet. Raises Invalid."""
    url = settings.state.url
    if not url:
        return None
    return _redis(url)(url, origin, KeptEpoch(records), entropy)


def _postgres(url: str) -> "type[PostgresRecords]":
    _check_scheme(url, "records", ("postgresql", "postgres"))
    try:
        from modelkeep.adapters.records.postgres import PostgresRecords
    except ImportError as cause:
        raise _lacking("records in PostgreSQL", "postgres", cause) from None
    return PostgresRecords


def _redis(url: str) -> "type[RedisAllowances]":
    _check_scheme(url, "state", ("rediss", "redis", "unix"), "limits")
    try:
        from modelkeep.adapters.state.redis import RedisAllowances, parse_target
    except ImportError as cause:
        raise _lacking("limits in Redis", "redis", cause) from None
    parse_target(url)  # Invalid
    return RedisAllowances


def _s3(url: str) -> "type[S3Blobs]":
    _check_scheme(url, "blobs", ("s3",))
    try:
        from modelkeep.adapters.blobs.s3 import S3Blobs
    except ImportError as cause:
        raise _lacking("blobs in S3", "s3", cause) from None
    return S3Blobs


def _check_scheme(url: str, section: str, known: tuple[str, ...], page: str = "stores") -> None:
    scheme = url.partition(":")[0]
    if not url.startswith(tuple(f"{name}://" for name in known)):
        raise Invalid(f"[{section}] url begins with {scheme[:20]!r}: expected {known[0]}://… or nothing (see docs/{page}.md)")


def _lacking(what: str, extra: str, cause: ImportError) -> Invalid:
    return Invalid(f"{what} needs 'pip install modelkeep[{extra}]' ({cause.name or cause} is missing)")


def _nothing() -> None:
    """In the keep's folder, which goes as a whole."""


def _abandon(place: _Place) -> Undo:
    def undo() -> None:
        try:
            place.abandon()
        except ModelkeepError:  # what is left names a keep that never was: the next init there says so
            return

    return undo
