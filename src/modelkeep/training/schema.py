"""The schema of a data set: inferred from rows, pinned as a file, and held against other rows, whole or in batches.

Bounds are not the extremes that were seen. If new rows come from where the pinned ones came from, then the chance that the k
most extreme of all n + m values of a column are among the m new ones is m/(n + m) · (m - 1)/(n + m - 1) · … (k factors),
whatever the distribution is; so values beyond the pinned extremes are a violation when that is below one in a thousand a
column, or when one lies further out than half as far as the pinned range is wide. Where the middle 98 % take up less than half
of that range, its tails are long, and as many times its width is allowed as it is wider than them, at most 9. A category is
pinned when what was seen leaves next to nothing unseen (Good 1953, "The population frequencies of species": the share unseen is
about the share seen once). Distributions differ when their distance in variation exceeds a tenth and what chance allows
(Bretagnolle, Huber and Carol).
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from modelkeep.core.values import Digest, digest_of, to_json
from modelkeep.errors import Invalid
from modelkeep.training.summaries import Kind, Summary, bucket_of, middle_of, summarise
from modelkeep.training.tables import Column, Table

CHANCE = 1e-3
"""That all columns of rows from the same source together raise a false alarm, for each kind of check."""
MOST_CATEGORIES, MOST_CODES = 200, 12
LEAST_ROWS = 20
"""Rows from which a schema pins more than types."""
_SEEN_ONCE = 0.01
_LEAST_OF_CODE = 5
_DRIFT = 0.1
_TIGHT, _MOST_SLACK = 0.5, 9.0
_BINS = 10


class ColumnSchema(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One column. ``missing``: rows without a value; ``low``, ``high``: extremes that were seen, ``inner``: that of the middle
    98 %; ``values``: share of each, when no others may come; ``edges``, ``shares``: what share lies up to each edge and beyond
    the last; ``unique``: every row has its own; ``personal``: the kind of personal data that is meant to be there."""

    name: str
    kind: Kind
    missing: int = 0
    low: float | None = None
    high: float | None = None
    inner: float = 0.0
    values: dict[str, float] = {}
    edges: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    unique: bool = False
    shape: tuple[int, ...] = ()
    dtype: str = ""
    personal: str = ""


class Schema(Struct, frozen=True, forbid_unknown_fields=True):
    """``rows``: how many it was inferred from."""

    rows: int
    columns: tuple[ColumnSchema, ...]
    version: int = 1


class Violation(Struct, frozen=True):
    """What does not hold. ``kind``: ``columns``, ``type``, ``range``, ``category``, ``missing``, ``unique``, ``shape`` or
    ``drift``; ``rows``: of how many, 0 = the column as a whole."""

    column: str
    kind: str
    said: str
    rows: int = 0


def infer(table: Table) -> Schema:
    """The schema that ``table`` follows. Raises Invalid."""
    return of_summaries(summarise(table))


def of_summaries(summaries: Mapping[str, Summary]) -> Schema:
    """The schema that rows with these summaries follow."""
    return Schema(next(iter(summaries.values())).rows, tuple(_column_schema(name, found) for name, found in summaries.items()))


def check(schema: Schema, table: Table) -> tuple[Violation, ...]:
    """What of ``table`` does not follow the schema, in the order of its columns. Raises Invalid."""
    return check_summaries(schema, summarise(table))


def check_summaries(schema: Schema, summaries: Mapping[str, Summary]) -> tuple[Violation, ...]:
    """The same of rows that were summarised, batch by batch."""
    pinned = {column.name: column for column in schema.columns}
    chance = CHANCE / max(1, len(pinned))
    found = [Violation(name, "columns", "is not there") for name in pinned if name not in summaries]
    found += [Violation(name, "columns", "is not in the schema") for name in summaries if name not in pinned]
    for name, column in pinned.items():
        if name in summaries:
            found += _check_column(column, schema.rows, summaries[name], chance)
    return tuple(found)


