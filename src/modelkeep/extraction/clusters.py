"""Accounts that act as one: a pooled test over the distinct queries of all accounts that share a covariate.

A covariate is what the test does not look at: where accounts of an issuer came from and when, the network that they ask from.
Whoever shares one is in its cluster from his next query on, whatever he asks; so the grouping is predictable, each query of
the pool is still an event with probability at most kappa for honest members, and what holds of one account's bets
(``eprocess``) holds of the pool's: they are a supermartingale. A query counts in a pool once: from when its account had joined,
and only if no member has asked it, or something within measurement noise of it, before.

Guarantee: the chance that a cluster of which every member is honest is *ever* accused is at most ``alpha`` for all clusters of
a release together. The i-th cluster that there ever was gets alpha w_i with w_i from ``eprocess.restart_weight``, whose sum is
below 1 (a union bound; clusters may share members, and be as many as there will be); each review doubles its threshold, and
the j-th calibration that it has seen makes it (j + 1)^2 times as high, as with accounts.
Of a cluster with a thief in it nothing is promised to the others: so an accusation waits for a person, and suspends nobody.

What its members asked together since each joined is also charged to one budget of the cluster (``budget.Together``), which
accuses nobody either. Who divides a set of questions among many accounts learns as much as one budget of the cluster allows.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction import eprocess, evidence, null, places
from modelkeep.extraction.accounts import FAR, REMEMBERED
from modelkeep.extraction.budget import Together
from modelkeep.extraction.eprocess import Bets, restart_weight

Floats = NDArray[np.float64]

MIN_EFFECTIVE = 8
"""A cluster is accused on no fewer distinct queries than this."""
JOINS = 3
"""Clusters of one account: the first covariates that it was seen with."""
MEMBERS = 1024
"""Accounts of one cluster; who comes later is in no cluster by this covariate."""
CLUSTERS = 1024
"""Clusters whose pool is kept, about 30 KB each; the one that asked least recently goes, but no accused one before others."""
LONE = 65_536
"""Covariates that only one account was seen with."""


@dataclass(frozen=True, slots=True)
class Member:
    """One account of a cluster. ``queries``: asked since it joined; ``effective``: of them, what the pool took as new."""

    subject: str
    queries: int
    effective: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is held about one cluster.

    ``id``: the covariate that its members share, a name that says nothing; ``number``: how many clusters there were before;
    ``evidence``: (M + R) / 2 of the pool now; ``threshold``: from which it is accused; ``effective``: distinct queries of the
    pool; ``accused_at``: the pool's distinct queries at the accusation, None without one.
    """

    id: str
    number: int
    members: tuple[Member, ...]
    evidence: float
    threshold: float
    effective: int
    accused_at: int | None


class Asked(NamedTuple):
    """Queries of members ``subjects`` (b,) of one cluster, in their order. ``names``: (b,); ``own``: places (b, 32);
    ``events``: score events (b, score streams), bool; ``phi`` (b, 24) and ``w`` (b,): as the budget has them."""

    subjects: Sequence[str]
    names: NDArray[np.uint64]
    own: Floats
    events: NDArray[np.bool_]
    phi: NDArray[np.floating]
    w: NDArray[np.floating]


class _Pool:
    """The bets of one cluster, the queries that its next one is compared with, and what its members have learnt together."""

    __slots__ = (
        "accused_at",
        "calibrations",
        "effective",
        "learnt",
        "members",
        "names",
        "number",
        "own",
        "reviews",
        "since",
        "stakes",
        "told",
        "value",
    )

    def __init__(self, number: int, bets: int) -> None:
        self.number = number
        self.reviews = self.calibrations = self.effective = 0
        self.members: dict[str, list[int]] = {}
        self.stakes = np.empty((2, bets))
        self.names = np.zeros(REMEMBERED, dtype=np.uint64)
        self.own = np.full((null.OWN, places.DIMENSIONS), FAR, dtype=np.float32)
        self.learnt = Together()
        self.begin()

    def begin(self) -> None:
        self.stakes[0], self.stakes[1] = 1.0, 0.0
        self.since = self.accused_at = 0
        self.value = 0.5
        self.told: dict[str, int] = {}  # distinct queries since then, by member

    @property
    def acts_as_one(self) -> bool:
        """Whether no member asked more than three quarters of what counts: else that is its own evidence, and no case."""
        return 4 * max(self.told.values()) <= 3 * self.since

    def rebet(self, bets: int) -> None:
        accused, self.stakes = self.accused_at, np.empty((2, bets))
        self.begin()
        self.accused_at = accused  # it waits for its review
        self.calibrations += 1

    def wipe(self) -> None:
        self.names[:], self.own[:] = 0, FAR
        self.learnt.renew()


class _Told(NamedTuple):
    """What is evidence of what was asked of a pool: score ``events`` (n, streams), and how ``near`` (n,) it was to the last."""

    covariate: str
    pool: _Pool
    subjects: Sequence[str]
    events: NDArray[np.bool_]
    near: list[float]


