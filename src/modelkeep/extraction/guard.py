"""The guard of one served model: it watches every account's distinct queries and keeps a verdict for each, off the hot path."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Cold
from modelkeep.errors import Invalid
from modelkeep.extraction import budget, eprocess, evidence, null, places
from modelkeep.extraction.accounts import REMEMBERED, Account, Accounts, Held
from modelkeep.extraction.budget import Budget
from modelkeep.extraction.ladder import DEFAULT, Ladder, Rung
from modelkeep.extraction.places import Places
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]

MIN_EFFECTIVE = 8
"""Nothing is enforced on fewer distinct queries than this: the account is uncovered."""
SLICE = 64
"""Queries that are examined at once: larger products wake the threads of BLAS, which costs more than it saves."""
IN_MEMORY = 32_768
"""Accounts of one release whose state stays in memory, where there is another place for the coldest."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is held about one account now.

    ``rung``: its place on the ladder; ``log_m``: natural log of the evidence (M + R) / 2; ``odds``: the same in words;
    ``budget``: what it has learnt this period; ``queries``: all; ``effective``: distinct ones, which alone count as evidence;
    ``uncovered``: too few to enforce on; ``alarmed_at``: the query count at the alarm, None without one.
    """

    rung: Rung
    log_m: float
    odds: str
    budget: Budget
    queries: int
    effective: int
    uncovered: bool
    alarmed_at: int | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What people decided about one account. ``budget``: factor on its information budget; ``sanctioned``: a review put it on
    the last rung of the ladder."""

    budget: float = 1.0
    sanctioned: bool = False


USUAL = Terms()


@dataclass(frozen=True, slots=True, eq=False)
class _Queries:
    """Queries made ready: places (b, 32), score events (b, streams), phi (b, 24) and w (b)."""

    own: NDArray[np.float32]
    events: NDArray[np.bool_]
    phi: NDArray[np.float32]
    w: list[float]


