"""Limits counted in the memory of one process, which may lease them to others; and what every such place does, as a formula."""

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelkeep.core.ports import Given, Grants, Want

LEASE = 1.0
"""Seconds for which a lease may be used, counted from before it was asked for (promise P5)."""

_SWEEP = 4096  # grants between two searches for limits that are whole again
_numbers = itertools.count(1)


class Decided(NamedTuple):
    """What a place says, and the limit's schedule (theoretical arrival time, seconds) from then on."""

    tat: float
    given: Given


def decide(want: Want, tat: float, now: float, born: float) -> Decided:
    """Grant as much of ``want`` as the schedule ``tat`` allows at ``now``, all in seconds: GCRA, several units at once.

    ``born``: since when the place knows what it granted; what came before is unknown, so nothing is granted until a window that
    was full then has passed. -inf: it has always known. (``limits.gcra``; redis.py has the same in Lua.)
    """
    interval = 1.0 / want.rate
    opens = born + want.burst * interval
    if now < opens:
        return Decided(tat, Given(0.0, 0.0, opens - now, lost=True))
    start = max(tat, now)
    room = want.burst - (start - now) / interval
    if room < want.need - 1e-6:
        return Decided(tat, Given(0.0, room, (want.need - room) * interval))
    units = want.need + max(0, math.floor(min(want.want, room) - want.need + 1e-6))
    return Decided(start + units * interval, Given(units, room - units, 0.0))


class MemoryAllowances:
    """``Allowances`` in this process. Safe to use from several threads, one for each process that leases from here.

    ``lost``: an earlier one of this keep, on which leases may be in use, has ended without saying what it had granted.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, *, lost: bool = False) -> None:
        self._monotonic = monotonic
        self._tats: dict[str, float] = {}
        self._lock = threading.Lock()
        self._grants = 0
        self._begin(self._monotonic() if lost else -math.inf)

    def _begin(self, born: float) -> None:
        self._born, self._epoch = born, f"memory-{os.getpid()}-{time.monotonic_ns()}-{next(_numbers)}"
        self._tats.clear()

    def forget(self) -> None:
        """Lose everything."""
        with self._lock:
            self._begin(self._monotonic())

    def grant(self, wants: Sequence[Want]) -> Grants:
        """Lease units of several limits."""
        with self._lock:
            now = self._monotonic()
            given = []
            for want in wants:
                decided = decide(want, self._tats.get(want.name, -math.inf), now, self._born)
                if decided.tat > now:
                    self._tats[want.name] = decided.tat
                given.append(decided.given)
            self._sweep(len(wants), now)
            return Grants(now + LEASE, self._epoch, tuple(given))

    def give_back(self, epoch: str, units: Sequence[tuple[Want, float]]) -> None:
        """Return what was not used."""
        with self._lock:
            if epoch == self._epoch:
                for want, count in units:
                    if want.name in self._tats:
                        self._tats[want.name] -= count / want.rate

    def close(self) -> None:
        """There is nothing to let go of."""

    def _sweep(self, grants: int, now: float) -> None:
        self._grants += grants
        if self._grants >= _SWEEP + len(self._tats):
            self._grants = 0
            self._tats = {name: tat for name, tat in self._tats.items() if tat > now}
