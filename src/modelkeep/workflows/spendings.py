"""What accounts and clusters have learnt of their information budgets, as stored records: for lists and forecasts that would
else need every recorded question.

Whoever keeps evidence writes them, off the hot path, when a number moved by a tenth. Several gateways see the same a moment
later, and their clocks differ, so that a record only ever rises within its period, and none is put back into the period before:
whose write stands does not matter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, NamedTuple

import msgspec

from modelkeep.core.ports import Change, Clock, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import ReleaseRef, to_json
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.extraction.budget import Forecast, forecast
from modelkeep.extraction.shared import Learnt
from modelkeep.workflows.watch import Watch, day_of

LEARNT = "learnt"
"""Record kind; the key is ``release/name``, of an account's pseudonym or a cluster."""
MOST = 64
"""Records written at one look; the others wait for the next."""
GROWN = 1.1
POINTS = 48
"""Times that a record remembers: more than a budget has tenths, from the first told to twice the limit."""
_DAY = 86_400e9
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Spending(msgspec.Struct, frozen=True):
    """``learnt`` natural questions' worth of ``limit`` in the period that began on day ``begins``; ``fidelity``: of a simple
    copy that learnt as much, by which ``measure``, "" = none; ``accounts``: pseudonyms of a cluster's; ``points``: Unix
    nanoseconds and what was learnt by then, ascending."""

    begins: _Count
    learnt: float
    limit: float
    fidelity: float
    measure: str
    accounts: tuple[str, ...]
    points: tuple[tuple[_Count, float], ...]

    @property
    def share(self) -> float:
        """The share of the budget that is spent."""
        return self.learnt / self.limit

    def forecast(self, days: int, now: int) -> Forecast | None:
        """When it is spent at the rate of the last days, at Unix nanosecond ``now``, of periods of so many ``days``; None: its
        period is over."""
        if not self.begins <= day_of(now) < self.begins + days:
            return None
        points = [(min(at, now) / _DAY, learnt) for at, learnt in self.points]
        return forecast(points, self.limit, now=now / _DAY, begins=self.begins, ends=self.begins + days)


class Spent(NamedTuple):
    """A stored spending of ``name``, an account's pseudonym or a cluster, on ``release``."""

    release: str
    name: str
    spending: Spending


def parse_spending(record: Record) -> Spending:
    """The spending in a record. Raises NotTrusted (damaged)."""
    what = f"what {record.key[-80:]!r} spent of a budget"
    found = parse_record(record, Spending, what, "delete it, gateways write it anew")
    if not found.limit > 0.0:
        raise NotTrusted(f"the record of {what} is damaged: it is of no budget")
    return found


def spendings(records: Records) -> Iterator[Spent]:
    """Every stored one, those of periods that are over too. Raises NotTrusted, Unavailable."""
    for record in records.scan(LEARNT):
        release, _, name = record.key.rpartition("/")
        yield Spent(release, name, parse_spending(record))


def forget_spendings(records: Records, subject: str) -> None:
    """Drop what is stored of an account that was erased, and of its clusters, whose budgets begin anew. Raises NotTrusted,
    Unavailable."""
    for record in records.scan(LEARNT):
        if record.key.rpartition("/")[2] == subject or subject in parse_spending(record).accounts:
            with suppress(Conflict):  # a gateway that took the erasure did it at this moment
                records.commit([Change(LEARNT, record.key, None, record.revision)])


class Spendings:
    """Writes what one process sees. One thread calls ``look``."""

    def __init__(self, records: Records, clock: Clock, watches: Callable[[], Mapping[ReleaseRef, Watch]]) -> None:
        self._records, self._clock, self._watches = records, clock, watches
        self._waiting: dict[tuple[ReleaseRef, str], None] = {}

    def look(self) -> None:
        """Write what moved since the last look. Raises Unavailable; what was not written waits."""
        watches = self._watches()
        for ref, watch in watches.items():
            self._waiting.update(dict.fromkeys((ref, name) for name in watch.learning()))
        for ref, name in list(self._waiting)[:MOST]:
            self._note(f"{ref}/{name}", watches[ref].learnt(name))
            del self._waiting[ref, name]

    def _note(self, key: str, found: Learnt | None) -> None:
        before: Spending | None = None
        revision, now = 0, self._clock.now_ns()
        with suppress(Missing, NotTrusted):  # one that is damaged is written anew: it decides nothing
            record = self._records.get(LEARNT, key)
            revision = record.revision
            before = parse_spending(record)
        if found is None:
            body = None
        elif before is None or _moved(before, found, day_of(now)):
            body = to_json(_spending(before, found, now))
        else:
            return
        if revision or body is not None:
            try:
                self._records.commit([Change(LEARNT, key, body, revision)])
            except Conflict:  # another process saw the same
                return


def _moved(before: Spending, found: Learnt, today: int) -> bool:
    spent = found.budget
    if found.begins < before.begins and before.begins == today + 1:
        return False  # another gateway's clock is ahead, and the next period has begun there
    if (before.begins, before.limit, before.measure) != (found.begins, spent.limit, found.measure):
        return True
    erased = not set(before.accounts) <= set(found.accounts)  # or this gateway has not seen one of them yet
    return (
        before.learnt < before.limit <= spent.equivalent
        or len(before.accounts) < len(found.accounts)
        or spent.equivalent >= before.learnt * GROWN
        or (erased and spent.equivalent < before.learnt / 2.0)
    )


def _spending(before: Spending | None, found: Learnt, now: int) -> Spending:
    spent = found.budget
    goes_on = before is not None and before.begins == found.begins and before.learnt <= spent.equivalent
    points = (*(before.points if before is not None and goes_on else ()), (now, spent.equivalent))
    return Spending(
        begins=found.begins,
        learnt=spent.equivalent,
        limit=spent.limit,
        fidelity=spent.fidelity,
        measure=found.measure,
        accounts=found.accounts,
        points=points[-POINTS:],
    )