def offending(schema: Schema, table: Table) -> dict[str, NDArray[np.bool_]]:
    """Which rows (n,) break the schema by themselves: values that were never seen or lie outside, and missing ones; by
    reason."""
    found = {}
    for column in schema.columns:
        if column.name in table.columns:
            for reason, rows in _rows_of(column, table.columns[column.name]):
                if rows.any():
                    found[f"column {column.name}: {reason}"] = rows
    return found


def encode(schema: Schema) -> bytes:
    """The file of a schema, the same for the same schema."""
    return msgspec.json.format(to_json(schema), indent=1) + b"\n"


def decode(data: bytes) -> Schema:
    """Raises Invalid."""
    try:
        schema = msgspec.json.decode(data, type=Schema)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is no schema of a data set: {cause}") from cause
    if schema.version != 1:
        raise Invalid(f"this is a schema of version {schema.version}, and only version 1 is read here")
    return schema


def digest(schema: Schema) -> Digest:
    """Of its canonical JSON."""
    return digest_of(to_json(schema))


def number(value: float) -> str:
    """A number as people read it."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:,.6g}"


# -- inferring --


def _column_schema(name: str, found: Summary) -> ColumnSchema:
    plain = ColumnSchema(name, found.kind, found.missing, shape=found.shape, dtype=found.dtype)
    if found.rows < LEAST_ROWS:
        return plain
    unique = found.keys is not None and found.kind in {Kind.INTEGER, Kind.TEXT, Kind.TENSOR}
    values = _shares(found.values) if _closed(found) and found.values else {}
    numbers = found.kind in {Kind.INTEGER, Kind.NUMBER} and math.isfinite(found.low)
    if not numbers:
        return msgspec.structs.replace(plain, values=values, unique=unique)
    cuts = _cuts(found.buckets, [part / _BINS for part in range(1, _BINS)])
    first, last = (middle_of(one) for one in _cuts(found.buckets, [0.01, 0.99], alike=True))
    return msgspec.structs.replace(
        plain,
        values=values,
        unique=unique,
        low=found.low,
        high=found.high,
        inner=_short(max(0.0, min(last, found.high) - max(first, found.low))),
        edges=tuple(_short(middle_of(one)) for one in cuts),
        shares=tuple(_short(one) for one in _histogram(found.buckets, cuts)),
    )


def _closed(found: Summary) -> bool:
    """Whether the values that were seen are all that there are."""
    counts = found.values
    if not counts or found.kind is Kind.BOOLEAN:
        return found.kind is Kind.BOOLEAN
    if found.kind is Kind.INTEGER:
        return len(counts) <= MOST_CODES and min(counts.values()) >= _LEAST_OF_CODE
    once = sum(count == 1 for count in counts.values())
    return len(counts) <= MOST_CATEGORIES and once <= _SEEN_ONCE * found.filled and 4 * len(counts) <= found.filled


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {value: _short(counts[value] / total) for value in sorted(counts)}


def _cuts(buckets: Mapping[int, int], parts: Sequence[float], *, alike: bool = False) -> list[int]:
    """The buckets at which these parts of all numbers are reached, each once unless ``alike``."""
    order = sorted(buckets)
    reached = np.cumsum([buckets[one] for one in order])
    at = [order[min(int(np.searchsorted(reached, part * reached[-1])), len(order) - 1)] for part in parts]
    return at if alike else sorted(set(at))


def _histogram(buckets: Mapping[int, int], cuts: Sequence[int]) -> list[float]:
    """Share of numbers up to each cut, and beyond the last."""
    order = np.array(sorted(buckets))
    counts = np.array([buckets[one] for one in order.tolist()], dtype=np.float64)
    bins = np.searchsorted(np.asarray(cuts), order, side="left")
    found = np.bincount(bins, weights=counts, minlength=len(cuts) + 1)
    return [float(one) for one in found / found.sum()]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


# -- checking --


def _check_column(pinned: ColumnSchema, rows: int, found: Summary, chance: float) -> list[Violation]:
    if Kind.EMPTY not in {found.kind, pinned.kind} and not _fits(pinned.kind, found.kind):
        return [Violation(pinned.name, "type", f"is {found.kind} and was pinned as {pinned.kind}")]
    if pinned.kind is Kind.TENSOR and found.kind is Kind.TENSOR and (pinned.shape, pinned.dtype) != (found.shape, found.dtype):
        shapes = f"holds {found.dtype} of shape {found.shape}, pinned were {pinned.dtype} of shape {pinned.shape}"
        return [Violation(pinned.name, "shape", shapes)]
    if rows < LEAST_ROWS:
        return []
    strange = _categories(pinned, found)
    said = [
        *_missing(pinned, rows, found, chance),
        *strange,
        *_ranges(pinned, rows, found, chance),
        *_uniqueness(pinned, found),
    ]
    return said if strange else [*said, *_drift(pinned, rows, found, chance)]


def _fits(pinned: Kind, found: Kind) -> bool:
    return pinned == found or (pinned is Kind.NUMBER and found is Kind.INTEGER)


def _missing(pinned: ColumnSchema, rows: int, found: Summary, chance: float) -> list[Violation]:
    said = []
    if found.missing and not pinned.missing:
        said.append(Violation(pinned.name, "missing", "has no value where every pinned row has one", found.missing))
    elif found.missing > _missing_allowed(pinned.missing, rows, found.rows, chance):
        share, was = found.missing / found.rows, pinned.missing / rows
        said.append(Violation(pinned.name, "missing", f"is missing in {share:.1%}, pinned were {was:.1%}", found.missing))
    if found.infinite and pinned.low is not None:
        said.append(Violation(pinned.name, "range", "is infinite", found.infinite))
    return said


def _missing_allowed(pinned: int, rows: int, new: int, chance: float) -> float:
    """Missing values among ``new`` rows: one part in a hundred more than pinned, and what chance allows (Hoeffding, both
    samples)."""
    slack = math.sqrt(-math.log(chance) / 2.0) * (math.sqrt(1.0 / rows) + math.sqrt(1.0 / max(new, 1)))
    return new * (pinned / rows + max(0.01, slack))


def _categories(pinned: ColumnSchema, found: Summary) -> list[Violation]:
    if not pinned.values:
        return []
    if found.values is None and pinned.low is not None:
        return []  # no few whole numbers any more: its range and its distribution say so
    if found.values is None:
        said = f"has more than {len(pinned.values)} different values, and no others were pinned"
        return [Violation(pinned.name, "category", said, found.filled)]
    unseen = {value: count for value, count in found.values.items() if count and not _known(pinned, value)}
    if not unseen:
        return []
    named = ", ".join(repr(one[:40]) for one in sorted(unseen, key=lambda one: -unseen[one])[:3])
    more = f" and {len(unseen) - 3} others" if len(unseen) > 3 else ""
    return [Violation(pinned.name, "category", f"holds {named}{more}, never seen before", sum(unseen.values()))]


def _known(pinned: ColumnSchema, value: str) -> bool:
    """Whether a value was pinned; numbers beyond the extremes are a matter of the range."""
    outside = pinned.low is not None and pinned.high is not None and not pinned.low <= float(value) <= pinned.high
    return value in pinned.values or outside


def _ranges(pinned: ColumnSchema, rows: int, found: Summary, chance: float) -> list[Violation]:
    if pinned.low is None or pinned.high is None or pinned.unique or not math.isfinite(found.low):
        return []
    low, high = bounds_of(pinned)
    said: list[Violation] = []
    for side, edge, far, seen in (("below", pinned.low, low, found.low), ("above", pinned.high, high, found.high)):
        sign = 1 if side == "above" else -1
        if sign * seen <= sign * edge:
            continue
        beyond = _beyond(found.buckets, edge, sign)
        if sign * seen > sign * far or _all_extreme(beyond, found.filled, rows) < chance:
            reach = f"goes to {number(seen)}, {side} the {number(edge)} that was pinned"
            said.append(Violation(pinned.name, "range", reach, max(1, beyond)))
    return said


def bounds_of(pinned: ColumnSchema) -> tuple[float, float]:
    """Beyond which a single value breaks the schema. Raises ValueError (a column without numbers)."""
    if pinned.low is None or pinned.high is None:
        raise ValueError("only a column of numbers has bounds")
    width = pinned.high - pinned.low
    tails = width / pinned.inner if pinned.inner else _MOST_SLACK
    slack = (_TIGHT if tails <= 2.0 else min(tails, _MOST_SLACK)) * width
    low = pinned.low - slack
    return (max(low, 0.0) if pinned.low >= 0.0 else low), pinned.high + slack


def _beyond(buckets: Mapping[int, int], edge: float, sign: int) -> int:
    """How many lie in buckets beyond that of ``edge``: those within 1 % of it are not counted."""
    at = int(bucket_of(np.array([edge]))[0])
    return sum(count for bucket, count in buckets.items() if sign * bucket > sign * at)


def _all_extreme(count: int, new: int, rows: int) -> float:
    """The chance that the ``count`` most extreme of ``rows`` pinned and ``new`` values are all new ones."""
    logs = math.fsum(math.log((new - one) / (rows + new - one)) for one in range(min(count, new)))
    return math.exp(logs)


def _uniqueness(pinned: ColumnSchema, found: Summary) -> list[Violation]:
    if not pinned.unique or found.keys is not None or found.filled < 2:
        return []
    return [Violation(pinned.name, "unique", "has values that come twice, and every pinned row has its own")]


def _drift(pinned: ColumnSchema, rows: int, found: Summary, chance: float) -> list[Violation]:
    if pinned.unique or not found.filled:
        return []
    if pinned.values and found.values is not None:
        shares = {value: count / found.filled for value, count in found.values.items()}
        every = shares.keys() | pinned.values.keys()
        pairs = [(pinned.values.get(one, 0.0), shares.get(one, 0.0)) for one in every]
    elif pinned.edges and found.buckets:
        cuts = bucket_of(np.asarray(pinned.edges)).tolist()
        pairs = list(zip(pinned.shares, _histogram(found.buckets, cuts), strict=True))
    else:
        return []
    far = 0.5 * sum(abs(was - now) for was, now in pairs)
    both = rows * found.filled / (rows + found.filled)
    limit = max(_DRIFT, math.sqrt((len(pairs) * math.log(2.0) - math.log(chance)) / (2.0 * both)))
    if far <= limit:
        return []
    return [Violation(pinned.name, "drift", f"is distributed otherwise: {far:.0%} of its rows would have to change")]


def _rows_of(pinned: ColumnSchema, column: Column) -> list[tuple[str, NDArray[np.bool_]]]:
    text = column.dtype.kind == "O"
    if column.ndim > 1 or text == (pinned.low is not None):
        return []
    empty = np.array([one is None for one in column]) if text else np.isnan(column.astype(np.float64))
    found = [("no value", empty)] if not pinned.missing else []
    if pinned.values:
        known = {value: _known(pinned, _text(value)) for value in set(column[~empty].tolist())}
        found.append(("a value never seen before", np.array([not known.get(one, True) for one in column.tolist()])))
    if pinned.low is not None and not pinned.unique:
        low, high = bounds_of(pinned)
        found.append(("outside its range", ~empty & ((column < low) | (column > high))))
    return found


def _text(value: object) -> str:
    """A value as summaries count it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, int | float) and math.isfinite(value) and value == int(value) else str(value)
