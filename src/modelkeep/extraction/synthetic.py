"""Rows that nobody measured (what thieves ask) and honest rows that were handled (rounded, jittered, defaulted)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

JITTER = 0.02
"""Measurement noise that the null covers: Gaussian, at most this many standard deviations of each column."""
ROUNDING = 0.1
"""Rounding that the null covers: to a grid no coarser than this many standard deviations of each column."""
MAX_LEVELS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is known of the columns of real rows. ``scale``: (d,) deviations; ``levels``: for a column with at most 32 values,
    the sorted values, else an empty array."""

    scale: Floats
    levels: tuple[Floats, ...]

    def snap(self, x: Floats) -> Floats:
        """Move every entry of a column with few values to the nearest of them."""
        out = x.copy()
        for j, levels in enumerate(self.levels):
            if len(levels) > 1:
                middle = (levels[1:] + levels[:-1]) / 2
                out[:, j] = levels[np.searchsorted(middle, x[:, j])]
        return out


def study_columns(rows: Floats, scale: Floats) -> Columns:
    """Find the columns of ``rows`` (n, d) that take few values."""
    found = [np.unique(column) for column in rows.T]
    keep = max(2, min(MAX_LEVELS, len(rows) // 5))
    return Columns(scale=scale, levels=tuple(u if len(u) <= keep else np.zeros(0) for u in found))


def shuffled(rows: Floats, count: int, share: Floats, rng: np.random.Generator) -> Floats:
    """Real rows in which each column is, with chance ``share`` (count,), the value of another row."""
    n, d = rows.shape
    base = rows[rng.integers(n, size=count)]
    other = rows[rng.integers(n, size=(count, d)), np.arange(d)]
    return np.where(rng.random((count, d)) < share[:, None], other, base)


def thieves(rows: Floats, columns: Columns, count: int, rng: np.random.Generator) -> Floats:
    """About ``count`` synthetic rows in equal parts: shuffled columns (all, some), uniform in the ranges, between two rows,
    signed steps of one size, Gaussian noise. Half of them are snapped to the values that the columns take."""
    n, d = rows.shape
    part = max(8, count // 8)
    low, high = rows.min(axis=0), rows.max(axis=0)

    def pick() -> Floats:
        return rows[rng.integers(n, size=part)]

    def signs() -> Floats:
        return rng.choice((-1.0, 1.0), size=(part, d))

    mix = rng.uniform(0.08, 0.92, size=(part, 1))
    steps = rng.choice((0.08, 0.15, 0.25, 0.4), size=(part, 1)) * columns.scale
    even = rng.choice((0.1, 0.2, 0.4), size=(part, 1)) * np.median(columns.scale)
    active = rng.random((part, d)) < rng.choice((0.4, 1.0), size=(part, 1))
    noise = rng.choice((0.1, 0.3, 1.0), size=(part, 1)) * columns.scale
    walked = pick() + signs() * np.where(rng.random((part, 1)) < 0.7, steps, even) * active
    groups = [
        shuffled(rows, part, np.ones(part), rng),
        shuffled(rows, part, rng.choice((0.1, 0.2, 0.35, 0.5), size=part), rng),
        np.where(
            rng.random((part, 1)) < 0.5,
            rng.uniform(low, high, size=(part, d)),
            rng.normal(rows.mean(axis=0), columns.scale, (part, d)),
        ),
        mix * pick() + (1 - mix) * pick(),
        mix * pick() + (1 - mix) * pick(),
        walked,
        np.clip(walked, low, high),
        pick() + noise * rng.normal(size=(part, d)),
    ]
    out = np.concatenate(groups)
    half = rng.random(len(out)) < 0.5
    out[half] = columns.snap(out[half])
    return out


def jittered(rows: Floats, columns: Columns, amount: float | Floats, rng: np.random.Generator) -> Floats:
    """Honest rows measured again: Gaussian noise of ``amount`` (one, or a column (n, 1)) times each column's deviation."""
    return rows + amount * columns.scale * rng.normal(size=rows.shape)


def rounded(rows: Floats, columns: Columns) -> Floats:
    """Honest rows rounded to a tenth of each column's deviation."""
    grid = ROUNDING * columns.scale
    return np.rint(rows / grid) * grid


def defaulted(rows: Floats, rng: np.random.Generator) -> Floats:
    """Honest rows with one or two columns missing, filled with the column's median."""
    out = rows.copy()
    for _ in range(2):
        at = rng.integers(rows.shape[1], size=len(rows))
        out[np.arange(len(rows)), at] = np.median(rows, axis=0)[at]
    return out


def mistyped(rows: Floats, rng: np.random.Generator) -> Floats:
    """Honest rows with a slip in one column: a factor of ten."""
    out = rows.copy()
    at = rng.integers(rows.shape[1], size=len(rows))
    out[np.arange(len(rows)), at] *= rng.choice((0.1, 10.0), size=len(rows))
    return out


def what_if(rows: Floats, rng: np.random.Generator) -> Floats:
    """Honest rows in which one or two columns took the value of another row."""
    n, d = rows.shape
    other = rows[rng.integers(n, size=(n, d)), np.arange(d)]
    return np.where(rng.random((n, d)) < min(1.0, 1.5 / d), other, rows)
