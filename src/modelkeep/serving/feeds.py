"""One sink and its thread: what it has not accepted, in the order of the log, with the journal itself as the outbox.

Whatever a sink has not accepted is read again from the journal, so nothing is kept twice and nothing is lost with a process: a
cursor says how far each sink has come in each log.
"""

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from modelkeep.core.ports import Clock, LogFiles, Sink, SinkBatch, SinkPlace
from modelkeep.errors import Missing, ModelkeepError, NotTrusted, Unavailable
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.serving.journal import batches, begins, segments

CURSOR = "accepted"
MERGED_ENTRIES = 512
MERGED_BYTES = 1 << 20
_SAVE_SECONDS = 1.0
_LONGEST_PAUSE = 2.0

T = TypeVar("T")
_Waiting = tuple[SinkBatch, float]
"""A batch, and when it was offered."""


@dataclass(frozen=True)
class SinkLimits:
    """``require``: how many sinks must accept a record before it counts; 0 = they follow. Seconds: ``hang``: a batch may take
    this long; ``slow``: a call that takes longer means that the sink hangs; ``probe``: pause between two looks at an idle
    sink. ``queue``: bytes that may wait in memory for one sink; what is beyond is read from the journal later."""

    require: int = 0
    hang: float = 0.8
    slow: float = 0.45
    probe: float = 0.25
    queue: int = 16 << 20


class SinkState(NamedTuple):
    """One sink as operators see it. ``state``: ``ok``, ``behind``, ``hung`` or ``down``, and ``why``; ``accepted``: records of
    the log being written; ``failed``: calls that failed; ``lag``: age in seconds of the oldest record that it has not accepted;
    ``lost``: records of older logs that were not there any more when their turn came."""

    name: str
    state: str
    accepted: int
    failed: int
    lag: float
    lost: int
    why: str


@dataclass
class Stretch:
    """One log on its way to one sink: records below ``accepted`` are there, those below ``goal`` may be sent.

    ``durable``: records that the journal has for certain; one that a sink accepted and the journal lost is not passed over
    later. ``cursor``: files of which ``accepted`` says how far the sink has come, held by this process.
    """

    origin: str
    files: LogFiles
    cursor: LogFiles
    accepted: int = 0
    goal: int = 0
    durable: int = 0
    note: bytes = b""
    saved: int = -1
    held: ExitStack = field(default_factory=ExitStack)

    def save(self) -> None:
        """Write the cursor. One that was lost only means that records are sent again."""
        certain = min(self.accepted, self.durable)
        if self.saved == certain:
            return
        try:
            self.cursor.write(CURSOR, b"%d" % certain)
            self.saved = certain
        except Unavailable:
            return


def read_cursor(files: LogFiles) -> int:
    """How many records a sink had accepted when its cursor was last written. Raises Unavailable, NotTrusted (no number)."""
    try:
        text = files.read(CURSOR)
    except Missing:
        return 0
    if not text.isdigit():
        raise NotTrusted(f"the cursor of an audit sink is damaged: {text[:40]!r}")
    return int(text)


class Outbox:
    """What the journal has of one stretch, from the first record that the sink has not accepted on, read once."""

    def __init__(self, stretch: Stretch) -> None:
        """``at``: the first record of what ``take`` returns next. Raises NotTrusted, Missing, Unavailable."""
        self.stretch, self.at = stretch, stretch.accepted
        self._source = batches(stretch.files, stretch.origin, stretch.accepted)
        self._taken: SinkBatch | None = None
        self._ahead: SinkBatch | None = None

    def serves(self, stretch: Stretch) -> bool:
        """Whether it goes on where the sink is: behind what it took last, or before that again."""
        return stretch is self.stretch and (
            stretch.accepted == self.at or (self._taken is not None and stretch.accepted == self._taken.first)
        )

    def take(self, goal: int) -> SinkBatch | None:
        """The next batches below ``goal`` as one, or what was taken last if it was not accepted; None when there is no more.

        Raises NotTrusted, Missing, Unavailable.
        """
        if self._taken is None or self.stretch.accepted == self.at:
            self._taken = _merged(self._below(goal))
            self.at = self._taken.end if self._taken else self.at
        return self._taken

    def _below(self, goal: int) -> Iterator[SinkBatch]:
        """The next batches; the last one that this gave may be given again, for whoever had no room for it."""
        while (batch := self._ahead or next(self._source, None)) is not None:
            self._ahead = batch
            if batch.end > goal:
                return
            yield batch
            self._ahead = None


