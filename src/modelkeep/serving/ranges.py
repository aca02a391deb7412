"""What a model's inputs usually look like, learnt from its reference rows: a range for each value of a row, and small sets.

A range is the least and the greatest value of a column; how far outside of it is still usual is a share of the column's width
(the tolerance, a setting). A column never counts as narrower than the middle column is, so that a pixel which is black in every
reference row does not make the first grey one unusual. A column with few distinct values, each of them seen several times, is a
set: a value that was never seen is unusual whatever the tolerance. (By Good and Turing's estimate the chance of a value that is
not in the set is about the share of values seen once, which is zero here. I. J. Good 1953, "The population frequencies of
species", eq. 9.) benchmarks/validation.py measures how many honest rows that calls unusual.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]

MOST_MEMBERS = 16
"""A column with more distinct values is no set."""
LEAST_SEEN = 5
"""A column with a value that fewer reference rows have is no set."""
_SAME = 1e-4
"""Values closer than this share of the column's width are one: rounding to FP32 makes no new member."""
_PREFIX = "ranges."
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """What was learnt. ``low``, ``high``, ``width``: shape (d,); ``columns``: (c,) those that are sets; ``members``: (c, 16),
    the set's values, ascending, its last one repeated to the end."""

    low: Floats
    high: Floats
    width: Floats
    columns: NDArray[np.int64]
    members: Floats

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Named arrays, to stand beside an extraction profile's in one file."""
        return {
            f"{_PREFIX}low": self.low,
            f"{_PREFIX}high": self.high,
            f"{_PREFIX}width": self.width,
            f"{_PREFIX}columns": self.columns,
            f"{_PREFIX}members": self.members,
            f"{_PREFIX}version": np.array([_VERSION], dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "Ranges | None":
        """Undo ``to_arrays``; None where none were learnt (a release of an earlier modelkeep). Raises Invalid."""
        if f"{_PREFIX}version" not in arrays:
            return None
        try:
            if arrays[f"{_PREFIX}version"].tolist() != [_VERSION]:
                raise Invalid("the ranges of the reference data are of a later version: update modelkeep")
            low, high, width, members = (
                np.asarray(arrays[_PREFIX + name], np.float64) for name in ("low", "high", "width", "members")
            )
            columns = np.asarray(arrays[f"{_PREFIX}columns"], np.int64)
        except (KeyError, TypeError, ValueError) as cause:
            raise Invalid("the ranges of the reference data lack an array: publish the model again") from cause
        shapes = low.ndim == 1 and low.shape == high.shape == width.shape and members.shape == (*columns.shape, MOST_MEMBERS)
        if not shapes or not (low <= high).all() or not ((columns >= 0) & (columns < len(low))).all():
            raise Invalid("the ranges of the reference data do not fit together: publish the model again")
        return cls(low, high, width, columns, members)


def learn_ranges(rows: Floats) -> Ranges:
    """Learn from reference rows, shape (n, d), n ≥ 1, finite."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    with np.errstate(over="ignore"):
        width = np.minimum(high - low, np.finfo(np.float64).max)
    wide = width[width > 0]
    found = {}
    for column in range(rows.shape[1]):
        values, seen = np.unique(rows[:, column], return_counts=True)
        if 2 <= len(values) <= MOST_MEMBERS and seen.min() >= LEAST_SEEN:
            found[column] = np.pad(values, (0, MOST_MEMBERS - len(values)), mode="edge")
    members = np.stack(list(found.values())) if found else np.empty((0, MOST_MEMBERS))
    middle = float(np.median(wide)) if wide.size else 1.0
    return Ranges(low, high, np.maximum(width, middle), np.array(list(found), dtype=np.int64), members)


class RangeCheck:
    """Ranges at one tolerance, compiled for rows of one dtype. A usual row of 64 values costs about 1.5 µs."""

    def __init__(self, ranges: Ranges, tolerance: float, dtype: np.dtype[Any]) -> None:
        """``tolerance``: share of a column's width that a value may lie outside the range; ``dtype``: float32 or float64."""
        outward = np.array(np.inf, dtype)
        with np.errstate(over="ignore"):  # a bound beyond FP32 bounds nothing
            slack = tolerance * ranges.width
            self._near = _SAME * (ranges.high - ranges.low)[ranges.columns]
            slack[ranges.columns] = self._near
            self._low = np.nextafter((ranges.low - slack).astype(dtype), -outward)
            self._high = np.nextafter((ranges.high + slack).astype(dtype), outward)
            self._members = ranges.members.astype(dtype)
        self._columns = ranges.columns
        sets = zip(ranges.columns.tolist(), self._members.tolist(), strict=True)
        self._known = tuple((column, frozenset(values)) for column, values in sets)

    def __contains__(self, column: int) -> bool:
        """Whether ``column`` is a set."""
        return column in self._columns

    def outside(self, x: NDArray[Any]) -> int | None:
        """The first column with an unusual value; None when every row is usual. ``x``: shape (rows, d), of the dtype."""
        if x.clip(self._low, self._high).tobytes() != x.tobytes():
            beyond = ((x < self._low) | (x > self._high)).any(axis=0)
            if beyond.any():  # a negative zero is clipped to another zero, and is not beyond
                return int(beyond.argmax())
        return self._stranger(x) if self._known else None

    def bounds(self, column: int) -> tuple[float, float]:
        """The least and the greatest value that is usual in ``column``."""
        return float(self._low[column]), float(self._high[column])

    def _stranger(self, x: NDArray[Any]) -> int | None:
        """The first set that does not have a row's value."""
        if len(x) == 1:  # plain look-ups are quicker on one row; what they miss may still be a member but for rounding
            row = x[0].tolist()
            if all(row[column] in values for column, values in self._known):
                return None
        with np.errstate(over="ignore"):
            apart = np.abs(x[:, self._columns, None] - self._members).min(axis=2) > self._near
        strange = apart.any(axis=0)
        return int(self._columns[strange.argmax()]) if strange.any() else None
