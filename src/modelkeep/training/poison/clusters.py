"""Planted rows by clusters: what a trigger moves to its class lies apart from those that belong there."""

import numpy as np

from modelkeep.training.poison._inputs import Floats, Ints, by_class, features_of, labels_of
from modelkeep.training.poison.spectra import whiten

DIRECTIONS = 10
_ROUNDS, _STARTS, _FEW = 50, 4, 8


def activation(features: Floats, y: Ints, *, seed: int = 0) -> Floats:
    """For each row (n,) of the smaller of its class's two clusters: how clearly it is there; 0 for all others.

    Features (n, d) of the penultimate layer, reduced to ten whitened directions a class (the paper: independent components),
    two means. A score is (b - a) / max(a, b) with the distances to the two centres, times how far the cluster is below half of
    the class: 0 ... 1. Source: Chen et al. 2018, "Detecting Backdoor Attacks by Activation Clustering". Raises Invalid.
    """
    y = labels_of(y)
    rows_of = features_of(features, len(y))
    rng = np.random.default_rng(seed)

    def within(rows: Ints) -> Floats:
        if len(rows) < _FEW:
            return np.zeros(len(rows))
        points = whiten(rows_of[rows], DIRECTIONS)
        centres = two_means(points, rng)
        apart = np.sqrt(((points[:, None] - centres) ** 2).sum(axis=2))
        small = int((apart.argmin(axis=1) == 1).sum() * 2 <= len(rows))
        own, other = apart[:, small], apart[:, 1 - small]
        share = float((own < other).mean())
        out: Floats = np.maximum((other - own) / np.maximum(np.maximum(own, other), 1e-12), 0.0) * max(1.0 - 2.0 * share, 0.0)
        return out

    return by_class(y, within)


def two_means(points: Floats, rng: np.random.Generator) -> Floats:
    """The centres (2, d) of the best of four runs of Lloyd's algorithm, begun at a random row and the farthest from it."""
    best, least = points[:2], np.inf
    for _ in range(_STARTS):
        first = points[rng.integers(len(points))]
        centres = np.stack([first, points[((points - first) ** 2).sum(axis=1).argmax()]])
        for _ in range(_ROUNDS):
            nearer = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
            moved = np.stack([points[nearer == at].mean(axis=0) if (nearer == at).any() else centres[at] for at in (0, 1)])
            if np.allclose(moved, centres):
                break
            centres = moved
        loss = float(((points[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum())
        if loss < least:
            best, least = centres, loss
    return best
