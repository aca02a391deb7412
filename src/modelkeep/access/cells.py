"""What is counted for one limit of one key, and where: in this process alone, or (``leases``) on leases from a shared place."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from modelkeep.access.rates import ACCOUNT, ACCOUNT_MODEL, ADDRESS, KEY, MODEL, ROWS, TIME, Rate
from modelkeep.errors import OverBudget

TABLE_SIZE = 262_144
"""Cells that one process holds."""
_ROUNDING = 1e-6  # seconds: rounding must not refuse what a limit allows exactly
_SWEEP = 1.0  # seconds between two searches of a full table for cells to forget
_SPENT = {
    ACCOUNT: "too many requests of this account",
    KEY: "too many requests with this credential",
    ADDRESS: "too many requests from this address",
    ROWS: "too many rows of this account",
    TIME: "this account took too much of the models' time",
    MODEL: "everybody together asks this model too much",
    ACCOUNT_MODEL: "this account asks this model too much",
}


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How far a limit is from its end: ``left`` units; all of it is there again in ``reset`` seconds."""

    rate: Rate
    left: float
    reset: float


class Cell(Protocol):
    """What is counted for one limit of one key. Touched with the lock of its ``Cells`` held."""

    rate: Rate

    def take(self, units: float, now: float) -> bool:
        """Use ``units``, or none: False says that the place that counts must be asked for more first.

        Raises OverBudget, or Unavailable, when asking would not help.
        """
        ...

    def put_back(self, units: float) -> None:
        """Undo ``take``: something else was refused."""
        ...

    def left(self, now: float) -> float:
        """Units that may be used now."""
        ...

    def reset(self, now: float) -> float:
        """Seconds until all of the limit is there again, if nothing is used."""
        ...


class Cells(Protocol):
    """Where cells come from. ``forgotten`` rises when cells were dropped: those that somebody still holds count no more."""

    lock: threading.Lock
    forgotten: int

    def cell(self, rate: Rate, key: str) -> Cell:
        """The cell of ``key``, made when it is new; with the lock held. Raises Unavailable (no room for more)."""
        ...

    async def supply(self, wanted: Sequence[tuple[Cell, float]]) -> None:
        """Ask for units that are missing, once. Raises Unavailable."""
        ...

    def check(self) -> None:
        """Raise Unavailable when the place that counts cannot be reached."""
        ...


class Schedule:
    """A cell counted in this process alone: the generic cell rate algorithm (``limits.gcra``), in units instead of cells.

    Its schedule may run ahead by as long as the whole burst takes, what is asked included; so in any t seconds no more than
    burst + rate·t units are used, whatever single requests weigh.
    """

    __slots__ = ("_interval", "_tat", "_whole", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._interval = 1.0 / rate.per_second
        self._whole = rate.window
        self._tat = 0.0

    def take(self, units: float, now: float) -> bool:
        """Use ``units``. Raises OverBudget: there is nobody else to ask."""
        tat = self._tat
        if tat < now:  # noqa: PLR1730  # max() costs as much as all the rest
            tat = now
        after = tat + units * self._interval
        if after > now + self._whole + _ROUNDING:
            raise refusal(self.rate, after - self._whole - now)
        self._tat = after
        return True

    def put_back(self, units: float) -> None:
        """Undo ``take``."""
        self._tat -= units * self._interval

    def left(self, now: float) -> float:
        """Units that may be used now."""
        ahead = self._tat - now
        return (self._whole - ahead if ahead > 0.0 else self._whole) / self._interval

    def reset(self, now: float) -> float:
        """Seconds until all of the limit is there again."""
        return max(0.0, self._tat - now)

    def idle(self, now: float) -> bool:
        """Whether nothing is lost by forgetting it."""
        return self._tat <= now


class Schedules:
    """Cells counted in this process alone, in a bounded table. Beyond it all new keys of a limit share one schedule."""

    def __init__(self, monotonic: Callable[[], float], size: int = TABLE_SIZE) -> None:
        self._monotonic, self._size = monotonic, size
        self._table: dict[tuple[Rate, str], Schedule] = {}
        self._shared: dict[Rate, Schedule] = {}
        self._swept = float("-inf")
        self.lock = threading.Lock()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._table)

    def cell(self, rate: Rate, key: str) -> Schedule:
        """The schedule of ``key``; when the table is full of keys in use, the one that the others share."""
        found = self._table.get((rate, key))
        if found is None:
            if len(self._table) >= self._size:
                self._forget_idle()
            if len(self._table) >= self._size:
                return self._shared.setdefault(rate, Schedule(rate))
            found = self._table[rate, key] = Schedule(rate)
        return found

    async def supply(self, wanted: Sequence[tuple[Cell, float]]) -> None:
        """There is nobody to ask, and nobody who would: ``take`` never says False."""

    def check(self) -> None:
        """All of it is here."""

    def _forget_idle(self) -> None:
        now = self._monotonic()
        if now < self._swept + _SWEEP:
            return
        self._swept = now
        kept = {key: cell for key, cell in self._table.items() if not cell.idle(now)}
        if len(kept) < len(self._table):
            self._table = kept
            self.forgotten += 1


def refusal(rate: Rate, wait: float) -> OverBudget:
    """What whoever is over ``rate`` is told."""
    wait = max(wait, 0.0)
    return OverBudget(f"{_SPENT[rate.name]}: try again in {wait:.3g} s", wait, rate.name, rate.terms)
