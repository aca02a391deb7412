"""Counts of several processes, added up. Source of the kinds: Prometheus, "Metric types"."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec


class Series(msgspec.Struct, frozen=True, array_like=True):
    """One metric: ``kind`` as Prometheus names it; ``over``: how the values of several processes become one (``sum``, ``min``,
    ``max``); ``rows``: values by what stands behind the name, as in ``_bucket{le="0.1"}``, in order."""

    name: str
    words: str
    kind: str
    over: str
    rows: dict[str, float]


_OVER: Mapping[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "min": min, "max": max}


def merge(tallies: Iterable[Sequence[Series]]) -> list[Series]:
    """All ``tallies`` as one; series and rows stand where they first stood. An ``over`` that is not known adds."""
    found: dict[str, Series] = {}
    for tally in tallies:
        for series in tally:
            known = found.get(series.name)
            found[series.name] = series if known is None else _together(known, series)
    return list(found.values())


def retired(tally: Sequence[Series]) -> list[Series]:
    """What stays of the counts of a process that is gone: counters and histograms, which never go back."""
    return [series for series in tally if series.kind != "gauge"]


def _together(one: Series, other: Series) -> Series:
    pick, rows = _OVER.get(one.over, _OVER["sum"]), dict(one.rows)
    for row, value in other.rows.items():
        rows[row] = pick(rows[row], value) if row in rows else value
    return Series(one.name, one.words, one.kind, one.over, rows)
