"""Columns of a table as one matrix of numbers, for whatever compares rows by distance or fits a model to them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.summaries import value_keys
from modelkeep.training.tables import Column, Table

Floats = NDArray[np.float64]
MOST_CATEGORIES = 32
"""Values of a text column that get a column of their own; the rest share one."""
MOST_CELLS = 1 << 29
_FAR = 5.0


def matrix_of(table: Table, names: Sequence[str]) -> Floats:
    """Columns ``names`` as a matrix (n, d): numbers less their median over a robust deviation, within 5 of it, and where some
    are missing a column that says so; text as one column of 0 and 1 a value; pictures by their pixels, 0 to 1.

    Raises Invalid (no columns, or more than 2^29 numbers).
    """
    parts = []
    for name in names:
        parts.append(_encoded(table.columns[name]))
        if sum(part.shape[1] for part in parts) * len(table) > MOST_CELLS:
            raise Invalid(f"as numbers these rows are more than {MOST_CELLS:,} cells: name fewer columns, or take fewer rows")
    if not parts:
        raise Invalid("there are no columns to look at besides the label")
    return np.concatenate(parts, axis=1)


def codes_of(label: Column) -> NDArray[np.int64]:
    """A label of few values as classes 0, 1, …, (n,), in the order of its values; a missing one is a class of its own."""
    if label.dtype.kind == "O":
        order = {one: at for at, one in enumerate(sorted({str(one) for one in label}))}
        return np.array([order[str(one)] for one in label], dtype=np.int64)
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def spread_of(column: Column) -> tuple[float, float]:
    """Median and robust standard deviation of the finite values of a column; the latter is never 0."""
    values = column.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75])
    return float(middle), float(high - low) / 1.349 or float(finite.std()) or 1.0


def _encoded(column: Column) -> Floats:
    if column.ndim > 1:
        flat = column.reshape(len(column), -1).astype(np.float64)
        return flat / (255.0 if column.dtype == np.uint8 else 1.0)
    if column.dtype.kind == "O":
        return _one_hot(column)
    middle, spread = spread_of(column)
    values = np.clip((column.astype(np.float64) - middle) / spread, -_FAR, _FAR)
    empty = np.isnan(values)
    if not empty.any():
        return values[:, None]
    return np.stack([np.where(empty, 0.0, values), empty.astype(np.float64)], axis=1)


def _one_hot(column: Column) -> Floats:
    distinct, codes, counts = np.unique(value_keys(column), return_inverse=True, return_counts=True)
    rank = np.empty(len(distinct), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(distinct))
    found = np.zeros((len(column), min(len(distinct), MOST_CATEGORIES + 1)))
    found[np.arange(len(column)), np.minimum(rank[codes], MOST_CATEGORIES)] = 1.0
    return found
