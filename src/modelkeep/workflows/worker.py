"""A worker's side of the shared evidence: what it answers goes to the owner, and the verdicts in force are a copy here.

The hot path reads the copy and never waits. While the owner does not beat, or has not rebuilt the evidence on a release yet,
nothing is served from that release.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from modelkeep.core.ports import Clock, Grants, Want
from modelkeep.core.tallies import Series
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Unavailable
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.verdicts import Verdict
from modelkeep.workflows.decisions import Decision
from modelkeep.workflows.sharing import (
    FRESH,
    MAX_FRAME,
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
    for_worker,
    parts,
)
from modelkeep.workflows.watch import ROWS_BEHIND, UNSEEN_ROWS, Backlog, Erased, Observation

REBUILD_SECONDS = 110.0
"""How long a worker waits for the owner to rebuild a release's evidence before it tries again."""
EXAMINE_SECONDS = 10.0
TALLY_SECONDS = 1.0
GRANT_SECONDS = 0.5
_GONE = "the process that keeps the extraction evidence does not answer: it is started again"
_POLL = 0.05

Send = Callable[[bytes], None]


class SharedWatch:
    """The evidence on one release, kept by the owner (``Watching``). The bounds are this worker's share of one process's."""

    def __init__(self, ref: ReleaseRef, shared: "SharedEvidence", *, workers: int) -> None:
        self.text = str(ref)
        self.unseen_rows = max(1, UNSEEN_ROWS // workers)
        self.alarms = self.withheld = 0
        self._shared, self._backlog = shared, Backlog(max(1, ROWS_BEHIND // workers))
        self._waiting: deque[Observation] = deque()
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._alarmed: set[str] = set()
        self._withheld: set[str] = set()
        self._moved: dict[str, None] = {}
        self._unseen: Verdict | None = None
        self._broken = False
        self.problem = ""

    @property
    def ready(self) -> bool:
        """Whether all verdicts of an owner that is there were told."""
        return self._unseen is not None

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force as far as it was told here. Raises Unavailable when none was."""
        found = self._verdicts.get(subject, self._unseen)
        if found is None:
            raise Unavailable(_GONE)
        return found

    def rung(self, subject: str) -> Rung:
        """The ladder's rung in force. Raises Unavailable when the owner is silent, or rebuilds the evidence."""
        if self._broken:
            raise Unavailable("the extraction evidence of this model failed: restart the gateway to rebuild it")
        self._shared.check()
        if self._unseen is None:
            raise Unavailable("the extraction evidence of this model is being rebuilt: ask again in a moment")
        return self.verdict(subject).rung

    def reserve(self, subject: str, rows: int) -> None:
        """As ``Watching``."""
        self._backlog.reserve(subject, rows)

    def release(self, subject: str, rows: int) -> None:
        """As ``Watching``."""
        self._backlog.release(subject, rows)

    def behind(self, subject: str) -> int:
        """As ``Watching``."""
        return self._backlog.of(subject)

    def submit(self, observation: Observation) -> None:
        """As ``Watching``."""
        self._waiting.append(observation)

    def work(self) -> dict[str, int]:
        """Send what waits and wait until the owner has examined it. Raises Unavailable: it waits on, and is sent again."""
        with self._lock:
            batch: list[Observation] = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            if not batch:
                return {}
            batch.sort(key=lambda one: (one.instance, one.at))
            try:
                self._shared.examine(self, batch)
            except Unavailable:
                self._waiting.extendleft(reversed(batch))
                raise
            done: dict[str, int] = {}
            for one in batch:
                done[one.subject] = done.get(one.subject, 0) + len(one.x)
                self._taken[one.instance] = one.at + 1
            return done

    def rows_behind(self) -> int:
        """As ``Watching``."""
        return self._backlog.total()

    def subjects(self) -> list[str]:
        """As ``Watching``."""
        return list(self._verdicts)

    def alarmed(self) -> list[str]:
        """As ``Watching``."""
        return list(self._alarmed)

    def moved(self) -> list[str]:
        """As ``Watching``."""
        found = list(self._moved)
        for subject in found:  # the link's thread may add others meanwhile
            self._moved.pop(subject, None)
        return found

    def look_out(self, names: frozenset[int]) -> None:
        """As ``Watching``: the owner does it."""

    def met(self) -> dict[str, set[int]]:
        """As ``Watching``: the owner knows."""
        return {}

    def give_up(self) -> None:
        """As ``Watching``."""
        self._broken = True

    # -- what the owner says --

    def follow(self) -> Follow:
        """Ask for everything; what was told before counts no more."""
        self._unseen, self._verdicts, self._alarmed, self._withheld = None, {}, set(), set()
        return Follow(self.text, dict(self._taken))

    def lost(self) -> None:
        """The owner is gone; what it told last stays to be shown, and nothing is served by it."""
        self._unseen = None

    def told(self, standing: Standing) -> None:
        """Take verdicts over."""
        for subject, verdict in standing.verdicts.items():
            former = self._verdicts.get(subject)
            if verdict.rung is not (Rung.MARK if former is None else former.rung):
                self._moved[subject] = None
            self._verdicts[subject] = verdict
            (self._alarmed.add if verdict.rung is Rung.ALARM else self._alarmed.discard)(subject)
            (self._withheld.add if verdict.withheld else self._withheld.discard)(subject)
        for subject in standing.gone:
            former = self._verdicts.pop(subject, None)
            if former is not None and former.rung is not Rung.MARK:
                self._moved[subject] = None
            self._alarmed.discard(subject)
            self._withheld.discard(subject)
        self.alarms, self.withheld = len(self._alarmed), len(self._withheld)

    def all_told(self, following: Following) -> None:
        """The table is whole, or there is none."""
        self._unseen, self.problem = following.unseen, following.problem


class SharedEvidence:
    """Evidence on all releases that another process keeps (``Evidence``), over a link that may break at any time.

    ``connected``, ``received`` and ``lost`` are called by the link's thread, in this order for each link.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        workers: int,
        publish: Callable[[], object],
        forget: Callable[[str], None] = lambda _subject: None,
    ) -> None:
        """``workers``: among how many the bounds are divided; ``publish``: puts all that is recorded under a checkpoint;
        ``forget``: drops the key of a subject, who was erased, from the memory of this process."""
        self._monotonic, self._sleep = clock.monotonic, clock.sleep
        self._workers, self._publish, self._forget = workers, publish, forget
        self._watches: dict[ReleaseRef, SharedWatch] = {}
        self._by_text: dict[str, SharedWatch] = {}
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._pending: set[int] = set()
        self._replies: dict[int, Tallied | Borrowed | None] = {}  # None: asked, and not answered yet
        self._send: Send | None = None
        self._good_until = float("-inf")

    def check(self) -> None:
        """Raise Unavailable unless the owner has said within the last second that its verdicts are those of now."""
        if self._monotonic() > self._good_until:
            raise Unavailable(_GONE)

    # -- Evidence --

    def watch(self, ref: ReleaseRef, profile: Profile) -> SharedWatch:  # noqa: ARG002  # the owner opens it itself
        """The evidence on ``ref``, once the owner has rebuilt it. Raises Unavailable."""
        with self._changed:
            known = self._watches.get(ref)
            if known is None:
                known = self._watches[ref] = SharedWatch(ref, self, workers=self._workers)
                self._by_text[known.text] = known
                self._ask(known)
            end = self._monotonic() + REBUILD_SECONDS
            while not known.ready:
                if known.problem:
                    problem, known.problem = known.problem, ""  # the owner tries again by itself
                    raise Unavailable(f"the extraction evidence on {ref} cannot be rebuilt: {problem}")
                if self._monotonic() > end:
                    raise Unavailable(f"the extraction evidence on {ref} is being rebuilt: ask again in a moment")
                self._changed.wait(_POLL)
        return known

    def by_release(self) -> Mapping[ReleaseRef, SharedWatch]:
        """Every release's evidence so far."""
        return dict(self._watches)

    def take(self, decision: Decision) -> None:
        """Drop the key of whoever was erased. The rest the owner does, who reads decisions from the releases log itself."""
        if isinstance(decision, Erased):
            self._forget(decision.subject)

    # -- asking the owner --

    def examine(self, watch: SharedWatch, batch: list[Observation]) -> None:
        """Have answers examined. On return the verdicts on them are in force here. Raises Unavailable."""
        send = self._ready(watch)
        cut = zip(parts(batch), self._numbers, strict=False)
        frames = {number: encode(Answers(number, watch.text, part)) for part, number in cut}
        if any(len(frame) > MAX_FRAME for frame in frames.values()):
            watch.give_up()
            raise Unavailable("an answer is too large for the extraction evidence")
        with self._changed:
            self._pending |= frames.keys()
        try:
            for frame in frames.values():
                send(frame)
            self._wait(send, lambda: not frames.keys() & self._pending, EXAMINE_SECONDS)
        finally:
            with self._changed:
                self._pending -= frames.keys()

    def tallied(self, series: Sequence[Series]) -> Sequence[Series]:
        """The counts of all workers, of which this one's are ``series``. Raises Unavailable."""
        reply = self._asked(lambda number: Tally(number, list(series)), TALLY_SECONDS)
        return reply.series if isinstance(reply, Tallied) else ()

    def tally(self, series: Sequence[Series]) -> None:
        """Leave this worker's counts with the owner, if it is there."""
        send = self._send
        if send is not None:
            send(encode(Tally(0, list(series))))

    def grant(self, wants: Sequence[Want]) -> Grants:
        """Units of limits that the owner counts. Raises Unavailable; what it may have granted then comes back by itself."""
        reply = self._asked(lambda number: Borrow(number, list(wants)), GRANT_SECONDS)
        if not isinstance(reply, Borrowed) or len(reply.grants.given) != len(wants):
            raise Unavailable(_GONE)
        return reply.grants

    def give_back(self, epoch: str, units: Sequence[tuple[Want, float]]) -> None:
        """Return what was granted and not used. Raises Unavailable: it comes back by itself."""
        send = self._send
        if send is None:
            raise Unavailable(_GONE)
        send(encode(GiveBack(epoch, list(units))))

    def _asked(self, message: Callable[[int], Tally | Borrow], seconds: float) -> Tallied | Borrowed | None:
        send, number = self._send, next(self._numbers)
        if send is None:
            raise Unavailable(_GONE)
        with self._changed:
            self._replies[number] = None
        try:
            send(encode(message(number)))
            self._wait(send, lambda: self._replies.get(number) is not None, seconds)
        finally:
            with self._changed:
                reply = self._replies.pop(number, None)
        return reply

    def _ready(self, watch: SharedWatch) -> Send:
        send = self._send
        if send is None or not watch.ready:
            raise Unavailable(_GONE)
        return send

    def _wait(self, send: Send, done: Callable[[], bool], seconds: float) -> None:
        end = self._monotonic() + seconds
        with self._changed:
            while not done():
                if self._send is not send or self._monotonic() > min(end, self._good_until):
                    raise Unavailable(_GONE)
                self._changed.wait(_POLL)
            if self._send is not send:  # it was lost, which forgets what was asked
                raise Unavailable(_GONE)

    # -- the link --

    def connected(self, send: Send) -> None:
        """An owner is there; ``send`` gives it a frame, from any thread. Raises Unavailable: cut the link and try again."""
        self._publish()  # what a former owner was told is found in the log by this one
        with self._changed:
            self._send = send
            watches = list(self._watches.values())
        for watch in watches:
            self._ask(watch)

    def received(self, frame: bytes) -> None:
        """One frame from the owner. Raises Invalid: cut the link."""
        message = for_worker(frame)
        with self._changed:
            match message:
                case Beat(at):
                    self._good_until = at + FRESH
                case Standing(release) if release in self._by_text:
                    self._by_text[release].told(message)
                case Following(release) if release in self._by_text:
                    self._by_text[release].all_told(message)
                case Examined(number):
                    self._pending.discard(number)
                case Tallied(number) | Borrowed(number) if number in self._replies:  # else it comes too late
                    self._replies[number] = message
                case _:
                    return
            self._changed.notify_all()

    def lost(self) -> None:
        """The link is gone: from now on nothing is served, until another one has told everything anew."""
        with self._changed:
            self._send, self._good_until = None, float("-inf")
            for watch in self._watches.values():
                watch.lost()
            self._pending.clear()
            self._replies.clear()
            self._changed.notify_all()

    def _ask(self, watch: SharedWatch) -> None:
        send = self._send
        if send is not None:
            send(encode(watch.follow()))


class SharedAllowances:
    """``Allowances`` that the owner counts for all workers. ``shared``: the way to it."""

    def __init__(self, shared: SharedEvidence) -> None:
        self._shared = shared

    def grant(self, wants: Sequence[Want]) -> Grants:
        """Lease units of several limits, in one exchange. Raises Unavailable."""
        return self._shared.grant(wants)

    def give_back(self, epoch: str, units: Sequence[tuple[Want, float]]) -> None:
        """Return what was not used. Raises Unavailable."""
        self._shared.give_back(epoch, units)

    def close(self) -> None:
        """The link goes on without it."""
