"""Leases: units of shared limits that this process holds for a moment, so that a request waits for nobody.

A thread asks the place that counts (``Allowances``) for more, before what is held runs dry: when half of a lease is used, and
before one in use ends. A request that finds none waits for one exchange at most. What is granted is debited there at once, so
what is never used, of an idle or a killed process, was not let through either: N processes exceed a limit by no more than what
they held at that moment, one lease each. A lease ends ``Grants.until`` (a second): a place that is gone stops everybody then.
"""

import asyncio
import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Sequence

from modelkeep.access.cells import TABLE_SIZE, Cell, refusal
from modelkeep.access.rates import Rate
from modelkeep.core.ports import Allowances, Given, Grants, Want
from modelkeep.errors import ModelkeepError, Unavailable

EVERY = 0.05
"""Seconds between two looks at which leases are low, unless somebody waits for one."""
SHARE = 8
"""No lease is larger than this part of the burst (but for one request that weighs more)."""
IDLE = 0.5
"""Seconds without a request after which a lease is not renewed."""
MOST_AT_ONCE = 512
"""Limits that are asked about in one exchange."""
LONGEST_USE = 2.0
"""Seconds for which a request may hold on to a lease that it waits for: no other one of the same limit is made meanwhile."""

_RENEW = 0.4  # seconds before its end at which a lease in use is renewed
_BUSY = 0.1  # a lease that is half used within this many seconds was too small
_SWEEP = 1.0  # seconds between two searches of a full table for leases to forget
_PAUSE = 0.1  # seconds for which nobody is asked again after a failure
_LONGEST_REFUSAL = 1.0  # seconds after which a refusal is looked at anew: others may have given back what they held

Done = Callable[[ModelkeepError | None], None]


def largest(rate: Rate) -> float:
    """Units of the largest lease of ``rate``: how far one process can exceed it."""
    return max(1.0, rate.burst / SHARE)


class Lease:
    """Units of one limit in hand. ``beyond``: what the place had left when it granted; ``size``: how much is asked for."""

    __slots__ = (
        "asked", "beyond", "free_at", "granted_at", "held", "lost", "name", "owner", "rate", "refused", "refused_until", "size",
        "until", "used_at",
    )  # fmt: skip

    def __init__(self, owner: "Leases", rate: Rate, name: str) -> None:
        self.owner, self.rate, self.name = owner, rate, name
        self.held = self.beyond = 0.0
        self.until = self.refused_until = self.free_at = self.granted_at = self.used_at = -math.inf
        self.refused = math.inf
        self.size = 1.0
        self.asked = self.lost = False

    def take(self, units: float, now: float) -> bool:
        """Use ``units`` of the lease in hand. Raises OverBudget or Unavailable when the place has just said no."""
        self.used_at = now
        if now < self.until and units <= self.held:
            self.held -= units
            if self.held + self.held < self.size and not self.asked:
                self.owner.ask_soon(self)
            return True
        if now < self.refused_until and units >= self.refused:
            if self.lost:
                raise _lost(self.free_at - now)
            raise refusal(self.rate, self.free_at - now)
        return False

    def put_back(self, units: float) -> None:
        """Undo ``take``."""
        self.held += units

    def left(self, now: float) -> float:
        """Units in hand, and what the place had left besides."""
        return (self.held if now < self.until else 0.0) + self.beyond

    def reset(self, now: float) -> float:
        """Seconds until all of the limit is there again, as far as is known here."""
        return max(0.0, (self.rate.burst - self.left(now)) / self.rate.per_second)

    def want(self, need: float, now: float) -> Want:
        """What to ask for, so that ``need`` and a lease of the right size are in hand."""
        held = self.held if now < self.until else 0.0
        return Want(self.name, self.rate.per_second, self.rate.burst, need, max(need, self.size - held, 0.0))

    def receive(self, given: Given, until: float, now: float) -> None:
        """Take what the place said. A successful exchange renews what is held, whether or not there was more to have."""
        if now >= self.until:
            self.held = 0.0
        if given.wait > 0.0:
            self.free_at, self.lost = now + given.wait, given.lost
            self.refused_until = min(self.free_at, now + _LONGEST_REFUSAL)
        self.held += given.units
        self.beyond, self.until = max(0.0, given.room), until
        if given.units > 0.0:
            self.refused_until = -math.inf
            self._resize(now)

    def _resize(self, now: float) -> None:
        """Twice as much when it lasted a moment only, half as much when it lasted long."""
        if now - self.granted_at < _BUSY:
            self.size = min(self.size * 2.0, largest(self.rate))
        elif now - self.granted_at > 4 * _BUSY:
            self.size = max(self.size / 2.0, 1.0)
        self.granted_at = now


