"""The guard of one served model: it watches every account's distinct queries and keeps a verdict for each, off the hot path."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction import budget, eprocess, evidence, ladder, null
from modelkeep.extraction.budget import Budget
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.profile import OWN_DIMENSIONS, Profile

Floats = NDArray[np.float64]

REMEMBERED = 1024
"""Fingerprints of an account's last distinct queries, for exact repeats."""
MIN_EFFECTIVE = 8
"""Nothing is enforced on fewer distinct queries than this: the account is uncovered."""
DEFAULT_LIMIT = 1000.0
"""Natural questions an account may learn from in one budget period."""


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


class _State:
    """Accounts as parallel arrays, about 20 KB each; rows are added by doubling."""

    def __init__(self, bets: int) -> None:
        self.bets = bets
        self.size = 0
        self._allocate(8)

    def _allocate(self, room: int) -> None:
        shapes = {
            "kept": ((self.bets,), np.float64),
            "restarted": ((self.bets,), np.float64),
            "names": ((REMEMBERED,), np.uint64),
            "own": ((null.OWN, OWN_DIMENSIONS), np.float16),
            "inverse": ((budget.DIMENSIONS, budget.DIMENSIONS), np.float32),
            "queries": ((), np.int64),
            "effective": ((), np.int64),
            "since": ((), np.int64),
            "spent": ((), np.float64),
            "reviews": ((), np.int64),
            "alarmed_at": ((), np.int64),
        }
        for name, (shape, dtype) in shapes.items():
            fresh = np.zeros((room, *shape), dtype=dtype)
            if self.size:
                fresh[: self.size] = getattr(self, name)[: self.size]
            setattr(self, name, fresh)

    kept: Floats
    restarted: Floats
    names: NDArray[np.uint64]
    own: NDArray[np.float16]
    inverse: NDArray[np.float32]
    queries: NDArray[np.int64]
    effective: NDArray[np.int64]
    since: NDArray[np.int64]
    spent: Floats
    reviews: NDArray[np.int64]
    alarmed_at: NDArray[np.int64]

    def add(self) -> int:
        """A new account's row, with fresh stakes and an empty memory."""
        if self.size == len(self.queries):
            self._allocate(2 * self.size)
        row = self.size
        self.kept[row] = 1.0
        self.own[row] = np.nan
        self.inverse[row] = np.eye(budget.DIMENSIONS)
        self.size += 1
        return row


