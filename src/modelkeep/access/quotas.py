"""Quotas: how many rows a credential may ask about in all, over every gateway and every restart.

Rows, not requests: otherwise a thief would get a batch for the price of one answer. A gateway takes a *lease* of a few rows at
a time: it is debited in the records (compare-and-set) before the first of them is let through. So the sum of what all gateways
let through never exceeds the quota, whatever crashes; what a crashed one had not used of its lease is lost to the credential,
at most ``LARGEST_LEASE`` rows each time (or what one larger request asked for).

Rows that were taken for an answer that we then could not give are put back into the lease. Who asked for what cannot be
answered has spent them: or the model could be probed for nothing.
"""

import threading
from collections.abc import Callable

import msgspec

from modelkeep.core.ports import Change, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, Missing, OverBudget, Unavailable

QUOTA = "quota"
"""Record kind; the key is the ``quota_id`` of the credential."""

LARGEST_LEASE = 4096
"""Only quotas of 65,536 and more get leases this large; large enough that a busy key is topped up before it runs dry."""
IDLE = 60.0
"""Seconds after its last request at which the lease of a credential goes back."""

_RETRIES = 16
_ASK_AGAIN = 1.0
_SPENT_RETRY = 3_600.0  # only an operator can help: there is no moment at which the quota fills up again


class Granted(msgspec.Struct, frozen=True):
    """``granted``: rows leased out so far, used or not."""

    granted: int = 0


class _Lease:
    __slots__ = ("ask_again", "left", "limit", "supplied", "used")

    def __init__(self, limit: int, now: float) -> None:
        self.left = self.supplied = 0
        self.limit = limit
        self.ask_again = float("-inf")  # monotonic second before which a spent quota is not asked about again
        self.used = now


