"""Step-up: above a volume or a risk, a second factor is asked for before more is answered.

Source: RFC 9470 (OAuth 2.0 Step Up Authentication Challenge). Every time an account shows a second factor is an *event*,
named by its Unix second: that of the session in hand, or a later one for the whole account (an approval). Volume: each event
is good for so many requests, counted by leases in the records like a quota, so over all gateways; credentials without any
event share one such allowance for ever. Risk: from a rung of the extraction ladder on, only an event of the last so many
seconds is good enough.
"""

import msgspec

from modelkeep.access.quotas import QUOTA, Quotas
from modelkeep.access.steady import SteadyTime
from modelkeep.access.view import Grant
from modelkeep.core.ports import Change, Clock, Record
from modelkeep.errors import OverBudget, StepUpRequired, TooLarge

PREFIX = "step-up:"
"""What the ids of these quotas begin with."""

MACHINES = ("key", "certificate")
"""Kinds of credentials that have no second factor."""
_SPENT = "this account has asked as often as it may since it last showed a second factor: show it again, and ask on"
_RISKY = "this account's questions are unusual, and it has not shown a second factor lately: show it, and ask on"
_PERSON = " (a machine has none: its owner approves it with 'modelkeep step-up approve')"


class StepUpTerms(msgspec.Struct, frozen=True, kw_only=True):
    """When a second factor is asked for. ``requests``: after so many rows, 0 = never; ``rung``: from this rung of the ladder
    on, 0 = never; ``seconds``: how old the last one may be then; ``keys``: API keys and certificates are asked, too;
    ``link``: a page where to."""

    requests: int = 0
    rung: int = 0
    seconds: int = 900
    keys: bool = True
    link: str = ""


OFF = StepUpTerms()


class StepUp:
    """What one gateway asks before it answers. Safe to use from several threads."""

    def __init__(self, terms: StepUpTerms, quotas: Quotas, clock: Clock) -> None:
        self._terms, self._quotas = terms, quotas
        self._time = SteadyTime(clock)
        self._off = not terms.requests and not terms.rung

    def held(self, grant: Grant, rung: int, rows: int = 1, asked: bool = False) -> bool:
        """Check the risk, and count ``rows`` on the lease in hand; whether it held them. Never asks the records.

        ``asked``: the ladder asks for a recent second factor, whatever the terms say.
        Raises StepUpRequired (the risk asks for a second factor).
        """
        if (self._off and not asked) or (grant.kind in MACHINES and not self._terms.keys):
            return True
        terms = self._terms
        if (asked or (terms.rung and rung >= terms.rung)) and not self.recent(grant):
            raise self.required(grant)
        return not terms.requests or self._quotas.take_held(quota_id(grant), terms.requests, rows)

    def recent(self, grant: Grant) -> bool:
        """Whether the last second factor is as recent as the risk asks for."""
        return self._time.now() < grant.mfa_at + self._terms.seconds

    def required(self, grant: Grant) -> StepUpRequired:
        """What says that the risk asks for a second factor."""
        return self._required(_RISKY, grant)

    def take(self, grant: Grant, rows: int = 1) -> None:
        """Count ``rows``, after ``held`` said that no lease in hand has so many; the risk is not looked at again.

        Raises StepUpRequired, TooLarge (no factor is good for so many at once), Unavailable.
        """
        if not self._counts(grant):
            return
        if rows > self._terms.requests:
            raise TooLarge(
                f"a second factor is good for {self._terms.requests} rows here, and this counts as {rows}: ask for less"
            )
        try:
            self._quotas.take(quota_id(grant), self._terms.requests, rows)
        except OverBudget:
            raise self._required(_SPENT, grant) from None

    def put_back(self, grant: Grant, rows: int) -> None:
        """Undo the count of ``rows`` that ``held`` or ``take`` let through (see ``Quotas.put_back``)."""
        if self._counts(grant):
            self._quotas.put_back(quota_id(grant), self._terms.requests, rows)

    def _counts(self, grant: Grant) -> bool:
        return bool(self._terms.requests) and (self._terms.keys or grant.kind not in MACHINES)

    def _required(self, why: str, grant: Grant) -> StepUpRequired:
        return StepUpRequired(why + (_PERSON if grant.kind in MACHINES else ""), self._terms.seconds, self._terms.link)


def quota_id(grant: Grant) -> str:
    """What the requests since the last second factor of ``grant`` are counted under."""
    return f"{PREFIX}{grant.principal.subject}:{grant.mfa_at}"


def forget_old_events(quotas: list[Record], now: int, keep: int) -> list[Change]:
    """Changes that drop counts of events that are ``keep`` seconds old: no session says them any more.

    A count without any event stays, and so does the latest of each account, which an approval may have made.
    """
    found: dict[str, list[tuple[int, Record]]] = {}
    for record in quotas:
        if record.key.startswith(PREFIX):
            subject, _, at = record.key.removeprefix(PREFIX).rpartition(":")
            if at.isdecimal():  # a gateway writes these, and they are not signed
                found.setdefault(subject, []).append((int(at), record))
    old = [each for events in found.values() for each in sorted(events, key=lambda one: one[0])[:-1]]
    return [Change(QUOTA, record.key, None, record.revision) for at, record in old if 0 < at < now - keep]
