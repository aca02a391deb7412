"""What the methods take: rows of labels, probabilities and features that fit together."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_FLOOR = 1e-12


def labels_of(y: NDArray[Any], classes: int | None = None) -> Ints:
    """Labels (n,) as whole numbers from 0. Raises Invalid (none, another shape, no whole numbers, ``classes`` or more)."""
    found = np.asarray(y)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iub":
        raise Invalid(f"labels are whole numbers of shape (n,), not {found.dtype} of shape {found.shape}")
    out = found.astype(np.int64)
    if out.min() < 0 or (classes is not None and out.max() >= classes):
        raise Invalid(f"labels go from 0 to {'k - 1' if classes is None else classes - 1}, not from {out.min()} to {out.max()}")
    return out


def probabilities_of(probabilities: NDArray[Any], y: Ints) -> Floats:
    """Probabilities (n, k) of finite positive numbers whose rows sum to 1.

    Raises Invalid (another shape, numbers below 0 or not finite, rows that sum to something else).
    """
    found = np.asarray(probabilities, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(y) or found.shape[1] < 2:
        raise Invalid(f"probabilities of {len(y)} rows have the shape ({len(y)}, classes), not {found.shape}")
    if not np.isfinite(found).all() or (found < 0.0).any() or np.abs(found.sum(axis=1) - 1.0).max() > 1e-3:
        raise Invalid("each row of probabilities must be numbers from 0 on that sum to 1")
    if y.max() >= found.shape[1]:
        raise Invalid(f"there are probabilities of {found.shape[1]} classes, and a label {y.max()}")
    found = np.maximum(found, _FLOOR)
    out: Floats = found / found.sum(axis=1, keepdims=True)
    return out


def features_of(features: NDArray[Any], rows: int) -> Floats:
    """Features as (n, d): further axes are flattened. Raises Invalid (another number of rows, not finite)."""
    found = np.asarray(features, dtype=np.float64)
    if found.ndim < 2 or len(found) != rows:
        raise Invalid(f"features of {rows} rows have the shape ({rows}, d), not {found.shape}")
    if not np.isfinite(found).all():
        raise Invalid("features must be finite: fill gaps before rows are inspected")
    return found.reshape(rows, -1)


def by_class(y: Ints, score: Callable[[Ints], Floats]) -> Floats:
    """The score (n,) whose parts ``score`` gives for the row numbers of each class."""
    out = np.zeros(len(y))
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        out[rows] = score(rows)
    return out


def outlying(raw: Floats, y: Ints) -> Floats:
    """How far each of ``raw`` (n,) is above its class's median, in robust standard deviations (1.4826 MAD), as 0 ... 1.

    z / (z + 4), so that 0.5 is four deviations; 0 at the median and below it. A class that does not vary has 0.
    """

    def within(rows: Ints) -> Floats:
        middle = float(np.median(raw[rows]))
        spread = 1.4826 * float(np.median(np.abs(raw[rows] - middle)))
        if spread <= 0.0:
            return np.zeros(len(rows))
        z = np.maximum((raw[rows] - middle) / spread, 0.0)
        out: Floats = z / (z + 4.0)
        return out

    return by_class(y, within)
