"""When each API key was last used: noted in memory at every request, written down every minute or so, off the path."""

import threading
from collections.abc import Sequence

import msgspec

from modelkeep.access.steady import NANOSECONDS
from modelkeep.core.ports import Change, Clock, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, Missing, NotTrusted

KEY_USE = "key-use"
"""Record kind: when a key was last used; the key is the API key's id."""

EVERY = 60.0
"""Seconds between two writes; so a last use that is told may be so much too early."""

_PREFIX = "key:"


class Use(msgspec.Struct, frozen=True):
    """``at``: Unix seconds."""

    at: int


class Uses:
    """What one process noted. ``note`` is called on the hot path and takes no lock; ``flush`` by one thread."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records, self._clock = records, clock
        self._monotonic = clock.monotonic
        self._seen: dict[str, float] = {}
        self._next = clock.monotonic() + EVERY
        self._turn = threading.Lock()

    def note(self, credential: str) -> None:
        """The credential with this id was used now."""
        if credential.startswith(_PREFIX):
            self._seen[credential] = self._monotonic()

    def flush_when_due(self) -> None:
        """``flush``, once every minute. Raises Unavailable."""
        if self._monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write down what was noted; a later use that another process wrote stays, and a damaged record is written anew.

        Raises Unavailable.
        """
        with self._turn:
            self._next = self._monotonic() + EVERY
            seen, self._seen = self._seen, {}
            now, wall = self._monotonic(), self._clock.now_ns() // NANOSECONDS
            changes = [change for name, at in seen.items() if (change := self._change(name, int(wall - (now - at))))]
            try:
                if changes:
                    self._records.commit(changes)
            except Conflict:  # another process wrote at this moment: next time
                for name, at in seen.items():
                    self._seen.setdefault(name, at)

    def _change(self, credential: str, at: int) -> Change | None:
        key_id = credential.removeprefix(_PREFIX)
        try:
            record = self._records.get(KEY_USE, key_id)
        except Missing:
            return Change(KEY_USE, key_id, to_json(Use(at)), 0)
        return Change(KEY_USE, key_id, to_json(Use(at)), record.revision) if last_use(record) < at else None


def last_use(record: Record) -> int:
    """The Unix second that a record of a last use tells, 0 when it is damaged.

    Nothing is decided by it, and whoever can damage it could write another second: so damage costs what this one record said,
    and the key's next use mends it.
    """
    try:
        return parse_record(record, Use, f"the last use of API key {record.key!r}", "delete it").at
    except NotTrusted:
        return 0


def last_uses(records: Sequence[Record]) -> dict[str, int]:
    """Unix second of the last use by key id."""
    return {record.key: last_use(record) for record in records}
