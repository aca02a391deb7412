"""A class in two: the rows that look like what some seeds have in common, by a line through its features."""

from dataclasses import dataclass

import numpy as np

from modelkeep.training.poison._inputs import Bools, Floats
from modelkeep.training.poison.spectra import whiten

DIRECTIONS = 16
LEAST_SEEDS = 4
_ROUNDS, _RIDGE, _MOST = 12, 0.05, 0.6
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Clump:
    """Rows of one class: ``share`` (n,) of each row that belongs to the clump; ``along`` (n,): its place on the line, in
    standard deviations of the others from their mean; ``apart``: how far both means are, over the root of both variances' sum.
    """

    share: Floats
    along: Floats
    apart: float


def grow(features: Floats, seeds: Bools) -> Clump | None:
    """The clump around ``seeds`` (n,) among the rows (n, d) of one class; None with fewer than four seeds, or where it is lost.

    Fisher's discriminant between the clump and the others, and two normal laws along it, in turn, until rows stay.
    Source: Fisher 1936; the mixture by expectation maximisation (Dempster, Laird, Rubin 1977), in one dimension.
    """
    if seeds.sum() < LEAST_SEEDS:
        return None
    points, share, found = whiten(features, DIRECTIONS), seeds.astype(np.float64), None
    for _ in range(_ROUNDS):
        if not LEAST_SEEDS <= share.sum() <= _MOST * len(share):
            return None
        found = _divide(points, share)
        if np.abs(found.share - share).max() < 1e-3:
            break
        share = found.share
    return found


def _divide(points: Floats, share: Floats) -> Clump:
    inside, outside = share / share.sum(), (1.0 - share) / (1.0 - share).sum()
    centres = np.stack([outside @ points, inside @ points])
    rest = points - centres[(share > 0.5).astype(np.int64)]
    spread = rest.T @ rest / len(rest) + _RIDGE * np.eye(points.shape[1])
    along = points @ np.linalg.solve(spread, centres[1] - centres[0])
    near, far = float(outside @ along), float(inside @ along)
    low = max(float(outside @ (along - near) ** 2), _LEAST_VARIANCE)
    high = max(float(inside @ (along - far) ** 2), _LEAST_VARIANCE)
    # beyond its own mean a law says as much as at it: a narrow law would give its far side to a wide one
    below, above = np.maximum(along - near, 0.0) ** 2 / low, np.minimum(along - far, 0.0) ** 2 / high
    weight = float(share.mean())
    odds = np.log(weight / (1.0 - weight)) + 0.5 * (below - above + np.log(low) - np.log(high))
    told = 1.0 / (1.0 + np.exp(-np.clip(odds, -50.0, 50.0)))
    return Clump(told, (along - near) / np.sqrt(low), (far - near) / float(np.sqrt(low + high)))
