"""Accounts that taught a suspect together: by the product of their e-values, which have independent keys.

Under the null that the suspect was made without the key of any of them, the product of e-values is an e-value, also when what
one account asked depends on what another was answered; p = 1 / e, times the number of groups that could have been named. So a
significant group says that somebody in it taught the suspect, and not that everybody did. Source: Vovk and Wang 2021,
"E-values: calibration, combination and applications", section 4.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

MOST = 8
"""Accounts of a set that is named without knowing beforehand that they have to do with each other."""
CLEAR = math.log(10.0)
"""Log e that all but the strongest account of a group must have: by chance one in ten has, where that account was alone."""
SMALLEST = 1e-300


@dataclass(frozen=True, slots=True)
class Together:
    """Accounts that are tested as one. ``name``: of the cluster, "" = a set; ``members``: whose evidence counts, the strongest
    first; ``others``: members of a cluster who lower it, each by a half; ``p``: corrected for ``tests`` groups."""

    name: str
    members: tuple[str, ...]
    others: int
    tests: float
    p: float


def cluster_log_e(counted: Collection[float], others: int) -> float:
    """Log e of a cluster: the product of (1 + e) / 2 of those members whose e is 1 or more, and 1/2 of each of the ``others``.

    (1 + e) / 2 is the mean over "he took part" and "he did not"; 1/2 is less than that for any e, so nobody needs to know the
    key of a member who lowers the product. ``counted``: logs, 0 or more.
    """
    return sum(_half_plus(one) for one in counted) - others * math.log(2.0)


def set_tests(accounts: int, size: int) -> float:
    """By what the p of the best set of ``size`` among ``accounts`` is multiplied: all sets of that size, times 8 sizes."""
    return float(MOST * math.comb(accounts, size))


def corrected(log_e: float, tests: float) -> float:
    """The p-value of an e-value that is the best of so many."""
    return min(1.0, max(math.exp(min(0.0, math.log(max(tests, 1.0)) - log_e)), SMALLEST))


def weigh_clusters(logs: Mapping[str, float], clusters: Mapping[str, Collection[str]]) -> list[Together]:
    """Every cluster of two tested accounts or more that stands out as a group, smallest p first.

    ``logs``: log e of every tested account; ``clusters``: who shares what, settled without looking at any suspect. Two clusters
    of the same accounts are one test. A cluster of which one account explains all is left out: that is its own accusation.
    """
    tested = {name: tuple(sorted({one for one in accounts if one in logs})) for name, accounts in sorted(clusters.items())}
    distinct = {accounts: name for name, accounts in reversed(tested.items()) if len(accounts) > 1}
    found = []
    for accounts, name in distinct.items():
        members = sorted((one for one in accounts if logs[one] >= 0.0), key=lambda one: (-logs[one], one))
        others = len(accounts) - len(members)
        if cluster_log_e([logs[one] for one in members[1:]], others) >= CLEAR:
            log_e = cluster_log_e([logs[one] for one in members], others)
            tests = float(len(distinct))
            found.append(Together(name, tuple(members), others, tests, corrected(log_e, tests)))
    return sorted(found, key=lambda one: (one.p, one.name))


def weigh_sets(logs: Mapping[str, float]) -> list[Together]:
    """The set of 2 to 8 accounts with the smallest p, if it has a smaller one than any account alone; else none."""
    best = sorted(logs, key=lambda one: (-logs[one], one))[:MOST]
    least, found = math.inf, list[Together]()
    total = 0.0
    for size, subject in enumerate(best, 1):
        if size > 1 and logs[subject] < CLEAR:
            break
        total += logs[subject]
        tests = set_tests(len(logs), size)
        if math.log(tests) - total < least:
            least = math.log(tests) - total
            found = [Together("", tuple(best[:size]), 0, tests, corrected(total, tests))]
    return [one for one in found if len(one.members) > 1]


def _half_plus(log_e: float) -> float:
    """log((1 + e) / 2)."""
    return float(max(log_e, 0.0) + math.log1p(math.exp(-abs(log_e))) - math.log(2.0))
