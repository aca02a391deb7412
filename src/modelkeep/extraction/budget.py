"""The information budget: what an account has learnt, in nats, and in natural questions that would have taught as much.

A question with features phi tells 1/2 log(1 + w phi' A^-1 phi) nats about a linear model of the boundary, where A collects
what was asked before (Bayesian linear regression; MacKay 1992, "Information-based objective functions", eq. 2.14) and w
grows where the answer is uncertain. A budget never accuses: it slows and coarsens.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction.features import Embedding
from modelkeep.extraction.turns import turns

Floats = NDArray[np.float64]

DIMENSIONS = 24
CURVE = (5, 10, 20, 40, 80, 160, 320, 640, 1000)


class Budget(msgspec.Struct, frozen=True, gc=False):
    """``spent``: nats; ``equivalent``: natural questions that teach as much, those charged included; ``limit``: natural
    questions allowed a period; ``share`` = equivalent / limit; ``fidelity``: agreement with the model that a simple surrogate
    reaches with that many, of a model that answers with numbers R²."""

    spent: float
    limit: float
    equivalent: float
    share: float
    fidelity: float


def spend_features(embedding: Embedding, projected: Floats) -> Floats:
    """phi (b, 24): a constant and the leading whitened coordinates, padded with zeros."""
    out = np.zeros((len(projected), DIMENSIONS))
    out[:, 0] = 1.0
    count = min(DIMENSIONS - 1, projected.shape[1])
    out[:, 1 : count + 1] = np.clip(projected[:, :count] / embedding.spread[:count], -4.0, 4.0)
    return out


def weight_of(probs: Floats | None, count: int) -> Floats:
    """w (b,): 4 p (1 - p) of the top probability, at least 0.1; 1 when the model gives no probabilities."""
    if probs is None or probs.shape[1] < 2:
        return np.ones(count)
    top = probs.max(axis=1)
    out: Floats = np.maximum(4.0 * top * (1.0 - top), 0.1)
    return out


def spend(inverse: NDArray[np.floating], phi: NDArray[np.floating], w: float) -> float:
    """Cost in nats of one question with features ``phi`` (24,); brings ``inverse``, A^-1 (24, 24), up to date in place.

    Source: Sherman and Morrison 1950, equation for a rank-one change.
    """
    moved = inverse.dot(phi)
    gain = w * float(moved.dot(phi))
    inverse -= np.multiply.outer(moved, moved * moved.dtype.type(w / (1.0 + gain)))
    return 0.5 * math.log1p(gain)


def spend_each(inverses: Sequence[NDArray[np.float32]], phi: NDArray[np.float32], w: Floats) -> list[float]:
    """``spend`` for questions of several accounts, in the order of each. ``inverses`` (n,): A^-1 of whoever asked, one and the
    same array for all questions of one account; ``phi``: (n, 24); ``w``: (n,). Nats of each question."""
    nats = [0.0] * len(inverses)
    for turn in turns([id(one) for one in inverses]):
        if len(turn) == 1:  # quicker alone
            nats[turn[0]] = spend(inverses[turn[0]], phi[turn[0]], float(w[turn[0]]))
            continue
        asked, weight = phi[turn], w[turn]
        moved = np.matmul(np.array([inverses[i] for i in turn]), asked[:, :, None])[:, :, 0]
        gain = weight * np.vecdot(moved, asked)
        less = moved[:, :, None] * (moved * (weight / (1.0 + gain)).astype(np.float32)[:, None])[:, None, :]
        for i, change, one in zip(turn, less, gain.tolist(), strict=True):
            np.subtract(inverses[i], change, out=inverses[i])
            nats[i] = 0.5 * math.log1p(one)
    return nats


class Together:
    """What several accounts have learnt together this period, on one matrix: a direction that one of them asked in is cheaper
    for all. About 2.3 KB."""

    __slots__ = ("charged", "inverse", "spent")

    def __init__(self) -> None:
        self.inverse = np.eye(DIMENSIONS, dtype=np.float32)
        self.spent = self.charged = 0.0

    def spend(self, phi: NDArray[np.floating], w: NDArray[np.floating]) -> None:
        """Questions with features ``phi`` (b, 24) and weights ``w`` (b,): the same sum of nats as ``spend`` of one after the
        other, in one step.

        Source: Woodbury 1950 and the matrix determinant lemma: sum of 1/2 log(1 + gain) = 1/2 log det(I + V A^-1 V').
        """
        v = phi.astype(np.float64) * np.sqrt(w)[:, None]
        moved = v @ self.inverse
        lower = np.linalg.cholesky(np.eye(len(v)) + moved @ v.T)
        half = np.linalg.solve(lower, moved)
        self.inverse -= (half.T @ half).astype(np.float32)
        self.spent += float(np.log(np.diagonal(lower)).sum())

    def renew(self) -> None:
        """A new budget period."""
        self.inverse[:] = np.eye(DIMENSIONS)
        self.spent = self.charged = 0.0


def measure(
    embedding: Embedding,
    x: Floats,
    probs: Floats | None,
    check: Floats,
    check_probs: Floats | None,
    rng: np.random.Generator,
    numbers: tuple[Floats, Floats] | None = None,
) -> Floats:
    """The exchange rate, measured when the model is published: rows (questions, nats, fidelity), shape (3, points).

    Questions are ``x`` in random order, drawn again with 5 % noise when they run out; the surrogate is a ridge regression on
    random features; fidelity is top-1 agreement with the model on ``check``, or, of a model that gives ``numbers`` (answers to
    ``x`` and ``check``, each (n, m)) instead of probabilities, R², at least 0. Ones where there are neither.
    """
    order = np.concatenate([rng.permutation(len(x)) for _ in range(CURVE[-1] // len(x) + 1)])[: CURVE[-1]]
    projected = embedding.project(x)[1]
    asked = projected[order] + 0.05 * embedding.spread * rng.normal(size=(len(order), projected.shape[1]))
    phi, w = spend_features(embedding, asked), weight_of(None if probs is None else probs[order], len(order))
    inverse, total, spent = np.eye(DIMENSIONS), 0.0, np.empty(len(order))
    for i in range(len(order)):
        total += spend(inverse, phi[i], float(w[i]))
        spent[i] = total
    points = np.array(CURVE)
    fidelity = np.ones(len(points))
    classes = probs is not None and check_probs is not None and probs.shape[1] > 1
    told, truth = (probs, check_probs) if classes else numbers or (None, None)
    if told is not None and truth is not None:
        lift = rng.normal(size=(projected.shape[1], 128)), rng.uniform(0, 2 * np.pi, 128)
        learn = _lift(projected / embedding.spread, lift)
        judge = _lift(embedding.project(check)[1] / embedding.spread, lift)
        for i, n in enumerate(points):
            rows = order[: min(n, len(x))]
            gram = learn[rows].T @ learn[rows] + 0.3 * np.eye(learn.shape[1])
            middle = np.zeros(told.shape[1]) if classes else told[rows].mean(axis=0)
            guess = middle + judge @ np.linalg.solve(gram, learn[rows].T @ (told[rows] - middle))
            fidelity[i] = _agreement(truth, guess) if classes else max(r_squared(truth, guess), 0.0)
        fidelity = np.maximum.accumulate(fidelity)
    return np.stack([points.astype(np.float64), spent[points - 1], fidelity])


def _agreement(truth: Floats, guess: Floats) -> float:
    return float((guess.argmax(axis=1) == truth.argmax(axis=1)).mean())


def r_squared(truth: Floats, guess: Floats) -> float:
    """R² of ``guess`` (n, m): the share of the variance of ``truth`` (n, m) that it explains, mean over the columns that vary.

    1 is a perfect copy, 0 what the mean alone reaches, and below 0 is worse than that. Where nothing varies: 1 for a guess
    that is equal but for rounding, else 0.
    """
    error, spread = ((truth - guess) ** 2).sum(axis=0), ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    varies = spread > 1e-12 * np.maximum((truth**2).sum(axis=0), 1e-300)
    if not varies.any():
        return float(np.allclose(truth, guess, rtol=1e-6))
    return float((1.0 - error[varies] / spread[varies]).mean())


def _lift(white: Floats, lift: tuple[Floats, Floats]) -> Floats:
    wide = np.cos(0.3 / np.sqrt(white.shape[1] / 8 + 1) * white @ lift[0] + lift[1])
    return np.concatenate([np.ones((len(white), 1)), np.clip(white, -4, 4), wide], axis=1)


def quote(spent: float, curve: Floats, limit: float, charged: float = 0.0) -> Budget:
    """Turn nats into natural questions by the measured ``curve`` (3, points); beyond its end, by its last slope in log n.

    ``charged``: natural questions that were charged for what is no question (an explanation); they come on top.
    """
    questions, nats, fidelity = curve.tolist()
    at = bisect.bisect_right(nats, spent)
    if at == 0:
        equivalent = questions[0] * spent / max(nats[0], 1e-9)
        learnt = fidelity[0] * equivalent / questions[0]
    else:
        at = min(at, len(nats) - 1)
        part = (spent - nats[at - 1]) / max(nats[at] - nats[at - 1], 1e-9)
        low, high = math.log(questions[at - 1]), math.log(questions[at])
        equivalent = math.exp(min(low + part * (high - low), 30.0))
        learnt = fidelity[at - 1] + min(part, 1.0) * (fidelity[at] - fidelity[at - 1])
    equivalent += charged
    return Budget(spent, limit, equivalent, equivalent / limit, learnt)


def quoted(learnt: float, limit: float, fidelity: float, measure: str) -> str:
    """What was learnt of a ``limit``, in words. ``measure``: what ``fidelity`` is; "" = nothing is said of it. Beyond the
    measured curve it is the least that a copy reaches."""
    said = f"learnt as much as {learnt:,.0f} natural questions (limit {limit:,.0f})"
    if not measure:
        return said
    about = "at least" if learnt > CURVE[-1] else "about"
    if measure == "R²":
        return f"{said}, which gives a simple copy that explains {about} {fidelity:.0%} of the variance of the answers (R²)"
    return f"{said}, which gives a simple copy that agrees on {about} {fidelity:.0%} of rows"


RECENT = 7.0
"""Days that a forecast looks back."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """``rate``: natural questions a day lately; ``left``: days until the budget is spent at this rate, 0 = it is, infinity =
    nothing was asked lately; ``resets``: days until the period ends."""

    rate: float
    left: float
    resets: float

    @property
    def lasts(self) -> float | None:
        """Days until it is spent; None: it lasts until the period ends."""
        return self.left if self.left < self.resets else None

    @property
    def text(self) -> str:
        """In words."""
        if not self.left:
            return f"the budget is spent; it begins anew in {days(self.resets)}"
        if math.isinf(self.left):
            return f"nothing was asked lately; the budget begins anew in {days(self.resets)}"
        if self.left >= self.resets:
            return f"at this rate it lasts until it begins anew in {days(self.resets)}"
        return f"at this rate the budget is spent in {days(self.left)}; it begins anew in {days(self.resets)}"


def forecast(learnt: Sequence[tuple[float, float]], limit: float, *, now: float, begins: float, ends: float) -> Forecast:
    """When a budget is spent at the rate of the last days.

    ``learnt``: (day, natural questions learnt so far in the period), ascending; ``limit``: questions allowed a period; ``now``,
    ``begins`` and ``ends``: days, of the period. Raises Invalid unless begins <= now < ends and the limit is positive.
    """
    if not begins <= now < ends or not 0.0 < limit < math.inf:
        raise Invalid(f"a forecast needs a limit and a day of the period, not {limit} and {now} in {begins} to {ends}")
    since = max(begins, now - RECENT)
    days_ago = [(day, so_far) for day, so_far in learnt if begins <= day <= now]
    last = days_ago[-1][1] if days_ago else 0.0
    before = max((so_far for day, so_far in days_ago if day <= since), default=0.0)
    rate = max(0.0, last - before) / max(now - since, 1.0)  # in its first hours a period says nothing about a day
    left = 0.0 if last >= limit else (limit - last) / rate if rate else math.inf
    return Forecast(rate, left, ends - now)


def days(count: float) -> str:
    """A time in days, in words."""
    if count < 1.0:
        return "less than a day"
    whole = math.floor(count)
    return "1 day" if whole == 1 else f"{whole:,} days"
