"""The owner's side of the shared evidence: one guard a release, fed by all workers, and the verdicts told to all of them.

Frames in, frames out; no sockets here. One thread calls everything but ``decided``. What takes long, such as rebuilding the
evidence on a release from the audit logs, is a job that another thread does, one after the other.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from modelkeep.core.ports import Allowances, Clock, Want
from modelkeep.core.tallies import Series, merge, retired
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid, Missing, ModelkeepError, Unavailable
from modelkeep.extraction.clusters import JOINS
from modelkeep.extraction.ladder import Ladder
from modelkeep.extraction.profile import Profile
from modelkeep.serving.explain import price
from modelkeep.workflows.covariates import is_case
from modelkeep.workflows.decisions import Decision
from modelkeep.workflows.evidence import OwnEvidence
from modelkeep.workflows.sharing import (
    BEAT,
    PART_ROWS,
    TABLE_PART,
    Answered,
    Answers,
    Beat,
    Borrow,
    Borrowed,
    Examined,
    Follow,
    Following,
    GiveBack,
    Standing,
    Tallied,
    Tally,
    encode,
    for_owner,
)
from modelkeep.workflows.watch import Calibrated, Observation, Today, Watch

RETRY_SECONDS = 2.0
"""Pause before the evidence on a release, or a dead worker's log, is tried again."""
LOST_SECONDS = (0.2, 2.0)
"""When the logs are looked through after a worker is gone: its log is free once the kernel has ended it."""
LONGEST_NAME = 256
MOST_RELEASES = 4096
"""That one worker may follow."""


class Link(Protocol):
    """The way to one worker."""

    def send(self, frame: bytes) -> None:
        """Give it a frame. Never waits: a worker that does not read is cut off."""
        ...


class _Kept(NamedTuple):
    """A release whose evidence is rebuilt: its watch, and what the profile says about the shape of its queries."""

    ref: ReleaseRef
    watch: Watch
    features: int
    classes: int
    directions: int

    def checked(self, answer: Answered) -> Observation:
        """An answer that the guard can take: what a worker sends must not break the evidence of others. Raises Invalid."""
        one = answer.observation()
        if not len(one.x) and one.charged != price(self.features):
            raise Invalid(f"a worker sent an explanation that {self.ref} cannot have given")
        fits = one.x.shape[1] == self.features and (not self.classes or one.probs.shape[1] == self.classes)
        if len(one.x):
            seen = (len(one.x), 0) if one.hidden is None else one.hidden.shape
            fits = (
                fits and seen == (len(one.x), self.directions) and (one.hidden is None or bool(np.isfinite(one.hidden).all()))
            )
        if len(one.x) and one.charged:
            raise Invalid("a worker sent an answer that is charged like an explanation")
        if (len(one.x) and not fits) or not np.isfinite(one.x).all() or not np.isfinite(one.probs).all():
            raise Invalid(f"a worker sent an answer that {self.ref} cannot have given")
        if not 0 < len(one.subject) <= LONGEST_NAME or not 0 < len(one.instance) <= LONGEST_NAME or one.at < 0:
            raise Invalid("a worker sent an answer of nobody, or of no record")
        if len(one.covariates) > JOINS or not all(map(is_case, one.covariates)):
            raise Invalid("a worker sent an answer with what no request can share")
        return one


