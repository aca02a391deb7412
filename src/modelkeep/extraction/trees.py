"""Symmetric gradient-boosted trees that tell real rows from synthetic ones: they see which values go together.

Every level of a tree asks one question of all its nodes, so a tree is ``DEPTH`` comparisons whose answers are the bits of a
leaf's number, and a batch of rows is judged in a few array operations. Logistic loss, Newton steps.

Sources: Friedman 2001, "Greedy function approximation", algorithm 5; Chen and Guestrin 2016, "XGBoost", eq. 6 (gain);
Prokhorenkova et al. 2018, "CatBoost", section 4 (oblivious trees).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNT, DEPTH, BINS = 200, 6, 64
_RATE, _SHRINK = 0.15, 1.0
_ROWS, _COLUMNS = 4000, 32
"""Rows and columns that one tree is grown on, drawn anew for each."""
_BITS = 1 << np.arange(DEPTH)


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """``columns``, ``limits``: (trees, depth), each level asks whether x[column] > limit; ``leaves``: (trees, 2 ** depth)."""

    columns: Ints
    limits: Floats
    leaves: Floats

    def suspicion(self, rows: Floats) -> Floats:
        """Log odds that each row (b, d) is synthetic, but for a constant. Shape (b,)."""
        count, depth = self.columns.shape
        above = rows[:, self.columns.ravel()] > self.limits.ravel()
        leaf = above.reshape(len(rows), count, depth) @ _BITS
        out: Floats = self.leaves[np.arange(count), leaf].sum(axis=1)
        return out


def fit_trees(real: Floats, fake: Floats, rng: np.random.Generator, count: int | None = None) -> Trees:
    """Learn to tell ``real`` (n, d) from ``fake`` (m, d), both sides with the same weight. Deterministic in ``rng``.

    ``count``: trees; by default 200, and half as many when there are few real rows to learn from.
    """
    count = count or (COUNT if len(real) >= _ROWS else COUNT // 2)
    rows = np.concatenate([real, fake])
    truth = np.concatenate([np.zeros(len(real)), np.ones(len(fake))])
    weight = np.where(truth > 0, 0.5 / len(fake), 0.5 / len(real)) * len(rows)
    edges = [_edges(column) for column in rows.T]
    binned = np.stack([np.searchsorted(edge, column) for edge, column in zip(edges, rows.T, strict=True)]).astype(np.int64)
    score = np.zeros(len(rows))
    columns, limits = np.zeros((count, DEPTH), dtype=np.int64), np.zeros((count, DEPTH))
    leaves = np.zeros((count, 1 << DEPTH))
    for t in range(count):
        chosen = rng.permutation(len(rows))[:_ROWS]
        among = np.sort(rng.permutation(len(binned))[:_COLUMNS])
        guess = 1.0 / (1.0 + np.exp(-score[chosen]))
        slope = weight[chosen] * (guess - truth[chosen])
        bend = weight[chosen] * np.maximum(guess * (1.0 - guess), 1e-6)
        leaf, asked = _grow(binned[np.ix_(among, chosen)], slope, bend)
        columns[t] = among[asked[:, 0]]
        limits[t] = [edges[column][at] for column, at in zip(columns[t], asked[:, 1], strict=True)]
        down = np.bincount(leaf, slope, 1 << DEPTH)
        leaves[t] = -_RATE * down / (np.bincount(leaf, bend, 1 << DEPTH) + _SHRINK)
        score += leaves[t][(binned[columns[t]] > asked[:, 1:]).T @ _BITS]
    return Trees(columns, limits, leaves)


def _edges(column: Floats) -> Floats:
    """Where a column may be cut: between its values where they are few, else at its quantiles. Never empty."""
    values = np.unique(column)
    if len(values) > BINS:
        values = np.unique(np.quantile(column, np.linspace(0.0, 1.0, BINS + 1), method="lower"))
    return (values[:-1] + values[1:]) / 2 if len(values) > 1 else values


def _grow(binned: Ints, slope: Floats, bend: Floats) -> tuple[Ints, Ints]:
    """One tree on ``binned`` (d, n): the leaf of each row (n,), and of each level (column, bin): right is a bin above it."""
    width, count = binned.shape
    leaf, asked = np.zeros(count, dtype=np.int64), np.zeros((DEPTH, 2), dtype=np.int64)
    place = binned + (BINS + 1) * np.arange(width)[:, None]
    size = width * (BINS + 1)
    for level in range(DEPTH):
        nodes = 1 << level
        at = (place + size * leaf).ravel()
        g = np.bincount(at, np.tile(slope, width), nodes * size).reshape(nodes, width, BINS + 1)
        h = np.bincount(at, np.tile(bend, width), nodes * size).reshape(nodes, width, BINS + 1)
        left_g, left_h = g.cumsum(axis=2), h.cumsum(axis=2)
        right_g, right_h = left_g[:, :, -1:] - left_g, left_h[:, :, -1:] - left_h
        gain = (left_g**2 / (left_h + _SHRINK) + right_g**2 / (right_h + _SHRINK)).sum(axis=0)
        asked[level] = np.unravel_index(int(gain[:, :-1].argmax()), (width, BINS))
        leaf |= (binned[asked[level, 0]] > asked[level, 1]).astype(np.int64) << level
    return leaf, asked
