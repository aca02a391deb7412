"""The guard of one served model: it watches every account's distinct queries and keeps a verdict for each, off the hot path."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Cold
from modelkeep.errors import Invalid
from modelkeep.extraction import budget, eprocess, evidence
from modelkeep.extraction.accounts import Account, Accounts, Held
from modelkeep.extraction.clusters import Asked, Cluster, Clusters
from modelkeep.extraction.drift import MOST, Drift, Standing, find_drift
from modelkeep.extraction.examine import Batch, Examiner, Ready
from modelkeep.extraction.ladder import DEFAULT, Ladder, Rung
from modelkeep.extraction.profile import Hidden, Profile, with_kappa
from modelkeep.extraction.shared import Learnt, Shared, SharedBudgets
from modelkeep.extraction.verdicts import Terms, Verdict, Verdicts, odds_text

Floats = NDArray[np.float64]

MIN_EFFECTIVE = 8
"""Nothing is enforced on fewer distinct queries than this: the account is uncovered."""
DRIFT_EVERY = 64
"""Queries of all accounts for which it is not asked again whether the population still drifts."""
SLICE = 64
"""Queries that are examined at once: larger products wake the threads of BLAS, which costs more than it saves."""
IN_MEMORY = 32_768
"""Accounts of one release whose state stays in memory, where there is another place for the coldest."""


class Guard:
    """Evidence, budget and ladder for every account of one release. Thread-safe; deterministic in the order of queries.

    ``alpha``: the chance that an honest account is ever alarmed before its first review (after j reviews the threshold is
    2^j / alpha, so that all periods together stay below 2 alpha), and again the chance that a cluster of honest accounts ever
    is (``clusters``). ``budget_limit``: natural questions a period, if not those of the ladder. Raises Invalid when ``alpha``
    is not in (0, 0.1] or the limit is not positive.
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
        self._profile, self._alpha = profile, alpha
        self._bets = eprocess.make_bets(profile.kappa)
        self._accounts = Accounts(len(self._bets.stream), cold, in_memory, eprocess.most_bets(len(profile.kappa)))
        self._examiner = Examiner(profile, self._accounts, SLICE)
        self._clusters = Clusters(self._bets, profile.near, profile.step_limits, alpha=alpha, beside=profile.beside)
        lent = ladder._replace(questions=limit)
        self._shared = SharedBudgets(self._clusters, profile.curve, lent)
        self._verdicts = Verdicts(lent, profile.curve, self._shared)
        self._touched: set[str] = set()
        self._standings = OrderedDict[str, Standing]()
        self._examined, self._drift_at = 0, -DRIFT_EVERY
        self._drift: Drift | None = None
        self._drifting: set[str] = set()
        self._lock = threading.Lock()

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force; for an account never seen, the lowest rung."""
        return self._verdicts.of(subject)

    def subjects(self) -> list[str]:
        """Every account seen, in the order of first queries, and those that a review put on the last rung."""
        with self._lock:
            return list(dict.fromkeys([*self._accounts, *self._verdicts.sanctioned()]))

    def alarmed(self) -> list[str]:
        """Subjects at the alarm rung, in the order in which they got there."""
        return self._verdicts.alarmed()

    def withheld(self) -> list[str]:
        """Subjects whose evidence would accuse them if the population had not drifted, in the order in which they got there."""
        return self._verdicts.withheld()

    def drift(self) -> Drift | None:
        """Whether the evidence of many accounts rises together, among those that asked last; those of a cluster are one."""
        with self._lock:
            return self._find_drift()

    def cases(self) -> list[Cluster]:
        """Every cluster that is accused of acting as one."""
        with self._lock:
            return self._clusters.all_accused()

    def shared(self, cluster: str) -> Shared | None:
        """The budget that the accounts of ``cluster`` share; None without one."""
        with self._lock:
            return self._shared.show(cluster)

    def learning(self) -> list[str]:
        """Accounts and clusters of which ``learnt`` changed since this was asked last, as ``Verdicts`` has it."""
        with self._lock:
            return self._verdicts.learning()

    def learnt(self, name: str) -> Learnt | None:
        """What an account or a cluster has learnt this period; None of one that is not known."""
        with self._lock:
            return self._verdicts.learnt(name, self._profile.fidelity)

    def touched(self) -> set[str]:
        """Accounts whose verdict somebody else's queries changed, or a review of their cluster, since this was asked last."""
        with self._lock:
            found, self._touched = self._touched, set()
            return found

    def held(self) -> Held:
        """How many accounts there are, and in memory."""
        return Held(len(self._accounts), self._accounts.hot)

    def observe(self, subject: str, x: Floats, probs: Floats | None, hidden: Hidden = None) -> None:
        """Take in queries ``x`` (b, d) of one account, with the model's own answers ``probs`` (b, k), before any mark or
        rounding; ``hidden`` as ``observe_many`` has it.
        """
        self.observe_many([subject] * len(x), x, probs, hidden=hidden)

    def observe_many(
        self,
        subjects: Sequence[str],
        x: Floats,
        probs: Floats | None,
        covariates: Sequence[Sequence[str]] | None = None,
        *,
        hidden: Hidden = None,
    ) -> None:
        """Take in queries of many accounts in their order of arrival: ``subjects`` (b,), ``x`` (b, d), ``probs`` (b, k) or
        None; ``covariates`` (b,): those that each was asked with, names that are the same for whoever shares one; ``hidden``
        (b, r): coordinates of the inner layer, where the profile has one.

        How a stream of queries is cut into batches does not matter. Raises Invalid (wrong shape, not finite); nothing is
        taken in then.
        """
        self._check(subjects, x, probs, hidden)
        for at in range(0, len(x), SLICE):
            end = at + SLICE
            shared = () if covariates is None else covariates[at:end]
            rows = np.asarray(x[at:end], np.float64)
            batch = Batch(
                evidence.fingerprints(rows),
                rows,
                None if probs is None else probs[at:end],
                None if hidden is None else hidden[at:end],
            )
            self._observe(subjects[at:end], batch, shared)

    def _observe(self, subjects: Sequence[str], batch: Batch, covariates: Sequence[Sequence[str]] = ()) -> None:
        names = batch.names
        with self._lock:
            known = {subject: self._known(subject) for subject in dict.fromkeys(subjects)}
            fresh = [i for i, one in enumerate(subjects) if (had := known[one]) is None or not had.remembers(names[i])]
            ready = self._examiner.prepare(batch, fresh)
            accounts = {subject: had or self._account(subject) for subject, had in known.items()}
            found = self._examiner.take(subjects, accounts, batch, ready)
            who = [accounts[subjects[i]] for i in found.told]
            values = eprocess.settle([one.stakes for one in who], self._bets.factors(found.events), [one.since for one in who])
            after, asked = dict(zip(found.told, values.tolist(), strict=True)), set(found.asked)
            shared: dict[str, list[int]] = {}  # which queries count in which clusters, each from when its account has joined
            for i, subject in enumerate(subjects):
                account = accounts[subject]
                for cluster in self._clusters.join(subject, covariates[i] if covariates else ()):
                    shared.setdefault(cluster, []).append(i)
                account.queries += 1
                if i in after:
                    account.value = after[i]
                    account.since += 1
                if i in asked:
                    self._stand(subject, account)
            self._pool(shared, subjects, batch, ready)
            for subject, account in accounts.items():
                self._verdicts.put(subject, self._judge(subject, account))
            self._accounts.settle()

    def _pool(self, shared: Mapping[str, list[int]], subjects: Sequence[str], batch: Batch, ready: Ready) -> None:
        """Let clusters bet on what their members asked anew; ``shared``: places in the batch, by cluster."""
        anew: dict[str, Asked] = {}
        queries = ready.queries
        for cluster, asked in shared.items():
            fresh = [i for i in asked if i in ready.rows and self._clusters.holds(cluster, subjects[i])]
            if fresh:
                rows, who = [ready.rows[i] for i in fresh], [subjects[i] for i in fresh]
                own = queries.own[rows].astype(np.float64)
                anew[cluster] = Asked(who, batch.names[fresh], own, queries.events[rows], queries.phi[rows], queries.w[rows])
        for cluster in self._clusters.take(anew):
            self._reconsider(cluster)
        self._touched |= self._verdicts.weigh(*anew)

    def _reconsider(self, cluster: str) -> None:
        """Bring the verdicts on all members up to date: the cluster was accused, or cleared."""
        for subject in self._clusters.members(cluster):
            self._hold(subject)
            self._touched.add(subject)

    def _hold(self, subject: str) -> None:
        """Bring the verdict on ``subject`` up to date."""
        account = self._known(subject)
        if account is not None:
            self._verdicts.put(subject, self._judge(subject, account))

    def moved(self) -> list[str]:
        """Subjects whose rung changed since this was asked last."""
        with self._lock:
            return self._verdicts.moved()

    def adopt(self, ladder: Ladder) -> None:
        """Judge everybody by another ladder from now on. A period of another length begins at once."""
        with self._lock:
            self._verdicts.adopt(ladder)

    def agree(self, subject: str, terms: Terms) -> None:
        """Judge an account, seen or not, by what was decided about it; of a cluster, only that it may learn more."""
        with self._lock:
            self._verdicts.agree(subject, terms)
            self._touched |= self._verdicts.weigh(subject, *self._clusters.of(subject))

    def begin(self, day: int) -> None:
        """It is this ``day`` (days since 1970, UTC): where a new budget period begins with it, what was learnt is forgotten."""
        with self._lock:
            self._verdicts.begin(day)

    def _account(self, subject: str) -> Account:
        """The account of now: made if need be, and in the period in force."""
        return self._known(subject) or self._accounts.make(subject, self._verdicts.period)

    def _known(self, subject: str) -> Account | None:
        account = self._accounts.get(subject)
        if account is not None and account.period != self._verdicts.period:
            account.renew()
            account.period = self._verdicts.period
        return account

    def charge(self, subject: str, questions: float) -> None:
        """Take natural ``questions`` from the budget of an account for an answer that teaches as much as they would.

        It is no evidence: no charge leads to the alarm. The clusters that it is in by now have learnt it, too.
        """
        with self._lock:
            account = self._account(subject)
            account.charged += questions
            self._clusters.charge(subject, questions)
            self._hold(subject)
            self._touched |= self._verdicts.weigh(*self._clusters.of(subject))
            self._accounts.settle()

    def clear(self, subject: str) -> None:
        """A person reviewed the account, or the cluster: its evidence restarts, and the next alarm needs twice the odds. Silent
        when unseen.
        """
        with self._lock:
            if self._clusters.show(subject) is not None:
                self._clusters.clear(subject)
                self._reconsider(subject)
            account = self._accounts.get(subject)
            if account is not None:
                account.restart()
                self._standings.pop(subject, None)
                self._drifting.discard(subject)
                self._hold(subject)
                self._accounts.settle()

    def recalibrate(self, kappa: Floats) -> None:
        """From now on the null has other bounds, shape (streams,): the evidence on every account and cluster restarts, an alarm
        or a case waits for its review. After the j-th calibration the threshold is (j + 1)^2 times what it was, so that all of
        them together stay below 1.65 alpha. Raises Invalid (not bounds of this profile).
        """
        with self._lock:
            self._standings.clear()
            self._drifting.clear()
            self._drift, self._drift_at = None, self._examined
            self._bets = eprocess.make_bets(with_kappa(self._profile, kappa).kappa)
            self._accounts.rebet(len(self._bets.stream))
            self._clusters.rebet(self._bets)
            for subject in list(self._accounts):
                self._hold(subject)
                self._accounts.settle()

    def forget(self, subject: str) -> None:
        """Drop all that is held about an account, as if it had never asked. Silent when unseen."""
        with self._lock:
            self._standings.pop(subject, None)
            self._drifting.discard(subject)
            self._accounts.forget(subject)
            self._verdicts.forget(subject)
            clusters = self._clusters.of(subject)
            self._clusters.forget(subject)
            self._verdicts.changed(*clusters)
            for cluster in clusters:
                self._reconsider(cluster)

    def _check(self, subjects: Sequence[str], x: Floats, probs: Floats | None, hidden: Hidden) -> None:
        if x.ndim != 2 or x.shape[1] != self._profile.n_features or len(subjects) != len(x):
            raise Invalid(
                f"evidence needs one row of {self._profile.n_features} values per query, not {len(subjects)} for {x.shape}"
            )
        if not np.isfinite(x).all() or (probs is not None and not np.isfinite(probs).all()):
            raise Invalid("evidence needs finite inputs and answers")
        if self._profile.n_classes and (probs is None or probs.shape != (len(x), self._profile.n_classes)):
            raise Invalid(f"evidence needs {self._profile.n_classes} probabilities per query")
        layer = self._profile.layer
        if layer is not None and (
            hidden is None or hidden.shape != (len(x), layer.directions) or not np.isfinite(hidden).all()
        ):
            raise Invalid(f"evidence needs {layer.directions} finite coordinates of the inner layer per query")

    def _stand(self, subject: str, account: Account) -> None:
        """Note where the account stands among the others, and accuse it when its evidence says so and it is not theirs, too."""
        self._examined += 1
        if account.since < MIN_EFFECTIVE:
            return
        standing = self._standings[subject] = Standing(account.value, account.since)
        self._standings.move_to_end(subject)
        if len(self._standings) > MOST:
            self._standings.popitem(last=False)
        if account.alarmed_at:
            return
        accuses = self._accuses(account)
        if accuses if self._drift is None else self._examined - self._drift_at >= DRIFT_EVERY:
            self._drift, self._drift_at = self._find_drift(), self._examined
        if self._drift is None or self._drift.stands_out(standing):
            self._drifting.discard(subject)
            if accuses:
                account.alarmed_at = account.queries
        else:
            self._drifting.add(subject)

    def _accuses(self, account: Account) -> bool:
        return account.since >= MIN_EFFECTIVE and account.value >= self._threshold(account)

    def _threshold(self, account: Account) -> float:
        return eprocess.threshold(self._alpha, account.reviews, account.calibrations)

    def _find_drift(self) -> Drift | None:
        shared = self._clusters.groups(self._standings)
        return find_drift(self._standings, lambda subject: shared.get(subject, subject))

    def _judge(self, subject: str, account: Account) -> Verdict:
        return Verdict(
            rung=Rung.MARK,  # the verdicts place it
            log_m=math.log(max(account.value, 1e-300)),
            odds=odds_text(account.value),
            budget=budget.quote(account.spent, self._profile.curve, self._verdicts.ladder.questions, account.charged),
            queries=account.queries,
            effective=account.effective,
            uncovered=account.since < MIN_EFFECTIVE,
            alarmed_at=account.alarmed_at or None,
            cases=self._clusters.accused(subject),
            drifting=subject in self._drifting,
            withheld=not account.alarmed_at and self._accuses(account),
        )
