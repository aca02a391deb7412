"""What verbs about cases of accounts that act as one return."""

from msgspec import Struct

from modelkeep.app.accountresults import BudgetRow


class CaseRow(Struct, frozen=True):
    """One case: accounts that are accused of acting as one. ``shared``: what they share; ``opened``: Unix nanoseconds."""

    id: str
    state: str
    shared: str
    accounts: int
    releases: tuple[str, ...]
    opened: int
    note: str


class CaseAccount(Struct, frozen=True):
    """One account of a case, in numbers. ``queries``: since it joined the group; ``distinct``: those that were new to the
    group; ``odds``: of its own evidence; ``alone``: whether it is accused by itself, too; ``issuer``: who vouches for it,
    empty = this keep; ``created``: Unix seconds, 0 = it is gone; ``first``, ``last``: Unix nanoseconds of its answers."""

    account: str
    subject: str
    queries: int
    distinct: int
    odds: str
    alone: bool
    issuer: str
    created: int
    first: int
    last: int


class CaseRelease(Struct, frozen=True):
    """What was found about a group on one release. ``odds``: of the pooled evidence; ``needed``: odds from which this group
    is accused; ``distinct``: questions of the pool, ``accused_at``: at the accusation; ``hours``: (Unix seconds, answers,
    accounts) of each hour with answers."""

    release: str
    odds: str
    needed: float
    distinct: int
    accused_at: int
    accounts: tuple[CaseAccount, ...]
    hours: tuple[tuple[int, int, int], ...]
    budget: BudgetRow | None = None
    """What they learnt together in this period, of the budget that they share; None = less than a tenth of it."""


class AlikeRow(Struct, frozen=True):
    """Accounts whose questions are alike. ``how``: copies or steps; ``similarity``: mean of their pairs on the half of space
    that they were not chosen by, ``usual``: of random groups there; ``p`` before and ``corrected`` after Bonferroni."""

    release: str
    how: str
    accounts: tuple[str, ...]
    similarity: float
    usual: float
    p: float
    corrected: float


class CaseFile(Struct, frozen=True):
    """All that is known of one case. ``alike``: the groups of similar accounts that two of its members are in, when that was
    asked for; ``steps``: what to do next."""

    case: CaseRow
    releases: tuple[CaseRelease, ...]
    alike: tuple[AlikeRow, ...]
    steps: tuple[str, ...]