class Feed:
    """One sink and its thread. What it shares with others is read and written under ``turn``."""

    def __init__(self, sink: Sink, clock: Clock, limits: SinkLimits, turn: threading.Condition, old: Sequence[Stretch]) -> None:
        """``old``: logs of dead processes that the sink has not accepted whole; they are sent when nothing newer waits."""
        self.name = sink.name
        self._sink, self._limits, self._turn = sink, limits, turn
        self._monotonic = clock.monotonic
        self._old = deque(old)
        self._now: Stretch | None = None
        self._ready_for = ""  # the origin that the sink was made ready for; "" after an error
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._spilled = False
        self._since: float | None = None  # when the oldest record that is not accepted was offered
        self._busy: float | None = None
        self._outbox: Outbox | None = None
        self._why = "it was not asked yet"
        self._failed = self._lost = 0
        self._pauses = 0
        self._saved_at = 0.0
        self._hurried = self._stopping = self._dead = False
        self.thread = threading.Thread(target=self._run, name=f"sink-{self.name}", daemon=True)

    # -- for the log's threads; the lock is held --

    def begin(self, stretch: Stretch) -> None:
        """Say which log is being written now."""
        self._now = stretch

    def offer(self, batch: SinkBatch) -> None:
        """Have ``batch`` sent after all before it."""
        assert self._now is not None
        self._now.goal, now = batch.end, self._monotonic()
        if not self._limits.require:
            self._now.durable = batch.end
        if self._since is None:
            self._since = now
        if self._spilled or self._queued > self._limits.queue:
            self._spilled = True  # read from the journal, up to where the queue begins again
        else:
            self._queue.append((batch, now))
            self._queued += len(batch.data)

    def settle(self, end: int) -> None:
        """Say that the journal has everything below ``end``."""
        assert self._now is not None
        self._now.durable = end

    def offer_note(self, note: bytes) -> None:
        """Have the latest checkpoint passed on when nothing else waits."""
        assert self._now is not None
        self._now.note = note

    def hurry(self) -> None:
        """Have a sink that was in trouble asked again now: the process ends, and a pause would leave what waits to the next."""
        self._hurried = True

    def stop(self) -> None:
        """Have the thread end after the call that it is in."""
        self._stopping = True

    def has(self, end: int) -> bool:
        """Whether the sink has accepted everything below ``end``."""
        return self._now is not None and self._now.accepted >= end

    def idle(self) -> bool:
        """Whether the log being written has gone to the sink whole, with its last checkpoint."""
        return self._now is not None and self.has(self._now.goal) and not self._now.note

    def state(self, now: float) -> SinkState:
        """How the sink stands."""
        lag = now - self._since if self._since is not None else 0.0
        state, why = "ok", ""
        if self._busy is not None and now - self._busy > self._limits.slow and not self._dead:
            state, why = "hung", f"it has not answered for {now - self._busy:.1f} s"
        elif self._dead or self._why:
            state, why = "down", self._why
        elif lag > self._limits.hang:
            state, why = "behind", f"it is {lag:.1f} s behind"
        accepted = self._now.accepted if self._now else 0
        return SinkState(self.name, state, accepted, self._failed, lag, self._lost, why)

    # -- the thread --

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        finally:
            with self._turn:
                self._dead, self._why = True, self._why or "its thread has ended"
                self._turn.notify_all()
            for stretch in (self._now, *self._old):
                if stretch is not None:
                    stretch.save()
                    stretch.held.close()
            self._sink.close()

    def _step(self) -> None:
        try:
            self._once()
        except ModelkeepError as cause:
            self._trouble(str(cause))

    def _once(self) -> None:
        stretch = self._choose()
        if stretch is None:
            return
        try:
            if self._ready_for != stretch.origin:
                self._resume(stretch)
            batch = self._next(stretch)
        except (Missing, NotTrusted):
            if stretch is self._now:
                raise
            batch = None  # what is left of an old log is damaged or gone: its own checks say so
            self._lost, stretch.accepted = self._lost + stretch.goal - stretch.accepted, stretch.goal
        if batch is not None:
            self._call(lambda: self._sink.accept(batch), proves=True)
            self._advance(stretch, batch.end)
        elif stretch is self._now and stretch.note:
            note = stretch.note
            self._call(lambda: self._sink.checkpoint(stretch.origin, note), proves=True)
            with self._turn:
                stretch.note = b"" if stretch.note == note else stretch.note
                self._turn.notify_all()
        elif stretch is not self._now:
            self._finish(stretch)
        else:
            self._rest(stretch)

    def _choose(self) -> Stretch | None:
        """The log that is to be sent next: the one being written, unless it is all there and older ones are not."""
        with self._turn:
            now = self._now
            if now is None:
                self._turn.wait(self._limits.probe)
                return None
            return self._old[0] if self._old and now.accepted >= now.goal and not now.note and not self._why else now

    def _resume(self, stretch: Stretch) -> None:
        place = self._call(lambda: self._sink.resume(stretch.origin))
        if place is not None:  # never more than it accepted: a longer mirror holds what the journal lost, and compares
            there = _index_at(stretch, place)
            with self._turn:
                stretch.accepted = min(stretch.accepted, there)
        self._ready_for = stretch.origin

    def _next(self, stretch: Stretch) -> SinkBatch | None:
        if stretch is self._now:
            with self._turn:
                while self._queue and self._queue[0][0].first < stretch.accepted:
                    self._queued -= len(self._queue.popleft()[0].data)
                if self._queue and self._queue[0][0].first == stretch.accepted:
                    return _merged(batch for batch, _ in self._queue)
                if not self._queue:
                    self._spilled = False  # from here on batches queue up again, while those before are read
        if stretch.accepted >= stretch.goal:
            self._outbox = None
            return None
        found = self._read(stretch)
        if found is not None and found.first <= stretch.accepted:
            return found
        if stretch is not self._now:
            there = found.first if found is not None else stretch.goal
            self._lost, stretch.accepted = self._lost + there - stretch.accepted, there
            return found
        with self._turn:  # offered, and not written yet
            self._turn.wait(0.01)
        return None

    def _read(self, stretch: Stretch) -> SinkBatch | None:
        """What the journal has next for a stretch."""
        if self._outbox is None or not self._outbox.serves(stretch):
            self._outbox = Outbox(stretch)
        found = self._outbox.take(stretch.goal)
        if found is None:  # the next look sees what was written since
            self._outbox = None
        return found

    def _advance(self, stretch: Stretch, end: int) -> None:
        now = self._monotonic()
        with self._turn:
            stretch.accepted = max(stretch.accepted, end)
            if stretch is self._now:
                while self._queue and self._queue[0][0].first < stretch.accepted:
                    self._queued -= len(self._queue.popleft()[0].data)
                if stretch.accepted >= stretch.goal:
                    self._since = None
                elif self._queue and not self._spilled:
                    self._since = self._queue[0][1]
            self._turn.notify_all()
        if now - self._saved_at > _SAVE_SECONDS:
            self._saved_at = now
            stretch.save()

    def _finish(self, stretch: Stretch) -> None:
        """The log of a dead process has gone to the sink whole."""
        try:
            note = stretch.files.read(CHECKPOINT)
        except Missing:
            note = b""
        if note:
            self._call(lambda: self._sink.checkpoint(stretch.origin, note), proves=True)
        self._old.popleft()
        stretch.save()
        stretch.held.close()

    def _rest(self, stretch: Stretch) -> None:
        """Wait for something to do; an idle sink is looked at now and then."""
        stretch.save()
        with self._turn:
            something = lambda: bool(stretch.accepted < stretch.goal or stretch.note or self._old or self._stopping)  # noqa: E731
            if not self._why and self._turn.wait_for(something, self._limits.probe):
                return
        self._call(self._sink.probe, proves=True)

    def _call(self, act: Callable[[], T], *, proves: bool = False) -> T:
        """Call the sink. ``proves``: that it returns means that the sink is well again."""
        self._busy = self._monotonic()
        try:
            result = act()
        finally:
            with self._turn:
                self._busy = None
        if proves and self._why:
            with self._turn:
                self._why, self._pauses = "", 0
                self._turn.notify_all()
        return result

    def _trouble(self, why: str) -> None:
        with self._turn:
            self._why, self._ready_for = why, ""
            self._failed += 1
            self._turn.notify_all()
            pause = min(0.05 * 2**self._pauses, _LONGEST_PAUSE) * self._jitter()
            self._pauses = min(self._pauses + 1, 10)
            self._turn.wait_for(lambda: self._stopping or self._hurried, pause)
            self._hurried = False

    def _jitter(self) -> float:
        """Between 0.5 and 1.5, so that many gateways do not come back to one receiver at the same moment."""
        return 0.5 + zlib.crc32(f"{self.name} {self._failed} {self._monotonic()}".encode()) / 2**32


