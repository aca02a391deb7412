"""Accounts that match threat intelligence: noticed off the hot path, written down, and lent less while the indicator holds.

The indicators are one stored list, named by its digest, which the releases log says; a list that is altered is not believed. A
match is stored for its account once for each source and kind. It lowers a budget and raises a priority, and no more.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from modelkeep.core.epochs import Epochs, epoch_key, split_epoch
from modelkeep.core.ports import Change, Clock, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import ReleaseRef, digest_of, to_json
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.extraction.indicators import MAX_VALUE, Indicator, Matcher
from modelkeep.workflows.decisions import Decisions
from modelkeep.workflows.watch import Watching

INDICATORS, CAUTION = "indicators", "caution"
"""Record kinds: lists, by their digest; matches, by ``subject/source/kind``, which go with what is erased (core/epochs)."""
EVERY = 2.0
"""Seconds between two readings of the matches that others wrote."""
MOST_WAITING, MOST_KNOWN = 4096, 65_536
LONGEST_AGENT = 3 * MAX_VALUE + 1
"""Bytes of a User-Agent that are looked at: no indicator is longer, in whatever case it is written."""


class Caution(msgspec.Struct, frozen=True):
    """A match: the indicator, and the Unix nanosecond at which it was first seen."""

    indicator: Indicator
    seen: int


class Sightings:
    """From where and with what accounts ask. ``see`` is called on the hot path, and only while somebody looks out for it."""

    def __init__(self) -> None:
        self.wanted = False
        self._last: dict[str, tuple[str, bytes]] = {}
        self._new: deque[tuple[str, str, bytes]] = deque()

    def see(self, subject: str, address: str, agent: bytes) -> None:
        """``subject`` asked from ``address`` with this User-Agent. While too many wait, whoever asks is seen the next time."""
        agent = agent[:LONGEST_AGENT]
        if self._last.get(subject) != (address, agent) and len(self._new) < MOST_WAITING:
            if len(self._last) >= MOST_KNOWN:
                self._last.clear()
            self._last[subject] = (address, agent)
            self._new.append((subject, address, agent))

    def again(self) -> None:
        """Look at everybody anew: the indicators changed, or what somebody matched was erased."""
        self._last = {}

    def drained(self) -> list[tuple[str, str, bytes]]:
        """What was seen since this was asked last."""
        found = []
        while self._new:
            found.append(self._new.popleft())
        return found


class Cautions:
    """Keeps the matches of one process, and knows those of all. One thread calls ``look`` and ``factors``."""

    def __init__(
        self,
        records: Records,
        decisions: Decisions,
        clock: Clock,
        watches: Callable[[], Mapping[ReleaseRef, Watching]],
        factor: Callable[[], float],
        sightings: Sightings | None = None,
    ) -> None:
        """``factor``: what a budget is multiplied with for an account that matches; ``sightings``: of who answers here."""
        self._records, self._decisions, self._clock, self._watches = records, decisions, clock, watches
        self._factor = factor
        self._sightings = sightings or Sightings()
        self._digest = ""
        self._list: frozenset[Indicator] = frozenset()
        self._matcher = Matcher(())
        self._standing: dict[str, tuple[Indicator, ...]] = {}
        self._next = float("-inf")
        self._names: dict[str, dict[int, None]] = {}
        self._noted: dict[str, dict[tuple[str, str], Indicator]] = {}
        self._begins = float("inf")
        self._erasures = 0

    def look(self) -> None:
        """Take the list in force, and write down what matches it. Raises NotTrusted (it was altered), Missing, Unavailable."""
        if self._decisions.indicators != self._digest:
            found = load_indicators(self._records, self._decisions.indicators)
            self._digest, self._matcher, self._list = self._decisions.indicators, Matcher(found), frozenset(found)
            self._begins, self._sightings.wanted = float("-inf"), self._matcher.looks_at_requests
        for _, act in self._decisions.erasures[self._erasures :]:
            self._erasures += 1
            self._names.pop(act.about, None)
            self._noted.pop(act.about, None)
            self._begins = float("-inf")
        now = self._clock.now_ns()
        if now >= self._begins:  # the list is another one, or one of its indicators holds from now on
            self._begins = min((one.since for one in self._list if one.since > now), default=float("inf"))
            self._sightings.again()
            self._next = float("-inf")
        for subject, address, agent in self._sightings.drained():
            self._note(subject, self._matcher.of_request(address, agent.decode("latin-1"), now), now)
        for watch in self._watches().values():
            watch.look_out(self._matcher.queries)
            for subject, names in watch.met().items():
                known = self._names.setdefault(subject, {})
                known.update(dict.fromkeys(names))
                self._note(subject, self._matcher.of_queries(known, now), now)

    def factors(self) -> dict[str, float]:
        """What budgets are multiplied with now, by subject. Who was seen to match here does so whatever became of the record.
        Raises NotTrusted, Unavailable."""
        now = self._clock.now_ns()
        if self._clock.monotonic() >= self._next:
            self._next = self._clock.monotonic() + EVERY
            self._standing = standing(self._records, self._list, now, self._decisions.epochs())
        mine = (subject for subject, noted in self._noted.items() if any(self._counts(one, now) for one in noted.values()))
        return dict.fromkeys([*self._standing, *mine], self._factor())

    def _counts(self, one: Indicator, now: int) -> bool:
        return one in self._list and one.holds(now)

    def _note(self, subject: str, found: Iterable[Indicator], now: int) -> None:
        longest: dict[tuple[str, str], Indicator] = {}
        for one in found:
            before = longest.setdefault((one.source, one.kind), one)
            if _end(before) < _end(one):
                longest[one.source, one.kind] = one
        if longest:
            self._noted.setdefault(subject, {}).update(longest)
        for (source, kind), one in longest.items():
            key = f"{epoch_key(subject, self._decisions.epochs()(subject))}/{source}/{kind}"
            try:
                record = self._records.get(CAUTION, key)
                stored = parse_caution(record).indicator
                if self._counts(stored, now) and _end(stored) >= _end(one):
                    continue
                revision = record.revision
            except Missing:
                revision = 0
            try:
                self._records.commit([Change(CAUTION, key, to_json(Caution(one, now)), revision)])
            except Conflict:  # another process saw the same
                continue
            self._next = float("-inf")


def _end(one: Indicator) -> float:
    return one.until or float("inf")


def parse_caution(record: Record) -> Caution:
    """The match in a record. Raises NotTrusted (damaged)."""
    return parse_record(record, Caution, f"the match {record.key[:120]!r} of an indicator")


def load_indicators(records: Records, digest: str) -> tuple[Indicator, ...]:
    """The list that the log names by ``digest``; "" = none. Raises NotTrusted (altered), Missing, Unavailable."""
    if not digest:
        return ()
    body = records.get(INDICATORS, digest).body or b""
    if str(digest_of(body)) != digest:
        raise NotTrusted("the stored list of indicators is not the one that the releases log names: import it again")
    try:
        return msgspec.json.decode(body, type=tuple[Indicator, ...])
    except msgspec.MsgspecError as cause:
        raise NotTrusted(f"the stored list of indicators cannot be read: {cause}") from cause


def whose_caution(key: str) -> tuple[str, int]:
    """The subject of a stored match, and its epoch then. Raises NotTrusted."""
    return split_epoch(key.partition("/")[0])


def standing(records: Records, indicators: Collection[Indicator], now: int, epochs: Epochs) -> dict[str, tuple[Indicator, ...]]:
    """By subject the indicators that it matches, of those in force that hold at Unix nanosecond ``now``. Raises NotTrusted."""
    known = frozenset(indicators)
    found: dict[str, tuple[Indicator, ...]] = {}
    for record in records.scan(CAUTION) if known else ():
        one = parse_caution(record).indicator
        subject, epoch = whose_caution(record.key)
        if one in known and one.holds(now) and epoch == epochs(subject):
            found[subject] = (*found.get(subject, ()), one)
    return found
