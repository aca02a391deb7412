"""The advisory snapshot of a keep: one index file in ``intel/``, and which one is in force.

The file is named by its own digest. A record says which is in force and where in the log its import stands; the log entry
has to agree, so neither an altered file nor an altered record passes for a snapshot that somebody imported.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from modelkeep.adapters.files import NewFile
from modelkeep.app.premises import Premises
from modelkeep.core.ports import Change
from modelkeep.core.records import parse_record
from modelkeep.core.values import Digest, digest_hex, digest_of, to_json
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.advisories import Index, decode_index
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.predicates import Act
from modelkeep.ledger.statements import keep_resource, predicate_of

KIND, CURRENT, LOCK = "intel", "current", "lock"
"""Record kinds: which snapshot is in force; packages that were looked up, by the digest of their lock."""
FOLDER, IMPORT = "intel", "intel.import"


class InForce(msgspec.Struct, frozen=True):
    """The record: digest of the index file, and the log index of the act that imported it."""

    index: Digest
    log_index: int


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot in force. ``imported``: Unix nanoseconds."""

    index: Index
    imported: int
    log_index: int


def save_index(premises: Premises, data: bytes) -> Digest:
    """Write an index file, durably; its digest. It is not in force yet. Raises Unavailable."""
    folder, digest = premises.directory / FOLDER, digest_of(data)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as cause:
        raise Unavailable(f"cannot make {folder}: {cause.strerror}") from cause
    with NewFile(_path(folder, digest)) as file:
        file.write([data])
        with contextlib.suppress(Conflict):  # the same snapshot was imported before; is it whole?
            file.publish()
    if digest_of(_read(_path(folder, digest))) != digest:
        with NewFile(_path(folder, digest)) as file:
            file.write([data])
            file.publish(replace=True)
    return digest


def put_in_force(premises: Premises, index: Digest, log_index: int) -> None:
    """Let the index file that the act at ``log_index`` names count; others but the one before are removed.

    Raises Conflict (another import came first), Unavailable.
    """
    before = index
    with contextlib.suppress(NotTrusted):  # a damaged record is mended here
        before = in_force(premises) or index
    premises.records.commit([Change(KIND, CURRENT, to_json(InForce(index, log_index)), _revision(premises))])
    folder = premises.directory / FOLDER
    keep = {_path(folder, one) for one in (index, before)}
    with contextlib.suppress(OSError):  # what stays is only larger than it must be
        for path in folder.glob("osv-*.json"):
            if path not in keep:
                path.unlink()


def snapshot_in_force(premises: Premises) -> Snapshot | None:
    """The snapshot that was imported last; None when none ever was.

    Raises NotTrusted (file, record and log do not agree), Missing (its file is gone), Unavailable.
    """
    found = _in_force(premises)
    if found is None:
        return None
    act = _imported(premises, found)
    data = _read(_path(premises.directory / FOLDER, found.index))
    if digest_of(data) != found.index:
        raise NotTrusted("the advisory index was altered: import the snapshot again")
    return Snapshot(decode_index(data), act.at, found.log_index)


def in_force(premises: Premises) -> Digest | None:
    """The digest of the index file in force, by the record alone: good to see whether it is another one now."""
    found = _in_force(premises)
    return found.index if found else None


def index_in_force(premises: Premises) -> Path | None:
    """Where the index file in force should be, by the record alone; None when none is. Raises NotTrusted (damaged)."""
    found = _in_force(premises)
    return _path(premises.directory / FOLDER, found.index) if found else None


def newest_in_force(premises: Premises) -> int:
    """When the newest record of the snapshot in force was changed, as the log has it; 0 when none is, or nobody can tell."""
    with contextlib.suppress(NotTrusted):
        found = _in_force(premises)
        said = _imported(premises, found).detail.get("newest", "") if found else ""
        return int(said) if said.isdecimal() else 0
    return 0


def _in_force(premises: Premises) -> InForce | None:
    try:
        record = premises.records.get(KIND, CURRENT)
    except Missing:
        return None
    return parse_record(record, InForce, "the advisory snapshot", "import the snapshot again")


def _revision(premises: Premises) -> int:
    try:
        return premises.records.get(KIND, CURRENT).revision
    except Missing:
        return 0


def _imported(premises: Premises, found: InForce) -> Act:
    """The act in the log that says what the record says."""
    registry = premises.registry()
    try:
        (entry,) = registry.view.entries(found.log_index, found.log_index + 1)
        statement, _ = registry.book.signatories.check(parse_envelope(entry), found.log_index)
        act = predicate_of(statement, Act)
    except (Invalid, Conflict, ValueError) as cause:
        raise NotTrusted("the log has no import of this advisory snapshot: import it again") from cause
    if act.verb != IMPORT or act.detail.get("index") != found.index:
        raise NotTrusted("the log tells of another advisory snapshot than the record: import it again")
    if statement.subject != (keep_resource(premises.trust.origin),):
        raise NotTrusted("the import of this advisory snapshot is about another keep: import it again")
    return act


def _path(folder: Path, digest: Digest) -> Path:
    return folder / f"osv-{digest_hex(digest)}.json"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"{path} is gone: import the advisory snapshot again on this machine") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {os.strerror(cause.errno or 0)}") from cause


def remember_lock(premises: Premises, lock: Digest, pins: tuple[tuple[str, str], ...]) -> None:
    """Remember packages that were looked up, so that the next snapshot can be asked about them. Raises Unavailable."""
    with contextlib.suppress(Conflict):  # they are remembered already
        premises.records.commit([Change(LOCK, digest_hex(lock), to_json(pins), 0)])


def remembered_lock(premises: Premises, lock: Digest) -> tuple[tuple[str, str], ...]:
    """The packages that ``lock`` is the digest of, as far as the record says so. Raises Missing."""
    body = premises.records.get(LOCK, digest_hex(lock)).body or b""
    try:
        return msgspec.json.decode(body, type=tuple[tuple[str, str], ...])
    except msgspec.MsgspecError as cause:
        raise Missing("the packages that were looked up last are damaged: give the lock files again") from cause