class Owner:
    """Keeps the evidence of all workers. ``failure`` is empty until something went wrong that only a new start mends."""

    def __init__(
        self,
        evidence: OwnEvidence,
        profile_of: Callable[[ReleaseRef], Profile],
        finish: Callable[[], None],
        *,
        clock: Clock,
        begin: Callable[[Callable[[], None]], None],
        allowances: Allowances | None = None,
        check: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``profile_of``: opens a release's profile, raising NotTrusted, Missing, Unavailable; ``finish``: ends the audit logs
        of processes that are gone, raising the same; ``begin``: has another thread do a job; ``check``: raises Unavailable
        while the evidence of other gateways cannot be read, and then this one's workers must deny; ``allowances``: counts
        limits for all workers, None = they are counted elsewhere."""
        self._evidence, self._profile_of, self._finish = evidence, profile_of, finish
        self._allowances = allowances
        self._monotonic, self._begin, self._check, self._report = clock.monotonic, begin, check, report
        self._kept: dict[str, _Kept] = {}
        self._links: dict[Link, set[str]] = {}
        self._fed: dict[Link, set[str]] = {}
        self._waiting: dict[str, dict[Link, dict[str, int]]] = {}
        self._busy: set[str] = set()
        self._inbox: deque[tuple[Link, int, ReleaseRef, list[Observation]]] = deque()
        self._news: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._tallies: dict[Link, list[Series]] = {}
        self._retired: list[Series] = []
        self._next_beat = float("-inf")
        self.failure = ""

    # -- what happens --

    def joined(self, link: Link) -> None:
        """A worker is there."""
        self._links[link], self._fed[link] = set(), set()
        link.send(encode(Beat(self._monotonic())))

    def received(self, link: Link, frame: bytes) -> None:
        """One frame of a worker. Raises Invalid: cut it off."""
        message = for_owner(frame)
        match message:
            case Follow(release, upto):
                ReleaseRef.parse(release)
                if len(self._links[link]) >= MOST_RELEASES:
                    raise Invalid(f"a worker follows more than {MOST_RELEASES} releases")
                self._links[link].add(release)
                self._waiting.setdefault(release, {})[link] = upto
                self._prepare(release)
            case Answers(number, release, answers):
                kept = self._kept.get(release)
                if kept is None:
                    raise Invalid("a worker sent answers of a release whose evidence was not told to it")
                observations = [kept.checked(one) for one in answers]
                self._fed[link] |= {one.instance for one in observations}
                self._inbox.append((link, number, kept.ref, observations))
            case Tally(number, series):
                self._tallies[link] = series
                if number:
                    link.send(encode(Tallied(number, merge([self._retired, *self._tallies.values()]))))
            case Borrow() | GiveBack():
                self._lease(link, message)

    def _lease(self, link: Link, message: Borrow | GiveBack) -> None:
        if self._allowances is None:
            raise Invalid("a worker asked for limits that are counted elsewhere")
        if isinstance(message, GiveBack):
            for want, units in message.units:
                _check_units(want, units)
            self._allowances.give_back(message.epoch, message.units)
            return
        for want in message.wants:
            _check_units(want, want.need, want.want)
        link.send(encode(Borrowed(message.number, self._allowances.grant(message.wants))))

    def left(self, link: Link) -> None:
        """A worker is gone. What it answered and did not say is in its log."""
        if self._links.pop(link, None) is None:
            return
        del self._fed[link]
        for waiting in self._waiting.values():
            waiting.pop(link, None)
        self._retired = merge([self._retired, retired(self._tallies.pop(link, []))])
        for seconds in LOST_SECONDS:
            self._after(seconds, self._look_through_logs)

    def fed(self) -> set[str]:
        """Instances whose answers come over a link that is up; from any thread."""
        return set().union(*list(self._fed.values()))

    def decided(self, decision: Decision) -> None:
        """What somebody decided, and what day it is; from any thread."""
        self._evidence.take(decision)
        if isinstance(decision, Today | Ladder):
            self._news.append(self._tell_everything)
        elif not isinstance(decision, Calibrated):  # then whose verdicts changed is told in the next round
            subject = decision.subject
            self._news.append(lambda: self._tell_decided(subject))

    def round(self) -> bool:
        """Examine a part of what arrived and tell everybody; whether more waits. Never takes long.

        Raises what the guard raises: the evidence has a hole then, and must be rebuilt by a new process.
        """
        now = self._monotonic()
        due = [job for at, job in self._timers if at <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for job in due:
            job()
        while self._news:
            self._news.popleft()()
        taken = self._take_part()
        for release, kept in self._kept.items():
            kept.watch.work()
            changed = kept.watch.changed()
            if changed:
                self._tell(release, changed)
        for link, number in taken:
            if link in self._links:
                link.send(encode(Examined(number)))
        self._beat()
        return bool(self._inbox)

    def _take_part(self) -> list[tuple[Link, int]]:
        rows, taken = 0, []
        while self._inbox and rows < PART_ROWS:
            link, number, ref, observations = self._inbox.popleft()
            for observation in observations:
                self._evidence.offer(ref, observation)
                rows += len(observation.x)
            taken.append((link, number))
        return taken

    def _beat(self) -> None:
        now = self._monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT
            try:
                self._check()
            except Unavailable:  # a silent owner is one that nobody is served by
                return
            self._send(encode(Beat(now)), self._links)

    # -- telling --

    def _send(self, frame: bytes, links: Iterable[Link]) -> None:
        for link in list(links):
            link.send(frame)

    def _tell(self, release: str, subjects: Iterable[str]) -> None:
        watch, subjects = self._kept[release].watch, list(subjects)
        for begin in range(TABLE_PART, len(subjects), TABLE_PART):  # after a calibration or a new table all changed
            self._tell(release, subjects[begin : begin + TABLE_PART])
        verdicts = {subject: watch.verdict(subject) for subject in subjects[:TABLE_PART]}
        gone = [subject for subject, verdict in verdicts.items() if verdict == watch.verdict("")]
        for subject in gone:
            del verdicts[subject]
        followers = [link for link, releases in self._links.items() if release in releases]
        self._send(encode(Standing(release, verdicts, gone)), followers)

    def _tell_decided(self, subject: str) -> None:
        for release in self._kept:
            self._tell(release, [subject])

    def _tell_everything(self) -> None:
        for release, kept in self._kept.items():
            self._tell(release, kept.watch.subjects())
            followers = [link for link, releases in self._links.items() if release in releases]
            self._send(encode(Following(release, kept.watch.verdict(""), "")), followers)

    def _tell_all(self, link: Link, release: str) -> None:
        watch = self._kept[release].watch
        subjects = watch.subjects()
        for begin in range(0, len(subjects), TABLE_PART):
            table = {subject: watch.verdict(subject) for subject in subjects[begin : begin + TABLE_PART]}
            link.send(encode(Standing(release, table, [])))
        link.send(encode(Following(release, watch.verdict(""), "")))

    # -- jobs --

    def _after(self, seconds: float, job: Callable[[], None]) -> None:
        self._timers.append((self._monotonic() + seconds, job))

    def _prepare(self, release: str) -> None:
        """Tell those who wait for ``release`` its verdicts, once all that is recorded of it is in them."""
        kept = self._kept.get(release)
        if kept is not None:
            self._tell_waiting(kept)
            if not self._waiting.get(release):
                return
        if release not in self._busy:
            self._busy.add(release)
            self._begin(lambda: self._rebuild(ReleaseRef.parse(release)))

    def _tell_waiting(self, kept: _Kept) -> None:
        release = str(kept.ref)
        waiting = self._waiting.get(release, {})
        for link in [link for link, upto in waiting.items() if self._covers(kept, upto)]:
            del waiting[link]
            self._tell_all(link, release)

    def _covers(self, kept: _Kept, upto: Mapping[str, int]) -> bool:
        return all(self._evidence.taken(kept.ref, instance) >= size for instance, size in upto.items())

    def _rebuild(self, ref: ReleaseRef) -> None:
        """In the other thread."""
        try:
            profile = self._profile_of(ref)
            directions = 0 if profile.layer is None else profile.layer.directions
            kept = _Kept(ref, self._evidence.watch(ref, profile), profile.n_features, profile.n_classes, directions)
            self._evidence.catch_up(ref)
            self._news.append(lambda: self._rebuilt(kept))
        except ModelkeepError as cause:
            problem = str(cause)  # the name of the exception ends with its block
            self._news.append(lambda: self._not_rebuilt(str(ref), problem))

    def _rebuilt(self, kept: _Kept) -> None:
        release = str(kept.ref)
        self._busy.discard(release)
        self._kept[release] = kept
        kept.watch.work()  # what was caught up is in the verdicts before anybody is told that they are all
        self._tell_waiting(kept)
        if self._waiting.get(release):
            self._report(f"the audit logs do not hold yet what workers answered of {release}: trying again")
            self._after(RETRY_SECONDS, lambda: self._prepare(release))

    def _not_rebuilt(self, release: str, problem: str) -> None:
        self._busy.discard(release)
        self._report(f"the extraction evidence on {release} cannot be rebuilt: {problem}")
        self._send(encode(Following(release, None, problem)), self._waiting.get(release, {}))
        if self._waiting.get(release):
            self._after(RETRY_SECONDS, lambda: self._prepare(release))

    def _look_through_logs(self) -> None:
        refs = [kept.ref for kept in self._kept.values()]
        self._begin(lambda: self._catch_up(refs))

    def _catch_up(self, refs: Iterable[ReleaseRef]) -> None:
        """In the other thread."""
        try:
            self._finish()
            for ref in refs:
                self._evidence.catch_up(ref)
        except (Unavailable, Missing) as cause:  # Missing: a live log replaced a tile at this moment
            self._report(f"the audit log of a worker that is gone cannot be read yet: {cause}")
            self._news.append(lambda: self._after(RETRY_SECONDS, self._look_through_logs))
        except ModelkeepError as cause:  # evidence with a hole in it is no evidence
            self.failure = f"the audit log of a worker that is gone cannot be read: {cause}"


def _check_units(want: Want, *units: float) -> None:
    """Raise Invalid for what would break the count of a limit."""
    positive = (want.rate, want.burst)
    if not all(math.isfinite(number) and number > 0.0 for number in positive) or not 0 < len(want.name) <= LONGEST_NAME:
        raise Invalid("a worker asked for units of what is no limit")
    if not all(math.isfinite(number) and number >= 0.0 for number in units):
        raise Invalid("a worker asked for units that nobody can have")
