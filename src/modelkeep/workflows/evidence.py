"""Where the evidence on every release is kept, and how it is rebuilt from the audit logs."""

import heapq
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from modelkeep.core.ports import LogFiles
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid, Missing
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT, Ladder
from modelkeep.extraction.profile import Profile
from modelkeep.ledger.log import read_checkpoint
from modelkeep.serving.audit import AuditEntry, read_bodies
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.explain import EXPLAIN
from modelkeep.serving.recovery import is_closed
from modelkeep.workflows.covariates import network_covariate
from modelkeep.workflows.decisions import Decision
from modelkeep.workflows.watch import (
    Agreed,
    Calibrated,
    Cleared,
    Erased,
    Event,
    Observation,
    Ruled,
    Today,
    Watch,
    Watching,
    day_of,
    explained,
)

TOLD = frozenset({"predict", EXPLAIN})
"""Kinds of the records that evidence and budgets are made of."""


class Evidence(Protocol):
    """The evidence on all releases, as a gateway's loader sees it: in this process (``OwnEvidence``), or in another one's."""

    def watch(self, ref: ReleaseRef, profile: Profile) -> Watching:
        """The evidence on ``ref``, rebuilt from what was recorded; the same object each time. May take long.

        Raises NotTrusted, Unavailable.
        """
        ...

    def by_release(self) -> Mapping[ReleaseRef, Watching]:
        """What ``watch`` has given so far."""
        ...

    def take(self, decision: Decision) -> None:
        """What somebody decided, and what day it is."""
        ...


class AuditFolder(NamedTuple):
    """The audit log of an earlier process: its files, verifier key and origin."""

    files: LogFiles
    vkey: str
    origin: str

    @property
    def instance(self) -> str:
        """The name of the log's instance."""
        return self.origin.rpartition("/")[2]

    def size(self) -> int:
        """How many records its checkpoint covers. Raises NotTrusted, Missing, Unavailable."""
        return read_checkpoint(self.files, self.vkey, self.origin).size

    def closed(self) -> bool:
        """Whether nothing will be added to it any more. Raises as ``size``."""
        return is_closed(self.files, self.vkey, self.origin)


class Position(NamedTuple):
    """The first ``size`` records of the audit log of ``instance`` were read."""

    instance: str
    size: int


class History:
    """Answers that earlier processes recorded, from their audit logs (finished ones: see ``recover_audit``)."""

    def __init__(
        self,
        logs: Callable[[], Sequence[AuditFolder]],
        keys: SubjectKeys,
        reviews: Callable[[str], Sequence[int]] = lambda _subject: (),
        cases: Callable[[], Sequence[Cleared]] = lambda: (),
        calibrations: Callable[[ReleaseRef], Sequence[Calibrated]] = lambda _ref: (),
        *,
        ladders: Callable[[], Sequence[Ruled]] = lambda: (),
        networks: bool = True,
    ) -> None:
        """``logs``: those that there are now, oldest first; ``reviews``: Unix nanoseconds of the reviews that cleared a
        subject, ascending; ``cases``: every review that cleared a case; ``calibrations``: of a release, oldest first;
        ``ladders``: those that were in force, for budget periods are as long as they say; ``networks``: whether those that were
        recorded are told."""
        self._logs, self._keys, self._reviews, self._networks = logs, keys, reviews, networks
        self.cases, self.calibrations, self._ladders = cases, calibrations, ladders

    def of(self, ref: ReleaseRef, subject: str = "") -> Iterator[Event]:
        """Recorded answers of one release, but of erased subjects, the reviews of those who asked and of cases, the
        calibrations of the release, the ladders, and the days: each at its time. ``subject``: answers of this one alone.

        An answer given in the quarter of a second until its gateway saw a decision comes after that decision here.
        Raises NotTrusted, Unavailable.
        """
        day = 0
        for at, told in self._in_time(ref, subject):
            if day_of(at) > day:
                day = day_of(at)
                yield Today(day)
            yield told

    def _in_time(self, ref: ReleaseRef, subject: str) -> Iterator[tuple[int, Event]]:
        text, decided = str(ref), _Decided(self._reviews)
        decided.add(self._ladders())
        decided.add(self.cases())
        decided.add(self.calibrations(ref))
        for instance, index, entry, sealed in in_time_order(self._logs()):
            if entry.kind not in TOLD or entry.release != text or subject not in ("", entry.subject):
                continue
            told = self._open(instance, index, entry, sealed)
            if told is None:
                continue
            decided.seen(entry.subject)
            yield from decided.before(entry.t)
            yield entry.t, told
        yield from decided.rest()

    def later(
        self, ref: ReleaseRef, taken: Mapping[str, int], logs: Sequence[AuditFolder] | None = None
    ) -> Iterator[Observation | Today | Position]:
        """What the logs (all, or these) hold of one release beyond the first ``taken`` records of each instance, log by log,
        and the days on which it was given; after each log how many of its records are taken now. Raises NotTrusted, Missing,
        Unavailable.
        """
        text, day = str(ref), 0
        for log in self._logs() if logs is None else logs:
            first = taken.get(log.instance, 0)
            size = log.size()
            if size <= first:
                continue
            for index, entry, sealed in read_bodies(log.files, log.vkey, log.origin, first):
                ours = entry.kind in TOLD and entry.release == text
                told = self._open(log.instance, index, entry, sealed) if ours else None
                if told is None:
                    continue
                if day_of(entry.t) > day:
                    day = day_of(entry.t)
                    yield Today(day)
                yield told
            yield Position(log.instance, size)

    def sizes(self) -> dict[str, int]:
        """How many records each log has under its checkpoint, by instance."""
        return {log.instance: log.size() for log in self._logs()}

    def _open(self, instance: str, index: int, entry: AuditEntry, sealed: bytes) -> Observation | None:
        """The answer or explanation that a record holds; None when its subject was erased."""
        try:
            body = self._keys.open(sealed, entry.subject, entry.release)
        except Missing:
            return None
        if entry.kind == EXPLAIN:
            return explained(index, entry.subject, body.inputs().shape[1], instance)
        shared = network_covariate(body.network) if self._networks else ()
        told = (index, entry.subject, body.inputs(), body.raw_probs(), instance)
        return Observation(*told, covariates=shared, hidden=body.coordinates())

    def reviews(self, subject: str) -> list[Cleared]:
        """Every review so far that cleared ``subject``."""
        return [Cleared(subject, at) for at in self._reviews(subject)]

    def forget(self, subject: str) -> None:
        """Drop the key of ``subject`` from memory: it was erased."""
        self._keys.forget(subject)


