"""Rows that nobody measured (what thieves ask) and honest rows that were handled (rounded, jittered, defaulted)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Tops = Callable[[Floats], Ints]
"""Rows (b, d) to the class of each, (b,)."""

JITTER = 0.02
"""Measurement noise that the null covers: Gaussian, at most this many standard deviations of each column."""
ROUNDING = 0.1
"""Rounding that the null covers: to a grid no coarser than this many standard deviations of each column."""
MAX_LEVELS = 32
_BISECTIONS = 10
_TIED = 1500
"""Rows whose rank correlations a copula takes over."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is known of the columns of real rows. ``scale``: (d,) deviations; ``levels``: for a column with at most 32 values,
    the sorted values, else an empty array; ``whole``: (d,), true where all are whole numbers."""

    scale: Floats
    levels: tuple[Floats, ...]
    whole: Bools

    def snap(self, x: Floats) -> Floats:
        """Move every entry of a column with few values to the nearest of them, and of whole numbers to the nearest of these."""
        out = np.where(self.whole, np.rint(x), x)
        for j, levels in enumerate(self.levels):
            if len(levels) > 1:
                middle = (levels[1:] + levels[:-1]) / 2
                out[:, j] = levels[np.searchsorted(middle, x[:, j])]
        return out


def study_columns(rows: Floats, scale: Floats) -> Columns:
    """Find the columns of ``rows`` (n, d) that take few values."""
    found = [np.unique(column) for column in rows.T]
    keep = max(2, min(MAX_LEVELS, len(rows) // 5))
    return Columns(
        scale=scale,
        levels=tuple(u if len(u) <= keep else np.zeros(0) for u in found),
        whole=(rows == np.rint(rows)).all(axis=0),
    )


def shuffled(rows: Floats, count: int, share: Floats, rng: np.random.Generator) -> Floats:
    """Real rows in which each column is, with chance ``share`` (count,), the value of another row."""
    n, d = rows.shape
    base = rows[rng.integers(n, size=count)]
    other = rows[rng.integers(n, size=(count, d)), np.arange(d)]
    return np.where(rng.random((count, d)) < share[:, None], other, base)


def copula(rows: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Rows (count, d) with the columns of real ones (n, d), tied to each other by their rank correlations alone: a Gaussian
    copula."""
    some = rows[rng.permutation(len(rows))[:_TIED]]
    normal = np.sort(rng.normal(size=some.shape), axis=0)
    scores = np.take_along_axis(normal, _ranks(some + 1e-9 * some.std(axis=0) * rng.normal(size=some.shape)), axis=0)
    drawn = rng.normal(size=(count, len(some))) @ (scores - scores.mean(axis=0))  # has their covariance, but for a factor
    out: Floats = np.take_along_axis(np.sort(rows, axis=0), _ranks(drawn) * len(rows) // count, axis=0)
    return out


def _ranks(columns: Floats) -> Ints:
    out: Ints = np.argsort(np.argsort(columns, axis=0), axis=0)
    return out


def bisected(rows: Floats, count: int, tops: Tops | None, rng: np.random.Generator) -> Floats:
    """About ``count`` rows that a search for the border between two classes asks: the middle of two real rows of different
    classes, then of the half that the border is in, and so on. Without classes (``tops`` is None) each half is as likely."""
    lines = max(1, count // _BISECTIONS)
    near: Floats = rows[rng.integers(len(rows), size=10 * lines)]
    far: Floats = rows[rng.integers(len(rows), size=10 * lines)]
    mine = np.zeros(len(near), dtype=np.int64) if tops is None else tops(near)
    differ = np.arange(len(near)) if tops is None else np.flatnonzero(mine != tops(far))
    if not len(differ):
        return near[:lines]
    chosen = differ[np.arange(lines) % len(differ)]
    near, far, mine = near[chosen], far[chosen], mine[chosen]
    out = []
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        same = (rng.random(lines) < 0.5 if tops is None else tops(middle) == mine)[:, None]
        near, far = np.where(same, middle, near), np.where(same, far, middle)
        out.append(middle)
    return np.concatenate(out)


def thieves(rows: Floats, columns: Columns, count: int, rng: np.random.Generator, tops: Tops | None = None) -> Floats:
    """About ``count`` synthetic rows in equal parts: shuffled columns (all, some), uniform in the ranges, between two rows,
    signed steps of one size, Gaussian noise, bisections (four parts), a copula (two). Half of them are snapped to the values
    that the columns take, and a quarter jittered, a quarter rounded as honest rows may be, so that no handling is a sign."""
    n, d = rows.shape
    part = max(8, count // 14)
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
        bisected(rows, 4 * part, tops, rng),
        copula(rows, 2 * part, rng),
    ]
    out = np.concatenate(groups)
    half = rng.random(len(out)) < 0.5
    out[half] = columns.snap(out[half])
    how = rng.integers(4, size=len(out))
    out[how == 0] = jittered(out[how == 0], columns, jitters(int((how == 0).sum()), rng), rng)
    out[how == 1] = rounded(out[how == 1], columns)
    return out


def jitters(count: int, rng: np.random.Generator) -> Floats:
    """Amounts of jitter (count, 1) that honest rows may have, from a hundredth of the largest to it."""
    return JITTER * 10.0 ** rng.uniform(-2.0, 0.0, size=(count, 1))


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
