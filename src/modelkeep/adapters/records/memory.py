"""``Records`` in memory: for tests, and the plainest statement of what the port means."""

import threading
from collections.abc import Collection, Sequence

from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Invalid, Missing


def check_distinct(changes: Sequence[Change]) -> None:
    """A commit names each record at most once. Raises Invalid."""
    if len({(change.kind, change.key) for change in changes}) != len(changes):
        raise Invalid("a commit changes one record twice: name each record once")


def check_expectation(change: Change, current: int) -> None:
    """``current``: the record's revision, 0 when it does not exist. Raises Conflict when ``change`` expected another."""
    if change.expected is None or change.expected == current:
        return
    expected = f"at revision {change.expected}" if change.expected else "absent"
    found = f"at revision {current}" if current else "absent"
    raise Conflict(f"the {change.kind} record {change.key} changed meanwhile: expected {expected}, found {found}")


class MemoryRecords:
    """``Records`` for one process. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], Record] = {}
        self._revision = 0

    def get(self, kind: str, key: str) -> Record:
        """The current record. Raises Missing."""
        with self._lock:
            found = self._records.get((kind, key))
        if found is None or found.body is None:
            raise Missing(f"there is no {kind} record {key}")
        return found

    def scan(self, kind: str, prefix: str = "") -> list[Record]:
        """Current records of a kind whose key begins with ``prefix``, ordered by key."""
        with self._lock:
            records = list(self._records.values())
        found = (r for r in records if r.kind == kind and r.key.startswith(prefix) and r.body is not None)
        return sorted(found, key=lambda record: record.key)

    def commit(self, changes: Sequence[Change]) -> int:
        """Apply all or none; every change of one commit gets the revision returned. Raises Conflict, Invalid."""
        check_distinct(changes)
        with self._lock:
            if not changes:
                return self._revision
            for change in changes:
                found = self._records.get((change.kind, change.key))
                check_expectation(change, found.revision if found and found.body is not None else 0)
            self._revision += 1
            for change in changes:
                self._records[change.kind, change.key] = Record(change.kind, change.key, change.body, self._revision)
            return self._revision

    def revision(self) -> int:
        """The latest global revision; 0 when nothing was ever committed."""
        with self._lock:
            return self._revision

    def since(self, revision: int) -> list[Record]:
        """Records (deletions too) changed after ``revision``, oldest change first."""
        with self._lock:
            found = [record for record in self._records.values() if record.revision > revision]
        return sorted(found, key=lambda record: (record.revision, record.kind, record.key))

    def expunge(self, kinds: Collection[str]) -> None:
        """Remove what is left of deleted records of ``kinds``."""
        self.prune(kinds)

    def prune(self, kinds: Collection[str]) -> None:
        """Drop what is left of deleted records of ``kinds``."""
        with self._lock:
            self._records = {at: r for at, r in self._records.items() if r.body is not None or r.kind not in kinds}

    def close(self) -> None:
        """Nothing to let go of."""
