"""The report of a data set's checks, as one page: what was found, every column, and the plots behind it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelkeep.core import page
from modelkeep.training.findings import WHY, Bools, Examined, Finding, Level, range_of
from modelkeep.training.schema import number
from modelkeep.training.summaries import Kind
from modelkeep.training.tables import Column, Table

_BINS, _MOST_CHARTS, _MOST_BARS = 24, 48, 30
_WORDS = {Level.ERROR: "to mend", Level.WARNING: "to look at", Level.NOTE: "to know"}


@dataclass(frozen=True, eq=False)
class Subject:
    """What the page is about. ``against``: the test set, if there was one; ``label``: "" = none."""

    name: str
    digest: str
    table: Table
    label: str = ""
    against: Table | None = None
    against_name: str = ""


def render(subject: Subject, found: Examined, scores: Mapping[str, Sequence[float]] | None = None) -> bytes:
    """The page, UTF-8. ``scores``: of every row, 0 to 1, by the method that looked for planted rows. It shows no value of a
    column that seems to be personal."""
    counts = {level: sum(one.level is level for one in found.findings) for level in Level}
    title = f"{subject.name}: {', '.join(f'{count} {_WORDS[level]}' for level, count in counts.items() if count) or 'clean'}"
    facts: dict[str, object] = {
        "Data set": f"{subject.name}, {subject.digest}",
        "Size": f"{len(subject.table):,} rows, {len(subject.table.columns):,} columns",
        "Label": subject.label or "none named",
        "Rows in question": f"{len(np.flatnonzero(_any(found, len(subject.table)))):,}",
    }
    if subject.against is not None:
        facts["Test set"] = f"{subject.against_name}, {len(subject.against):,} rows"
    blocks = [
        page.facts(facts),
        page.heading("Findings"),
        _findings(found.findings),
        page.heading("Columns"),
        _columns(found),
        page.heading("Distributions"),
        *_distributions(subject, found),
        *_bars(found),
        *_scores(scores or {}, _suspected(found, len(subject.table))),
    ]
    return page.page(title, blocks)


def _any(found: Examined, rows: int) -> Bools:
    every = np.zeros(rows, dtype=bool)
    for suspects in found.suspects.values():
        every |= suspects
    return every


def _suspected(found: Examined, rows: int) -> Bools:
    """Rows (n,) that look planted or mislabelled."""
    every = np.zeros(rows, dtype=bool)
    for kind in WHY.values():
        every |= found.suspects.get(kind, False)
    return every


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return page.paragraph("Nothing was found.")
    return page.table(("", "Check", "What"), [(str(one.level), one.check, one.said) for one in findings])


def _columns(found: Examined) -> str:
    hidden = {one.column: one.kind for one in found.personal}
    rows = [
        (
            name,
            str(one.kind),
            f"{one.missing / one.rows:.1%}" if one.missing else "",
            hidden.get(name) or range_of(one),
            "own value in every row" if name in found.keys else "",
        )
        for name, one in found.summaries.items()
    ]
    return page.table(("Column", "Type", "Missing", "Holds", ""), rows)


def _distributions(subject: Subject, found: Examined) -> Iterable[str]:
    hidden = {one.column for one in found.personal} | set(found.keys)
    names = [name for name, one in found.summaries.items() if one.kind is not Kind.TENSOR and name not in hidden]
    drawn = [_chart(name, subject, found) for name in names[:_MOST_CHARTS]]
    shown = [one for one in drawn if one is not None]
    if shown:
        beside = "; line: the test set" if subject.against is not None else ""
        yield page.charts(shown, caption=f"Share of rows, each column from its low to its high end{beside}")
    if len(names) > _MOST_CHARTS:
        yield page.paragraph(f"The first {_MOST_CHARTS} of {len(names)} columns are drawn.", soft=True)


def _chart(name: str, subject: Subject, found: Examined) -> page.Chart | None:
    one, column = found.summaries[name], subject.table.columns[name]
    other = subject.against.columns.get(name) if subject.against is not None else None
    if one.kind in {Kind.NUMBER, Kind.INTEGER}:
        return _of_numbers(name, column, other)
    if not one.values:
        return None
    most = sorted(one.values, key=lambda value: (-one.values[value], value))[:_BINS]  # type: ignore[index]  # it is not None
    beside = _shares_of(other, most) if other is not None and other.dtype.kind == column.dtype.kind else ()
    shares = [one.values[value] / max(one.filled, 1) for value in most]
    return page.Chart(name, shares, beside, most[0], most[-1] if len(most) > 1 else "")


def _of_numbers(name: str, column: Column, other: Column | None) -> page.Chart | None:
    values = column.astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.005, 0.995])
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        return page.Chart(name, [1.0], (), number(float(low)), "")
    if (values == np.floor(values)).all():
        low, high = np.floor(low), np.ceil(high)
    each = high - low < _BINS and (values == np.floor(values)).all()
    edges = np.arange(low - 0.5, high + 1.0) if each else np.linspace(low, high, _BINS + 1)

    def shares(of: Column) -> list[float]:
        kept = np.clip(of[np.isfinite(of)], low, high)
        return [float(one) for one in np.histogram(kept, edges)[0] / max(len(kept), 1)]

    beside = shares(other.astype(np.float64)) if other is not None and other.dtype.kind in "iuf" else ()
    return page.Chart(name, shares(values), beside, number(float(low)), number(float(high)))


def _shares_of(column: Column, values: Sequence[str]) -> list[float]:
    said = [str(one).lower() if isinstance(one, bool) else one for one in column.tolist() if one is not None]
    return [said.count(value) / max(len(said), 1) for value in values]


def _bars(found: Examined) -> Iterable[str]:
    gaps = [(name, one.missing / one.rows) for name, one in found.summaries.items() if one.missing]
    if gaps:
        rows = [page.Bar(name, share) for name, share in sorted(gaps, key=lambda one: -one[1])[:_MOST_BARS]]
        yield page.heading("Missing values")
        yield page.bars(rows, caption="Share of rows without a value")
    if found.telling:
        rows = [page.Bar(one.column, one.score) for one in found.telling[:_MOST_BARS]]
        yield page.heading("What each column alone tells of the label")
        yield page.bars(
            rows,
            caption="0: nothing; 1: always which label it is. Beyond the line it tells too much",
            limit=0.95,
        )


def _scores(scores: Mapping[str, Sequence[float]], suspected: Bools) -> Iterable[str]:
    if not scores:
        return
    edges = np.linspace(0.0, 1.0, _BINS + 1)

    def shares(values: Column) -> list[float]:
        return [float(one) for one in np.histogram(values, edges)[0] / max(len(values), 1)]

    drawn = []
    for name, values in scores.items():
        each = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
        beside = shares(each[suspected]) if suspected.any() else ()
        drawn.append(page.Chart(name, shares(each[~suspected]), beside, "0", "1"))
    yield page.heading("How suspicious rows are")
    yield page.charts(drawn, caption="Scores of each method: share of rows; line: share of the rows that are suspected")
