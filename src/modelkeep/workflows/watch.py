"""Extraction evidence off the hot path: answers go in, verdicts come out a few tens of milliseconds later.

One thread takes what arrived in the last ``every`` seconds, hands it to the guard in the order of the audit log, and
publishes the new verdicts; the hot path only reads them. What is not yet observed is bounded per account, so that a burst
cannot run ahead of its own evidence.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ReleaseRef
from modelkeep.errors import ModelkeepError, OverBudget, Unavailable
from modelkeep.extraction.clusters import Cluster
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import Ladder, Rung
from modelkeep.extraction.shared import Learnt
from modelkeep.extraction.verdicts import Terms, Verdict
from modelkeep.serving.explain import price

Floats = NDArray[np.float64]


class Observation(msgspec.Struct, frozen=True, gc=False):
    """One answer: ``at``: index of its audit record in the log of ``instance``; ``x`` (rows, features), ``probs`` the model's
    own, (rows, classes). An explanation has no rows: it is ``charged`` natural questions, and is no evidence. ``covariates``:
    what was recorded of the request that accounts may share (workflows/covariates); ``hidden``: (rows, r) coordinates of the
    inner layer, of a release whose profile looks at one."""

    at: int
    subject: str
    x: Floats
    probs: Floats
    instance: str = ""
    charged: float = 0.0
    covariates: tuple[str, ...] = ()
    hidden: NDArray[np.float32] | None = None


def explained(at: int, subject: str, features: int, instance: str) -> Observation:
    """What an explanation of ``features`` numbers is to the evidence: no rows, and its price."""
    return Observation(at, subject, np.empty((0, 0)), np.empty((0, 0)), instance, price(features))


class Cleared(NamedTuple):
    """A review that cleared ``subject``, an account or a case, ``at`` Unix nanoseconds."""

    subject: str
    at: int


class Calibrated(NamedTuple):
    """From ``at``, Unix nanoseconds, the evidence on ``ref`` is judged by the bounds ``kappa``."""

    ref: ReleaseRef
    at: int
    kappa: tuple[float, ...]


class Erased(NamedTuple):
    """The audit key of ``subject`` was dropped: what it asked before is no evidence any more."""

    subject: str


class Agreed(NamedTuple):
    """How ``subject`` is judged from now on, by what was decided about it."""

    subject: str
    terms: Terms


class Today(NamedTuple):
    """The ``day`` that it is, days since 1970 (UTC): budget periods begin with days."""

    day: int


class Ruled(NamedTuple):
    """From ``at``, Unix nanoseconds, everybody is judged by ``ladder``."""

    at: int
    ladder: Ladder


Event = Observation | Cleared | Calibrated | Ladder | Today
"""What evidence is rebuilt from."""


def day_of(at: int) -> int:
    """The day of a Unix nanosecond."""
    return at // 86_400_000_000_000


UNSEEN_ROWS = 256
"""Rows of one account that may be answered and not examined; with more, its answers are judged before they leave."""
ROWS_BEHIND = 4096
"""Rows of one account that may be reserved or answered and not examined; more are refused."""


class Watching(Protocol):
    """The evidence on one release, as who answers queries sees it: kept in this process, or by another one.

    ``unseen_rows``: as ``UNSEEN_ROWS``, of this process; ``alarms``: accounts at the alarm rung;
    ``withheld``: those that would be there if the population had not drifted.
    """

    unseen_rows: int
    alarms: int
    withheld: int

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force; the lowest rung for an account that has not asked yet. Never waits."""
        ...

    def rung(self, subject: str) -> Rung:
        """The ladder's rung in force. Never waits. Raises Unavailable when the evidence is not kept at this moment."""
        ...

    def reserve(self, subject: str, rows: int) -> None:
        """Announce ``rows`` queries before they are answered. Raises OverBudget when too many wait for the evidence."""
        ...

    def release(self, subject: str, rows: int) -> None:
        """Take back a reservation whose query was not answered, or was examined."""
        ...

    def behind(self, subject: str) -> int:
        """Rows of ``subject`` that are reserved or answered and not examined yet."""
        ...

    def submit(self, observation: Observation) -> None:
        """Hand over an answer that was reserved and recorded, in the order of the audit log. Never waits."""
        ...

    def work(self) -> dict[str, int]:
        """Have examined what waits; returns the rows examined by subject. On return everything handed over before has been
        examined, by this thread or another, and its verdict is in force here.

        Raises Unavailable: it was not, and waits on; or what the guard raises, and nothing is served any more.
        """
        ...

    def rows_behind(self) -> int:
        """Queries that are reserved or answered and not examined yet."""
        ...

    def subjects(self) -> list[str]:
        """Every account that has evidence here."""
        ...

    def alarmed(self) -> list[str]:
        """Subjects at the alarm rung."""
        ...

    def moved(self) -> list[str]:
        """Subjects whose rung changed since this was asked last."""
        ...

    def look_out(self, names: frozenset[int]) -> None:
        """Tell by ``met`` who asks questions of these ``names`` (``evidence.fingerprints``)."""
        ...

    def met(self) -> dict[str, set[int]]:
        """Names that were asked, by subject, since this was asked last."""
        ...

    def give_up(self) -> None:
        """Serve no more: evidence with a hole in it is no evidence."""
        ...


