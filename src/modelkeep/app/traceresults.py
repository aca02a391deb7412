"""What a trace of a suspect returns, and new keys for marks."""

from msgspec import Struct


class Accusation(Struct, frozen=True):
    """One account in a trace. ``p``: corrected for the number of accounts (Bonferroni); ``late``: its key was committed to
    after the suspect was seen, or opened before that, or before the pool of probes was, so nothing is claimed; ``spent``: a key
    that was opened was left out."""

    account: str
    subject: str
    p: float
    statistics: dict[str, float]
    queries: int
    late: bool = False
    spent: bool = False


class AccusedTogether(Struct, frozen=True):
    """Accounts that stand out as a group: ``name`` of the cluster, "" = a set that shares nothing known; ``accounts``: whose
    evidence counts; ``others``: members of the cluster who lower it; ``p``: corrected for so many ``tests``."""

    name: str
    accounts: tuple[str, ...]
    others: int
    tests: float
    p: float


class Traced(Struct, frozen=True):
    """The outcome of a trace; ``verdict`` names the account, or says that there is none; ``report``: files by name, where one
    was asked for; ``together``: groups."""

    ref: str
    verdict: str
    significance: float
    accounts: tuple[Accusation, ...]
    report: dict[str, bytes] = {}
    together: tuple[AccusedTogether, ...] = ()


class ProbesLogged(Struct, frozen=True):
    """Rows that probes for suspects of a release may be drawn of: their Merkle root ``pool``, 64 hex digits. ``older``:
    accounts whose key is older than the log entry, so that nothing is claimed by it with these rows."""

    ref: str
    pool: str
    rows: int
    log_index: int
    older: int


class MarkRenewed(Struct, frozen=True):
    """An account has a new key for its marks on a release. ``epoch``: the number of that key, the first is 0."""

    account: str
    ref: str
    epoch: int
    log_index: int
