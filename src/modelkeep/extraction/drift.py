"""Did the population move? Then many accounts' evidence rises together, and that is no theft.

A pure statistic over the accounts that asked last. Accounts that share a covariate (a tenant, a network) are one group, whose
evidence is the mean of theirs: a mean of e-values is one, whatever they have to do with each other. At any one time the
evidence of an honest group is over 20 with probability at most 1/20 (Markov), so that among n independent groups the number of
those is at most Binomial(n, 1/20). Drift is when far more have risen than that, and at least a quarter of all: to look like it,
a thief must hold a quarter of all groups that asked lately, and lets most of them be accused on the way.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RISEN = 20.0
"""Evidence (M + R) / 2 from which a group has risen."""
SHARE = 0.25
"""At least this share of the groups must have risen."""
LEAST = 8
"""Fewer groups than this cannot tell drift from theft."""
LEVEL = 1e-3
"""Under the null the groups look like drift at any one time with at most this probability."""
MOST = 2000
"""Accounts that asked last, which are looked at."""
STANDS_OUT = 3.0
"""An account stands out whose evidence grows so many times faster than that of the median group that rose."""


class Standing(NamedTuple):
    """One account's evidence now, and over how many distinct queries it grew."""

    value: float
    queries: int


@dataclass(frozen=True, slots=True)
class Drift:
    """``risen`` of ``groups`` rose together, which an unmoved population does with probability at most ``p``; ``growth``: of
    the evidence of the median one of them, nats a distinct query."""

    groups: int
    risen: int
    p: float
    growth: float

    def stands_out(self, one: Standing) -> bool:
        """Whether the account's evidence grew so much faster than the others' that it is no part of the drift."""
        return _growth(one.value, one.queries) > STANDS_OUT * self.growth


def find_drift(standings: Mapping[str, Standing], group_of: Callable[[str], str] = str) -> Drift | None:
    """Drift among accounts by subject; None when there is none. ``group_of``: what a subject shares with others."""
    grouped: dict[str, list[Standing]] = {}
    for subject, one in standings.items():
        grouped.setdefault(group_of(subject), []).append(one)
    if len(grouped) < LEAST:
        return None
    values = np.array([math.fsum([one.value for one in group]) / len(group) for group in grouped.values()])
    queries = np.array([sum([one.queries for one in group]) / len(group) for group in grouped.values()])
    risen = values >= RISEN
    count = int(risen.sum())
    p = tail(len(grouped), count, 1.0 / RISEN)
    if count < SHARE * len(grouped) or p > LEVEL:
        return None
    growth = [_growth(value, asked) for value, asked in zip(values[risen], queries[risen], strict=True)]
    return Drift(len(grouped), count, p, float(np.median(growth)))


@lru_cache(maxsize=64)
def tail(n: int, k: int, chance: float) -> float:
    """P(Binomial(n, ``chance``) >= k)."""
    if k <= 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(chance) + (n - i) * math.log1p(-chance)
        for i in range(k, n + 1)
    ]
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def _growth(value: float, queries: float) -> float:
    return math.log(max(value, 1.0)) / max(queries, 1.0)