Recorded = tuple[str, int, AuditEntry, bytes]


def in_time_order(logs: Sequence[AuditFolder]) -> Iterator[Recorded]:
    """Records of all ``logs`` (oldest first) by their time: (instance, index, entry, encrypted body).

    A log is opened when those before it have reached its beginning, so that only logs of gateways that ran at once are open
    together. Raises NotTrusted, Unavailable.
    """
    heads: list[tuple[int, int, Recorded, Iterator[Recorded]]] = []
    for number, log in enumerate(logs):
        rest = _named(log)
        first = next(rest, None)
        if first is None:
            continue
        while heads and heads[0][0] <= first[2].t:
            yield _advance(heads)
        heapq.heappush(heads, (first[2].t, number, first, rest))
    while heads:
        yield _advance(heads)


def _named(log: AuditFolder) -> Iterator[Recorded]:
    for index, entry, sealed in read_bodies(log.files, log.vkey, log.origin):
        yield log.instance, index, entry, sealed


def _advance(heads: list[tuple[int, int, Recorded, Iterator[Recorded]]]) -> Recorded:
    _, number, record, rest = heads[0]
    following = next(rest, None)
    if following is None:
        heapq.heappop(heads)
    else:
        heapq.heapreplace(heads, (following[2].t, number, following, rest))
    return record


_Timed = Cleared | Calibrated | Ruled


class _Decided:
    """What people decided and replay has not told yet, by time: reviews of who was seen and of cases, calibrations, ladders."""

    def __init__(self, reviews: Callable[[str], Sequence[int]]) -> None:
        self._reviews = reviews
        self._waiting: list[tuple[int, int, _Timed]] = []
        self._added = 0
        self._known: dict[str, int] = {}  # reviews that were added, by subject

    def add(self, decisions: Iterable[_Timed]) -> None:
        for one in decisions:
            heapq.heappush(self._waiting, (one.at, self._added, one))
            self._added += 1

    def seen(self, subject: str) -> None:
        """Its reviews are told, too, those that come meanwhile with the rest."""
        times, known = self._reviews(subject), self._known.get(subject, 0)
        self._known[subject] = len(times)
        self.add(Cleared(subject, at) for at in times[known:])

    def before(self, at: float) -> Iterator[tuple[int, Event]]:
        while self._waiting and self._waiting[0][0] < at:
            when, _, one = heapq.heappop(self._waiting)
            yield when, one.ladder if isinstance(one, Ruled) else one

    def rest(self) -> Iterator[tuple[int, Event]]:
        for subject in list(self._known):
            self.seen(subject)
        yield from self.before(math.inf)