class Guard:
    """Evidence, budget and ladder for every account of one release. Thread-safe; deterministic in the order of queries.

    ``alpha``: the chance that an honest account is ever alarmed before its first review (after j reviews the threshold is
    2^j / alpha, so that all periods together stay below 2 alpha). ``budget_limit``: natural questions a period.
    Raises Invalid when ``alpha`` is not in (0, 0.1] or the limit is not positive.
    """

    def __init__(self, profile: Profile, *, alpha: float = 1e-3, budget_limit: float | None = None) -> None:
        limit = DEFAULT_LIMIT if budget_limit is None else float(budget_limit)
        if not 0.0 < alpha <= 0.1 or not 0.0 < limit < math.inf:
            raise Invalid(f"the guard needs alpha in (0, 0.1] and a positive budget, not {alpha} and {budget_limit}")
        self._profile, self._alpha, self._limit = profile, alpha, limit
        self._bets = eprocess.make_bets(profile.kappa)
        self._state = _State(len(self._bets.stream))
        self._rows: dict[str, int] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()
        self._unseen = Verdict(
            Rung.MARK, math.log(0.5), odds_text(0.5), budget.quote(0.0, profile.curve, limit), 0, 0, True, None
        )

    def verdict(self, subject: str) -> Verdict:
        """The verdict in force; for an account never seen, the lowest rung."""
        return self._verdicts.get(subject, self._unseen)

    def subjects(self) -> list[str]:
        """Every account seen, in the order of first queries."""
        return list(self._rows)

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
        if len(x) == 0:
            return
        x = np.asarray(x, dtype=np.float64)
        answers = None if probs is None or probs.shape[1] < 2 else np.asarray(probs, dtype=np.float64)
        profile = self._profile
        events = _score_events(profile, x, answers)
        projected = profile.embedding.project(x)[1]
        phi, w = budget.spend_features(profile.embedding, projected), budget.weight_of(answers, len(x))
        own = np.zeros((len(x), OWN_DIMENSIONS), dtype=np.float32)
        own[:, : min(OWN_DIMENSIONS, projected.shape[1])] = projected[:, :OWN_DIMENSIONS]
        names = evidence.fingerprints(x)
        with self._lock:
            rows = np.array([self._row(subject) for subject in subjects])
            for turn in _turns(rows):
                self._take(rows[turn], names[turn], own[turn], events[turn], phi[turn], w[turn])
            for subject in dict.fromkeys(subjects):
                self._verdicts[subject] = self._judge(self._rows[subject])

    def clear(self, subject: str) -> None:
        """A person reviewed the account: its evidence restarts, and the next alarm needs twice the odds. Silent when unseen."""
        with self._lock:
            row = self._rows.get(subject)
            if row is None:
                return
            state = self._state
            state.kept[row], state.restarted[row] = 1.0, 0.0
            state.since[row], state.alarmed_at[row] = 0, 0
            state.reviews[row] += 1
            self._verdicts[subject] = self._judge(row)

    def renew(self, subject: str | None = None) -> None:
        """Begin a new budget period for one account, or for all. What was learnt is forgotten; the evidence is not."""
        with self._lock:
            for name in list(self._rows) if subject is None else [subject]:
                row = self._rows.get(name)
                if row is not None:
                    self._state.spent[row] = 0.0
                    self._state.inverse[row] = np.eye(budget.DIMENSIONS)
                    self._verdicts[name] = self._judge(row)

    def _check(self, subjects: Sequence[str], x: Floats, probs: Floats | None) -> None:
        if x.ndim != 2 or x.shape[1] != self._profile.n_features or len(subjects) != len(x):
            raise Invalid(
                f"evidence needs one row of {self._profile.n_features} values per query, not {len(subjects)} for {x.shape}"
            )
        if not np.isfinite(x).all() or (probs is not None and not np.isfinite(probs).all()):
            raise Invalid("evidence needs finite inputs and answers")
        if self._profile.n_classes and (probs is None or probs.shape != (len(x), self._profile.n_classes)):
            raise Invalid(f"evidence needs {self._profile.n_classes} probabilities per query")

    def _row(self, subject: str) -> int:
        row = self._rows.get(subject)
        if row is None:
            row = self._rows[subject] = self._state.add()
        return row

    def _take(
        self,
        rows: NDArray[np.int64],
        names: NDArray[np.uint64],
        own: NDArray[np.float32],
        events: NDArray[np.bool_],
        phi: Floats,
        w: Floats,
    ) -> None:
        """One query of each of several different accounts."""
        state, profile = self._state, self._profile
        state.queries[rows] += 1
        fresh = ~(state.names[rows] == names[:, None]).any(axis=1)
        rows, names, own, events, phi, w = (part[fresh] for part in (rows, names, own, events, phi, w))
        if len(rows) == 0:
            return
        gaps = np.sqrt(((state.own[rows] - own[:, None, :]).astype(np.float64) ** 2).sum(axis=2))
        nearest = np.where(np.isnan(gaps), np.inf, gaps).min(axis=1)
        cost, inverse = budget.spend(state.inverse[rows].astype(np.float64), phi, w)
        state.spent[rows] += cost
        state.inverse[rows] = inverse
        counted = nearest > profile.near
        rows, names, own, events, nearest = (part[counted] for part in (rows, names, own, events, nearest))
        state.names[rows, state.effective[rows] % REMEMBERED] = names
        state.own[rows, state.effective[rows] % null.OWN] = own
        all_events = np.concatenate([events, nearest[:, None] < profile.step_limits], axis=1)
        factors = self._bets.factors(all_events)
        kept, restarted = eprocess.step(state.kept[rows], state.restarted[rows], factors, state.since[rows])
        state.kept[rows], state.restarted[rows] = kept, restarted
        state.effective[rows] += 1
        state.since[rows] += 1
        strong = eprocess.evidence(kept, restarted) >= 2.0 ** state.reviews[rows] / self._alpha
        alarm = strong & (state.since[rows] >= MIN_EFFECTIVE) & (state.alarmed_at[rows] == 0)
        state.alarmed_at[rows[alarm]] = state.queries[rows[alarm]]

    def _judge(self, row: int) -> Verdict:
        state = self._state
        value = float(eprocess.evidence(state.kept[row : row + 1], state.restarted[row : row + 1])[0])
        spent = budget.quote(float(state.spent[row]), self._profile.curve, self._limit)
        alarmed = bool(state.alarmed_at[row])
        uncovered = bool(state.since[row] < MIN_EFFECTIVE)
        rung = ladder.rung_of(0.0 if uncovered else value, spent.share, alarmed=alarmed)
        return Verdict(
            rung=rung,
            log_m=math.log(max(value, 1e-300)),
            odds=odds_text(value),
            budget=spent,
            queries=int(state.queries[row]),
            effective=int(state.effective[row]),
            uncovered=uncovered,
            alarmed_at=int(state.alarmed_at[row]) if alarmed else None,
        )


def odds_text(value: float) -> str:
    """Evidence as betting odds: ``1 : 24,000 against an honest account``, or ``none`` up to even odds."""
    if value <= 1.0:
        return "none"
    if value >= 1e12:
        return "over 1 : 10^12 against an honest account"
    return f"1 : {value:,.0f} against an honest account" if value >= 10 else f"1 : {value:.1f} against an honest account"


def _score_events(profile: Profile, x: Floats, probs: Floats | None) -> NDArray[np.bool_]:
    """Events of the score streams, shape (b, scores · taus)."""
    scores = profile.scores(x, probs)
    out: NDArray[np.bool_] = (scores[:, :, None] > profile.limits).reshape(len(x), -1)
    return out


def _turns(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions grouped so that each group has every account at most once and accounts keep their order."""
    seen: dict[int, int] = {}
    turns: list[list[int]] = []
    for position, row in enumerate(rows.tolist()):
        turn = seen.get(row, 0)
        seen[row] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(position)
    return [np.array(turn, dtype=np.int64) for turn in turns]