class Guard:
    """Evidence, budget and ladder for every account of one release. Thread-safe; deterministic in the order of queries.

    ``alpha``: the chance that an honest account is ever alarmed before its first review (after j reviews the threshold is
    2^j / alpha, so that all periods together stay below 2 alpha). ``budget_limit``: natural questions a period, if not those
    of the ladder. Raises Invalid when ``alpha`` is not in (0, 0.1] or the limit is not positive.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        alpha: float = 1e-3,
        budget_limit: float | None = None,
        cold: Cold | None = None,
        in_memory: int = IN_MEMORY,
        ladder: Ladder = DEFAULT,
    ) -> None:
        """``cold``: where the state of accounts goes beyond the ``in_memory`` that asked last; None: all stay in memory."""
        limit = ladder.questions if budget_limit is None else float(budget_limit)
        if not 0.0 < alpha <= 0.1 or not 0.0 < limit < math.inf:
            raise Invalid(f"the guard needs alpha in (0, 0.1] and a positive budget, not {alpha} and {budget_limit}")
        self._profile, self._alpha, self._ladder = profile, alpha, ladder._replace(questions=limit)
        self._day = self._period = 0
        self._terms: dict[str, Terms] = {}
        self._moved: dict[str, None] = {}
        self._bets = eprocess.make_bets(profile.kappa)
        self._places = Places(profile.embedding)
        self._accounts = Accounts(len(self._bets.stream), cold, in_memory)
        self._alarmed: dict[str, None] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._unseen = self._nothing()

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force; for an account never seen, the lowest rung."""
        return self._verdicts.get(subject, self._unseen)

    def subjects(self) -> list[str]:
        """Every account seen, in the order of first queries, and those that a review put on the last rung."""
        with self._lock:
            return list(dict.fromkeys([*self._accounts, *(name for name, terms in self._terms.items() if terms.sanctioned)]))

    def alarmed(self) -> list[str]:
        """Subjects at the alarm rung, in the order in which they got there."""
        return list(self._alarmed)

    def held(self) -> Held:
        """How many accounts there are, and in memory."""
        return Held(len(self._accounts), self._accounts.hot)

    def observe(self, subject: str, x: Floats, probs: Floats | None) -> None:
        """Take in queries ``x`` (b, d) of one account, with the model's own answers ``probs`` (b, k), before any mark or
        rounding.
        """
        self.observe_many([subject] * len(x), x, probs)

    def observe_many(self, subjects: Sequence[str], x: Floats, probs: Floats | None) -> None:
        """Take in queries of many accounts in their order of arrival: ``subjects`` (b,), ``x`` (b, d), ``probs`` (b, k) or
        None.

        How a stream of queries is cut into batches does not matter. Raises Invalid (wrong shape, not finite); nothing is
        taken in then.
        """
        self._check(subjects, x, probs)
        for at in range(0, len(x), SLICE):
            end = at + SLICE
            self._observe(subjects[at:end], np.asarray(x[at:end], np.float64), None if probs is None else probs[at:end])

    def _observe(self, subjects: Sequence[str], x: Floats, probs: Floats | None) -> None:
        names = evidence.fingerprints(x)
        with self._lock:
            fresh = [i for i, subject in enumerate(subjects) if not self._repeats(subject, names[i])]
            queries = self._prepare(x, probs, fresh)
            at = dict(zip(fresh, range(len(fresh)), strict=True))
            wide: dict[str, NDArray[np.float32]] = {}  # each account's own places, as wide as what they are compared with
            for i, subject in enumerate(subjects):
                account = self._account(subject)
                account.queries += 1
                if (account.names == names[i]).any():
                    continue
                if subject not in wide:
                    wide[subject] = account.own.astype(np.float32)
                if i in at:
                    self._take(account, wide[subject], names[i], queries, at[i])
                else:  # its name was pushed out by others of this batch
                    self._take(account, wide[subject], names[i], self._prepare(x, probs, [i]), 0)
            for subject in dict.fromkeys(subjects):
                self._hold(subject)
            self._accounts.settle()

    def _repeats(self, subject: str, name: np.uint64) -> bool:
        account = self._accounts.get(subject)
        return account is not None and bool((account.names == name).any())

    def _hold(self, subject: str) -> None:
        """Bring the verdict on ``subject`` up to date."""
        account = self._known(subject)
        if account is None:
            return
        self._put(subject, self._judge(subject, account))

    def _put(self, subject: str, verdict: Verdict) -> None:
        if verdict.rung is not self.verdict(subject).rung:
            self._moved[subject] = None
        self._verdicts[subject] = verdict
        if verdict.rung is Rung.ALARM:
            self._alarmed[subject] = None
        else:
            self._alarmed.pop(subject, None)

    def moved(self) -> list[str]:
        """Subjects whose rung changed since this was asked last."""
        with self._lock:
            found, self._moved = list(self._moved), {}
            return found

    def adopt(self, ladder: Ladder) -> None:
        """Judge everybody by another ladder from now on. A period of another length begins at once."""
        with self._lock:
            self._ladder, self._unseen = ladder, self._nothing(ladder)
            self._begin(self._day)
            for subject in list(self._verdicts):
                self._place(subject)

    def agree(self, subject: str, terms: Terms) -> None:
        """Judge an account, seen or not, by what was decided about it."""
        with self._lock:
            if terms == USUAL:
                self._terms.pop(subject, None)
            else:
                self._terms[subject] = terms
            if subject in self._verdicts or terms.sanctioned:
                self._place(subject)

    def begin(self, day: int) -> None:
        """It is this ``day`` (days since 1970, UTC): where a new budget period begins with it, what was learnt is forgotten."""
        with self._lock:
            self._begin(max(day, self._day))

    def _begin(self, day: int) -> None:
        self._day, before = day, self._period
        self._period = day // self._ladder.days
        if self._period == before:
            return
        for subject, verdict in list(self._verdicts.items()):  # the accounts themselves follow when they are touched next
            self._verdicts[subject] = replace(verdict, budget=self._nothing().budget)
            self._place(subject)

    def _place(self, subject: str) -> None:
        """The same evidence, by the ladder and the terms of now."""
        verdict = self.verdict(subject)
        spent = self._budget(subject, verdict.budget)
        rung = self._rung(subject, 0.0 if verdict.uncovered else math.exp(verdict.log_m), spent, verdict.alarmed_at)
        self._put(subject, replace(verdict, budget=spent, rung=rung))

    def _account(self, subject: str) -> Account:
        """The account of now: made if need be, and in the period in force."""
        return self._known(subject) or self._accounts.make(subject, self._period)

    def _known(self, subject: str) -> Account | None:
        account = self._accounts.get(subject)
        if account is not None and account.period != self._period:
            account.renew()
            account.period = self._period
        return account

    def _nothing(self, ladder: Ladder | None = None) -> Verdict:
        limit = (ladder or self._ladder).questions
        spent = budget.quote(0.0, self._profile.curve, limit)
        return Verdict(Rung.MARK, math.log(0.5), odds_text(0.5), spent, 0, 0, True, None)

    def _budget(self, subject: str, spent: Budget) -> Budget:
        limit = self._ladder.questions * self._terms.get(subject, USUAL).budget
        return replace(spent, limit=limit, share=spent.equivalent / limit)

    def _rung(self, subject: str, evidence: float, spent: Budget, alarmed_at: int | None) -> Rung:
        if self._terms.get(subject, USUAL).sanctioned:
            return Rung.SANCTION
        return self._ladder.rung(evidence, spent.share, alarmed=bool(alarmed_at))

    def charge(self, subject: str, questions: float) -> None:
        """Take natural ``questions`` from the budget of an account for an answer that teaches as much as they would.

        It is no evidence: no charge leads to the alarm. The order of charges and queries does not matter.
        """
        with self._lock:
            account = self._account(subject)
            account.charged += questions
            self._hold(subject)
            self._accounts.settle()

    def clear(self, subject: str) -> None:
        """A person reviewed the account: its evidence restarts, and the next alarm needs twice the odds. Silent when unseen."""
        with self._lock:
            account = self._accounts.get(subject)
            if account is not None:
                account.restart()
                self._hold(subject)
                self._accounts.settle()

    def forget(self, subject: str) -> None:
        """Drop all that is held about an account, as if it had never asked. Silent when unseen."""
        with self._lock:
            if self._verdicts.pop(subject, self._unseen).rung is not Rung.MARK:
                self._moved[subject] = None
            self._alarmed.pop(subject, None)
            self._accounts.forget(subject)
            if self._terms.get(subject, USUAL).sanctioned:
                self._place(subject)

    def _check(self, subjects: Sequence[str], x: Floats, probs: Floats | None) -> None:
        if x.ndim != 2 or x.shape[1] != self._profile.n_features or len(subjects) != len(x):
            raise Invalid(
                f"evidence needs one row of {self._profile.n_features} values per query, not {len(subjects)} for {x.shape}"
            )
        if not np.isfinite(x).all() or (probs is not None and not np.isfinite(probs).all()):
            raise Invalid("evidence needs finite inputs and answers")
        if self._profile.n_classes and (probs is None or probs.shape != (len(x), self._profile.n_classes)):
            raise Invalid(f"evidence needs {self._profile.n_classes} probabilities per query")

    def _prepare(self, x: Floats, probs: Floats | None, chosen: list[int]) -> _Queries:
        """The rows ``chosen`` of a batch, made ready."""
        profile, x = self._profile, x[chosen]
        answers = None if probs is None or probs.shape[1] < 2 else np.asarray(probs, dtype=np.float64)[chosen]
        if not chosen:
            nothing = np.empty((0, places.DIMENSIONS), dtype=np.float32)
            return _Queries(nothing, np.empty((0, 0), dtype=np.bool_), nothing, [])
        scores = profile.scores(x, answers)
        projected = profile.embedding.project(x)[1]
        found = self._places.of(x)
        own = np.zeros((len(x), places.DIMENSIONS), dtype=np.float32)
        own[:, : found.shape[1]] = found
        return _Queries(
            own=own,
            events=(scores[:, :, None] > profile.limits).reshape(len(x), -1),
            phi=budget.spend_features(profile.embedding, projected).astype(np.float32),
            w=budget.weight_of(answers, len(x)).tolist(),
        )

    def _take(self, account: Account, own: NDArray[np.float32], name: np.uint64, queries: _Queries, i: int) -> None:
        """One query that is no exact repeat: charge, compare with the account's ``own`` last ones, settle the bets."""
        account.spent += budget.spend(account.inverse, queries.phi[i], queries.w[i])
        apart = own - queries.own[i]
        nearest = math.sqrt(float(np.einsum("ij,ij->i", apart, apart).min()))
        if nearest <= self._profile.near:
            return
        account.names[account.effective % REMEMBERED] = name
        place = account.effective % null.OWN
        account.own[place] = queries.own[i]
        own[place] = account.own[place]
        events = np.concatenate([queries.events[i], nearest < self._profile.step_limits])
        account.value = eprocess.settle(account.stakes, self._bets.factors(events), account.since)
        account.effective += 1
        account.since += 1
        if not account.alarmed_at and account.since >= MIN_EFFECTIVE and account.value >= 2.0**account.reviews / self._alpha:
            account.alarmed_at = account.queries

    def _judge(self, subject: str, account: Account) -> Verdict:
        quoted = budget.quote(account.spent, self._profile.curve, self._ladder.questions, account.charged)
        spent, uncovered = self._budget(subject, quoted), account.since < MIN_EFFECTIVE
        return Verdict(
            rung=self._rung(subject, 0.0 if uncovered else account.value, spent, account.alarmed_at),
            log_m=math.log(max(account.value, 1e-300)),
            odds=odds_text(account.value),
            budget=spent,
            queries=account.queries,
            effective=account.effective,
            uncovered=uncovered,
            alarmed_at=account.alarmed_at or None,
        )


def odds_text(value: float) -> str:
    """Evidence as betting odds: ``1 : 24,000 against an honest account``, or ``none`` up to even odds."""
    if value <= 1.0:
        return "none"
    if value >= 1e12:
        return "over 1 : 10^12 against an honest account"
    return f"1 : {value:,.0f} against an honest account" if value >= 10 else f"1 : {value:.1f} against an honest account"
