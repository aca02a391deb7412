"""What a column of a table holds, in a size that does not grow with its rows. Summaries of batches add up to that of the whole.

Numbers are counted in buckets of a relative width of 2 % (DDSketch: Masson, Rim, Lee 2019, "DDSketch: a fast and
fully-mergeable quantile sketch with relative-error guarantees"), so that quantiles come out within 1 %, and in any order.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training.tables import Column, Table

MOST_VALUES = 1000
"""Distinct values of a column that are counted one by one."""
MOST_KEYS = 1 << 24
"""Rows up to which it is known whether every one has its own value."""
_GAMMA = math.log(1.01 / 0.99)
_ZERO = 1e-9
_SHIFT = 2000


class Kind(StrEnum):
    """What the values of a column are. ``empty``: there are none."""

    EMPTY = "empty"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    TENSOR = "tensor"


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """One column. ``missing``: rows without a value; ``infinite``: with an infinite one; ``low``, ``high``: the finite
    extremes; ``buckets``: how many numbers in each; ``values``: how many rows have each, None when there are more than are
    counted; ``keys``: hashes of all values, ascending, None when some value came twice; ``shape``: of one tensor."""

    kind: Kind
    rows: int
    missing: int = 0
    infinite: int = 0
    low: float = math.inf
    high: float = -math.inf
    buckets: Mapping[int, int] = field(default_factory=dict)
    values: Mapping[str, int] | None = field(default_factory=dict)
    keys: NDArray[np.uint64] | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ""

    @property
    def filled(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing


def summarise(table: Table) -> dict[str, Summary]:
    """A summary of each column. Raises Invalid (a column of a type that no table has)."""
    return {name: _of_column(name, column) for name, column in table.columns.items()}


def merge(first: Mapping[str, Summary], second: Mapping[str, Summary]) -> dict[str, Summary]:
    """The summaries of two batches as that of both. Raises Invalid (their columns differ)."""
    if first.keys() != second.keys():
        raise Invalid(f"batches have different columns: {', '.join(sorted(first.keys() ^ second.keys()))[:200]}")
    return {name: _merged(name, first[name], second[name]) for name in first}


def bucket_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bucket of each finite number; larger numbers have larger ones, and 0 has 0."""
    away = np.abs(values)
    steps = np.ceil(np.log(np.maximum(away, _ZERO)) / _GAMMA - 1e-9) + _SHIFT
    out: NDArray[np.int64] = np.where(away <= _ZERO, 0, np.sign(values) * steps).astype(np.int64)
    return out


def middle_of(bucket: int) -> float:
    """A number of the bucket, at most 1 % from any other of it."""
    if bucket == 0:
        return 0.0
    top = math.exp((abs(bucket) - _SHIFT) * _GAMMA)
    return math.copysign(2.0 * top / (1.0 + math.exp(_GAMMA)), bucket)


def value_keys(column: Column) -> NDArray[np.uint64]:
    """A number for every value of a column (n, ...), the same for equal values of any table; 0 for a missing one. Shape (n,).

    Whole numbers and floats that are equal have the same; whole numbers beyond 2^53 are told apart as floats are.
    """
    if column.dtype.kind == "O":
        known = {one: _hash(one.encode()) for one in set(column.tolist()) if one is not None}
        return np.fromiter((0 if one is None else known[one] for one in column), np.uint64, len(column))
    if column.ndim > 1:
        flat = np.ascontiguousarray(column).reshape(len(column), -1)
        return np.fromiter((_hash(row.tobytes()) for row in flat), np.uint64, len(column))
    floats = column.astype(np.float64) + 0.0  # no -0.0
    keys: NDArray[np.uint64] = np.where(np.isnan(floats), np.uint64(0), floats.view(np.uint64) + np.uint64(1))
    return keys


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") | 1


