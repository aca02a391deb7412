"""The verdict in force on every account of one release: what is held about it, by the ladder and the terms of now."""

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelkeep.extraction import budget
from modelkeep.extraction.budget import Budget
from modelkeep.extraction.ladder import Ladder, Rung
from modelkeep.extraction.shared import Learnt, Shared, SharedBudgets

Floats = NDArray[np.float64]


class Verdict(msgspec.Struct, frozen=True):
    """What is held about one account now.

    ``rung``: its place on the ladder; ``log_m``: natural log of the evidence (M + R) / 2; ``odds``: the same in words;
    ``budget``: what it has learnt this period; ``queries``: all; ``effective``: distinct ones, which alone count as evidence;
    ``uncovered``: too few to enforce on; ``alarmed_at``: the query count at the alarm, None without one; ``drifting``: so
    many others' evidence rises with it that the population drifted, and it counts for less (``Ladder.drifting``); ``withheld``:
    it would accuse the account else; ``cases``: accused clusters that it is in, which lower its budget and do no more;
    ``shared``: the budget of a cluster that holds it too, None = none does. Its numbers are of when this account was judged
    last; a rung that it leads to holds at once.
    """

    rung: Rung
    log_m: float
    odds: str
    budget: Budget
    queries: int
    effective: int
    uncovered: bool
    alarmed_at: int | None
    drifting: bool = False
    withheld: bool = False
    cases: tuple[str, ...] = ()
    shared: Shared | None = None

    @property
    def spent(self) -> float:
        """The larger of the shares that are spent, of its own budget and of the one that it shares."""
        return _larger(self.budget, self.shared)


@dataclass(frozen=True, slots=True)
class Terms:
    """What people decided about one account. ``budget``: factor on its information budget; ``sanctioned``: a review put it on
    the last rung of the ladder."""

    budget: float = 1.0
    sanctioned: bool = False


USUAL = Terms()
TOLD = 0.1
"""Share of a budget from which ``learning`` tells of it."""


