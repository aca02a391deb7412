"""The composite null: how often an event may happen to an honest account, bounded over many kinds of honest account.

An honest account draws its distinct queries from its own mix of the benign population: some classes, some subpopulations,
one side of some direction, mostly hard cases ... and may round, jitter, leave defaults, mistype, or play what-if a little.
Its event rate is computed exactly from the reference rows with the account's weights on them; kappa bounds the rates of all
of them with a margin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 300
"""Accounts drawn per family."""
GROUPS = (12, 24)
"""So many subpopulations, found one way and another, of which accounts are mixes."""
SHARES = {"jittered": 1.0, "slightly jittered": 1.0, "rounded": 1.0, "defaulted": 0.05, "mistyped": 0.02, "what-if": 0.05}
"""The share of an account's queries that each handling touches."""
OWN = 128
"""How many of its own last queries an account's next one is compared with."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Reference rows as the families see them. ``coordinates``: (n, f); ``classes``: (n,) predicted class (zeros when the
    has none); ``margin``: (n,)."""

    coordinates: Floats
    classes: Ints
    margin: Floats


def smallest_account(n: int) -> float:
    """The null covers accounts whose mix is as spread as this many of ``n`` reference rows or more (Kish's effective size)."""
    return float(min(250.0, max(12.0, n / 10.0)))


def clusters(points: Floats, count: int, rng: np.random.Generator, rounds: int = 12) -> tuple[Floats, Ints]:
    """Lloyd's k-means: centres (count, f) and labels (n,). Fewer points than ``count`` repeat centres."""
    centres = points[rng.permutation(len(points))[:count]].copy()
    labels = np.zeros(len(points), dtype=np.int64)
    for _ in range(rounds):
        labels = ((centres * centres).sum(axis=1)[None, :] - 2.0 * points @ centres.T).argmin(axis=1)
        for c in range(len(centres)):
            mine = points[labels == c]
            if len(mine):
                centres[c] = mine.mean(axis=0)
    return centres, labels


def accounts(pool: Pool, rng: np.random.Generator) -> Floats:
    """Weights (accounts, n) of honest accounts on the reference rows, rows summing to 1, none narrower than the bound."""
    n = len(pool.classes)
    segments = _segments(pool, rng)
    sessions = 0.5 * (_unit(segments) + _unit(segments[rng.permutation(len(segments))]))
    families = [np.ones((1, n)), rng.exponential(size=(DRAWS, n)), _mixes(pool.classes, 0.3, rng), segments, sessions]
    for most in GROUPS:
        _, groups = clusters(pool.coordinates, int(np.clip(n // 20, 3, most)), rng)
        families += [_mixes(groups, 0.5, rng), _mixes(pool.classes, 0.3, rng) * _mixes(groups, 0.5, rng)]
    weights = np.concatenate([_unit(family) for family in families])
    spread = 1.0 / (weights**2).sum(axis=1)
    kept: Floats = weights[spread >= min(smallest_account(n), 0.9 * n)]
    return kept


def _unit(weights: Floats) -> Floats:
    out: Floats = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    return out


def _mixes(labels: Ints, concentration: float, rng: np.random.Generator) -> Floats:
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return np.ones((1, len(labels)))
    drawn = rng.dirichlet(np.full(len(counts), concentration), size=DRAWS) + 1e-9
    out: Floats = (drawn / counts)[:, index]
    return out


def _segments(pool: Pool, rng: np.random.Generator) -> Floats:
    """One side of a direction: of the data, of one column, or of how hard the case is; tilted smoothly or cut at a quarter."""
    n, f = pool.coordinates.shape
    out = np.empty((DRAWS, n))
    for i in range(DRAWS):
        kind = rng.random()
        if kind < 0.4:
            value = pool.coordinates @ rng.normal(size=f)
        elif kind < 0.8:
            value = pool.coordinates[:, rng.integers(f)] * rng.choice((-1.0, 1.0))
        else:
            value = -pool.margin
        rank = (np.argsort(np.argsort(value + 1e-9 * rng.normal(size=n))) + 0.5) / n
        out[i] = np.exp(rng.uniform(0.5, 3.0) * rank) if rng.random() < 0.7 else (rank > 0.75) + 1e-9
    return out


def bound(rates: Floats, spread: Floats) -> Floats:
    """kappa for each stream: the largest rate over accounts plus a third of its standard error, 15 % and .002.

    ``rates``: (accounts, streams); ``spread``: (accounts,), effective reference rows behind each account.
    """
    error = np.sqrt((rates * (1.0 - rates) + 1.0 / spread[:, None]) / spread[:, None])
    out: Floats = np.minimum(1.15 * (rates + error / 3.0).max(axis=0) + 0.002, 0.999)
    return out


def score_rates(weights: Floats, plain: Floats, handled: dict[str, Floats]) -> Floats:
    """Event rates of every account, plain and under each handling. ``plain``, ``handled[name]``: events (n, streams) as 0/1.
    Shape (accounts · (1 + handlings), streams)."""
    base = weights @ plain
    rates = [base]
    for name, share in SHARES.items():
        rates.append((1.0 - share) * base + share * (weights @ handled[name]))
    return np.concatenate(rates)


def step_rates(weights: Floats, distances: Floats, near: float, limits: Floats) -> Floats:
    """Chance that a query lies nearer to one of the account's last 128 than ``limits`` (taus,) but not within ``near``.
    ``distances``: (n, n) between reference rows. Includes the what-if share. Shape (accounts, taus)."""
    out = np.empty((len(weights), len(limits)))
    for j, limit in enumerate(limits):
        out[:, j] = (weights * _near_own(weights, distances, near, limit)).sum(axis=1)
    share = SHARES["what-if"]
    return share + (1.0 - share) * out


def beside_rates(
    weights: Floats, distances: Floats, radii: tuple[float, float], plain: Floats, handled: dict[str, Floats]
) -> Floats:
    """Chance that a query is an event of its score and lies between the two ``radii`` of one of the account's last 128.

    ``plain``: events (n, taus) as 0/1 of the rows whose ``distances`` (n, n) are given; ``handled[name]``: those of the rows
    after a handling that touches a share of them, each taken for near an own query. Shape (accounts · handlings, taus).
    """
    base = (weights * _near_own(weights, distances, *radii)) @ plain
    return np.concatenate([(1.0 - SHARES[name]) * base + SHARES[name] * (weights @ events) for name, events in handled.items()])


def dense_corners(distances: Floats, size: int, count: int) -> Floats:
    """Weights (count, n) of accounts in the ``count`` densest places, where own questions are nearest to each other: each is
    the ``size`` rows nearest to one. ``distances``: (n, n) between reference rows."""
    nearest = np.argpartition(distances, size - 1, axis=1)[:, :size]
    radius = np.take_along_axis(distances, nearest[:, -1:], axis=1)[:, 0]
    densest = np.argsort(radius, kind="stable")[:count]
    out = np.zeros((len(densest), len(distances)))
    np.put_along_axis(out, nearest[densest], 1.0 / size, axis=1)
    return out


def _near_own(weights: Floats, distances: Floats, near: float, limit: float) -> Floats:
    """Chance that each row lies between the two radii of one of 128 that an account has drawn. Shape (accounts, n)."""
    beside = ((distances > near) & (distances < limit)).astype(np.float32)
    mass = (weights.astype(np.float32) @ beside).astype(np.float64)
    out: Floats = 1.0 - (1.0 - np.minimum(mass, 1.0)) ** OWN
    return out
