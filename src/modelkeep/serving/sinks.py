"""The sinks of one audit log, and whether enough of them accept.

Where sinks are required, a batch goes to them while the journal writes it, and its records count once enough sinks have
accepted it. Where they are not, they are given what the journal has.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from modelkeep.core.ports import Clock, LogFiles, Sink, SinkBatch
from modelkeep.errors import Unavailable
from modelkeep.serving.feeds import CURSOR, Feed, SinkLimits, SinkState, Stretch, read_cursor

__all__ = ["CURSOR", "SinkLimits", "SinkState", "Sinks", "Stretch", "read_cursor"]

_SLOW = "the required audit sinks do not keep up: try again shortly"


class Sinks:
    """All sinks of one audit log, and whether enough of them accept."""

    def __init__(
        self,
        sinks: Sequence[tuple[Sink, Sequence[Stretch]]],
        clock: Clock,
        limits: SinkLimits,
        *,
        cursor: Callable[[Sink], tuple[LogFiles, ExitStack]],
        waived: Callable[[], str] = str,
    ) -> None:
        """``sinks``: each with what it still lacks of older logs; ``cursor``: files for the cursor of a new log, held;
        ``waived``: the reason why answers may leave without required sinks now, "" = they may not."""
        self._limits, self._monotonic, self._waived = limits, clock.monotonic, waived
        self._turn = threading.Condition()
        self._feeds = [Feed(sink, clock, limits, self._turn, old) for sink, old in sinks]
        self._cursors = [cursor(sink) for sink, _ in sinks]
        self._waiving = ""
        self._begun = False

    @property
    def require(self) -> int:
        """How many must accept."""
        return self._limits.require

    def begin(self, origin: str, files: LogFiles) -> None:
        """Start with a new log. Never waits for a sink."""
        with self._turn:
            for feed, (cursor, held) in zip(self._feeds, self._cursors, strict=True):
                feed.begin(Stretch(origin, files, cursor, held=held))
            self._begun = True
        for feed in self._feeds:
            feed.thread.start()

    def offer(self, batch: SinkBatch) -> None:
        """Hand a batch to every sink."""
        with self._turn:
            for feed in self._feeds:
                feed.offer(batch)
            self._turn.notify_all()

    def offer_note(self, note: bytes) -> None:
        """Hand the latest checkpoint to every sink."""
        with self._turn:
            for feed in self._feeds:
                feed.offer_note(note)
            self._turn.notify_all()

    def wait(self, end: int) -> None:
        """Return once enough sinks have everything below ``end``, which the journal has. Raises Unavailable: too slow."""
        deadline = self._monotonic() + self._limits.hang
        with self._turn:
            for feed in self._feeds:
                feed.settle(end)
            if self._waiving:
                return
            while sum(feed.has(end) for feed in self._feeds) < self._limits.require:
                rest = deadline - self._monotonic()
                if rest <= 0:
                    raise Unavailable(self._short(self._monotonic()) or _SLOW)
                self._turn.wait(rest)

    def glass(self) -> str:
        """What the log must say before the next batch about doing without required sinks; "" when nothing changed."""
        with self._turn:
            missing = bool(self._short(self._monotonic()))
        reason = self._waived() if missing else ""
        if reason == self._waiving:
            return ""
        said = f"begins: {reason}" if reason else "ends"
        self._waiving = reason
        return said

    @property
    def waiving(self) -> str:
        """Why answers leave without required sinks at this moment; empty when they do not."""
        return self._waiving

    def refusal(self) -> str:
        """Why no record would count at this moment; empty when it would. Clients read it: it names no host and no path."""
        with self._turn:
            why = self._short(self._monotonic())
        return "" if not why or self._waived() else why

    def _short(self, now: float) -> str:
        if not self._limits.require:
            return ""
        states = [feed.state(now) for feed in self._feeds]
        if sum(state.state == "ok" for state in states) >= self._limits.require:
            return ""
        troubles = ", ".join(f"{state.name.partition(':')[0]}: {state.state}" for state in states if state.state != "ok")
        return f"{self._limits.require} of {len(states)} audit sinks must accept every record, and too few do ({troubles})"

    def states(self) -> list[SinkState]:
        """Every sink as it stands."""
        with self._turn:
            now = self._monotonic()
            return [feed.state(now) for feed in self._feeds]

    def close(self, seconds: float) -> None:
        """Let the sinks take what waits for at most ``seconds``, and end. What they lack is sent by the next process."""
        with self._turn:
            if not self._begun:
                for _, held in self._cursors:
                    held.close()
                return
            for feed in self._feeds:
                feed.hurry()
            self._turn.notify_all()
            self._turn.wait_for(lambda: all(feed.idle() for feed in self._feeds), seconds)
            for feed in self._feeds:
                feed.stop()
            self._turn.notify_all()
        for feed in self._feeds:
            if feed.thread.is_alive():
                feed.thread.join(seconds)