class Verdicts:
    """Places accounts on the ladder, and keeps who is where. Changes are made under the guard's lock; ``of``, ``alarmed`` and
    ``withheld`` need none."""

    def __init__(self, ladder: Ladder, curve: Floats, shared: SharedBudgets) -> None:
        """``curve``: the exchange rate of the budget, as ``budget.quote`` has it; ``shared``: budgets of clusters."""
        self.ladder, self._curve, self._shared = ladder, curve, shared
        shared.ladder = ladder
        self.period = self._day = 0
        self._terms: dict[str, Terms] = {}
        self._held: dict[str, Verdict] = {}
        self._alarmed: dict[str, None] = {}
        self._withheld: dict[str, None] = {}
        self._moved: dict[str, None] = {}
        self._learning: dict[str, None] = {}
        self._unseen = self._nothing()

    def of(self, subject: str) -> Verdict:
        """The verdict in force; for an account never seen, the lowest rung."""
        return self._held.get(subject, self._unseen)

    def alarmed(self) -> list[str]:
        """Subjects at the alarm rung, in the order in which they got there."""
        return list(self._alarmed)

    def withheld(self) -> list[str]:
        """Subjects whose verdict is withheld, in the order in which they got there."""
        return list(self._withheld)

    def sanctioned(self) -> list[str]:
        """Subjects that a review put on the last rung."""
        return [subject for subject, terms in self._terms.items() if terms.sanctioned]

    def moved(self) -> list[str]:
        """Subjects whose rung changed since this was asked last."""
        found, self._moved = list(self._moved), {}
        return found

    def learning(self) -> list[str]:
        """Accounts and clusters of which ``learnt`` changed since this was asked last, if a tenth of their budget is spent or
        more, if their rung changed, or what people decided about them; and who was forgotten."""
        found, self._learning = list(self._learning), {}
        return found

    def changed(self, *names: str) -> None:
        """``learning`` tells of these accounts and clusters."""
        self._learning.update(dict.fromkeys(names))

    def learnt(self, name: str, measure: str) -> Learnt | None:
        """What an account or a cluster has learnt this period; None of one that is not known. ``measure``: as ``Learnt``."""
        shared, begins = self._shared.show(name), self.period * self.ladder.days
        if shared is not None:
            return Learnt(shared.budget, tuple(self._shared.accounts(name)), begins, measure)
        held = self._held.get(name)
        return None if held is None else Learnt(held.budget, (), begins, measure)

    def put(self, subject: str, found: Verdict) -> None:
        """``found`` is what is held about the account from now on, at the rung and with the budget that follow from it."""
        terms = self._terms.get(subject, USUAL)
        limit = self.ladder.questions * terms.budget * (self.ladder.case if found.cases else 1.0)
        spent = replace(found.budget, limit=limit, share=found.budget.equivalent / limit)
        shared = self._shared.of(subject)
        rung = Rung.SANCTION if terms.sanctioned else self._rung(found, _larger(spent, shared))
        before = self.of(subject)
        if rung is not before.rung:
            self._moved[subject] = self._learning[subject] = None
        elif spent.share >= TOLD or before.budget.share >= TOLD:
            self._learning[subject] = None
        self._held[subject] = replace(found, rung=rung, budget=spent, shared=shared)
        _note(self._alarmed, subject, rung is Rung.ALARM)
        _note(self._withheld, subject, found.withheld)

    def weigh(self, *clusters: str) -> set[str]:
        """Place the accounts of ``clusters`` anew where the budget that they share leads to another rung; who that is."""
        found = {subject for cluster in self._shared.moved(clusters) for subject in self._shared.accounts(cluster)}
        for subject in found & self._held.keys():
            self.put(subject, self._held[subject])
        told = [shared for cluster in clusters if (shared := self._shared.show(cluster)) is not None]
        self.changed(*(shared.id for shared in told if shared.budget.share >= TOLD))
        return found

    def _rung(self, found: Verdict, spent: float) -> Rung:
        evidence = 0.0 if found.uncovered else math.exp(found.log_m)
        return self.ladder.rung(evidence, spent, alarmed=bool(found.alarmed_at), drifting=found.drifting)

    def adopt(self, ladder: Ladder) -> None:
        """Judge everybody by another ladder from now on. A period of another length begins at once."""
        self.ladder = self._shared.ladder = ladder
        self._unseen = self._nothing()
        self.begin(self._day)
        for subject, verdict in list(self._held.items()):
            self.put(subject, verdict)

    def agree(self, subject: str, terms: Terms) -> None:
        """Judge an account, seen or not, by what was decided about it; of a cluster, only that it may learn more."""
        if terms == USUAL:
            self._terms.pop(subject, None)
        else:
            self._terms[subject] = terms
        self._shared.agree(subject, terms.budget)
        self.changed(subject, *self._shared.clusters(subject))
        if subject in self._held or terms.sanctioned:
            self.put(subject, self.of(subject))

    def begin(self, day: int) -> None:
        """It is this ``day`` (since 1970, UTC), or a later one: where a budget period begins, what was learnt is forgotten."""
        self._day, before = max(day, self._day), self.period
        self.period = self._day // self.ladder.days
        if self.period == before:
            return
        self._shared.renew()
        for subject, verdict in list(self._held.items()):  # the accounts themselves follow when they are touched next
            self.put(subject, replace(verdict, budget=self._unseen.budget))

    def forget(self, subject: str) -> None:
        """Drop the verdict, as if the account had never asked; a sanction stands."""
        if self._held.pop(subject, self._unseen).rung is not Rung.MARK:
            self._moved[subject] = None
        self._learning[subject] = None
        self._alarmed.pop(subject, None)
        self._withheld.pop(subject, None)
        if self._terms.get(subject, USUAL).sanctioned:
            self.put(subject, self._unseen)

    def _nothing(self) -> Verdict:
        spent = budget.quote(0.0, self._curve, self.ladder.questions)
        return Verdict(Rung.MARK, math.log(0.5), odds_text(0.5), spent, 0, 0, True, None)


def _larger(own: Budget, shared: Shared | None) -> float:
    return own.share if shared is None else max(own.share, shared.budget.share)


def _note(among: dict[str, None], subject: str, there: bool) -> None:
    if there:
        among[subject] = None
    else:
        among.pop(subject, None)


def odds_text(value: float) -> str:
    """Evidence as betting odds: ``1 : 24,000 against an honest account``, or ``none`` up to even odds."""
    if value <= 1.0:
        return "none"
    if value >= 1e12:
        return "over 1 : 10^12 against an honest account"
    return f"1 : {value:,.0f} against an honest account" if value >= 10 else f"1 : {value:.1f} against an honest account"
