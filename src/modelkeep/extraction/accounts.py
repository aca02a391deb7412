"""What is held about each account: the ones that asked last in memory, the coldest elsewhere, at a fixed size each."""

from collections import OrderedDict
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Cold
from modelkeep.errors import NotTrusted, Unavailable
from modelkeep.extraction import budget, null, places

REMEMBERED = 1024
"""Fingerprints of an account's last distinct queries, for exact repeats."""
FAR = 1000.0
"""Coordinate of an empty place in an account's memory."""
WIDE = 512
"""Accounts whose last places are held ready to be compared with, as float32, 16 KB each: widening them costs as much again."""

_SCALARS = 11


class Account:
    """One account's state, about 20 KB: bets and budget, and its last queries, which the next one is compared with.

    ``names``: fingerprints, (1024,); ``own``: places of its last 128 distinct queries;
    ``inverse``: A^-1 of the budget; ``stakes``: (2, bets), kept and restarted; ``period``: number of the budget period.
    """

    __slots__ = (
        "alarmed_at",
        "calibrations",
        "charged",
        "effective",
        "inverse",
        "names",
        "own",
        "period",
        "queries",
        "reviews",
        "since",
        "spent",
        "stakes",
        "value",
    )

    def __init__(self, bets: int) -> None:
        self.stakes = np.zeros((2, bets))
        self.names = np.zeros(REMEMBERED, dtype=np.uint64)
        self.own = np.full((null.OWN, places.DIMENSIONS), FAR, dtype=np.float16)
        self.inverse = np.eye(budget.DIMENSIONS, dtype=np.float32)
        self.queries = self.effective = self.since = self.reviews = self.alarmed_at = self.calibrations = self.period = 0
        self.spent = self.charged = 0.0
        self.value = 0.5
        self.stakes[0] = 1.0

    def remembers(self, name: np.uint64) -> bool:
        """Whether the query called ``name`` is one of its last distinct ones."""
        return bool(np.count_nonzero(self.names == name))

    def restart(self) -> None:
        """Fresh stakes after a review."""
        self.stakes[0], self.stakes[1] = 1.0, 0.0
        self.since = self.alarmed_at = 0
        self.reviews += 1
        self.value = 0.5

    def rebet(self, bets: int) -> None:
        """Fresh stakes for the bets of another calibration. An alarm stays until it is reviewed."""
        self.stakes = np.zeros((2, bets))
        self.stakes[0] = 1.0
        self.since = 0
        self.calibrations += 1
        self.value = 0.5

    def renew(self) -> None:
        """A new budget period."""
        self.spent = self.charged = 0.0
        self.inverse[:] = np.eye(budget.DIMENSIONS)

    def pack(self, most: int) -> bytes:
        """The account as bytes, the same number for every account with at most ``most`` bets."""
        bets = self.stakes.shape[1]
        counts = (bets, self.queries, self.effective, self.since, self.reviews, self.alarmed_at, self.calibrations)
        scalars = np.array((*counts, self.spent, self.value, self.charged, self.period), dtype=np.float64)
        room = bytes(16 * (most - bets))
        return b"".join((*(part.tobytes() for part in (scalars, self.stakes, self.names, self.own, self.inverse)), room))

    @classmethod
    def unpack(cls, data: bytes, most: int) -> "Account":
        """Undo ``pack``. Raises NotTrusted (of another size)."""
        at = 8 * _SCALARS
        numbers = np.frombuffer(data[:at].ljust(at, b"\0"), np.float64).tolist()
        account = cls(min(int(numbers[0]), most))
        if len(data) != at + 16 * most + 8 * REMEMBERED + 2 * account.own.size + 4 * account.inverse.size:
            raise NotTrusted(f"an account's evidence does not have {len(data):,} bytes")
        account.queries, account.effective, account.since, account.reviews = map(int, numbers[1:5])
        account.alarmed_at, account.calibrations = map(int, numbers[5:7])
        account.spent, account.value, account.charged = numbers[7:10]
        account.period = int(numbers[10])
        for into, kind in (
            (account.stakes, np.float64),
            (account.names, np.uint64),
            (account.own, np.float16),
            (account.inverse, np.float32),
        ):
            part = np.frombuffer(data, kind, into.size, at)
            into[...] = part.reshape(into.shape)
            at += part.nbytes
        return account


