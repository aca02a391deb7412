"""Odd rows by those around them: labels that neighbours do not have, rows that are easily set apart."""

import math

import numpy as np

from modelkeep.errors import Invalid
from modelkeep.training.poison._inputs import Floats, Ints, features_of, labels_of

NEAREST = 15
_BLOCK = 512
_TREES, _SAMPLE = 100, 256
_EULER = 0.5772156649015329


def nearest(features: Floats, count: int) -> Ints:
    """The numbers (n, count) of the rows nearest to each of ``features`` (n, d) by Euclid, itself left out, nearest first.

    Raises Invalid (fewer than ``count`` other rows).
    """
    rows = features_of(features, len(features))
    if not 1 <= count < len(rows):
        raise Invalid(f"{len(rows)} rows do not have {count} neighbours each")
    narrow = rows - rows.mean(axis=0)
    squares = (narrow**2).sum(axis=1)
    out = np.empty((len(rows), count), dtype=np.int64)
    for at in range(0, len(rows), _BLOCK):
        part = slice(at, min(at + _BLOCK, len(rows)))
        far = squares - 2.0 * narrow[part] @ narrow.T
        far[np.arange(part.stop - at), np.arange(at, part.stop)] = np.inf
        some = np.argpartition(far, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(far, some, axis=1).argsort(axis=1, kind="stable")
        out[part] = np.take_along_axis(some, order, axis=1)
    return out


def votes(near: Ints, y: Ints, classes: int) -> Floats:
    """Probabilities (n, classes) by the labels ``near`` (n, count) of neighbours, and one vote for how frequent classes are."""
    counts = np.stack([(near == label).sum(axis=1) for label in range(classes)], axis=1).astype(np.float64)
    out: Floats = (counts + np.bincount(y, minlength=classes) / len(y)) / (near.shape[1] + 1.0)
    return out


def disagreement(features: Floats, y: Ints, *, count: int = NEAREST) -> Floats:
    """The share (n,) of the ``count`` nearest other rows whose label is another. Raises Invalid."""
    y = labels_of(y)
    out: Floats = (y[nearest(features, count)] != y[:, None]).mean(axis=1)
    return out


def isolation(features: Floats, *, seed: int = 0) -> Floats:
    """How few random cuts set a row apart (n,): 0 ... 1, about 0.5 for rows like all others.

    100 trees of 256 rows, cut at random along a random column. Source: Liu, Ting, Zhou 2008, "Isolation Forest", equation 2.
    Raises Invalid.
    """
    rows = features_of(features, len(features))
    rng = np.random.default_rng(seed)
    size = min(_SAMPLE, len(rows))
    deep = max(1, math.ceil(math.log2(max(size, 2))))
    depths = np.zeros(len(rows))
    for _ in range(_TREES):
        sample = rows[rng.choice(len(rows), size, replace=False)]
        _cut(rows, np.arange(len(rows)), sample, 0, deep, depths, rng)
    out: Floats = 2.0 ** (-depths / _TREES / max(_path(size), 1e-12))
    return out


def _cut(rows: Floats, which: Ints, sample: Floats, depth: int, deep: int, depths: Floats, rng: np.random.Generator) -> None:
    """Add the path lengths of rows ``which`` below one node, whose part of the sample is ``sample``."""
    low, high = (sample.min(axis=0), sample.max(axis=0)) if len(sample) else (np.zeros(1), np.zeros(1))
    open_columns = np.flatnonzero(high > low)
    if depth >= deep or len(sample) <= 1 or not len(open_columns):
        depths[which] += depth + _path(len(sample))
        return
    column = int(rng.choice(open_columns))
    cut = rng.uniform(low[column], high[column])
    left, sampled = rows[which, column] < cut, sample[:, column] < cut
    _cut(rows, which[left], sample[sampled], depth + 1, deep, depths, rng)
    _cut(rows, which[~left], sample[~sampled], depth + 1, deep, depths, rng)


def _path(size: int) -> float:
    """Mean path length of an unsuccessful search in a binary search tree of so many."""
    if size <= 1:
        return 0.0
    if size == 2:
        return 1.0
    return 2.0 * (math.log(size - 1.0) + _EULER) - 2.0 * (size - 1.0) / size
