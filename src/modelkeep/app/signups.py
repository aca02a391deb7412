"""Where accounts come from and since when, by pseudonym, as a covariate of the extraction evidence."""

from collections.abc import Iterable

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.externals import EXTERNAL, parse_external
from modelkeep.core.ports import Record, Records
from modelkeep.workflows.covariates import signup_covariate


class Signups:
    """The sign-up covariate of every account: ``look`` reads the records, ``of`` never does, since answers may wait for it."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._known: dict[str, tuple[str, ...]] = {}
        self._revision: int | None = None

    def of(self, subject: str) -> tuple[str, ...]:
        """The covariate of ``subject``; nothing while it is not known: it joins later."""
        return self._known.get(subject, ())

    def look(self) -> None:
        """Take in who came since the last look. One thread at a time. Raises Unavailable, NotTrusted (a record is damaged)."""
        revision = self._records.revision()  # first: what is committed while we read is read again by the next look
        if self._revision is None:
            self._take(record for kind in (ACCOUNT, EXTERNAL) for record in self._records.scan(kind))
        elif revision > self._revision:
            self._take(self._records.since(self._revision))
        self._revision = revision

    def _take(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.body is None:
                continue
            if record.kind == ACCOUNT:
                own = parse_account(record)
                self._known[own.subject] = (signup_covariate("", own.created),)
            elif record.kind == EXTERNAL:
                external = parse_external(record)
                self._known[external.subject] = (signup_covariate(external.name.rpartition("@")[2], external.created),)
