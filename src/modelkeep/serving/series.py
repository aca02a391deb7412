"""One process's audit logs, one after the other: each for a period, at whose end it is closed and signed, and can be archived.

To who writes records the series is one log that never pauses: the next is begun before the one before it takes its last
record, and what was handed to a log is answered by that log.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from modelkeep.core.ports import Clock
from modelkeep.errors import Unavailable
from modelkeep.serving.audit import AuditEntry, AuditLog, Done
from modelkeep.serving.sinks import SinkState


class Current(NamedTuple):
    """The log that takes records now: the name of its instance, and the log."""

    instance: str
    log: AuditLog


class AuditSeries:
    """The audit logs of one process. Thread-safe, as ``AuditLog`` is."""

    def __init__(self, begin: Callable[[], tuple[str, AuditLog]], clock: Clock, *, period: float = 0.0) -> None:
        """``begin``: starts a log and names its instance; ``period``: seconds that one lasts, 0 = as long as the process.

        Raises what ``begin`` raises.
        """
        self._begin, self._monotonic, self._period = begin, clock.monotonic, period
        self._current = Current(*begin())
        self._since = clock.monotonic()
        self._turn = threading.Lock()
        self._stopped = False

    @property
    def current(self) -> Current:
        """The log that takes records now."""
        return self._current

    @property
    def size(self) -> int:
        """Durable entries of the log of now."""
        return self._current.log.size

    @property
    def refusal(self) -> str:
        """Why ``submit`` would refuse at this moment; empty when it would not."""
        return self._current.log.refusal

    @property
    def failure(self) -> str:
        """Why nothing more is taken for good; empty unless the log has failed."""
        return self._current.log.failure

    @property
    def waiving(self) -> str:
        """Why answers leave without required sinks at this moment; empty when they do not."""
        return self._current.log.waiving

    def sinks(self) -> list[SinkState]:
        """How each sink stands."""
        return self._current.log.sinks()

    def submit(self, entry: AuditEntry, body: bytes, done: Done) -> str:
        """Hand one record over, as ``AuditLog.submit``; the instance whose log has it. Raises Unavailable."""
        instance = self.enqueue(entry, body, done)
        self.wake()
        return instance

    def enqueue(self, entry: AuditEntry, body: bytes, done: Done) -> str:
        """The same as ``AuditLog.enqueue``: ``wake`` has to follow."""
        current = self._current
        try:
            current.log.enqueue(entry, body, done)
        except Unavailable:
            if self._current is current:
                raise
            current = self._current  # its period ended at this moment
            current.log.enqueue(entry, body, done)
        return current.instance

    def wake(self) -> None:
        """Have what waits committed. A log whose period ended meanwhile commits it before it is closed."""
        self._current.log.wake()

    def publish(self) -> bytes:
        """Put all that is durable now under a checkpoint, and return it. Raises Unavailable."""
        return self._current.log.publish()

    def roll(self) -> bytes:
        """Begin the next log if the period of this one is over; the final checkpoint of the one that ended, b"" if it goes on.

        Raises Unavailable, Conflict, Invalid: the next could not be begun, and this one goes on; or this one could not be
        closed, which ``recover_audit`` does after the process, and the next goes on.
        """
        with self._turn:
            if self._stopped or not self._period or self._monotonic() - self._since < self._period:
                return b""
            self._since = self._monotonic()  # also when it fails: it is not tried all the time
            if self._current.log.size <= 1:
                return b""  # nothing was recorded: an empty log is no use to anybody
            ended, self._current = self._current, Current(*self._begin())
            return ended.log.stop()

    def stop(self) -> bytes:
        """Close the log of now and return its final checkpoint. Idempotent. Raises Unavailable."""
        with self._turn:
            self._stopped = True
            return self._current.log.stop()