class Accounts:
    """All accounts of one release. Not thread-safe: the guard's lock is held."""

    def __init__(self, bets: int, cold: Cold | None, most: int, most_bets: int = 0) -> None:
        """``cold``: where accounts go beyond the ``most`` that stay in memory; None: all stay. ``most_bets``: as many may an
        account have after ``rebet``; 0 = ``bets``."""
        self._bets, self._cold, self._most, self._most_bets = bets, cold, most, most_bets or bets
        self._hot: OrderedDict[str, Account] = OrderedDict()
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._subjects: dict[str, None] = {}
        self._wide: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        """Every subject seen, in the order of first queries."""
        return iter(list(self._subjects))

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def hot(self) -> int:
        """How many are in memory."""
        return len(self._hot)

    def get(self, subject: str) -> Account | None:
        """An account, brought back if it went cold; None when it was never seen. Raises Unavailable, NotTrusted."""
        found = self._hot.get(subject)
        if found is not None:
            self._hot.move_to_end(subject)
            return found
        slot = self._slots.get(subject)
        if slot is None or self._cold is None:
            return None
        found = Account.unpack(self._cold.get(slot), self._most_bets)
        self._hot[subject] = found
        self._free.append(self._slots.pop(subject))
        return found

    def make(self, subject: str, period: int = 0) -> Account:
        """An account that was never seen; ``period``: the budget period of now."""
        self._subjects[subject] = None
        account = self._hot[subject] = Account(self._bets)
        account.period = period
        return account

    def places(self, subject: str) -> NDArray[np.float32]:
        """Places (128, 32) of the last queries of an account in memory, ready to be compared with."""
        found = self._wide.get(subject)
        if found is None:
            found = self._wide[subject] = self._hot[subject].own.astype(np.float32)
            if len(self._wide) > WIDE:
                self._wide.popitem(last=False)
        self._wide.move_to_end(subject)
        return found

    def remember(self, subject: str, name: np.uint64, place: NDArray[np.float32]) -> None:
        """An account in memory asked something new: the query called ``name``, at ``place`` (32,)."""
        account = self._hot[subject]
        account.names[account.effective % REMEMBERED] = name
        at = account.effective % null.OWN
        account.own[at] = place
        self.places(subject)[at] = account.own[at]
        account.effective += 1

    def rebet(self, bets: int) -> None:
        """Give every account fresh stakes for so many bets. Raises Unavailable, NotTrusted."""
        self._bets = bets
        for subject in self:
            account = self.get(subject)
            if account is not None:
                account.rebet(bets)
                self.settle()

    def forget(self, subject: str) -> None:
        """Drop an account. What it left elsewhere is overwritten. Raises Unavailable: then it is not, until the next one goes
        there; the account is dropped all the same.
        """
        self._subjects.pop(subject, None)
        self._hot.pop(subject, None)
        self._wide.pop(subject, None)
        slot = self._slots.pop(subject, None)
        if slot is not None and self._cold is not None:
            self._free.append(slot)  # first: a slot that is neither free nor in use would move the count of slots
            self._cold.put(slot, Account(self._bets).pack(self._most_bets))

    def settle(self) -> None:
        """Let the coldest go until no more than ``most`` are in memory; all stay while there is no room elsewhere."""
        while self._cold is not None and len(self._hot) > self._most:
            subject, account = next(iter(self._hot.items()))
            slot = self._free.pop() if self._free else len(self._slots)
            try:
                self._cold.put(slot, account.pack(self._most_bets))
            except Unavailable:
                self._free.append(slot)
                return
            del self._hot[subject]
            self._wide.pop(subject, None)
            self._slots[subject] = slot


class Held(msgspec.Struct, frozen=True):
    """How many accounts a guard knows, and how many of them are in memory."""

    known: int
    hot: int