class Backlog:
    """What was reserved or answered and waits to be examined, by account. One thread changes it: the one that answers."""

    def __init__(self, max_rows: int) -> None:
        self._max, self._rows = max_rows, dict[str, int]()

    def reserve(self, subject: str, rows: int) -> None:
        """Add ``rows``. Raises OverBudget when there would be more than the bound; a batch alone may be larger."""
        behind = self._rows.get(subject, 0)
        if behind and behind + rows > self._max:
            raise OverBudget(f"{behind} of your queries wait to be examined: ask again in a moment", 0.2)
        self._rows[subject] = behind + rows

    def release(self, subject: str, rows: int) -> None:
        """Take ``rows`` away."""
        left = self._rows.get(subject, 0) - rows
        if left > 0:
            self._rows[subject] = left
        else:
            self._rows.pop(subject, None)

    def of(self, subject: str) -> int:
        """Rows of one account."""
        return self._rows.get(subject, 0)

    def total(self) -> int:
        """Rows of all."""
        return sum(list(self._rows.values()))


class Watch:
    """The evidence on one release, kept here: a guard, what waits for it, and the verdicts in force."""

    def __init__(
        self,
        guard: Guard,
        *,
        max_rows_behind: int = ROWS_BEHIND,
        unseen_rows: int = UNSEEN_ROWS,
        known: Callable[[str], tuple[str, ...]] = lambda _subject: (),
    ) -> None:
        """``known``: covariates of an account that are not of its requests, as far as they are known yet. Never waits long."""
        self._guard, self._known = guard, known
        self._backlog = Backlog(max_rows_behind)
        self._waiting: deque[Observation] = deque()
        self._offered: deque[Observation] = deque()
        self._changed: set[str] = set()
        self.unseen_rows = unseen_rows
        self._lock = threading.Lock()
        self._broken = False
        self._reviewed: dict[str, int] = {}
        self._calibrated = -1
        self._names = frozenset[int]()
        self._met: dict[str, set[int]] = {}
        self._examined: dict[str, int] = {}
        self.alarms = self.withheld = 0

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force; the lowest rung for an account that has not asked yet."""
        return self._guard.verdict(subject)

    def subjects(self) -> list[str]:
        """Every account that has evidence here."""
        return self._guard.subjects()

    def rung(self, subject: str) -> Rung:
        """The ladder's rung in force. Raises Unavailable when the evidence can no longer be kept."""
        if self._broken:
            raise Unavailable(
                "the extraction evidence of this model failed: restart the gateway to rebuild it from the audit log"
            )
        return self._guard.verdict(subject).rung

    def reserve(self, subject: str, rows: int) -> None:
        """Announce ``rows`` queries before they are answered. Raises OverBudget when too many wait for the evidence."""
        self._backlog.reserve(subject, rows)

    def release(self, subject: str, rows: int) -> None:
        """Take back a reservation whose query was not answered, or was examined."""
        self._backlog.release(subject, rows)

    def behind(self, subject: str) -> int:
        """Rows of ``subject`` that are reserved or answered and not examined yet."""
        return self._backlog.of(subject)

    def submit(self, observation: Observation) -> None:
        """Hand over an answer that was reserved and recorded."""
        self._waiting.append(observation)

    def offer(self, observation: Observation) -> None:
        """Hand over an answer that another process gave: nothing was reserved here for it."""
        self._offered.append(observation)

    def changed(self) -> set[str]:
        """Subjects whose verdicts ``work`` changed since this was asked last."""
        with self._lock:
            found, self._changed = self._changed, set()
            return found

    def work(self) -> dict[str, int]:
        """Examine what waits; returns the rows examined by subject. On return everything handed over before has been examined,
        by this thread or another. If the guard fails, nothing is served any more.
        """
        with self._lock:
            self._examine_waiting()
            done, self._examined = self._examined, {}
            return done

    def _examine_waiting(self) -> None:
        own = _drained(self._waiting)
        batch = own + _drained(self._offered)
        if not batch:
            return
        batch.sort(key=lambda one: (one.instance, one.at))
        try:
            self._observe(batch)
        except BaseException:  # what was taken out is lost
            self.give_up()
            raise
        for one in own:
            self._examined[one.subject] = self._examined.get(one.subject, 0) + len(one.x)

    def give_up(self) -> None:
        """Serve no more: evidence with a hole in it is no evidence."""
        self._broken = True

    def replay(self, events: Iterable[Event]) -> int:
        """Rebuild the evidence from recorded answers, decisions and days, in order; how many rows. Before serving only."""
        rows = 0
        batch: list[Observation] = []
        for event in events:
            if isinstance(event, Observation):
                batch.append(event)
                rows += len(event.x)
            if batch and (not isinstance(event, Observation) or len(batch) == 512):
                self._observe(batch)
                batch = []
            if not isinstance(event, Observation):
                self.take(event)
        if batch:
            self._observe(batch)
        return rows

    def clear(self, subject: str, at: int) -> None:
        """A person cleared ``subject``, an account or a case, ``at`` Unix nanoseconds: its evidence restarts. What waits was
        asked before and is examined first. A review that is no later than the last one was taken in already.
        """
        with self._lock:
            if at <= self._reviewed.get(subject, -1):
                return
            self._examine_waiting()
            self._reviewed[subject] = at
            self._guard.clear(subject)
            self._count_alarms()

    def recalibrate(self, kappa: Sequence[float], at: int) -> None:
        """From ``at``, Unix nanoseconds, other bounds: all evidence restarts. What waits was asked before and is examined
        first. A calibration that is no later than the last one was taken in already. Raises Invalid (not of this profile).
        """
        if at <= self._calibrated:
            return
        with self._lock:
            self._examine_waiting()
            self._guard.recalibrate(np.asarray(kappa, dtype=np.float64))
            self._calibrated = at
            self._changed.update(self._guard.subjects())
            self._count_alarms()

    def forget(self, subject: str) -> None:
        """Drop the evidence on ``subject``, whose questions were erased; what it asks from now on counts."""
        with self._lock:
            self._examine_waiting()
            self._guard.forget(subject)
            self._count_alarms()

    def take(self, decision: Cleared | Erased | Calibrated | Agreed | Today | Ladder) -> None:
        """What somebody decided, and what day it is. What waits was asked before and is examined first."""
        match decision:
            case Cleared():
                self.clear(*decision)
            case Calibrated():
                self.recalibrate(decision.kappa, decision.at)
            case Erased():
                self.forget(decision.subject)
            case Agreed():
                self._guard.agree(*decision)
            case Today():
                with self._lock:
                    self._examine_waiting()
                    self._guard.begin(decision.day)
                    self._changed.update(self._guard.subjects())
            case Ladder():
                self._guard.adopt(decision)
        with self._lock:
            self._count_alarms()

    def moved(self) -> list[str]:
        """Subjects whose rung changed since this was asked last."""
        return self._guard.moved()

    def look_out(self, names: frozenset[int]) -> None:
        """Tell by ``met`` who asks questions of these ``names``."""
        self._names = names

    def met(self) -> dict[str, set[int]]:
        """Names that were asked, by subject, since this was asked last."""
        with self._lock:
            found, self._met = self._met, {}
            return found

    def rows_behind(self) -> int:
        """Queries that are reserved or answered and not examined yet."""
        return self._backlog.total()

    def alarmed(self) -> list[str]:
        """Subjects at the alarm rung."""
        return self._guard.alarmed()

    def _observe(self, batch: list[Observation]) -> None:
        for charged, part in groupby(batch, key=lambda one: one.charged > 0.0):  # in order: a charge is its clusters' of then
            if not charged:
                self._examine(list(part))
                continue
            for one in part:
                self._guard.charge(one.subject, one.charged)
        self._changed.update(one.subject for one in batch)
        self._count_alarms()

    def _examine(self, asked: list[Observation]) -> None:
        subjects = [one.subject for one in asked for _ in range(len(one.x))]
        known = {subject: self._known(subject) for subject in set(subjects)}
        covariates = [(*known[one.subject], *one.covariates) for one in asked for _ in range(len(one.x))]
        hidden = [one.hidden for one in asked if one.hidden is not None]
        self._guard.observe_many(
            subjects,
            np.concatenate([one.x for one in asked]),
            np.concatenate([one.probs for one in asked]),
            covariates,
            hidden=np.concatenate(hidden) if hidden else None,
        )
        self._compare(asked)

    def cases(self) -> list[Cluster]:
        """Every cluster of accounts that is accused of acting as one."""
        return self._guard.cases()

    def learning(self) -> list[str]:
        """Accounts and clusters of which ``learnt`` changed since this was asked last, as ``Guard`` has it."""
        return self._guard.learning()

    def learnt(self, name: str) -> Learnt | None:
        """What an account or a cluster has learnt this period; None of one that is not known."""
        return self._guard.learnt(name)

    def _compare(self, asked: list[Observation]) -> None:
        for one in asked if self._names else ():
            names = self._names.intersection(fingerprints(one.x).tolist())
            if names:
                self._met.setdefault(one.subject, set()).update(names)

    def _count_alarms(self) -> None:
        self._changed |= self._guard.touched()
        self.alarms, self.withheld = len(self.alarmed()), len(self._guard.withheld())


def _drained(waiting: deque[Observation]) -> list[Observation]:
    found = []
    while waiting:
        found.append(waiting.popleft())
    return found


class Watchers:
    """The thread that keeps every watch up to date."""

    def __init__(
        self,
        watches: Callable[[], Iterable[Watching]],
        settle: Callable[[list[tuple[Watching, dict[str, int]]]], None],
        *,
        every: float = 0.02,
    ) -> None:
        """``watches``: those in force; ``settle``: told, in this thread, what was examined; ``every``: seconds a round."""
        self._watches, self._settle, self._every = watches, settle, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="extraction-evidence", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Examine what waits and end the thread."""
        self._stop.set()
        self._thread.join()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._every):
                self._round()
            self._round()
        finally:
            if not self._stop.is_set():  # it died: nobody is watched any more, so nothing may be served
                for watch in self._watches():
                    watch.give_up()

    def _round(self) -> None:
        done: list[tuple[Watching, dict[str, int]]] = []
        for watch in self._watches():
            try:
                rows = watch.work()
            except ModelkeepError:  # it says so to whoever asks; the others go on
                continue
            if rows:
                done.append((watch, rows))
        if done:
            self._settle(done)