class Clusters:
    """All clusters of one release. Not thread-safe: the guard's lock is held. Deterministic in the order of calls."""

    def __init__(
        self, bets: Bets, near: float, step_limits: Floats, *, alpha: float, beside: float = 0.0, most: int = CLUSTERS
    ) -> None:
        """``near``, ``step_limits``, ``beside``: as the profile has them; ``most``: pools that are kept."""
        self._bets, self._near, self._steps, self._beside = bets, near, step_limits, beside
        self._alpha, self._most = alpha, most
        self._made = 0
        self._lone: OrderedDict[str, str] = OrderedDict()  # covariate -> the only account that was seen with it
        self._pools: OrderedDict[str, _Pool] = OrderedDict()
        self._of: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._pools)

    def join(self, subject: str, covariates: Iterable[str]) -> tuple[str, ...]:
        """``subject`` was seen with ``covariates``: from now on its queries count in their clusters, those before never.

        Returns the clusters ``of`` it.
        """
        mine = self._of.get(subject, ())
        for covariate in covariates:
            if covariate not in mine and len(mine) < JOINS and self._enter(subject, covariate):
                mine = self._of[subject] = (*mine, covariate)
        return self.of(subject)

    def _enter(self, subject: str, covariate: str) -> bool:
        pool = self._pools.get(covariate)
        if pool is None:
            first = self._lone.setdefault(covariate, subject)
            if first == subject:
                while len(self._lone) > LONE:
                    lost, owner = self._lone.popitem(last=False)
                    self._leave(owner, lost)
                return True
            del self._lone[covariate]
            pool = self._pools[covariate] = _Pool(self._made, len(self._bets.stream))
            self._made += 1
            pool.members[first] = [0, 0]
        if len(pool.members) >= MEMBERS:
            return False
        pool.members[subject] = [0, 0]
        self._settle()
        return True

    def _leave(self, subject: str, covariate: str) -> None:
        left = tuple(one for one in self._of.get(subject, ()) if one != covariate)
        if left:
            self._of[subject] = left
        else:
            self._of.pop(subject, None)

    def _settle(self) -> None:
        while len(self._pools) > self._most:
            quiet = (name for name, pool in self._pools.items() if not pool.accused_at)
            covariate = next(quiet, None) or next(iter(self._pools))
            for subject in self._pools.pop(covariate).members:
                self._leave(subject, covariate)  # who comes again founds a new one, with a number of its own

    def of(self, subject: str) -> tuple[str, ...]:
        """The clusters that ``subject`` shares with somebody."""
        mine = self._of.get(subject)
        return () if not mine else tuple(one for one in mine if one in self._pools)

    def accused(self, subject: str) -> tuple[str, ...]:
        """Those of them that are accused."""
        mine = self._of.get(subject)
        return () if not mine else tuple(one for one in mine if one in self._pools and self._pools[one].accused_at)

    def take(self, asked: Mapping[str, Asked]) -> list[str]:
        """Bet on queries of members, by cluster, and charge them; which clusters that accuses."""
        told: list[_Told] = []
        for covariate, mine in asked.items():
            self._pools.move_to_end(covariate)
            pool = self._pools[covariate]
            new, fresh, near = self._fresh(pool, mine)
            if new:
                pool.learnt.spend(mine.phi[new], mine.w[new])
            if fresh:
                told.append(_Told(covariate, pool, [mine.subjects[i] for i in fresh], mine.events[fresh], near))
        if not told:
            return []
        scored, nearest = np.concatenate([one.events for one in told]), np.concatenate([one.near for one in told])
        factors = self._bets.factors(evidence.with_own(scored, nearest, self._steps, self._beside))
        pools = [one.pool for one in told for _ in one.near]
        values = iter(eprocess.settle([pool.stakes for pool in pools], factors, [pool.since for pool in pools]).tolist())
        return [one.covariate for one in told if self._count(one.pool, [(subject, next(values)) for subject in one.subjects])]

    def _count(self, pool: _Pool, told: Sequence[tuple[str, float]]) -> bool:
        """Note queries of members, and the evidence after each of them; whether that accuses the cluster."""
        threshold, was = self._threshold(pool), pool.accused_at
        for subject, value in told:
            pool.value = value
            pool.effective += 1
            pool.since += 1
            pool.told[subject] = pool.told.get(subject, 0) + 1
            if not pool.accused_at and pool.since >= MIN_EFFECTIVE and value >= threshold and pool.acts_as_one:
                pool.accused_at = pool.effective
        return bool(pool.accused_at) and not was

    def _fresh(self, pool: _Pool, asked: Asked) -> tuple[list[int], list[int], list[float]]:
        """Which queries nobody in the pool has asked, which of them are not within noise of its last ones either and so are
        evidence, and how near each of these is to them. They are remembered."""
        known, names = (asked.names[:, None] == pool.names).any(axis=1).tolist(), asked.names.tolist()
        count, seen = len(pool.own), set[int]()
        square = _square_distances(pool.own, asked.own)
        last, others = square[:, :count], square[:, count:]  # from the last ones, and from each other
        new: list[int] = []
        fresh: list[int] = []
        near: list[float] = []
        for i, subject in enumerate(asked.subjects):
            member = pool.members[subject]
            member[0] += 1
            if known[i] or names[i] in seen:
                continue
            new.append(i)
            nearest = math.sqrt(max(float(np.minimum.reduce(last[i])), 0.0))
            if nearest <= self._near:
                continue
            seen.add(names[i])
            member[1] += 1
            at = pool.effective + len(fresh)
            last[:, at % count] = others[:, i]
            pool.own[at % count], pool.names[at % REMEMBERED] = asked.own[i], names[i]
            fresh.append(i)
            near.append(nearest)
        return new, fresh, near

    def charge(self, subject: str, questions: float) -> None:
        """An answer that teaches as much as natural ``questions`` went to ``subject``: its clusters have learnt it, too."""
        for covariate in self.of(subject):
            self._pools[covariate].learnt.charged += questions

    def learnt(self, covariate: str) -> tuple[float, float]:
        """What a cluster has learnt this period: nats, and natural questions that were charged. Nothing when there is none."""
        pool = self._pools.get(covariate)
        return (0.0, 0.0) if pool is None else (pool.learnt.spent, pool.learnt.charged)

    def renew(self) -> None:
        """A new budget period."""
        for pool in self._pools.values():
            pool.learnt.renew()

    def _threshold(self, pool: _Pool) -> float:
        return eprocess.threshold(self._alpha * float(restart_weight(pool.number)), pool.reviews, pool.calibrations)

    def members(self, covariate: str) -> list[str]:
        """Accounts of a cluster; none when there is no such."""
        pool = self._pools.get(covariate)
        return [] if pool is None else list(pool.members)

    def size(self, covariate: str) -> int:
        """How many accounts are in a cluster; 0 when there is no such."""
        pool = self._pools.get(covariate)
        return 0 if pool is None else len(pool.members)

    def holds(self, covariate: str, subject: str) -> bool:
        """Whether ``subject`` is in that cluster."""
        pool = self._pools.get(covariate)
        return pool is not None and subject in pool.members

    def groups(self, subjects: Iterable[str]) -> dict[str, str]:
        """For each of ``subjects`` that is in a cluster, one name for all of them whom clusters link, each to the next.

        Whoever is not in the answer shares nothing that is known.
        """
        root: dict[str, str] = {}

        def find(one: str) -> str:
            while (above := root.setdefault(one, one)) != one:
                one = above
            return one

        mine = {subject: shared for subject in subjects if (shared := self.of(subject))}
        for first, *others in mine.values():
            for other in others:
                root[find(other)] = find(first)
        return {subject: find(shared[0]) for subject, shared in mine.items()}

    def rebet(self, bets: Bets) -> None:
        """Fresh stakes on other ``bets`` in every pool. An accusation stays until it is reviewed."""
        self._bets = bets
        for pool in self._pools.values():
            pool.rebet(len(bets.stream))

    def clear(self, covariate: str) -> None:
        """A person reviewed the cluster: its evidence restarts at twice the threshold. Silent when there is none."""
        pool = self._pools.get(covariate)
        if pool is not None:
            pool.reviews += 1
            pool.begin()

    def forget(self, subject: str) -> None:
        """Drop an account, and with it what its clusters know of queries: nobody can tell which of them were whose."""
        for covariate in self._of.pop(subject, ()):
            pool = self._pools.get(covariate)
            if pool is None:
                self._lone.pop(covariate, None)
                continue
            del pool.members[subject]
            pool.reviews += 1
            pool.begin()
            pool.wipe()

    def show(self, covariate: str) -> Cluster | None:
        """One cluster as it is now."""
        pool = self._pools.get(covariate)
        if pool is None:
            return None
        members = tuple(Member(subject, *counts) for subject, counts in pool.members.items())
        threshold = self._threshold(pool)
        return Cluster(covariate, pool.number, members, pool.value, threshold, pool.effective, pool.accused_at or None)

    def all_accused(self) -> list[Cluster]:
        """Every accused cluster, in the order of their numbers."""
        shown = (self.show(covariate) for covariate, pool in self._pools.items() if pool.accused_at)
        return sorted((one for one in shown if one is not None), key=lambda one: one.number)


def _square_distances(last: NDArray[np.float32], own: Floats) -> Floats:
    """Squared distances, but for rounding, of each place of ``own`` (b, d) from the ``last`` ones (n, d), then from each of
    ``own``: (b, n + b)."""
    both = np.concatenate([last, own])
    length = (both * both).sum(axis=1)
    out: Floats = length[len(last) :, None] + length
    out -= 2.0 * (own @ both.T)
    return out
