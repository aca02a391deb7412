"""Defences that accuse nobody but charge more the more an account takes: B4B's noise and proof of work, and what they charge.

As detectors they look at what they would charge for, which is generous: neither was published as one.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from benchmarks import Row
from benchmarks._extraction_baselines import Curve, Floats, Judged, Space


class Coverage:
    """The share of the buckets of a locality-sensitive hash that an account has filled.

    Source: Dubiński et al. 2023, "Bucks for Buckets (B4B)", coverage estimation: 12 random directions make 4,096 buckets; the
    mean of several such hashes, as in the authors' code. The paper protects encoders and hashes their representations; here
    principal coordinates and log odds. It never accuses but adds noise to answers (``b4b_noise``).
    """

    name, grows = "B4B coverage", True

    def __init__(self, space: Space, bits: int = 12, hashes: int = 4) -> None:
        self._space, self._bits, self._hashes = space, bits, hashes
        width = len(space.embedding.spread) + len(space.centre)
        self._directions = np.random.default_rng(6).normal(size=(width, bits * hashes))

    def judge(self, x: Floats, probs: Floats) -> Judged:
        signs = (self._space.features(x, probs) @ self._directions > 0).reshape(len(x), self._hashes, self._bits)
        buckets = signs @ (1 << np.arange(self._bits))
        new = np.zeros((len(x), self._hashes))
        for h in range(self._hashes):
            new[np.unique(buckets[:, h], return_index=True)[1], h] = 1.0
        at = np.arange(10, len(x) + 1, 10)
        return Judged(at, new.mean(axis=1).cumsum()[at - 1] / (1 << self._bits))


def b4b_noise(coverage: Floats, beta: float, *, lam: float = 1e-6, alpha: float = 0.8) -> Floats:
    """Deviation of the noise on the answers of an account that covers ``coverage``; about ``alpha`` at ``beta``.

    lam (exp(ln(alpha / lam) coverage / beta) - 1). Source: Dubiński et al. 2023, the cost function, with its constants.
    """
    return lam * np.expm1(math.log(alpha / lam) * np.asarray(coverage) / beta)


class Privacy:
    """The privacy cost epsilon (delta 1e-5) of an account's answers, had an ensemble of teachers given them by a noisy vote.

    Source: Dziedzic et al. 2022, "Increasing the Cost of Model Extraction with Calibrated Proof of Work", with PATE:
    Papernot et al. 2018, "Scalable Private Learning with PATE", proposition 7 and theorem 6. The paper sets the difficulty of
    a puzzle by it and accuses nobody (``work``). Its teachers are networks on parts of the training set with their labels;
    here ridge regressions on up to 50 parts, with the victim's.
    """

    name, grows = "privacy cost (proof of work)", True

    def __init__(self, space: Space, x: Floats, probs: Floats) -> None:
        """Teachers learn from the victim's rows ``x`` (n, d) and answers ``probs`` (n, k)."""
        self._space = space
        teachers = int(np.clip(len(x) // 100, 10, 50))
        self._sigma = 0.1 * teachers
        points, wanted = self._points(x), np.eye(probs.shape[1])[probs.argmax(axis=1)]
        solved = []
        for part in np.array_split(np.random.default_rng(7).permutation(len(x)), teachers):
            some = points[part]
            solved.append(np.linalg.solve(some.T @ some + 0.1 * len(part) * np.eye(some.shape[1]), some.T @ wanted[part]))
        self._teachers = np.stack(solved)

    def _points(self, x: Floats) -> Floats:
        found = self._space.embedding.project(x)[1] / self._space.embedding.spread
        return np.concatenate([np.ones((len(x), 1)), found], axis=1)

    def judge(self, x: Floats, probs: Floats) -> Judged:
        said = np.einsum("nf,tfk->ntk", self._points(x), self._teachers, optimize=True).argmax(axis=2)
        votes = (said[:, :, None] == np.arange(probs.shape[1])).sum(axis=1).astype(np.float64)
        spent = vote_costs(votes, self._sigma, ORDERS).cumsum(axis=0)
        at = np.arange(10, len(x) + 1, 10)
        return Judged(at, (spent[at - 1] + math.log(1e5) / (ORDERS - 1.0)).min(axis=1))


ORDERS = np.array([1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0])


def vote_costs(votes: Floats, sigma: float, orders: Floats) -> Floats:
    """Rényi differential privacy of order ``orders`` (o,) of one noisy argmax of each of ``votes`` (n, k), shape (n, o).

    Source: Papernot et al. 2018, proposition 7 (the chance q of another outcome) and theorem 6 with the orders of
    proposition 10; order / sigma² where that bound does not hold or is no better.
    """
    gaps = np.sort(votes.max(axis=1, keepdims=True) - votes, axis=1)[:, 1:]
    log_q = np.minimum(logsumexp(norm.logsf(gaps / (math.sqrt(2.0) * sigma)), axis=1), math.log(1.0 - 1.0 / votes.shape[1]))
    second = sigma * np.sqrt(-log_q)
    first = second + 1.0
    eps1, eps2 = first / sigma**2, second / sigma**2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room = (second - 1.0) * eps2 - second * (np.log1p(1.0 / (first - 1.0)) + np.log1p(1.0 / (second - 1.0)))
        holds = (second > 1.0) & (-log_q > eps2) & (log_q <= room)
        log_p = np.log1p(-np.exp(log_q))
        log_a = log_p - np.log1p(-np.exp((log_q + eps2) * (1.0 - 1.0 / second)))
        log_b = eps1 - log_q / (first - 1.0)
        both = np.logaddexp(log_p[:, None] + (orders - 1.0) * log_a[:, None], log_q[:, None] + (orders - 1.0) * log_b[:, None])
        bound = both / (orders - 1.0)
    plain = np.broadcast_to(orders / sigma**2, bound.shape)
    return np.where(holds[:, None] & (orders < first[:, None]), np.minimum(bound, plain), plain)


def work(cost: Floats, expected: Floats, base: float) -> Floats:
    """Time of each puzzle in units of what a batch of honest queries takes: base^|cost - expected|, at least 0.1 and at most
    3,000. Source: Dziedzic et al. 2022, with the authors' code, where the base is 1.0075."""
    return np.exp(np.clip(math.log(base) * np.abs(cost - expected), math.log(0.1), math.log(3000.0)))


# -- what is charged --

HARMLESS, DEAREST = 0.01, 2.0
"""The noise, and the work as a multiple of an ordinary account's, that no calibration account has more of."""


def prices(accounts: Mapping[str, Mapping[str, Sequence[Judged]]], most: int) -> list[Row]:
    """What B4B and proof of work charge accounts of each kind, the first of which calibrates, over ``most`` distinct rows.

    ``accounts``: for each kind, by detector, the judgements of each. Both are as harsh as the calibration accounts allow:
    in its whole life none gets more noise than ``HARMLESS`` (by beta), or works more than ``DEAREST`` times as much as where
    the cost is as expected (by base).
    """
    calibration = next(iter(accounts.values()))
    beta = max(map(_covered, calibration[Coverage.name])) * math.log(0.8 / 1e-6) / math.log1p(HARMLESS / 1e-6)
    expected = Curve.of(calibration[Privacy.name])
    base = _base(calibration[Privacy.name], expected)
    usual = np.median([_worked(life, expected, base, most) for life in calibration[Privacy.name]])
    rows: list[Row] = []
    for who, lives in accounts.items():
        covered = np.array([_covered(life, most) for life in lives[Coverage.name]])
        whole = np.array([_covered(life) for life in lives[Coverage.name]])
        worked = np.array([_worked(life, expected, base, most) for life in lives[Privacy.name]]) / usual
        rows.append(
            {
                "who": who,
                "coverage": f"{np.median(covered):.3f}",
                "noise": f"{np.median(b4b_noise(covered, beta)):.2g}",
                "noise, lifelong": f"{np.median(b4b_noise(whole, beta)):.2g}",
                "work": f"{np.median(worked):.2f}",
                "most work": f"{worked.max():.2f}",
            }
        )
    return rows


def _covered(life: Judged, most: float = math.inf) -> float:
    """Coverage after ``most`` distinct rows."""
    return float(life.score[life.at <= most].max(initial=0.0))


def _worked(life: Judged, expected: Curve, base: float, most: float = math.inf) -> float:
    """Mean work of an account's puzzles over its first ``most`` distinct rows."""
    early = life.at <= most
    if not early.any():
        return 1.0
    usual = expected.middle[np.minimum(life.at[early] // 10, len(expected.middle) - 1)]
    return float(work(life.score[early], usual, base).mean())


def _base(lives: Sequence[Judged], expected: Curve) -> float:
    """The largest base at which none of ``lives`` works more than ``DEAREST`` in the mean, by bisection of its logarithm."""
    low, high = 0.0, 5.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        harsh = max(_worked(life, expected, math.exp(middle)) for life in lives) > DEAREST
        low, high = (low, middle) if harsh else (middle, high)
    return math.exp(low)
