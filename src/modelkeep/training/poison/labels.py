"""Labels that are wrong, by out-of-fold probabilities: confident learning, and what is left of a label when its noise is told.

Confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70): a
row is a confident example of class j when its probability of j is at least the mean that rows labelled j have. Probabilities of
a row must come from a model that has not seen this row.
"""

from collections.abc import Sequence

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.training.poison._inputs import Bools, Floats, Ints, labels_of, probabilities_of

_SLACK, _LEAST = 1e-6, 1e-6
_STEPS = 30
_ANCHOR = 0.02
"""Share of the rows that are farthest from a class, of two: its noise is read from them."""


def thresholds(probabilities: Floats, y: Ints) -> Floats:
    """The mean probability (k,) that rows labelled with a class have of it; 1 for a class without rows.

    Source: Northcutt et al. 2021, equation 2.
    """
    classes = probabilities.shape[1]
    own, counts = probabilities[np.arange(len(y)), y], np.bincount(y, minlength=classes)
    sums = np.bincount(y, weights=own, minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)


def confident_joint(probabilities: Floats, y: Ints) -> Ints:
    """Counts (k, k) of rows labelled i (axis 0) that are confidently of class j (axis 1); at least 1 on the diagonal.

    A row that is confidently of several classes counts for its likeliest. Source: Northcutt et al. 2021, equation 1.
    Raises Invalid.
    """
    y = labels_of(y)
    p = probabilities_of(probabilities, y)
    guess, sure = _confident(p, y)
    found = np.zeros((p.shape[1], p.shape[1]), dtype=np.int64)
    np.add.at(found, (y[sure], guess[sure]), 1)
    np.fill_diagonal(found, np.maximum(found.diagonal(), 1))
    return found


def joint(probabilities: Floats, y: Ints) -> Floats:
    """The law (k, k) of given and true label: the confident joint with each row scaled to how many have that label.

    Source: Northcutt et al. 2021, equation 3. Raises Invalid.
    """
    counts = confident_joint(probabilities, y).astype(np.float64)
    scaled = counts / counts.sum(axis=1, keepdims=True) * np.bincount(labels_of(y), minlength=len(counts))[:, None]
    out: Floats = scaled / scaled.sum()
    return out


def off_diagonal(probabilities: Floats, y: Ints) -> Bools:
    """The rows (n,) that are confidently of a class other than their label. Raises Invalid."""
    y = labels_of(y)
    guess, sure = _confident(probabilities_of(probabilities, y), y)
    out: Bools = sure & (guess != y)
    return out


def self_confidence(probabilities: Floats, y: Ints) -> Floats:
    """1 less the probability of the given label (n,). Raises Invalid."""
    y = labels_of(y)
    out: Floats = 1.0 - probabilities_of(probabilities, y)[np.arange(len(y)), y]
    return out


def normalised_margin(probabilities: Floats, y: Ints) -> Floats:
    """How far another class is ahead of the given label (n,), 0 ... 1; 0.5 is as likely. Raises Invalid."""
    y = labels_of(y)
    p = probabilities_of(probabilities, y).copy()
    own = p[np.arange(len(y)), y]
    p[np.arange(len(y)), y] = -1.0
    out: Floats = (p.max(axis=1) - own + 1.0) / 2.0
    return out


