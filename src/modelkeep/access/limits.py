"""Rate limits: the generic cell rate algorithm (GCRA), a bounded table of it, and every limit on predictions together.

Source: ITU-T I.371, Annex A (virtual scheduling). Times come from the monotonic clock, so setting the wall clock unlocks
nothing. Where the limits of accounts, credentials and models are counted is a matter of ``cells``: in this process, or for all
replicas at one place.
"""

import ipaddress
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from modelkeep.access.cells import Cell, Cells, Schedule, Schedules, Standing, refusal
from modelkeep.access.rates import IN_FLIGHT, REQUESTS, Rate, Rates
from modelkeep.core.values import Principal
from modelkeep.errors import ModelkeepError, OverBudget, TooLarge, Unavailable

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


_ANY = float(1 << 60)
Way = TypeVar("Way")
_PATHS = 65_536  # remembered ways from who asks to the cells that count it
_ONES = (1.0, 1.0)


class Limits:
    """Every limit on predictions. Those that are checked together are all debited, or none is. Safe in several threads."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        rates: Rates,
        *,
        in_flight: int = 0,
        in_flight_total: int = 0,
        cells: Cells | None = None,
    ) -> None:
        """``in_flight``, ``in_flight_total``: requests of one account, and of all, that may be handled at once; 0 = any number.

        ``cells``: where the limits of accounts, credentials and models are counted; None = in this process.
        """
        self._monotonic, self._rates = monotonic, rates
        self._here = Schedules(monotonic)
        self._cells: Cells = Schedules(monotonic) if cells is None else cells
        self._address = rates.of_address()
        self._addresses: dict[str, Schedule] = {}
        self._addresses_of = 0  # what ``_here.forgotten`` was when they were looked up
        self._asking: dict[tuple[str, str], tuple[Cell, ...]] = {}
        self._using: dict[tuple[str, str, float], tuple[Cell, ...]] = {}
        self._forgotten = self._cells.forgotten
        self._most, self._most_in_all = in_flight or _ANY, in_flight_total or _ANY
        self._flying: dict[str, int] = {}
        self._flying_in_all = 0

    # -- before anybody is known --

    def knock(self, address: str) -> None:
        """Count one request or connection from ``address``. Raises OverBudget.

        Counted in this process alone: who has shown no credential makes no work for anybody else.
        """
        if self._address is None:
            return
        now = self._monotonic()
        with self._here.lock:
            (self._addresses.get(address) or self._caller_at(self._address, address)).take(1.0, now)

    def _caller_at(self, rate: Rate, address: str) -> Schedule:
        found = self._here.cell(rate, address_key(address))
        if len(self._addresses) >= _PATHS or self._addresses_of != self._here.forgotten:
            self._addresses_of = self._here.forgotten
            self._addresses.clear()
        self._addresses[address] = found
        return found

    # -- requests in flight --

    def enter(self, subject: str) -> None:
        """A request of ``subject`` begins; ``leave`` must follow. Raises OverBudget (its own are too many), Unavailable."""
        with self._here.lock:
            mine = self._flying.get(subject, 0)
            if mine >= self._most:
                terms = f'q={self._most};qu="concurrent-requests"'
                raise OverBudget(f"{mine} requests of this account are being handled: wait for one", 0.1, IN_FLIGHT, terms)
            if self._flying_in_all >= self._most_in_all:
                raise Unavailable("too many requests are being handled at once: ask again in a moment")
            self._flying[subject] = mine + 1
            self._flying_in_all += 1

    def leave(self, subject: str) -> None:
        """A request that entered has ended, however it did."""
        with self._here.lock:
            left = self._flying[subject] - 1
            self._flying_in_all -= 1
            if left:
                self._flying[subject] = left
            else:
                del self._flying[subject]

    # -- what is asked --

    async def admit(self, principal: Principal, credential: str) -> Sequence[Cell]:
        """Count one request of an account, made with what is counted as ``credential``; returns what counted it.

        Raises OverBudget, Unavailable.
        """
        cells = self._asking.get((principal.subject, credential))
        if cells is None:
            cells = self._path(
                self._asking,
                (principal.subject, credential),
                (self._rates.of_account(principal.account), principal.subject),
                (self._rates.of_key(credential), credential),
            )
        if not self._take_held(cells, _ONES):
            await self._fetch(cells, _ONES)
        return cells

    async def take(self, principal: Principal, model: str, units: float, share: float = 1.0) -> Sequence[Cell]:
        """Count ``units`` (``row_cost`` times rows) of ``model`` for an account that was admitted; returns what counted them.

        ``share``: of its limits it has this share only (``rate`` of the extraction ladder): request and units are then counted
        on lowered limits, too. Raises OverBudget, TooLarge (more at once than a limit ever allows), Unavailable.
        """
        cells = self._using.get((principal.subject, model, share))
        if cells is None:
            cells = self._using_path(principal, model, share)
        weights: Sequence[float] = (units, units, units)
        if share < 1.0:
            weights = [1.0 if cell.rate.unit == REQUESTS else units for cell in cells]
        if units > 1.0:
            _check_size(cells, units)
        if not self._take_held(cells, weights):
            await self._fetch(cells, weights)
        return cells

    def _using_path(self, principal: Principal, model: str, share: float) -> tuple[Cell, ...]:
        rates, subject = self._rates, principal.subject
        own = [
            (rates.of_cost(principal.account), subject),
            (rates.of_account_model(model), f"{model}/{subject}"),
        ]
        lowered: list[tuple[Rate | None, str]] = []
        if share < 1.0:
            own_and_requests = [*own, (rates.of_account(principal.account), subject)]
            lowered = [(rate.lowered(share), key) for rate, key in own_and_requests if rate is not None]
        return self._path(self._using, (subject, model, share), *own, (rates.of_model(model), model), *lowered)

    def tightest(self, cells: Iterable[Cell]) -> Standing | None:
        """Of the limits that counted a request, the one that has the fewest units left; None when nothing is limited."""
        now = self._monotonic()
        least, nearest = _ANY, None
        for cell in cells:
            left = cell.left(now)
            if left < least:
                least, nearest = left, cell
        return None if nearest is None else Standing(nearest.rate, max(least, 0.0), nearest.reset(now))

    def row_cost(self, model: str, row_seconds: float) -> float:
        """Units that one row of ``model`` weighs; ``row_seconds``: what it was measured to take."""
        return self._rates.row_cost(model, row_seconds)

    def look(self, principal: Principal) -> None:
        """Count one question about what there is: at the account's rate, in this process. Raises OverBudget."""
        rate = self._rates.of_account(principal.account)
        if rate is None:
            return
        now = self._monotonic()
        with self._here.lock:
            self._here.cell(rate, principal.subject).take(1.0, now)

    @property
    def in_flight(self) -> int:
        """Requests that are being handled now."""
        return self._flying_in_all

    def trouble(self) -> str:
        """Why limits cannot be counted, "" while they can."""
        try:
            self._cells.check()
        except Unavailable as cause:
            return str(cause)
        return ""

    def check(self) -> None:
        """Raise Unavailable when the place that counts cannot be reached."""
        self._cells.check()

    def _take_held(self, cells: Sequence[Cell], weights: Sequence[float]) -> bool:
        """Use all, or none; False when leases are missing. There may be more weights than cells."""
        now = self._monotonic()
        done = 0
        with self._cells.lock:
            try:
                for cell, weight in zip(cells, weights):  # noqa: B905
                    if not cell.take(weight, now):
                        break
                    done += 1
                else:
                    return True
            except ModelkeepError:
                _undo(cells[:done], weights)
                raise
            _undo(cells[:done], weights)
            return False

    async def _fetch(self, cells: Sequence[Cell], weights: Sequence[float]) -> None:
        await self._cells.supply(list(zip(cells, weights)))  # noqa: B905
        if not self._take_held(cells, weights):  # others who waited took what came
            raise refusal(cells[0].rate, 0.1)

    def _path(self, table: dict[Way, tuple[Cell, ...]], way: Way, *limits: tuple[Rate | None, str]) -> tuple[Cell, ...]:
        """The cells of ``limits``, remembered until cells are forgotten."""
        found = self._cells_of(*limits)
        if self._forgotten != self._cells.forgotten or len(table) >= _PATHS:
            found = self._cells_of(*limits)  # making the last of them may have forgotten the first
            self._forgotten = self._cells.forgotten
            self._asking.clear()
            self._using.clear()
        table[way] = found
        return found

    def _cells_of(self, *limits: tuple[Rate | None, str]) -> tuple[Cell, ...]:
        with self._cells.lock:
            return tuple(self._cells.cell(rate, key) for rate, key in limits if rate is not None)


def _undo(cells: Iterable[Cell], weights: Iterable[float]) -> None:
    for cell, weight in zip(cells, weights):  # noqa: B905  # there may be more weights than cells
        cell.put_back(weight)


def _check_size(cells: Iterable[Cell], units: float) -> None:
    """Raise TooLarge for what a limit would never let through, however long it waits."""
    for cell in cells:
        if units > cell.rate.burst and cell.rate.unit != REQUESTS:
            raise TooLarge(
                f"this request is {units:,.6g} {cell.rate.unit} at once, and its limit ({cell.rate.name}) lets through "
                f"{cell.rate.burst:,.6g} at most: send smaller batches"
            )
