"""What evidence is judged by besides the questions: the ladder in force, the day, and what was decided about accounts.

Everything here is of the signed releases log, but the day and what matched threat intelligence. What changed is handed to the
evidence on every release, so a gateway takes it up without a restart.
"""

import datetime
from collections.abc import Callable, Iterable, Mapping

from modelkeep.core.ports import Clock
from modelkeep.custody.book import EvidenceBook
from modelkeep.extraction.verdicts import USUAL, Terms
from modelkeep.workflows.decisions import Decision, Decisions
from modelkeep.workflows.policies import LadderInForce
from modelkeep.workflows.watch import Agreed, Today, day_of


class Rules:
    """Keeps the rules of one process up to date. One thread calls ``hand_over``."""

    def __init__(
        self,
        decisions: Decisions,
        ladder: LadderInForce,
        clock: Clock,
        cautions: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """``cautions``: factors below 1 on the budgets of subjects that match threat intelligence now."""
        self._decisions, self._in_force, self._now_ns, self._cautions = decisions, ladder, clock.now_ns, cautions
        self._told: dict[str, Terms] = {}
        self._today = -1
        self.ladder = ladder.default
        self._ruled = False

    def read(self, book: EvidenceBook) -> None:
        """Take the ladder that ``book`` says. Raises Unavailable: it cannot be read here, which ends the lease."""
        found = self._in_force.of(book)
        if found is not self.ladder:
            self.ladder, self._ruled = found, False

    def hand_over(self, take: Callable[[Decision], None]) -> None:
        """Tell ``take`` what changed; what it raises on is told again the next time."""
        now = self._now_ns()
        if not self._ruled:
            take(self.ladder)
            self._ruled = True
        if day_of(now) > self._today:
            take(Today(day_of(now)))
            self._today = day_of(now)
        cautions = self._cautions()
        for subject in self._of_interest(cautions):
            terms = self._terms(subject, now, cautions.get(subject, 1.0))
            if terms != self._told.get(subject, USUAL):
                take(Agreed(subject, terms))
                self._told[subject] = terms

    @property
    def renews(self) -> str:
        """The day on which the next budget period begins, such as 2026-12-09; "" before the first ``hand_over``."""
        if self._today < 0:
            return ""
        day = (self._today // self.ladder.days + 1) * self.ladder.days
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()

    def _of_interest(self, cautions: Mapping[str, float]) -> Iterable[str]:
        return dict.fromkeys([*self._decisions.sanctioned, *self._decisions.allowed, *cautions, *self._told])

    def _terms(self, subject: str, now: int, caution: float) -> Terms:
        allowed = self._decisions.allowed.get(subject)
        factor = allowed.factor if allowed is not None and now < allowed.until else 1.0
        return Terms(factor * caution, subject in self._decisions.sanctioned)