def _index_at(stretch: Stretch, place: SinkPlace) -> int:
    """The first record that a mirror which has come to ``place`` does not have whole."""
    if place.segment not in segments(stretch.files):
        return stretch.goal
    for batch in batches(stretch.files, stretch.origin, begins(stretch.files, place.segment)):
        if (batch.segment, batch.offset + len(batch.data)) > place:
            return batch.first
    return stretch.goal


def _front(waiting: Iterator[SinkBatch]) -> Iterator[SinkBatch]:
    """The batches at the front that follow each other and are not too much for one."""
    last, entries, size = None, 0, 0
    for batch in waiting:
        entries, size = entries + len(batch.entries), size + len(batch.data)
        if last is not None and not (_follows(batch, last) and entries <= MERGED_ENTRIES and size <= MERGED_BYTES):
            return
        yield batch
        last = batch


def _follows(batch: SinkBatch, last: SinkBatch) -> bool:
    return batch.first == last.end and (batch.segment, batch.offset) == (last.segment, last.offset + len(last.data))


def _merged(waiting: Iterator[SinkBatch]) -> SinkBatch | None:
    """The batches at the front as one; None when there are none."""
    parts = list(_front(waiting))
    if len(parts) < 2:
        return parts[0] if parts else None
    joined = tuple(entry for part in parts for entry in part.entries)
    return parts[0]._replace(entries=joined, data=b"".join(part.data for part in parts))
