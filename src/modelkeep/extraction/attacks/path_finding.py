"""Path finding: an answer names the leaf of a tree that gave it; walk from leaf to leaf and find where they end."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan

_TRIES = 200
"""Rows drawn in search of a leaf that is not known, before all of them are taken to be."""


def path_finding(known: Knowledge, rng: np.random.Generator, *, bisections: int = 10, digits: int = 3) -> Plan:
    """Ask a row; bisect, column by column and both ways, how far its answer stays the same; go on just beyond, in the next
    leaf.

    Answers are the same leaf when they agree to ``digits`` decimals, numbers to one significant digit more: the paper's
    identities of leaves, of which it says that confidence values will do. A mark that is fresh for every question takes them
    away. All columns of a row are bisected at once. Ends when no row drawn lies outside of the leaves that are known.
    Source: Tramer et al. 2016, "Stealing Machine Learning Models via Prediction APIs", section 4.2, algorithm 1.
    """
    ahead, leaves = deque(known.draw(rng, 1)), list[tuple[Array, Array]]()
    while (x := _next(known, ahead, leaves, rng)) is not None:
        own = _leaf((yield x[None])[0], known, digits)
        sides = _Sides(known, x)
        rounds = 0
        while len(asked := sides.ask()) and rounds <= bisections:
            got = yield asked
            sides.learn(np.all(_leaf(got, known, digits) == own, axis=1))
            rounds += 1
        leaves.append(sides.leaf())
        ahead.extend(sides.beyond())


def _leaf(answers: Array, known: Knowledge, digits: int) -> Array:
    """What names the leaf of each answer."""
    if not known.numbers:
        return np.asarray(np.round(answers, digits))
    size = 10.0 ** np.floor(np.log10(np.maximum(np.abs(answers), 1e-300)))
    return np.asarray(np.rint(answers / size * 10.0**digits) * size)


def _next(known: Knowledge, ahead: deque[Array], leaves: list[tuple[Array, Array]], rng: np.random.Generator) -> Array | None:
    """A row in no known leaf: one just beyond a leaf, a natural one, one from anywhere in the box; None if there is none."""
    while ahead:
        if not _inside(ahead[0], leaves):
            return ahead.popleft()
        ahead.popleft()
    anywhere = known.snap(rng.uniform(known.lower, known.upper, size=(_TRIES, len(known.lower))))
    for x in np.concatenate([known.draw(rng, min(_TRIES, len(known.seeds))), anywhere]):
        if not _inside(x, leaves):
            return np.asarray(x)
    return None


def _inside(x: Array, leaves: list[tuple[Array, Array]]) -> bool:
    return any(bool(np.all((x >= low) & (x <= high))) for low, high in leaves)


class _Sides:
    """The 2 d sides of the leaf that ``x`` (d,) is in: on each, how far the answer is known to stay (``near``, (2 d,)), and
    from where it is known to differ (``far``); at first the end of the column's range, of which nothing is known."""

    def __init__(self, known: Knowledge, x: Array) -> None:
        self._known, self._x = known, x
        self._columns = np.tile(np.arange(len(x)), 2)
        self._near, self._far = np.tile(x, 2), np.concatenate([known.lower, known.upper])
        self._changes: NDArray[np.bool_] = np.zeros(2 * len(x), dtype=np.bool_)
        self._open: NDArray[np.intp] = np.flatnonzero(self._near != self._far)
        self._at: Array = self._far[self._open]

    def ask(self) -> Array:
        """The rows to ask next, one for each side that is still open: first the end of its range, then the middle."""
        return self._rows(self._open, self._at)

    def learn(self, same: NDArray[np.bool_]) -> None:
        """Which of the rows asked are in the leaf (n,)."""
        self._near[self._open[same]], self._far[self._open[~same]] = self._at[same], self._at[~same]
        self._changes[self._open[~same]] = True
        middle = np.where(self._whole, np.rint((self._near + self._far) / 2), (self._near + self._far) / 2)
        between = (np.minimum(self._near, self._far) < middle) & (middle < np.maximum(self._near, self._far))
        self._open = np.flatnonzero(self._changes & between)
        self._at = middle[self._open]

    @property
    def _whole(self) -> NDArray[np.bool_]:
        return self._known.whole[self._columns]

    def leaf(self) -> tuple[Array, Array]:
        """The lower and the upper corner of what is known to be in the leaf."""
        low, high = np.split(self._near, 2)
        return low, high

    def beyond(self) -> Array:
        """A row on the other side of every side that was found."""
        found = np.flatnonzero(self._changes)
        return self._rows(found, self._far[found])

    def _rows(self, sides: NDArray[np.intp], values: Array) -> Array:
        rows = np.tile(self._x, (len(sides), 1))
        rows[np.arange(len(sides)), self._columns[sides]] = values
        return rows
