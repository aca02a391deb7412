"""Rate limits: the generic cell rate algorithm (GCRA) and a bounded table of it.

Source: ITU-T I.371, Annex A (virtual scheduling). Times come from the monotonic clock, so setting the wall clock unlocks
nothing. The state is of this process: N gateways allow N times the rate. (What is counted over all of them is the quota.)
"""

import ipaddress
import threading
from collections.abc import Callable

from modelkeep.errors import OverBudget

TABLE_SIZE = 65_536
"""Keys that one limiter tracks; further ones share a single allowance until the table has room."""

_SWEEP = 1.0  # seconds between two searches of a full table for keys to forget
_ROUNDING = 1e-6  # seconds: rounding must not refuse the request that the bound allows exactly


def gcra(tat: float, now: float, cost: float, tolerance: float) -> tuple[float, float]:
    """One request in the virtual scheduling algorithm, everything in seconds.

    Args:
        tat: theoretical arrival time kept for this key; 0 when it was never seen.
        now: arrival time.
        cost: emission interval T times the weight of the request.
        tolerance: τ, how far ahead of ``now`` the schedule may run; (burst - 1)·T lets ``burst`` requests come at once.
    Returns: (the new ``tat``, 0.0) when the request conforms, else (``tat`` unchanged, seconds to wait).
    """
    start = tat if tat > now else now
    wait = start - now - tolerance
    if wait > _ROUNDING:
        return tat, wait
    return start + cost, 0.0


def address_key(address: str) -> str:
    """What an address is limited under: an IPv6 address counts as its /64 (one customer has that many), junk as itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed.packed[:8] + bytes(8), 64)))


class Limiter:
    """``rate`` requests a second with bursts of ``burst``, per key. Safe to use from several threads."""

    def __init__(self, monotonic: Callable[[], float], *, rate: float, burst: int, what: str, size: int = TABLE_SIZE) -> None:
        """``what``: who is limited, for the message ("requests of this account")."""
        self._monotonic = monotonic
        self._interval = 1.0 / rate
        self._tolerance = (burst - 1) * self._interval
        self._what = what
        self._size = size
        self._table: dict[str, float] = {}
        self._overflow = 0.0
        self._swept = float("-inf")
        self._lock = threading.Lock()

    def take(self, key: str, slower: float = 1.0) -> None:
        """Count one request of ``key``; ``slower`` = 10 makes it weigh ten. Raises OverBudget (and counts nothing)."""
        now = self._monotonic()
        with self._lock:
            tat = self._table.get(key)
            if tat is None:
                wait = self._take_unseen(key, now, slower)
            else:
                self._table[key], wait = gcra(tat, now, self._interval * slower, self._tolerance)
        if wait:
            raise self._refusal(wait)

    def check(self, key: str) -> None:
        """Raise OverBudget if a request of ``key`` would be refused now; counts nothing."""
        now = self._monotonic()
        wait = gcra(self._table.get(key, 0.0), now, self._interval, self._tolerance)[1]
        if wait:
            raise self._refusal(wait)

    def charge(self, key: str) -> None:
        """Count one request of ``key`` whatever the limit says, but never further ahead than one refused request."""
        try:
            self.take(key)
        except OverBudget:
            return  # the next check refuses, which is all that charging is for

    def _take_unseen(self, key: str, now: float, slower: float) -> float:
        if len(self._table) >= self._size:
            self._drop_idle(now)
        if len(self._table) >= self._size:
            self._overflow, wait = gcra(self._overflow, now, self._interval * slower, self._tolerance)
            return wait
        self._table[key], wait = gcra(0.0, now, self._interval * slower, self._tolerance)
        return wait

    def _drop_idle(self, now: float) -> None:
        """Forget keys whose allowance is whole again: nothing is lost by it."""
        if now < self._swept + _SWEEP:
            return
        self._swept = now
        self._table = {key: tat for key, tat in self._table.items() if tat > now}

    def _refusal(self, wait: float) -> OverBudget:
        return OverBudget(f"too many {self._what}: try again in {wait:.3g} s", wait)
