"""Dependencies: the packages that a model came from, held against a snapshot of an advisory database.

*Clean* is said only when a snapshot is there, it is young enough, every package could be looked up in it, and none has a known
vulnerability. Everything else comes with its reasons.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from modelkeep.core.values import Resource, Statement, to_json
from modelkeep.custody.advisories import Index, judge
from modelkeep.custody.cvss import SEVERITIES, rank
from modelkeep.custody.lockfiles import Packages
from modelkeep.errors import Missing
from modelkeep.ledger.attestations import Advisory, Vulnerabilities
from modelkeep.ledger.statements import make_statement

T = TypeVar("T")
DAY = 86_400 * 10**9
MAX_ADVISORIES, MAX_UNAUDITED, MAX_TEXT = 28_000, 9_000, 200
"""Bytes of advisories and of what was not audited in one statement, so that it fits a log entry; characters of one reason."""


class Checked(msgspec.Struct, frozen=True):
    """What came out. ``age``: of the snapshot in days, -1 without one; ``reasons``: why it is not clean, () when it is.

    ``audited``: packages that were looked up; ``unaudited``: what was not, as ``what: why``; ``advisories``: worst first.
    """

    age: int
    audited: int
    unaudited: tuple[str, ...]
    advisories: tuple[Advisory, ...]
    reasons: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing speaks against these packages."""
        return not self.reasons


def age_in_days(index: Index, now_ns: int) -> int:
    """Whole days since the newest record of the snapshot was changed."""
    return max(0, now_ns - index.newest) // DAY


def check_packages(packages: Packages, index: Index | None, *, now_ns: int, max_age_days: int) -> Checked:
    """Look every package up. Raises NotTrusted (the index is damaged)."""
    if index is None:
        whole = tuple(f"{name}=={version}: there is no advisory snapshot" for name, version in packages.pins)
        reason = "no advisory snapshot was imported: 'modelkeep intel import' reads one"
        return Checked(-1, 0, (*packages.beyond, *whole), (), (reason,))
    advisories: list[Advisory] = []
    unaudited = list(packages.beyond)
    audited = 0
    for name, version in packages.pins:
        found = judge(index, name, version)
        advisories += found.advisories
        if found.unjudged:
            unaudited.append(f"{name}=={version}: {found.unjudged}")
        else:
            audited += 1
    age = age_in_days(index, now_ns)
    worst_first = sorted(advisories, key=lambda one: (-rank(one.severity), -one.score, one.package, one.id))
    reasons = _reasons(worst_first, unaudited, audited, age - max_age_days)
    return Checked(age, audited, tuple(unaudited), tuple(worst_first), reasons)


def _reasons(advisories: Sequence[Advisory], unaudited: Sequence[str], audited: int, late: int) -> tuple[str, ...]:
    found = []
    if advisories:
        found.append(f"{_many(len(advisories), 'known vulnerability', 'known vulnerabilities')}, {_counted(advisories)}")
    if unaudited:
        found.append(f"{_many(len(unaudited), 'package', 'packages')} could not be audited")
    if not audited:
        found.append("no package was audited")
    if late > 0:
        found.append(f"the advisory snapshot is {_many(late, 'day', 'days')} older than allowed: import a newer one")
    return tuple(found)


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _counted(advisories: Sequence[Advisory]) -> str:
    counts = [(word, sum(one.severity == word for one in advisories)) for word in reversed(SEVERITIES)]
    return ", ".join(f"{count} {word}" for word, count in counts if count)


def vulnerabilities_statement(
    model: Resource, packages: Packages, checked: Checked, index: Index, *, actor: str, at: int
) -> Statement:
    """What was found, as a statement. What does not fit one is named as unaudited, so that it is never taken for clean."""
    advisories, cut = _fit(checked.advisories, MAX_ADVISORIES)
    unaudited, more = _fit(tuple(one[:MAX_TEXT] for one in checked.unaudited), MAX_UNAUDITED)
    if cut:
        unaudited = (*unaudited, f"{cut} further advisories of no higher severity: no room for them in one statement")
    if more:
        unaudited = (*unaudited, f"{more} further packages: no room for them in one statement")
    said = Vulnerabilities(
        actor=actor,
        at=at,
        source=index.source,
        snapshot=index.snapshot,
        snapshot_at=index.newest,
        lock=packages.lock,
        audited=checked.audited,
        unaudited=unaudited,
        advisories=advisories,
    )
    return make_statement(said, model)


def _fit(items: tuple[T, ...], room: int) -> tuple[tuple[T, ...], int]:
    """As many of the first ``items`` as have ``room`` bytes, and how many are left."""
    used = 0
    for number, item in enumerate(items):
        used += len(to_json(item)) + 1
        if used > room:
            return items[:number], len(items) - number
    return items, 0


def remembered(pins: Sequence[tuple[str, str]], said: Vulnerabilities) -> Packages:
    """The packages of an earlier look that a statement tells of: its pins, and what it could not look up whatever the snapshot.

    Raises Missing when these are not the pins that the statement means.
    """
    by_snapshot = {f"{name}=={version}" for name, version in pins}
    beyond = tuple(one for one in said.unaudited if one.partition(": ")[0] not in by_snapshot)
    found = Packages(tuple(pins), beyond)
    if found.lock != said.lock:
        raise Missing("the packages that were looked up last are not known here any more: give the lock files again")
    return found