def pool(several: Sequence[Floats], y: Ints) -> Floats:
    """One (n, k) of the probabilities (n, k) that several models give: softmax of their weighted logarithms.

    The weights (0 and more) are those at which the given labels are likeliest, so that a model that knows less than the others
    counts less, and one alone is set to its best temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    Source: the logarithmic opinion pool (Genest and Zidek 1986, "Combining Probability Distributions"). Raises Invalid.
    """
    if not several:
        raise Invalid("there are no probabilities to pool")
    y = labels_of(y)
    logs = np.stack([np.log(np.maximum(probabilities_of(each, y), _LEAST)) for each in several])
    if len({each.shape for each in logs}) > 1:
        raise Invalid("probabilities to pool have one shape")
    weights, own = np.full(len(logs), 1.0 / len(logs)), logs[:, np.arange(len(y)), y]
    for _ in range(_STEPS):
        p = _mixed(logs, weights)
        mean = np.einsum("mnk,nk->mn", logs, p)
        slope = (own - mean).mean(axis=1)
        bend = (np.einsum("ank,bnk,nk->ab", logs, logs, p) - mean @ mean.T) / len(y)
        moved = _ascend(weights, slope, bend)
        if np.abs(moved - weights).max() < 1e-4:
            break
        weights = moved
    return _mixed(logs, weights)


def _mixed(logs: Floats, weights: Floats) -> Floats:
    total = np.einsum("m,mnk->nk", weights, logs)
    out: Floats = np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))
    return out


def _ascend(weights: Floats, slope: Floats, bend: Floats) -> Floats:
    """Newton's step up, at most as long as the weights, among weights of 0 and more: those that would fall below stay at 0."""
    free = np.ones(len(weights), dtype=np.bool_)
    step = np.zeros(len(weights))
    for _ in range(len(weights)):
        part = bend[np.ix_(free, free)] + 1e-4 * np.eye(int(free.sum()))
        step[:] = 0.0
        step[free] = np.clip(np.linalg.solve(part, slope[free]), -0.5, 0.5)
        stuck = free & (weights <= 0.0) & (step < 0.0)
        if not stuck.any() or stuck.sum() == free.sum():
            break
        free &= ~stuck
    moved: Floats = np.maximum(weights + step, 0.0)
    return moved


def floors(probabilities: Floats) -> Floats:
    """How likely each class (k,) is, at least, for any row at all: what its noise adds to rows that are nothing like it.

    The noise is taken to replace labels without a look at the row, and each class to have rows that cannot be of it (anchors:
    Liu and Tao 2016; Patrini et al. 2017); where a class has none, its floor is an upper bound of the noise.
    Returns a quantile of each column: the 2 % one of two classes; of k it may be higher, as 1 - 1/k of rows are of others.
    """
    classes = probabilities.shape[1]
    out: Floats = np.quantile(probabilities, max(_ANCHOR, 0.5 - 1.0 / classes), axis=0)
    return out


def replaced(probabilities: Floats, y: Ints) -> tuple[Floats, Floats]:
    """The probability (n,) that noise put the given label there, and what (n, k) is left of the probabilities without noise.

    With floors f, p = f + (1 - sum f) q: a given label came from f with probability f / p. Raises Invalid.
    """
    y = labels_of(y)
    p = probabilities_of(probabilities, y)
    floor = floors(p)
    left = np.maximum(p - floor, 1e-9)
    share = np.minimum(floor[y] / p[np.arange(len(y)), y], 1.0)
    return share, left / left.sum(axis=1, keepdims=True)


def below(probabilities: Floats, budget: float) -> float:
    """The largest t such that labels drawn by ``probabilities`` (n, k) have a probability of t or less in ``budget`` of rows.

    This is what clean labels do when the probabilities are calibrated, so that a rule "flag labels of probability t or less"
    flags that share of clean rows. Returns 0 when even the smallest are more than that.
    """
    flat = np.sort(probabilities, axis=None)
    within = np.flatnonzero(np.cumsum(flat) <= budget * len(probabilities))
    return float(flat[within[-1]]) if len(within) else 0.0


def _confident(p: Floats, y: Ints) -> tuple[Ints, Bools]:
    """The class (n,) that each row is confidently of, and whether there is one."""
    above = p >= thresholds(p, y) - _SLACK
    several = above.sum(axis=1) > 1
    guess: Ints = np.where(several, p.argmax(axis=1), above.argmax(axis=1)).astype(np.int64)
    sure: Bools = np.any(above, axis=1)
    return guess, sure
