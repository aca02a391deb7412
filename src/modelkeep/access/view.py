"""What the records said at one revision, parsed, with the answers that were computed from it.

A view is immutable but for its caches, which die with it: no answer that was computed on an old one can survive a change.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from modelkeep.access.accounts import ACCOUNT, Account, parse_account
from modelkeep.access.certificates import CERTIFICATE, REMOVED, CertificateKey, parse_certificate
from modelkeep.access.credentials import KEY, ApiKey, parse_key_record
from modelkeep.access.externals import EXTERNAL, TURNED_AWAY, External, parse_external, reason_of
from modelkeep.access.forgetting import FORGOTTEN
from modelkeep.access.issuers import Binding
from modelkeep.access.sessions import REVOCATION, Revocation, parse_revocation
from modelkeep.core.ports import Record
from modelkeep.core.values import Principal

CACHE_SIZE = 65_536
"""Accepted credentials remembered; refused ones are remembered in a table of the same size."""

KINDS = (ACCOUNT, KEY, CERTIFICATE, EXTERNAL, REVOCATION, FORGOTTEN, TURNED_AWAY, REMOVED)

_TABLES = {
    ACCOUNT: "accounts",
    KEY: "keys",
    CERTIFICATE: "certificates",
    EXTERNAL: "externals",
    REVOCATION: "revoked",
    FORGOTTEN: "forgotten",
    TURNED_AWAY: "turned_away",
    REMOVED: "removed",
}
"""Kind of record -> what the view calls its table."""


class Grant(NamedTuple):
    """Who a credential speaks for, and its limits.

    ``kind``: "key", "session", "certificate" or "external". ``expires``: Unix seconds. ``quota``: requests in all, None = no
    quota; counted under ``quota_id`` by ``Quotas.take``. ``mfa_at``: Unix second at which a second factor was last shown, for
    this session or for the whole account; 0 = never.
    """

    principal: Principal
    kind: str
    expires: int
    quota: int | None
    quota_id: str
    mfa_at: int = 0


PARSERS: dict[str, Callable[[Record], object]] = {
    ACCOUNT: parse_account,
    KEY: parse_key_record,
    CERTIFICATE: parse_certificate,
    EXTERNAL: parse_external,
    REVOCATION: parse_revocation,
    FORGOTTEN: lambda record: record.key,
    TURNED_AWAY: reason_of,
    REMOVED: lambda record: record.key,
}


class View:
    """The records at one revision, parsed, with the caches of answers computed from them.

    ``accepted`` and ``bound`` are by the SHA-256 of the token (or of the certificate, where that is all there is) and end at a
    monotonic second; what is in ``bound`` counts only with the proof that its binding asks for. ``refused`` and ``pending`` say
    why not ("" in ``pending``: not yet).
    """

    __slots__ = (*_TABLES.values(), "accepted", "bound", "pending", "refused", "revision")

    accounts: dict[str, Account]
    keys: dict[str, ApiKey]
    certificates: dict[str, CertificateKey]
    externals: dict[str, External]
    revoked: dict[str, Revocation]
    forgotten: dict[str, str]  # pseudonyms: a process that missed an account's deletion drops it all the same
    turned_away: dict[str, str]  # why newcomers got no account
    removed: dict[str, str]  # likewise the quota ids of certificates

    def __init__(self, tables: dict[str, dict[str, Any]], revision: int) -> None:
        for kind, name in _TABLES.items():
            setattr(self, name, tables[kind])
        self.revision = revision
        self.accepted: dict[bytes, tuple[float, Grant]] = {}
        self.bound: dict[bytes, tuple[float, Grant, Binding]] = {}
        self.refused: dict[bytes, str] = {}
        self.pending: dict[bytes, str] = {}  # good tokens of whom nobody knows, and why he is let in not: dies with every view

    def changed(self, records: Sequence[Record], revision: int) -> "View":
        """The view after ``records`` changed, with empty caches. Raises NotTrusted (a record is damaged)."""
        arrived = bool(records) and all(
            record.kind == TURNED_AWAY or (record.kind == EXTERNAL and record.key not in self.externals) for record in records
        )
        tables = {kind: dict(getattr(self, name)) for kind, name in _TABLES.items()}
        for record in records:
            if record.body is None:
                tables[record.kind].pop(record.key, None)
            else:
                tables[record.kind][record.key] = PARSERS[record.kind](record)
        forgotten = tables[FORGOTTEN]
        for kind in (ACCOUNT, EXTERNAL):
            tables[kind] = {key: account for key, account in tables[kind].items() if account.subject not in forgotten}
        kept = ((name, one) for name, one in tables[CERTIFICATE].items() if one.quota_id not in tables[REMOVED])
        tables[CERTIFICATE] = dict(kept)
        view = View(tables, revision)
        if arrived:  # of whom nothing was said before: what was accepted of others stands
            view.accepted, view.bound, view.refused = self.accepted, self.bound, self.refused
        return view


def remember(table: dict[bytes, Any], digest: bytes, value: object) -> None:
    """Add to a bounded table, dropping the oldest; only the thread that authenticates does so."""
    while len(table) >= CACHE_SIZE:
        del table[next(iter(table))]
    table[digest] = value
