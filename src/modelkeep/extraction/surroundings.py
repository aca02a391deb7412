"""What real rows score where they are: a score in deviations of those around it.

Where rows are rare or odd, real ones look made up more often. An account that asks mostly there would have many events, and a
bound that holds for it would let thieves elsewhere go unseen. So a score is judged against what real rows score at such a
place, a mean and a deviation linear in the features (Koenker and Bassett 1982, "Robust tests for heteroscedasticity": the
location-scale model); mixes of honest rows then differ little in how often they are odd.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHRINK = 3000.0
"""As many rows' worth of belief that features make no difference."""
LEAST = 0.8
"""A deviation is never taken for less than this share of the mean one."""


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """``mean``, ``spread``: (1 + f, s), a constant and one coefficient a feature for each score; ``least``: (s,), the smallest
    deviation."""

    mean: Floats
    spread: Floats
    least: Floats

    def standard(self, scores: Floats, features: Floats) -> Floats:
        """``scores`` (b, s) of rows with ``features`` (b, f), in deviations from what real rows have there. Shape (b, s)."""
        centre = features @ self.mean[1:] + self.mean[0]
        width = features @ self.spread[1:] + self.spread[0]
        out: Floats = (scores - centre) / np.maximum(width, self.least)
        return out


def fit_surroundings(scores: Floats, features: Floats) -> Surroundings:
    """Learn from ``scores`` (n, s) and ``features`` (n, f) of real rows: ridge regressions of the scores, then of how far they
    lie from what the first ones say."""
    mean = _ridge(scores, features)
    apart = np.abs(scores - features @ mean[1:] - mean[0])
    return Surroundings(mean, _ridge(apart, features), LEAST * apart.mean(axis=0) + 1e-6)


def _ridge(targets: Floats, features: Floats) -> Floats:
    middle, about = features.mean(axis=0), targets.mean(axis=0)
    centred = features - middle
    slopes = np.linalg.solve(centred.T @ centred + SHRINK * np.eye(features.shape[1]), centred.T @ (targets - about))
    return np.concatenate([(about - middle @ slopes)[None], slopes])
