"""E-values of a key's symbols, each of mean 1 for whoever does not know the key, and the p-values that they give.

For symbols that are uniform given the questions and earlier symbols, and scores M_i[a] that use no other answer, prod_i exp(l
M_i[a_i]) / mean_a exp(l M_i[a]) is a martingale with mean 1, for every l; so is its mean over a fixed grid of l. By Markov's
inequality p = 1 / e is a p-value. Source: Vovk and Wang 2021, "E-values: calibration, combination and applications", section 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = tuple(2.0**k for k in range(-5, 5))
"""Values of l, fixed beforehand; scores are clipped to -1 ... 1."""
SMALLEST = 1e-300


class Bets:
    """Scores (n, symbols) of n symbols, to be weighed for any number of keys."""

    def __init__(self, scores: Floats) -> None:
        self._scores, self._norms = scores, []
        for rate in GRID:
            tilted = rate * scores
            high = tilted.max(axis=1)
            self._norms.append(float((high + np.log(np.exp(tilted - high[:, None]).mean(axis=1))).sum()))

    def log_e(self, symbols: Ints) -> float:
        """Log of the mean over ``GRID`` of prod_i exp(l M_i[a_i]) / mean_a exp(l M_i[a]), for ``symbols`` a (n,)."""
        placed = float(self._scores[np.arange(len(symbols)), symbols].sum())
        return log_mean(np.array([rate * placed - norm for rate, norm in zip(GRID, self._norms, strict=True)]))


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """Probes by region (``cell``, ``top``), (regions,) each: the score of its one smooth symbol is the root-scaled sum over the
    probes there. ``bets``: one for each way to read."""

    cell: Ints
    top: Ints
    bets: list[Bets]


def regions_of(cell: Ints, top: Ints, size: Floats, scores: Sequence[Floats]) -> Regions:
    """``cell``, ``top``, ``size``: (m,), as in ``Code``; ``scores``: (m, symbols) each."""
    names = cell * 100_000 + top
    _, first, group, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    bets = []
    for each in scores:
        sums = np.zeros((len(first), each.shape[1]))
        np.add.at(sums, group, each * size[:, None])
        bets.append(Bets(sums / np.sqrt(counts)[:, None]))
    return Regions(cell[first], top[first], bets)


def p_of(log_e: float) -> float:
    """The p-value 1 / e, at most 1; 1 where e is no number."""
    if math.isnan(log_e):
        return 1.0
    return max(min(1.0, math.exp(-max(log_e, 0.0))) if log_e < 690 else SMALLEST, SMALLEST)


def log_false(scores: Floats, false: NDArray[np.bool_], share: float) -> float:
    """Log of the mean over ``GRID`` of prod exp(l S F) / (1 - share + share exp(l S)). ``scores``, ``false``: (regions,)."""
    share, logs = min(share, 1.0 - 1e-12), []
    for rate in GRID:
        tilted = rate * scores
        logs.append(float((tilted * false - np.logaddexp(math.log1p(-share), math.log(share) + tilted)).sum()))
    return log_mean(np.array(logs))


def either(fine: Sequence[float], smooth: Sequence[float]) -> float:
    """Log of the mean e-value of the fine symbols, of the smooth ones, and of both (independent keys), by every way to read."""
    return log_mean(np.array([*fine, *smooth, *(f + s for f in fine for s in smooth)]))


def log_mean(logs: Floats) -> float:
    high = float(logs.max())
    return high + math.log(float(np.exp(logs - high).mean()))
