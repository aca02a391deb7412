"""What the verbs about dependencies and bills of materials answer."""

from msgspec import Struct

from modelkeep.ledger.attestations import Advisory


class SnapshotRow(Struct, frozen=True):
    """The advisory snapshot in force. ``newest``: when its newest record was changed, ``imported``: when it came here.

    Both are Unix nanoseconds. ``age_days`` counts from ``newest``; ``stale``: it is older than the settings allow.
    ``advisories``: about PyPI, of which ``withdrawn`` are ignored; ``others``: records of other ecosystems, passed over;
    ``packages``: that have advisories.
    """

    source: str
    snapshot: str
    newest: int
    imported: int
    age_days: int
    stale: bool
    advisories: int
    withdrawn: int
    others: int
    packages: int
    log_index: int


class DependenciesChecked(Struct, frozen=True):
    """Packages held against the snapshot. ``ref``: the release, "" without one; ``log_index``: of the statement, or None.

    ``clean`` exactly when there are no ``reasons`` against it. ``snapshot``: digest, "" without one; ``age_days``: -1 likewise.
    ``packages``: how many; ``audited`` of them were looked up; ``new_critical``: ids that no earlier look had found.
    """

    ref: str
    clean: bool
    reasons: tuple[str, ...]
    snapshot: str
    age_days: int
    packages: int
    audited: int
    unaudited: tuple[str, ...]
    advisories: tuple[Advisory, ...]
    new_critical: tuple[str, ...] = ()
    log_index: int | None = None


class BomWritten(Struct, frozen=True):
    """A bill of materials. ``document``: its bytes; ``through``: how many log entries it was made from.

    ``log_index``: of the statement that records it, None when none does.
    """

    ref: str
    document: bytes
    digest: str
    serial: str
    components: int
    vulnerabilities: int
    through: int
    log_index: int | None = None


class BomChecked(Struct, frozen=True):
    """A bill of materials that is what the log says. ``later``: statements about the release that came after it was made;
    ``recorded``: log indexes of the statements that record these very bytes."""

    ref: str
    digest: str
    through: int
    later: int
    recorded: tuple[int, ...]
