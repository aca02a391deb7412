"""What scanning answers: frozen values that print as tables, as SARIF, and travel as JSON or MessagePack."""

from msgspec import Struct

from modelkeep.core.values import Opinion
from modelkeep.ledger.predicates import Finding

CLEAN, UNCLEAN, UNDECIDED, UNREADABLE = "clean", "not-clean", "undecided", "unreadable"
"""Outcomes. Undecided: nothing speaks against the model but that another scanner failed; a file that is scanned for the first
time is not clean then."""


class FileScan(Struct, frozen=True):
    """One file on disk. ``verdict``: clean, not-clean or unreadable; ``size``: bytes; ``problem``: why it could not be read."""

    path: str
    verdict: str
    format: str = ""
    size: int = 0
    digest: str = ""
    findings: tuple[Finding, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    problem: str = ""


class ScanReport(Struct, frozen=True):
    """Files that were scanned, in the order of their paths. ``started`` and ``ended``: Unix nanoseconds."""

    scanner: str
    rules_version: str
    files: tuple[FileScan, ...]
    started: int
    ended: int


class StaleScan(Struct, frozen=True):
    """A model that was judged by older rules, or without a scanner that is at hand now; ``ref``: one of its releases.

    ``scanner``, ``rules_version``, ``opinions``: of that judgement, empty when there was none.
    """

    ref: str
    model_digest: str
    scanner: str
    rules_version: str
    opinions: tuple[Opinion, ...]


class Rescanned(Struct, frozen=True):
    """A model that was judged again. ``outcome``: clean, not-clean, undecided or unreadable; ``log_index``: of the scan
    statement, -1 = none was made; ``quarantined``: releases that were put into quarantine for it; ``problem``: why it could not
    be read.
    """

    ref: str
    model_digest: str
    outcome: str
    scanner: str
    rules_version: str
    findings: tuple[Finding, ...]
    opinions: tuple[Opinion, ...]
    log_index: int
    quarantined: tuple[str, ...]
    problem: str = ""
