"""Square attack: random search by squares of changed pixels. It asks for answers alone: no gradients, and no PyTorch.

Source: Andriushchenko, Croce, Flammarion and Hein 2020, "Square attack: a query-efficient black-box adversarial attack via
random search", Algorithms 1 to 3, with the margin as loss. Rows that are no pictures have no squares: a random set of features
changes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]
"""Rows (n, d) to scores of classes (n, k): logits, or logarithms of probabilities."""
SHARE = 0.8
"""Of the features, that the first squares cover."""
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000


class Space(NamedTuple):
    """Where it may go. ``norm``: ``linf`` or ``l2``; ``low``, ``high``: of every feature, shape (d,); ``picture``: channels,
    height and width of a row, None when rows are no pictures."""

    norm: str
    epsilon: float
    low: Floats
    high: Floats
    picture: tuple[int, int, int] | None = None

    def inside(self, x: Floats, centre: Floats) -> Floats:
        """Into ball and box."""
        moved = x - centre
        if self.norm == "linf":
            moved = np.clip(moved, -self.epsilon, self.epsilon)
        else:
            size = np.linalg.norm(moved, axis=1, keepdims=True)
            moved = moved * np.minimum(1.0, self.epsilon / np.maximum(size, 1e-12))
        return np.clip(centre + moved, self.low, self.high)


def square(
    predict: Predict, x: Floats, y: Ints, space: Space, *, queries: int = 1000, seed: int = 0
) -> tuple[Floats, NDArray[np.bool_]]:
    """Rows in place of which something else fools the model, and which: (n, d), (n,). ``y``: the right classes.

    ``queries``: answers that are asked for of each row, at most.
    """
    rng = np.random.default_rng(seed)
    best = space.inside(x + _stripes(space, x.shape, rng), x)
    loss = margins(predict(best), y)
    left = np.flatnonzero(loss > 0)
    for turn in range(queries - 1):
        if not len(left):
            break
        share = share_at(turn, queries)
        move = _move_linf if space.norm == "linf" else _move_l2
        tried = space.inside(move(space, best[left], x[left], share, rng), x[left])
        found = margins(predict(tried), y[left])
        better = found < loss[left]
        best[left[better]], loss[left[better]] = tried[better], found[better]
        left = left[loss[left] > 0]
    fallen = loss <= 0
    return np.where(fallen[:, None], best, x), fallen


def share_at(turn: int, queries: int) -> float:
    """The share of features that changes at a turn: halved at set turns of 10,000, which are scaled to ``queries``."""
    return float(SHARE * 0.5 ** sum(turn * _SCHEDULE // queries > at for at in _HALVINGS))


def margins(scores: Floats, y: Ints) -> Floats:
    """The score of the right class above the best of the others, shape (n,); 0 or less: the row fell, as it does where one of
    them is no number, which must not stand for an answer."""
    at = np.arange(len(y))
    others = scores.copy()
    others[at, y] = -np.inf
    with np.errstate(invalid="ignore"):
        above = scores[at, y] - others.max(axis=1)
    return np.where(np.isnan(above), -np.inf, above)


def _stripes(space: Space, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Where it begins: vertical stripes of the whole radius; of no picture, random signs."""
    rows, width = shape
    if space.picture is not None:
        channels, _height, across = space.picture
        signs = np.broadcast_to(rng.choice([-1.0, 1.0], (rows, channels, 1, across)), (rows, *space.picture)).reshape(shape)
    else:
        signs = rng.choice([-1.0, 1.0], (rows, width))
    return signs * (space.epsilon if space.norm == "linf" else space.epsilon / math.sqrt(width))


def _window(space: Space, width: int, share: float, rng: np.random.Generator, least: int = 1) -> NDArray[np.int64]:
    """The features of a random square of every channel, (channels, features), or a random set, (1, features)."""
    if space.picture is None:
        return rng.choice(width, max(least, round(share * width)), replace=False)[None, :]
    channels, height, across = space.picture
    side = min(max(round(math.sqrt(share * height * across)), least), height, across)
    top, left = rng.integers(0, height - side + 1), rng.integers(0, across - side + 1)
    grid = np.arange(width).reshape(space.picture)[:, top : top + side, left : left + side]
    return grid.reshape(channels, -1)


def _move_linf(space: Space, best: Floats, centre: Floats, share: float, rng: np.random.Generator) -> Floats:
    """The whole radius up or down, in a square, one sign a channel and row; of no picture, a sign for each feature."""
    window = _window(space, best.shape[1], share, rng)
    made = best.copy()
    size = (len(best), *(window.shape if space.picture is None else (len(window), 1)))
    made[:, window] = centre[:, window] + space.epsilon * rng.choice([-1.0, 1.0], size)
    return made


def _move_l2(space: Space, best: Floats, centre: Floats, share: float, rng: np.random.Generator) -> Floats:
    """What one window holds of the radius, and what is not used of it, moves to another window in a new pattern."""
    to, source = (_window(space, best.shape[1], share, rng, 3) for _ in range(2))
    moved = best - centre
    both = np.union1d(to.ravel(), source.ravel())
    free = np.maximum(space.epsilon**2 - (moved**2).sum(axis=1), 0.0)
    budget = np.sqrt(((moved[:, both] ** 2).sum(axis=1) + free) / len(to))
    held = moved[:, to]
    pattern = np.abs(rng.standard_normal(to.shape[1])) if space.picture is None else _bump(to.shape[1])
    signs = rng.choice([-1.0, 1.0], (len(best), *(to.shape if space.picture is None else (len(to), 1))))
    fresh = signs * pattern + held / np.maximum(np.linalg.norm(held, axis=2, keepdims=True), 1e-12)
    fresh /= np.maximum(np.linalg.norm(fresh, axis=2, keepdims=True), 1e-12)
    moved[:, source] = 0.0
    moved[:, to] = fresh * budget[:, None, None]
    return centre + moved


def _bump(count: int) -> Floats:
    """Two bumps of opposite sign in a square of ``count`` pixels, of length 1: eta of the paper, eq. 2."""
    side = math.isqrt(count)
    if side * side != count or side < 2:
        return np.full(count, 1.0 / math.sqrt(count))
    upper = side // 2
    made = np.concatenate([_mound(upper, side), -_mound(side - upper, side)])
    return np.asarray(made.ravel() / np.linalg.norm(made))


def _mound(height: int, width: int) -> Floats:
    down, across = np.arange(height)[:, None] - height // 2, np.arange(width)[None, :] - width // 2
    rings = np.maximum(np.abs(down), np.abs(across)) + 1
    most = max(height, width) // 2 + 1
    totals = np.cumsum(1.0 / np.arange(1, most + 2)[::-1] ** 2)[::-1]
    return np.asarray(totals[np.minimum(rings, most + 1) - 1])
