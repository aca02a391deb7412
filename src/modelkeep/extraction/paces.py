"""How near an honest account's questions lie to its own last ones: the radii, and the bounds of *step* and *beside*.

Own questions are nearest to each other where an account is narrow and the population dense, so the narrowest mixes count, and
accounts in the densest corners whatever class or subpopulation they belong to.
"""

import math

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction import evidence, null, synthetic
from modelkeep.extraction.features import Embedding
from modelkeep.extraction.places import Places

Floats = NDArray[np.float64]

MAX_PAIRS, MAX_MIXES, MAX_CORNERS = 2400, 800, 400
"""Rows, mixes and dense corners at most, of which the distances between own questions are looked at; whether a strange question
lies beside an own one, in every corner."""
NARROWER = 0.8
"""Corners are so much narrower than the narrowest account, since how many people live in one is known from few rows."""


def fit_paces(
    embedding: Embedding,
    versions: dict[str, Floats],
    events: dict[str, Floats],
    weights: Floats,
    taus: tuple[float, ...],
    rng: np.random.Generator,
) -> tuple[float, Floats, float, Floats]:
    """Radius of a near repeat, distances (taus,) that are strangely small between two own queries, the distance of what is
    beside one, and the kappa of *step* and *beside* (2 · taus,).

    ``versions``, ``events``: the calibration rows as they are and under each handling, and their score events as 0/1. Jitter
    and rounding move natural near-duplicates in and out of the radius, so the bounds are taken over all that touch every row.
    """
    places = Places(embedding)
    whole = [name for name in versions if null.SHARES.get(name, 1.0) == 1.0]
    points = {name: places.of(versions[name][:MAX_PAIRS]) for name in whole}
    near = float(synthetic.JITTER * np.sqrt(2.0) * (np.sqrt(points["plain"].shape[1]) + 2.5))
    distances = {name: np.stack([_gaps(point, some) for point in some]) for name, some in points.items()}
    own = np.empty(len(points["plain"]))
    for i, row in enumerate(distances["plain"]):
        others = row[rng.permutation(len(row))[: null.OWN]]
        others = others[others > near]
        own[i] = others.min() if len(others) else np.inf
    *limits, beside = -evidence.thresholds(np.sort(-own)[None], (*taus, evidence.BESIDE))[0]
    size = null.smallest_account(len(weights[0])) * len(own) / len(weights[0])  # the share of rows that narrow accounts keep
    mixes = _narrowest(weights[:, : len(own)], size)
    corners = null.dense_corners(distances["plain"], math.ceil(NARROWER * size), len(own))
    odd = {name: some[: len(own), -len(taus) :] for name, some in events.items()}
    touched = {name: odd[name] for name in odd if name not in whole}
    near_own, anywhere = np.concatenate([mixes, corners[:MAX_CORNERS]]), np.concatenate([mixes, corners])
    steps = [null.step_rates(near_own, table, near, np.array(limits)) for table in distances.values()]
    oddly = [null.beside_rates(anywhere, table, (near, beside), odd[name], touched) for name, table in distances.items()]
    rare = null.bound(np.zeros((1, len(taus))), np.array([size]))  # what so few rows cannot exclude
    bounds = [np.maximum(rare, _bound(who, rates)) for who, rates in ((near_own, steps), (anywhere, oddly))]
    return near, np.array(limits), float(beside), np.concatenate(bounds)


def _bound(weights: Floats, rates: list[Floats]) -> Floats:
    """``rates``: each (accounts times handlings, streams) of the accounts with these ``weights``."""
    spread, found = 1.0 / (weights**2).sum(axis=1), np.concatenate(rates)
    return null.bound(found, np.tile(spread, len(found) // len(spread)))


def _narrowest(share: Floats, size: float) -> Floats:
    """The accounts whose own questions are nearest to each other, of those as wide as ``size`` rows or more, over the rows at
    hand. ``share``: (accounts, rows), their weights there."""
    total = share.sum(axis=1, keepdims=True)
    kept = share / np.maximum(total, 1e-12)
    spread = 1.0 / (kept**2).sum(axis=1)
    order = np.argsort(spread, kind="stable")
    out: Floats = kept[order[(spread >= size)[order] & (total[order, 0] > 0.05)][:MAX_MIXES]]
    return out


def _gaps(point: Floats, points: Floats) -> Floats:
    out: Floats = np.sqrt(((points - point) ** 2).sum(axis=1))
    return out