def lease_size(limit: int, granted: int) -> int:
    """How many rows to lease next: small against the quota, so that several gateways share it fairly to the end."""
    return max(0, min(LARGEST_LEASE, max(1, limit // 16), limit - granted))


class Quotas:
    """The leases of one gateway. Safe to use from several threads; the records are never asked while the lock is held."""

    def __init__(self, records: Records, monotonic: Callable[[], float]) -> None:
        self._records = records
        self._monotonic = monotonic
        self._leases: dict[str, _Lease] = {}
        self._lock = threading.Lock()

    def take(self, quota_id: str, limit: int | None, rows: int = 1) -> None:
        """Count ``rows`` of at most ``limit`` in all. The records are asked only when the lease in hand does not hold them.

        Raises OverBudget (the quota is spent, or fewer are left: none is counted), Unavailable (the lease in hand is too small
        and the records cannot be reached).
        """
        if limit is not None and not self.take_held(quota_id, limit, rows):
            self._take_anew(quota_id, limit, rows)

    def take_held(self, quota_id: str, limit: int | None, rows: int = 1) -> bool:
        """Count ``rows`` on the lease in hand, and whether it held them; never asks the records, so never waits."""
        if limit is None:
            return True
        now = self._monotonic()
        with self._lock:
            lease = self._leases.get(quota_id)
            if lease is None or lease.limit != limit or lease.left < rows:
                return False
            lease.left -= rows
            lease.used = now
            return True

    def put_back(self, quota_id: str, limit: int | None, rows: int) -> None:
        """Undo ``take``, on the lease in hand alone: one that went back meanwhile takes nothing, and none takes more than it
        gave. Never asks the records."""
        with self._lock:
            lease = self._leases.get(quota_id)
            if lease is not None and lease.limit == limit:
                lease.left = min(lease.left + rows, lease.supplied)

    def refill(self) -> None:
        """Top up half-used leases and return idle ones, off the hot path; call it every second or so. Raises Unavailable."""
        now = self._monotonic()
        with self._lock:
            idle = {name: lease for name, lease in self._leases.items() if lease.used + IDLE < now}
            for name in idle:
                del self._leases[name]
            returned = self._emptied(idle)
            low = [
                (name, lease)
                for name, lease in self._leases.items()
                if lease.left <= lease_size(lease.limit, 0) // 2 and now >= lease.ask_again
            ]
        for name, left in returned:
            self._add(name, -left)
        for name, lease in low:
            self._supply(name, lease, now)

    def give_back(self) -> None:
        """Return what is left of every lease, at a graceful stop. Raises Unavailable."""
        with self._lock:
            leases, self._leases = self._leases, {}
            returned = self._emptied(leases)
        for name, left in returned:
            self._add(name, -left)

    def _take_anew(self, quota_id: str, limit: int, rows: int) -> None:
        now = self._monotonic()
        with self._lock:
            lease = self._leases.get(quota_id)
            if lease is None or lease.limit != limit:
                # An operator changed the quota: what is in hand was granted under the old one and goes back.
                returned = self._emptied({quota_id: lease}) if lease else []
                lease = self._leases[quota_id] = _Lease(limit, now)
            else:
                returned = []
        for name, left in returned:
            self._add(name, -left)
        if now >= lease.ask_again:
            self._supply(quota_id, lease, now, rows)
        with self._lock:
            if lease.left < rows:
                raise _spent(limit, rows, lease.left)
            lease.left -= rows
            lease.used = now

    def _supply(self, quota_id: str, lease: _Lease, now: float, rows: int = 0) -> None:
        """Debit first, then hand out: a crash in between loses rows, and never lets one through twice."""
        size = self._grant(quota_id, lease.limit, rows - lease.left)
        with self._lock:
            lease.left += size
            lease.supplied += size
            if size == 0:
                lease.ask_again = now + _ASK_AGAIN

    @staticmethod
    def _emptied(leases: dict[str, _Lease]) -> list[tuple[str, int]]:
        """Take what is left out of ``leases``, so that no thread that still holds one can use it. Call with the lock held."""
        found = [(name, lease.left) for name, lease in leases.items() if lease.left > 0]
        for lease in leases.values():
            lease.left = 0
        return found

    def _grant(self, quota_id: str, limit: int, missing: int) -> int:
        for _ in range(_RETRIES):
            granted, revision = self._granted(quota_id)
            size = lease_size(limit, granted.granted)
            if size < missing <= limit - granted.granted:
                size = missing
            if size == 0:
                return 0
            if self._write(quota_id, granted.granted + size, revision):
                return size
        raise Unavailable("too many gateways lease this quota at once: try again in a moment")

    def _add(self, quota_id: str, amount: int) -> None:
        while amount:
            granted, revision = self._granted(quota_id)
            if self._write(quota_id, granted.granted + amount, revision):
                return

    def _write(self, quota_id: str, granted: int, revision: int) -> bool:
        try:
            self._records.commit([Change(QUOTA, quota_id, to_json(Granted(granted)), revision)])
        except Conflict:
            return False  # another gateway was first: read again
        return True

    def _granted(self, quota_id: str) -> tuple[Granted, int]:
        return _read(self._records, quota_id)


def _spent(limit: int, rows: int, left: int) -> OverBudget:
    found = f"has fewer than {rows} left: send smaller batches" if left > 0 else "is spent: ask an administrator for more"
    return OverBudget(f"the quota of {limit} rows {found}", _SPENT_RETRY, "quota")


def granted_of(records: Records, quota_id: str) -> int:
    """Rows leased out under ``quota_id`` so far: those used, and those that gateways hold in hand. Raises Unavailable."""
    return _read(records, quota_id)[0].granted


def _read(records: Records, quota_id: str) -> tuple[Granted, int]:
    try:
        record = records.get(QUOTA, quota_id)
    except Missing:
        return Granted(), 0
    return parse_granted(record), record.revision


def parse_granted(record: Record) -> Granted:
    """Decode a quota record. Raises NotTrusted (damaged)."""
    return parse_record(record, Granted, f"quota {record.key!r}")
