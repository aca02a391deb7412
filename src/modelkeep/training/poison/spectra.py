"""Planted rows by the spectrum of their class: they share a direction of the features that the class alone does not have."""

import numpy as np

from modelkeep.training.poison._inputs import Floats, Ints, by_class, features_of, labels_of

DIRECTIONS = 8
TEMPER = 4.0
"""Alpha of the quantum entropy score."""
_TRIM, _ROUNDS, _RIDGE = 0.5, 8, 1e-6
_FEW = 8


def signature(features: Floats, y: Ints) -> Floats:
    """Squared projections (n,) of centred features (n, d) on the first singular vector of their class (labels ``y``, (n,)).

    Source: Tran, Li, Madry 2018, "Spectral Signatures in Backdoor Attacks", Algorithm 1. Raises Invalid.
    """
    y = labels_of(y)
    rows_of = features_of(features, len(y))

    def within(rows: Ints) -> Floats:
        centred = rows_of[rows] - rows_of[rows].mean(axis=0)
        out: Floats = (centred @ main(centred, 1)[:, 0]) ** 2
        return out

    return by_class(y, within)


def quantum(features: Floats, y: Ints, *, directions: int = DIRECTIONS) -> Floats:
    """Quantum entropy scores (n,) of features (n, d) that are whitened, class by class, by a robust mean and covariance.

    The main ``directions`` of a class are whitened by what half of its rows, those nearest to their own centre, are like; what
    planted rows add is then left over, and weighed by exp(alpha (S - I) / (|S| - 1)) / trace. Half, because 5 % of all rows can
    be a third of one class. The robust estimate is a trimmed one (concentration steps; Rousseeuw and Van Driessen 1999), not
    the filter of the paper, which must be told how many are planted, and the number of directions is fixed, not searched.
    Classes of fewer than 8 rows have 0.
    Source: Hayase, Kong, Somani, Oh 2021, "SPECTRE", Algorithms 1 and 3. Raises Invalid.
    """
    y = labels_of(y)
    rows_of = features_of(features, len(y))

    def within(rows: Ints) -> Floats:
        if len(rows) < _FEW:
            return np.zeros(len(rows))
        white = whiten(rows_of[rows], directions)
        spectrum = np.cov(white, rowvar=False).reshape(white.shape[1], -1)
        values, vectors = np.linalg.eigh(spectrum - np.eye(len(spectrum)))
        largest = max(float(values[-1]), 1e-9)
        weights = np.exp(TEMPER * (values - values[-1]) / largest)
        out: Floats = ((white @ vectors) ** 2 @ weights) / weights.sum()
        return out

    return by_class(y, within)


def whiten(rows: Floats, directions: int = DIRECTIONS) -> Floats:
    """Rows (n, d) of one class along their main directions, (n, at most ``directions``), by a robust mean and covariance.

    Concentration steps from the half of rows that is nearest to the median of each direction, in its median deviation.
    """
    centred = rows - rows.mean(axis=0)
    flat = centred @ main(centred, min(directions, max(1, len(rows) // 4)))
    off = np.abs(flat - np.median(flat, axis=0))
    far = ((off / np.maximum(np.median(off, axis=0), 1e-12)) ** 2).sum(axis=1)
    kept = far <= np.quantile(far, 1.0 - _TRIM)
    for _ in range(_ROUNDS):
        middle = flat[kept].mean(axis=0)
        spread = np.cov(flat[kept], rowvar=False).reshape(flat.shape[1], -1)
        spread += max(_RIDGE * float(np.trace(spread)) / len(spread), 1e-12) * np.eye(len(spread))
        white = np.linalg.solve(np.linalg.cholesky(spread), (flat - middle).T).T
        far = (white**2).sum(axis=1)
        now = far <= np.quantile(far, 1.0 - _TRIM)
        if (now == kept).all():
            break
        kept = now
    out: Floats = white
    return out


def main(centred: Floats, count: int) -> Floats:
    """The first ``count`` right singular vectors (d, count) of rows, by their second moments; fewer where there are fewer."""
    _, vectors = np.linalg.eigh(centred.T @ centred)
    out: Floats = vectors[:, ::-1][:, :count]
    return out
