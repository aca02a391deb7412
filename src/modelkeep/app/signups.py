"""Where accounts come from and since when, by pseudonym, as a covariate of the extraction evidence."""

from collections.abc import Callable

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.externals import EXTERNAL, parse_external
from modelkeep.core.ports import Records
from modelkeep.errors import ModelkeepError
from modelkeep.workflows.covariates import signup_covariate

EVERY = 5.0
"""Seconds between two looks at the records for somebody who is not known yet; until then it joins nobody."""


class Signups:
    """The sign-up covariate of every account. ``of`` is called by the threads that examine evidence."""

    def __init__(self, records: Records, monotonic: Callable[[], float]) -> None:
        self._records, self._monotonic = records, monotonic
        self._known: dict[str, tuple[str, ...]] = {}
        self._next = float("-inf")

    def of(self, subject: str) -> tuple[str, ...]:
        """The covariate of ``subject``; nothing while the records do not know it, or cannot be read."""
        found = self._known.get(subject)
        if found is None and self._monotonic() >= self._next:
            self._look()
            found = self._known.get(subject)
        return found or ()

    def _look(self) -> None:
        self._next = self._monotonic() + EVERY
        try:
            own = [(found.subject, "", found.created) for found in map(parse_account, self._records.scan(ACCOUNT))]
            external = map(parse_external, self._records.scan(EXTERNAL))
            own += [(found.subject, found.name.rpartition("@")[2], found.created) for found in external]
        except ModelkeepError:  # the gateway says so elsewhere; who is not known joins later
            return
        self._known = {subject: (signup_covariate(issuer, created),) for subject, issuer, created in own}