def _of_column(name: str, column: Column) -> Summary:
    if column.ndim > 1:
        keys = value_keys(column)
        bad = int(np.isnan(column.reshape(len(column), -1)).any(axis=1).sum()) if column.dtype.kind == "f" else 0
        return Summary(
            Kind.TENSOR, len(column), bad, values=None, keys=_unique(keys), shape=column.shape[1:], dtype=column.dtype.name
        )
    if column.dtype.kind == "O":
        return _of_text(name, column)
    if column.dtype.kind == "b":
        no = int((~column).sum())
        return Summary(Kind.BOOLEAN, len(column), values={"false": no, "true": len(column) - no})
    if column.dtype.kind in "iuf":
        return _of_numbers(column)
    raise Invalid(f"column {name[:80]!r} is {column.dtype}: a table has numbers, text and tensors")


def _of_text(name: str, column: Column) -> Summary:
    counts = Counter(column.tolist())
    missing = counts.pop(None, 0)
    if not all(isinstance(one, str) for one in counts):
        raise Invalid(f"column {name[:80]!r} holds things that are no text")
    keys = None
    if counts and len(counts) == len(column) - missing <= MOST_KEYS:
        keys = _unique(value_keys(column[np.array([one is not None for one in column])]))
    values = dict(counts) if len(counts) <= MOST_VALUES else None
    return Summary(Kind.TEXT if counts else Kind.EMPTY, len(column), missing, values=values, keys=keys)


def _of_numbers(column: Column) -> Summary:
    floats = column.astype(np.float64)
    filled = floats[~np.isnan(floats)]
    finite = filled[np.isfinite(filled)]
    missing, infinite = len(floats) - len(filled), len(filled) - len(finite)
    if not len(filled):
        return Summary(Kind.EMPTY, len(column), missing)
    whole = not infinite and bool((finite == np.floor(finite)).all())
    distinct, counts = np.unique(finite, return_counts=True)
    buckets, at = np.unique(bucket_of(distinct), return_inverse=True)
    totals = np.bincount(at, weights=counts, minlength=len(buckets)).astype(np.int64)
    few = whole and len(distinct) <= MOST_VALUES
    return Summary(
        Kind.INTEGER if whole else Kind.NUMBER,
        len(column),
        missing,
        infinite,
        low=float(distinct[0]) if len(distinct) else math.inf,
        high=float(distinct[-1]) if len(distinct) else -math.inf,
        buckets=dict(zip(buckets.tolist(), totals.tolist(), strict=True)),
        values={str(int(one)): int(count) for one, count in zip(distinct, counts, strict=True)} if few else None,
        keys=_unique(value_keys(finite)) if len(distinct) == len(filled) else None,
    )


def _unique(keys: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """``keys`` ascending, or None when one comes twice or they are too many."""
    if len(keys) > MOST_KEYS:
        return None
    found = np.sort(keys)
    return None if (found[1:] == found[:-1]).any() else found


def _merged(name: str, one: Summary, two: Summary) -> Summary:
    if Kind.EMPTY in {one.kind, two.kind}:
        full, empty = (one, two) if two.kind is Kind.EMPTY else (two, one)
        return replace(full, rows=full.rows + empty.rows, missing=full.missing + empty.missing)
    kind = one.kind
    if one.kind != two.kind:
        if {one.kind, two.kind} != {Kind.INTEGER, Kind.NUMBER}:
            raise Invalid(f"column {name[:80]!r} is {one.kind} in one batch and {two.kind} in another")
        kind = Kind.NUMBER
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        raise Invalid(f"column {name[:80]!r} has tensors of {one.dtype} {one.shape} in one batch and {two.dtype} {two.shape}")
    both = one.keys is not None and two.keys is not None
    return Summary(
        kind,
        one.rows + two.rows,
        one.missing + two.missing,
        one.infinite + two.infinite,
        min(one.low, two.low),
        max(one.high, two.high),
        dict(Counter(one.buckets) + Counter(two.buckets)),
        _values(one, two, kind),
        _unique(np.concatenate([one.keys, two.keys])) if both else None,
        one.shape,
        one.dtype,
    )


def _values(one: Summary, two: Summary, kind: Kind) -> dict[str, int] | None:
    if one.values is None or two.values is None or kind is Kind.NUMBER:
        return None
    found = dict(one.values)
    for value, count in two.values.items():
        found[value] = found.get(value, 0) + count
    return found if len(found) <= MOST_VALUES else None