class OwnEvidence:
    """Evidence that this process keeps, for its life. ``watch`` is called by one thread."""

    def __init__(
        self,
        history: History,
        guard: Callable[[Profile], Guard],
        known: Callable[[str], tuple[str, ...]] = lambda _subject: (),
    ) -> None:
        """``guard``: a fresh one for a profile; ``known``: as ``Watch`` has it."""
        self._history, self._guard, self._known = history, guard, known
        self._watches: dict[ReleaseRef, Watch] = {}
        self._taken: dict[ReleaseRef, dict[str, int]] = {}
        self._erased: list[str] = []
        self._agreed: dict[str, Agreed] = {}
        self._ladder, self._today = DEFAULT, Today(0)
        self._lock, self._deciding = threading.Lock(), threading.Lock()

    def watch(self, ref: ReleaseRef, profile: Profile) -> Watch:
        """The evidence on ``ref``, rebuilt from the audit logs when it is asked for first."""
        known = self._watches.get(ref)
        if known is None:
            known, erased = Watch(self._guard(profile), known=self._known), len(self._erased)
            taken = self._history.sizes()  # asked for before they are read, for live logs grow
            known.replay(_noting(self._history.of(ref), taken))
            with self._deciding:  # the rules are in force before anybody sees a rung, and each later one comes after them
                rules: list[Decision] = [self._ladder, self._today, *self._agreed.values()]
                for rule in rules:
                    known.take(rule)
                self._taken[ref] = taken
                self._watches[ref] = known
            for subject in known.subjects():  # a review that came meanwhile was told to the watches of then
                for review in self._history.reviews(subject):
                    known.clear(*review)
            for review in self._history.cases():
                known.clear(*review)
            for subject in self._erased[erased:]:  # and so with an erasure
                known.forget(subject)
            for calibration in self._history.calibrations(ref):  # and so with a calibration
                known.take(calibration)
        return known

    def by_release(self) -> dict[ReleaseRef, Watch]:
        """Every release's evidence so far."""
        return dict(self._watches)

    def take(self, decision: Decision) -> None:
        """What somebody decided and what day it is, for the evidence on every release; a calibration is of one."""
        if isinstance(decision, Calibrated):
            self._calibrate(decision)
            return
        with self._deciding:
            match decision:
                case Erased():
                    self._history.forget(decision.subject)
                    self._erased.append(decision.subject)
                case Agreed():
                    self._agreed[decision.subject] = decision
                case Today():
                    self._today = decision
                case Ladder():
                    self._ladder = decision
            for watch in self.by_release().values():
                watch.take(decision)

    def _calibrate(self, decision: Calibrated) -> None:
        watch = self._watches.get(decision.ref)
        if watch is None:
            return
        try:
            watch.take(decision)
        except Invalid:  # signed by somebody who did not fit it: nothing is judged by it, and nothing served without
            watch.give_up()

    def taken(self, ref: ReleaseRef, instance: str) -> int:
        """How many records of a log were taken in as evidence on ``ref``: all answers below that index."""
        return self._taken[ref].get(instance, 0)

    def offer(self, ref: ReleaseRef, answer: Observation) -> bool:
        """Hand over an answer that another process gave, and whether it is new: each counts once.

        Those of one log come in its order, without a gap, from its own process or through ``catch_up``.
        """
        with self._lock:
            taken = self._taken[ref]
            if answer.at < taken.get(answer.instance, 0):
                return False
            taken[answer.instance] = answer.at + 1
            self._watches[ref].offer(answer)
            return True

    def catch_up(self, ref: ReleaseRef, logs: Sequence[AuditFolder] | None = None) -> None:
        """Hand over what the audit logs (all, or these) hold of ``ref`` and nobody offered. Raises NotTrusted, Missing (a live
        log replaced a file at this moment), Unavailable.
        """
        with self._lock:
            taken = dict(self._taken[ref])
        for told in self._history.later(ref, taken, logs):
            match told:
                case Observation():
                    self.offer(ref, told)
                case Today():
                    self._follow(ref, told)
                case Position():
                    with self._lock:
                        self._taken[ref][told.instance] = max(told.size, self._taken[ref].get(told.instance, 0))

    def _follow(self, ref: ReleaseRef, today: Today) -> None:
        """Begin a day that another gateway was the first to see: else what is asked there in a new budget period would be
        charged to the old one here, and forgotten with it. No clock is believed that is a day or more ahead."""
        with self._deciding:
            if self._today.day < today.day <= self._today.day + 1:
                self._watches[ref].take(today)


def _noting(told: Iterator[Event], taken: dict[str, int]) -> Iterator[Event]:
    for one in told:
        if isinstance(one, Observation):
            taken[one.instance] = max(one.at + 1, taken.get(one.instance, 0))
        yield one
