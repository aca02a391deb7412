"""Detectors of model extraction that others published, as they would watch one account.

Each looks at the distinct rows of an account, in order, with the victim's answers, and gives a score that is larger the more
suspicious it is; where to put the threshold is decided elsewhere, in the detector's favour. An account's exact repeats are
taken out for all of them, since a retry would otherwise be an attack to those that measure distances between its queries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import shapiro

from modelkeep.extraction.features import Embedding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Judged(NamedTuple):
    """``at``: (j,) distinct rows seen at each judgement, ascending; ``score``: (j,), larger is more suspicious."""

    at: Ints
    score: Floats


class Detector(Protocol):
    """``grows``: its score changes with the number of rows for honest accounts, too, so that a threshold is a curve."""

    name: str
    grows: bool

    def judge(self, x: Floats, probs: Floats) -> Judged:
        """Judge one account by its distinct rows ``x`` (n, d) in order, with answers ``probs`` (n, k)."""
        ...


LEAST = 20
"""Calibration accounts that a curve needs at a number of rows."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What a growing score of calibration accounts is after 10, 20 ... distinct rows: ``middle`` and ``width`` (99 % quantile
    less the middle), each of shape (numbers,)."""

    middle: Floats
    width: Floats

    @classmethod
    def of(cls, lives: Sequence[Judged]) -> "Curve":
        """Fit on accounts that are judged at multiples of ten; the last value with ``LEAST`` accounts holds from then on."""
        longest = max(int(life.at[-1]) for life in lives if len(life.at)) // 10
        table = np.full((len(lives), longest + 1), np.nan)
        for row, life in zip(table, lives, strict=True):
            row[life.at // 10] = life.score
        enough = np.flatnonzero((~np.isnan(table)).sum(axis=0) >= min(LEAST, len(lives)))
        middle, high = np.nanquantile(table[:, enough], (0.5, 0.99), axis=0)
        nearest = np.clip(np.searchsorted(enough, np.arange(longest + 1), side="right") - 1, 0, None)
        return cls(middle[nearest], np.maximum(high - middle, 1e-9)[nearest])

    def level(self, life: Judged) -> Floats:
        """The score in widths above the middle at the same number of rows; -inf where no calibration account had so many."""
        at = life.at // 10
        known = np.minimum(at, len(self.middle) - 1)
        return np.where(at == known, (life.score - self.middle[known]) / self.width[known], -np.inf)


@dataclass(frozen=True, eq=False)
class Rule:
    """When a detector accuses: at a score above ``limit``, in widths of ``curve`` where the score grows."""

    limit: float
    curve: Curve | None

    @classmethod
    def best(cls, lives: Sequence[Judged], *, grows: bool, share: float) -> "Rule":
        """The strictest rule that accuses at most ``share`` of calibration accounts in their whole life."""
        rule = cls(0.0, Curve.of(lives) if grows else None)
        peaks = np.sort([rule.level(life).max(initial=-np.inf) for life in lives])
        return cls(float(peaks[::-1][int(share * len(peaks))]), rule.curve)

    def level(self, life: Judged) -> Floats:
        """What is compared with the limit, (j,)."""
        return life.score if self.curve is None else self.curve.level(life)

    def first(self, life: Judged) -> int:
        """Distinct rows at the accusation, 0 without one."""
        over = np.flatnonzero(self.level(life) > self.limit)
        return int(life.at[over[0]]) if len(over) else 0


@dataclass(frozen=True, eq=False)
class Space:
    """Where distances are taken: standardised rows or whitened principal coordinates, and beside them the answer's log odds.

    ``centre``, ``width``: (k - 1,) of the log odds of benign rows.
    """

    embedding: Embedding
    centre: Floats
    width: Floats

    @classmethod
    def of(cls, embedding: Embedding, probs: Floats) -> "Space":
        """``probs``: (n, k), the answers to benign rows."""
        odds = _log_odds(probs)
        return cls(embedding, odds.mean(axis=0), odds.std(axis=0) + 1e-3)

    def rows(self, x: Floats, probs: Floats) -> Floats:
        """Standardised columns with log odds, shape (n, d + k - 1)."""
        return np.concatenate([self.embedding.project(x)[0], self._odds(probs)], axis=1)

    def features(self, x: Floats, probs: Floats) -> Floats:
        """Whitened principal coordinates with log odds, shape (n, r + k - 1)."""
        return np.concatenate([self.embedding.project(x)[1] / self.embedding.spread, self._odds(probs)], axis=1)

    def _odds(self, probs: Floats) -> Floats:
        return (_log_odds(probs) - self.centre) / self.width


def _log_odds(probs: Floats) -> Floats:
    log = np.log(probs + 1e-6)
    return log[:, 1:] - log[:, :1]


class Prada:
    """Distances to the nearest earlier row of the same class should be normal; the score is 1 - W of Shapiro and Wilk.

    Source: Juuti et al. 2019, "PRADA: Protecting against DNN Model Stealing Attacks", section V, with the constants of the
    authors' code: classes with ten distances or more, outliers beyond three deviations left out, more than a hundred left,
    judged every ten queries. The set that distances are taken to grows by rows that are farther from it than the mean less the
    deviation of the distances that made it grow. The paper's honest clients ask test sets in random order, not mixes.
    """

    name, grows = "PRADA", False

    def __init__(self, place: Callable[[Floats], Floats]) -> None:
        """``place``: rows (n, d) to points between which Euclidean distances mean something."""
        self._place = place

    def judge(self, x: Floats, probs: Floats) -> Judged:
        points, classes = self._place(x), probs.argmax(axis=1)
        nearest, among = np.full(len(x), np.nan), np.zeros(len(x), dtype=np.int64)
        for c in np.unique(classes):
            mine = np.flatnonzero(classes == c)
            nearest[mine] = growing_distances(points[mine])
            among[mine] = np.arange(len(mine))  # distances of this class when the row has come
        at, score = [], []
        for seen in range(110, len(x) + 1, 10):
            told = nearest[:seen]
            many = [c for c in np.unique(classes[:seen]) if among[:seen][classes[:seen] == c].max() >= 10]
            told = told[np.isin(classes[:seen], many) & ~np.isnan(told)]
            if len(told) > 1:
                told = told[np.abs(told - told.mean()) < 3.0 * told.std()]
            if len(told) > 100:
                at.append(seen)
                score.append(1.0 - float(shapiro(told).statistic))
        return Judged(np.array(at, dtype=np.int64), np.array(score))


def growing_distances(points: Floats) -> Floats:
    """Distance of each of ``points`` (n, d) of one class to the nearest in the set that grew before it, (n,); NaN for the
    first."""
    square = (points * points).sum(axis=1)
    apart = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2.0 * points @ points.T, 0.0))
    out = np.full(len(points), np.nan)
    near = apart[0].copy() if len(points) else out
    count, total, squares, limit = 1, 0.0, 0.0, 0.0  # the authors' set begins with one distance of 0
    for i in range(1, len(points)):
        out[i] = near[i]
        if out[i] > limit:
            near = np.minimum(near, apart[i])
            count, total, squares = count + 1, total + out[i], squares + out[i] ** 2
            mean = total / count
            limit = max(limit, mean - math.sqrt(max(squares / count - mean * mean, 0.0)))
    return out


class Add:
    """Account-aware distribution discrepancy: squared Fréchet distance between the benign features of each class and those of
    an account's last ``window`` queries that the victim puts into it, weighted by their numbers.

    Source: Mei et al. 2025, "Defense Against Model Stealing Based on Account-Aware Distribution Discrepancy", the ADD detector;
    window 16 for ten classes. The paper's features are the victim's last hidden layer, which a served model need not show: here
    principal coordinates and log odds. Its defence perturbs answers from the threshold on; here the threshold accuses.
    """

    grows = False

    def __init__(self, space: Space, x: Floats, probs: Floats, window: int = 16) -> None:
        """Fit on benign rows ``x`` (n, d) with answers ``probs`` (n, k)."""
        self.name = f"ADD, window {window}"
        self._space, self._window = space, window
        points, classes = space.features(x, probs), probs.argmax(axis=1)
        self._mean = np.zeros((probs.shape[1], points.shape[1]))
        self._root = np.zeros((probs.shape[1], points.shape[1], points.shape[1]))
        whole = np.cov(points, rowvar=False)
        for c in range(probs.shape[1]):
            mine = points[classes == c]
            trust = len(mine) / (len(mine) + points.shape[1])
            spread = whole if len(mine) < 2 else trust * np.cov(mine, rowvar=False) + (1 - trust) * whole
            values, vectors = np.linalg.eigh(spread)
            self._root[c] = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
            self._mean[c] = mine.mean(axis=0) if len(mine) else points.mean(axis=0)

    def judge(self, x: Floats, probs: Floats) -> Judged:
        points, classes = self._space.features(x, probs), probs.argmax(axis=1)
        at = np.arange(self._window, len(x) + 1, 4)
        if not len(at):
            return Judged(at, np.zeros(0))
        windows = at[:, None] - self._window + np.arange(self._window)
        y, c = points[windows], classes[windows]
        alike = c[:, :, None] == c[:, None, :]
        size = alike.sum(axis=2, keepdims=True)
        mean = (alike / size) @ y
        away = ((mean - self._mean[c]) ** 2).sum(axis=2)
        trace = ((y - mean) ** 2).sum(axis=2) + (self._root**2).sum(axis=(1, 2))[c]
        turned = turn(points, classes, self._root)[windows]
        turned = turned - (alike / size) @ turned
        # sum over classes of m_c tr sqrt(S_c T_c), T_c = Y'Y / m_c: roots of the eigenvalues of m_c Y S_c Y', a block each
        values = np.linalg.eigvalsh(turned @ turned.transpose(0, 2, 1) * alike * size)
        cross = np.sqrt(np.maximum(values, 0.0)).sum(axis=1) / self._window
        return Judged(at, away.mean(axis=1) + trace.mean(axis=1) - 2.0 * cross)


def turn(points: Floats, classes: Ints, matrices: Floats) -> Floats:
    """Each of ``points`` (n, f) times the matrix (k, f, f) of its class."""
    out = np.empty_like(points)
    for c in np.unique(classes):
        out[classes == c] = points[classes == c] @ matrices[c]
    return out


class Mahalanobis:
    """Mean of the last ``window`` Mahalanobis distances to the predicted class, its Gaussian with the covariance of all.

    Source: Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    section 2.1, on rows and log odds; the window makes of single rows an account.
    """

    grows = False

    def __init__(self, space: Space, x: Floats, probs: Floats, window: int = 32) -> None:
        """Fit on benign rows ``x`` (n, d) with answers ``probs`` (n, k)."""
        self.name = f"Mahalanobis, window {window}"
        self._space, self._window = space, window
        points, classes = space.rows(x, probs), probs.argmax(axis=1)
        self._mean = np.stack(
            [points[classes == c].mean(axis=0) if (classes == c).any() else points.mean(axis=0) for c in range(probs.shape[1])]
        )
        values, vectors = np.linalg.eigh(np.cov(points - self._mean[classes], rowvar=False))
        self._whiten = vectors / np.sqrt(np.maximum(values, 0.0) + 0.01)

    def judge(self, x: Floats, probs: Floats) -> Judged:
        apart = self._space.rows(x, probs) - self._mean[probs.argmax(axis=1)]
        total = np.concatenate([[0.0], np.sqrt(((apart @ self._whiten) ** 2).sum(axis=1)).cumsum()])
        at = np.arange(self._window, len(x) + 1)
        return Judged(at, (total[at] - total[at - self._window]) / self._window)


class Mmd:
    """Squared maximum mean discrepancy between an account's last ``window`` rows and benign ones, Gaussian kernel.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", lemma 6 (unbiased) and section 8 (median heuristic). The kernel is
    the mean of ``frequencies`` random ones (Rahimi and Recht 2007): itself a kernel, for which the estimate is unbiased, in
    time linear in the window. An account is judged from 100 rows on, by what it has asked if that is less than a window:
    a window of 1,500, as whole streams are watched, would find nobody who asks 500.
    """

    def __init__(self, space: Space, x: Floats, probs: Floats, window: int, frequencies: int = 256) -> None:
        """Fit on benign rows ``x`` (n, d) with answers ``probs`` (n, k)."""
        self.name, self.grows = f"MMD, window {window:,}", window > 100
        self._space, self._window = space, window
        points, rng = space.features(x, probs), np.random.default_rng(5)
        self._frequencies = rng.normal(size=(points.shape[1], frequencies)) / bandwidth(points, rng)
        told = self._features(points)
        self._mean = told.mean(axis=0)
        self._own = ((told.sum(axis=0) ** 2).sum() - len(told)) / (len(told) * (len(told) - 1))

    def _features(self, points: Floats) -> Floats:
        turned = points @ self._frequencies
        return np.concatenate([np.cos(turned), np.sin(turned)], axis=1) / math.sqrt(self._frequencies.shape[1])

    def judge(self, x: Floats, probs: Floats) -> Judged:
        told = self._features(self._space.features(x, probs))
        total = np.concatenate([np.zeros((1, told.shape[1])), told.cumsum(axis=0)])
        at = np.arange(100, len(x) + 1, 10)
        size = np.minimum(at, self._window)
        inside = total[at] - total[at - size]
        within = ((inside**2).sum(axis=1) - size) / (size * (size - 1))
        return Judged(at, within + self._own - 2.0 * (inside @ self._mean) / size)


def bandwidth(points: Floats, rng: np.random.Generator) -> float:
    """The median distance between two of ``points`` (n, f), from 2,000 pairs."""
    one, other = points[rng.integers(len(points), size=(2, 2000))]
    return float(np.median(np.sqrt(((one - other) ** 2).sum(axis=1))))
