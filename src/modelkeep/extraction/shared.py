"""The information budget that the accounts of a cluster share: who divides his questions among many accounts learns no more.

It is ``Ladder.cluster`` times the questions of one account, and as much more as people let members learn on top of the usual
(``account allow``), or let the cluster. Whoever was allowed more is held by his own budget alone. Like every budget it slows
and coarsens, and accuses nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from modelkeep.extraction import budget
from modelkeep.extraction.budget import Budget, Floats
from modelkeep.extraction.clusters import Clusters
from modelkeep.extraction.ladder import Ladder, Rung

QUOTED = 64
"""Budgets of clusters that are kept as they were quoted last."""


class Shared(msgspec.Struct, frozen=True):
    """What the ``accounts`` (how many) of the cluster ``id`` have learnt together in this period."""

    id: str
    accounts: int
    budget: Budget


@dataclass(frozen=True, slots=True)
class Learnt:
    """What ``learning`` told of: an account, or a cluster with these ``accounts``. ``begins``: the first day of the period,
    days since 1970; ``measure``: what the budget's fidelity is, as ``Profile`` has it."""

    budget: Budget
    accounts: tuple[str, ...]
    begins: int
    measure: str


class SharedBudgets:
    """The budgets of all clusters of one release. Not thread-safe: the guard's lock is held."""

    def __init__(self, clusters: Clusters, curve: Floats, ladder: Ladder) -> None:
        """``curve``: of the profile; ``ladder``: in force, and changed in place with another one."""
        self._clusters, self._curve, self.ladder = clusters, curve, ladder
        self._factors: dict[str, float] = {}  # of accounts and of clusters, those above 1
        self._rungs: dict[str, Rung] = {}
        self._quoted = lru_cache(maxsize=QUOTED)(self._quote)  # every member of a cluster is shown the same

    def renew(self) -> None:
        """A new budget period."""
        self._clusters.renew()

    def agree(self, name: str, factor: float) -> None:
        """People let ``name``, an account or a cluster, learn ``factor`` times the usual; 1 or less is nothing on top."""
        if factor > 1.0:
            self._factors[name] = factor
        else:
            self._factors.pop(name, None)

    def clusters(self, subject: str) -> tuple[str, ...]:
        """The clusters of an account."""
        return self._clusters.of(subject)

    def accounts(self, cluster: str) -> list[str]:
        """The accounts of ``cluster``."""
        return self._clusters.members(cluster)

    def show(self, cluster: str) -> Shared | None:
        """The budget of ``cluster``; None when there is no such cluster, or the ladder bounds none."""
        lent = self.ladder
        members = self._clusters.size(cluster)
        if not members or lent.cluster == float("inf"):
            return None
        more = sum([factor - 1.0 for name, factor in self._factors.items() if self._clusters.holds(cluster, name)])
        limit = lent.questions * (lent.cluster * self._factors.get(cluster, 1.0) + more)
        return self._quoted(cluster, members, limit, *self._clusters.learnt(cluster))

    def _quote(self, cluster: str, accounts: int, limit: float, spent: float, charged: float) -> Shared:
        return Shared(cluster, accounts, budget.quote(spent, self._curve, limit, charged))

    def of(self, subject: str) -> Shared | None:
        """The budget of the cluster of ``subject`` of which the largest share is spent; None: none holds this account."""
        most = None
        for cluster in () if subject in self._factors else self._clusters.of(subject):
            shared = self.show(cluster)
            if shared is not None and (most is None or shared.budget.share > most.budget.share):
                most = shared
        return most

    def moved(self, clusters: Iterable[str]) -> list[str]:
        """Those of ``clusters`` whose budget leads to another rung than when this was asked last."""
        found = []
        for cluster in clusters:
            shared = self.show(cluster)
            rung = Rung.MARK if shared is None else self.ladder.rung(0.0, shared.budget.share, alarmed=False)
            if rung is not self._rungs.get(cluster, Rung.MARK):
                found.append(cluster)
            if rung is Rung.MARK:
                self._rungs.pop(cluster, None)
            else:
                self._rungs[cluster] = rung
        return found