def _lost(wait: float) -> Unavailable:
    return Unavailable(f"it was lost what had been granted of this limit: nothing is until its window ends, in {wait:.3g} s")


class Leases:
    """The leases of one process (``Cells``). ``start`` and ``stop`` its thread; or call ``work`` yourself."""

    def __init__(self, place: Allowances, monotonic: Callable[[], float], *, size: int = TABLE_SIZE) -> None:
        self._place, self._monotonic, self._size = place, monotonic, size
        self._table: dict[tuple[Rate, str], Lease] = {}
        self._low: dict[Lease, None] = {}
        self._active: dict[Lease, None] = {}  # those with an end, the earliest end first
        self._waiting: list[tuple[Sequence[tuple[Lease, float]], Done]] = []
        self._epoch = ""
        self._failed_at = -math.inf
        self._failure = "limits were not asked about yet"
        self._reached_at = -math.inf
        self._wake = threading.Event()
        self._stopped = False
        self._swept = -math.inf
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self.lock = threading.Lock()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._table)

    # -- what Limits sees --

    def cell(self, rate: Rate, key: str) -> Lease:
        """The lease of ``key``, with the lock held. Raises Unavailable (too many are in use)."""
        found = self._table.get((rate, key))
        if found is None:
            if len(self._table) >= self._size:
                self._forget_idle()
            if len(self._table) >= self._size:
                raise Unavailable("too many accounts and keys ask at once: ask again in a moment")
            found = self._table[rate, key] = Lease(self, rate, f"{_place_name(rate)}/{key}")
        return found

    async def supply(self, wanted: Sequence[tuple[Cell, float]]) -> None:
        """Wait for one exchange that asks for what is missing. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def done(failure: ModelkeepError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, future, failure)

        self.ask([(lease, units) for lease, units in wanted if isinstance(lease, Lease)], done)
        await future

    def check(self) -> None:
        """Raise Unavailable when the last exchange failed."""
        if self._failed_at > self._reached_at:
            raise Unavailable(self._failure)

    def ask_soon(self, lease: Lease) -> None:
        """Have ``lease`` topped up; with the lock held."""
        lease.asked = True
        self._low[lease] = None
        self._wake.set()

    def ask(self, wanted: Sequence[tuple[Lease, float]], done: Done) -> None:
        """Have the next exchange ask for what is missing of ``wanted``, and tell ``done`` how it went, in any thread."""
        with self.lock:
            failure = self._refusing()
            if failure is None:
                self._waiting.append((wanted, done))
                self._wake.set()
        if failure is not None:
            done(failure)

    def _refusing(self) -> Unavailable | None:
        """Why nobody is asked just now."""
        if self._stopped:
            return Unavailable("this process is stopping")
        return Unavailable(self._failure) if self._monotonic() < self._failed_at + _PAUSE else None

    # -- the exchange --

    def work(self) -> bool:
        """One exchange: what somebody waits for, what is low, what ends soon. Whether there may be more to do at once."""
        now = self._monotonic()
        with self.lock:
            waiting, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            failure: ModelkeepError | None = self._refusing()
            asking = self._wanted(waiting, now) if failure is None else []
        if asking:
            failure = self._exchange(asking)
        for _, done in waiting:
            done(failure)
        return bool(self._waiting or (self._low and failure is None))

    def _wanted(self, waiting: Sequence[tuple[Sequence[tuple[Lease, float]], Done]], now: float) -> list[tuple[Lease, Want]]:
        needs = _needs(waiting, now)
        for lease in list(self._low)[: max(0, MOST_AT_ONCE - len(needs))]:
            del self._low[lease]
            needs.setdefault(lease, (0.0, 0.0))
        return [(lease, _enough(lease.want(least, now), all_of_it)) for lease, (least, all_of_it) in needs.items()]

    def _exchange(self, asking: Sequence[tuple[Lease, Want]]) -> ModelkeepError | None:
        try:
            grants = self._place.grant([want for _, want in asking])
        except ModelkeepError as cause:  # also of what it remembers elsewhere: limits cannot be counted, whatever it is
            with self.lock:
                self._failed_at, self._failure = self._monotonic(), str(cause)
                for lease, _ in asking:
                    lease.asked = False
            return Unavailable(self._failure)
        with self.lock:
            self._receive(asking, grants)
        return None

    def _receive(self, asking: Sequence[tuple[Lease, Want]], grants: Grants) -> None:
        now = self._reached_at = self._monotonic()
        if grants.epoch != self._epoch:
            self._epoch = grants.epoch
            self._drop_all()
        for (lease, want), given in zip(asking, grants.given, strict=True):
            lease.asked = False
            lease.refused = want.need if given.wait > 0.0 else math.inf
            lease.receive(given, grants.until, now)
            self._active.pop(lease, None)
            self._active[lease] = None

    def _drop_all(self) -> list[tuple[Want, float]]:
        held = [(lease.want(0.0, math.inf), lease.held) for lease in self._active if lease.held > 0.0]
        for lease in self._active:
            lease.held, lease.until = 0.0, -math.inf
        self._active.clear()
        return held

    def tend(self) -> None:
        """Have leases renewed that are in use and end soon, give back what ended unused, and stay in touch."""
        now = self._monotonic()
        back: list[tuple[Want, float]] = []
        with self.lock:
            for lease in list(itertools.takewhile(lambda lease: now >= lease.until - _RENEW, self._active)):
                if now >= lease.until:
                    del self._active[lease]
                    if lease.held > 0.0:
                        back.append((lease.want(0.0, now), lease.held))
                        lease.held = 0.0
                elif now < lease.used_at + IDLE and not lease.asked:
                    self.ask_soon(lease)
            epoch = self._epoch
        if back:
            self._give_back(epoch, back)
        if now >= max(self._reached_at, self._failed_at) + IDLE:
            self._exchange([])

    def give_back(self) -> None:
        """Return all that is held, at a graceful stop. Raises Unavailable: it comes back by itself."""
        with self.lock:
            back, epoch = self._drop_all(), self._epoch
        for at in range(0, len(back), MOST_AT_ONCE):
            self._place.give_back(epoch, back[at : at + MOST_AT_ONCE])

    def _give_back(self, epoch: str, back: Sequence[tuple[Want, float]]) -> None:
        try:
            for at in range(0, len(back), MOST_AT_ONCE):
                self._place.give_back(epoch, back[at : at + MOST_AT_ONCE])
        except Unavailable:
            return  # it comes back by itself

    def _forget_idle(self) -> None:
        now = self._monotonic()
        if now < self._swept + _SWEEP:
            return
        self._swept = now
        kept = {
            way: lease
            for way, lease in self._table.items()
            if lease.asked or now < max(lease.until, lease.used_at + LONGEST_USE)
        }
        if len(kept) < len(self._table):
            self._table = kept
            self.forgotten += 1

    # -- the thread --

    def start(self) -> None:
        """Ask from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, return what is held, let go of the place. Raises Unavailable (it could not be returned)."""
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self.give_back()
        finally:
            self._place.close()

    def _run(self) -> None:
        try:
            self._ask_until_stopped()
        finally:
            self._end()

    def _ask_until_stopped(self) -> None:
        tended = self._monotonic()
        while not self._stopped:
            self._wake.wait(EVERY)
            self._wake.clear()
            while self.work() and not self._stopped:
                continue
            if self._monotonic() >= tended + EVERY:
                self.tend()
                tended = self._monotonic()

    def _end(self) -> None:
        """However the thread ends, nobody waits for it any more."""
        with self.lock:
            if not self._stopped:
                self._failed_at, self._failure = math.inf, "the thread that asks for limits died: restart this process"
            waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done(self._refusing())


def _place_name(rate: Rate) -> str:
    return rate.name if rate.share == 1.0 else f"{rate.name}@{rate.share:g}"


def _needs(waiting: Sequence[tuple[Sequence[tuple[Lease, float]], Done]], now: float) -> dict[Lease, tuple[float, float]]:
    """For each lease that somebody waits for: the least that one of them needs, and what all of them need."""
    needs: dict[Lease, tuple[float, float]] = {}
    for wanted, _ in waiting:
        for lease, units in wanted:
            least, all_of_it = needs.get(lease, (math.inf, 0.0))
            needs[lease] = (min(least, units), all_of_it + units)
    return {lease: need for lease, need in needs.items() if now >= lease.until or lease.held < need[1]}


def _enough(want: Want, all_of_it: float) -> Want:
    return want._replace(want=max(want.want, all_of_it))


def _settle(future: asyncio.Future[None], failure: ModelkeepError | None) -> None:
    if future.done():  # the request was cut off
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
