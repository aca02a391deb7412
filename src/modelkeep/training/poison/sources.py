"""Who brought the rows that are wrong: what each source's rows do to held-out ones, and whose rows are suspected too often."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.poison._inputs import Bools, Floats, Ints, features_of, labels_of, probabilities_of
from modelkeep.training.tails import binomial_tail

Losses = Callable[[Ints], Floats]


def groups_of(groups: NDArray[np.generic], rows: int) -> tuple[NDArray[np.generic], Ints]:
    """The sources in order, and the number (n,) of each row's. Raises Invalid (another shape)."""
    found = np.asarray(groups)
    if found.shape != (rows,):
        raise Invalid(f"sources of {rows} rows have the shape ({rows},), not {found.shape}")
    names, numbers = np.unique(found, return_inverse=True)
    return names, numbers.astype(np.int64)


def excess(suspected: Bools, groups: NDArray[np.generic]) -> dict[str, float]:
    """For each source: the chance that so many of its rows or more are suspected, if it were like the others (binomial).

    Multiplied by the number of sources (Bonferroni). Raises Invalid.
    """
    names, numbers = groups_of(groups, len(suspected))
    size, hits = np.bincount(numbers), np.bincount(numbers, weights=suspected).astype(np.int64)
    found = {}
    for at, name in enumerate(names):
        others = len(suspected) - int(size[at])
        rate = min(1.0, (int(hits.sum() - hits[at]) + 1) / (others + 1)) if others else 1.0
        found[str(name)] = min(1.0, binomial_tail(int(hits[at]), int(size[at]), rate) * len(names))
    return found


def influence(
    features: Floats, probabilities: Floats, y: Ints, held_features: Floats, held_probabilities: Floats, held_y: Ints
) -> Floats:
    """What a step on each row (n,) does to the loss of held-out rows, to first order: positive lowers it.

    The inner product of the last layer's gradients of cross-entropy, averaged over the held-out rows, for features (n, d) and
    probabilities (n, k) of one network. Source: Pruthi et al. 2020, "Estimating Training Data Influence by Tracing Gradient
    Descent" (TracIn), at one checkpoint and on the last layer alone. Raises Invalid.
    """
    y, held_y = labels_of(y), labels_of(held_y)
    rows, held = features_of(features, len(y)), features_of(held_features, len(held_y))
    wrong, held_wrong = probabilities_of(probabilities, y).copy(), probabilities_of(held_probabilities, held_y).copy()
    if rows.shape[1] != held.shape[1] or wrong.shape[1] != held_wrong.shape[1]:
        raise Invalid("held-out rows have features and classes of the same network")
    wrong[np.arange(len(y)), y] -= 1.0
    held_wrong[np.arange(len(held_y)), held_y] -= 1.0
    mean = held_wrong.T @ np.concatenate([held, np.ones((len(held), 1))], axis=1) / len(held)
    out: Floats = ((wrong @ mean) * np.concatenate([rows, np.ones((len(rows), 1))], axis=1)).sum(axis=1)
    return out


def left_out(losses: Losses, groups: NDArray[np.generic]) -> dict[str, tuple[float, float]]:
    """For each source: how much lower held-out loss is without its rows, and the standard error of that.

    ``losses``: trains on the rows of these numbers and gives the loss (m,) of each held-out row. It is asked once for all rows
    and once a source. Raises Invalid (one source alone).
    """
    names, numbers = groups_of(groups, len(groups))
    if len(names) < 2:
        raise Invalid("a source can be left out where there are others")
    everything = np.asarray(losses(np.arange(len(numbers))), dtype=np.float64)
    found = {}
    for at, name in enumerate(names):
        gain = everything - np.asarray(losses(np.flatnonzero(numbers != at)), dtype=np.float64)
        found[str(name)] = float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))
    return found
