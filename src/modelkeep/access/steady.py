"""Wall-clock time that never stands still and never goes back.

A wall clock may be set back. Were it believed, everything with an expiry would live longer; were it merely clamped to the
highest value seen, time would stand still and everything would live longer too. So between readings time advances at least as
fast as the monotonic clock. A clock that was wrong *ahead* keeps this process ahead until it is restarted: things expire early.
"""

import threading

from modelkeep.core.ports import Clock

NANOSECONDS = 1_000_000_000


class SteadyTime:
    """The time of one process. Safe to use from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._mark_ns = clock.now_ns()
        self._mark_monotonic = clock.monotonic()

    def now_ns(self) -> int:
        """Unix nanoseconds: the wall clock, or the highest reading so far plus the time elapsed since, if that is later."""
        with self._lock:
            monotonic = self._clock.monotonic()
            elapsed = int((monotonic - self._mark_monotonic) * NANOSECONDS)
            self._mark_ns = max(self._clock.now_ns(), self._mark_ns + elapsed)
            self._mark_monotonic = monotonic
            return self._mark_ns

    def now(self) -> int:
        """Unix time in whole seconds."""
        return self.now_ns() // NANOSECONDS

    def ahead_seconds(self) -> float:
        """How far this is ahead of the wall clock: more than a few seconds means that the clock was set back."""
        return max(0.0, (self.now_ns() - self._clock.now_ns()) / NANOSECONDS)
