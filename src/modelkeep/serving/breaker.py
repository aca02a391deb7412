"""A circuit breaker: after too many failures an upstream is left alone for a while, then tried with one request.

A state machine as a table; time is handed in. It opens on a *share* of the last answers and not on failures in a row: whoever
finds a question on which the upstream fails would otherwise shut everybody out by asking it a few times. Every request gets
a permit; what became of it counts only while the breaker is in the very state that it was given in, so an answer that was
asked for before the trouble neither ends nor lengthens it.
Source: M. Nygard, "Release It!", 2nd edition, 2018, section 5.2 (Circuit Breaker).
"""

from collections import deque
from enum import StrEnum
from typing import NamedTuple

from modelkeep.errors import Unavailable


class State(StrEnum):
    """``closed``: requests go through; ``open``: none does; ``half-open``: one at a time does, to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Signal(StrEnum):
    """What a breaker is told. ``tripped``: a failure with which there are too many; ``waited``: it was open long enough."""

    SUCCESS = "success"
    FAILURE = "failure"
    TRIPPED = "tripped"
    WAITED = "waited"


TABLE: dict[tuple[State, Signal], State] = {
    (State.CLOSED, Signal.SUCCESS): State.CLOSED,
    (State.CLOSED, Signal.FAILURE): State.CLOSED,
    (State.CLOSED, Signal.TRIPPED): State.OPEN,
    (State.OPEN, Signal.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Signal.SUCCESS): State.CLOSED,
    (State.HALF_OPEN, Signal.FAILURE): State.OPEN,
    (State.HALF_OPEN, Signal.TRIPPED): State.OPEN,
}
"""Where a signal leads. In a state without it, a signal cannot come: nothing is asked while it is open."""


class Thresholds(NamedTuple):
    """``window``: answers looked at; it opens when ``failures`` of them and a ``share`` of them failed, for ``seconds``."""

    window: int = 20
    failures: int = 5
    share: float = 0.5
    seconds: float = 2.0


DEFAULT_THRESHOLDS = Thresholds()


class Permit(NamedTuple):
    """Leave for one request. ``term``: numbers the breaker's changes of state; ``probe``: it is the one that decides."""

    term: int
    probe: bool


class Breaker:
    """One upstream's breaker. Not for several threads; times are monotonic seconds."""

    def __init__(self, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        self._thresholds = thresholds
        self._last: deque[bool] = deque(maxlen=thresholds.window)
        self._state = State.CLOSED
        self._term = 0
        self._until = 0.0
        self._probing = False

    def state(self, now: float) -> State:
        """The state at ``now``."""
        if self._state is State.OPEN and now >= self._until:
            self._step(Signal.WAITED, now)
        return self._state

    def wait(self, now: float) -> float:
        """Seconds until asking again can help; 0 = it can now."""
        return max(0.0, self._until - now) if self.state(now) is State.OPEN else 0.0

    def enter(self, now: float) -> Permit:
        """Leave for a request. Raises Unavailable (open; or half-open, and another request is seeing)."""
        state = self.state(now)
        if state is State.OPEN:
            raise Unavailable(f"it failed too often and is left alone for {max(0.1, self._until - now):.1f} s more")
        if state is State.HALF_OPEN:
            if self._probing:
                raise Unavailable("it failed too often, and another request is seeing whether it is back")
            self._probing = True
        return Permit(self._term, state is State.HALF_OPEN)

    def succeeded(self, permit: Permit, now: float) -> None:
        """The request was answered, with whatever."""
        self._settle(permit, now, failed=False)

    def failed(self, permit: Permit, now: float) -> None:
        """The request was not answered, or with something that is no answer."""
        self._settle(permit, now, failed=True)

    def abandoned(self, permit: Permit) -> None:
        """Whoever asked went away: nothing is known. Idempotent, also after ``succeeded`` and ``failed``."""
        if permit.term == self._term and permit.probe:
            self._probing = False

    def _settle(self, permit: Permit, now: float, *, failed: bool) -> None:
        if permit.term != self._term:
            return
        self._last.append(failed)
        if not failed:
            self._step(Signal.SUCCESS, now)
            return
        bad, bounds = sum(self._last), self._thresholds
        tripped = bad >= bounds.failures and bad >= bounds.share * len(self._last)
        self._step(Signal.TRIPPED if tripped else Signal.FAILURE, now)

    def _step(self, signal: Signal, now: float) -> None:
        after = TABLE[self._state, signal]
        if after is not self._state:
            self._state = after
            self._term += 1
            self._probing = False
            if after is State.OPEN:
                self._until = now + self._thresholds.seconds
            self._last.clear()
