"""What is to be said of a data set: each check's results as sentences, with how grave they are.

``error``: mend it, or declare that it is meant to be so; ``warning``: look at it; ``note``: good to know.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.training import duplicates
from modelkeep.training.personal import Personal, find_personal, sensitive
from modelkeep.training.schema import Schema, Violation, check_summaries, number, of_summaries, offending
from modelkeep.training.summaries import Kind, Summary, summarise
from modelkeep.training.tables import Column, Table

Bools = NDArray[np.bool_]


class Level(StrEnum):
    """How grave a finding is, the gravest first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


LEAK_CHANCE = 1e-4
"""Below this chance, rows that two tables share are no accident."""
MANY = 0.01
"""Share of rows from which copies and contradictions are a warning."""
_TELLS, _NEARLY_TELLS = 0.95, 0.8
_MOST_NEAR = 200_000
_BEYOND_CHANCE = 5
_SUSPECTED = {
    "planted": (
        Level.ERROR,
        "seems to be planted: it has something that others of its label do not have",
        "seem to be planted: they share something that others of their label do not have",
    ),
    "mislabelled": (
        Level.WARNING,
        "has a label that what was learnt from the other rows does not believe",
        "have labels that what was learnt from the other rows does not believe",
    ),
}
WHY = {"planted": "it seems to be planted", "mislabelled": "its label seems to be wrong"}
_UNKNOWN = frozenset({"?", "n/a", "null", "none", "nil", "-", "--", "unknown", "missing", "#n/a", "nan", "undefined", "."})


class Finding(Struct, frozen=True):
    """One sentence of one ``check``: ``schema``, ``personal``, ``duplicates``, ``leakage``, ``columns``, ``labels`` or
    ``poison``; ``column``: "" = the rows as a whole; ``rows``: how many, 0 = all or none in particular."""

    check: str
    level: Level
    said: str
    column: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Asked:
    """What to check by. ``label``: the column that is predicted, "" = none; ``declared``: columns that are meant to be
    personal; ``schema``: that the rows must follow."""

    label: str = ""
    declared: frozenset[str] = frozenset()
    schema: Schema | None = None
    seed: int = 0
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Examined:
    """``suspects``: rows (n,) that may be taken out, by reason; ``keys``: columns that number the rows; ``features``: those
    that describe them; ``telling``: how well each column alone tells the label, the best first; ``schema``: that the rows
    themselves follow."""

    findings: tuple[Finding, ...]
    personal: tuple[Personal, ...]
    telling: tuple[duplicates.Telling, ...]
    summaries: Mapping[str, Summary]
    schema: Schema
    keys: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    suspects: Mapping[str, Bools] = field(default_factory=dict)


def examine(table: Table, asked: Asked, *, against: Table | None = None) -> Examined:
    """Check ``table``; ``against``: the test set that must not share its rows. Raises Missing (no such column), Invalid."""
    label = table.column(asked.label) if asked.label else None
    for name in (*asked.declared, *([asked.origin] if asked.origin else [])):
        table.column(name)
    summaries = summarise(table)
    keys = tuple(name for name in table.columns if name != asked.label and duplicates.identifying(table.columns[name], name))
    features = [name for name in table.columns if name not in {asked.label, asked.origin, *keys}]
    personal = find_personal(table)
    hidden = frozenset(one.column for one in personal)
    said, suspects = _schema(table, summaries, asked, hidden)
    said += _personal(table, personal, asked)
    copied, copies = _duplicates(table, features, label, asked.seed)
    said += copied
    if against is not None:
        said += [*_leakage(table, against, features, asked), *_differing(summaries, against, hidden)]
    telling = duplicates.telling(table, [*keys, *features], label, seed=asked.seed) if label is not None else ()
    said += [*_columns(table, summaries, keys, features), *_telling(telling, asked.label), *_label(summaries, asked.label)]
    order = list(Level)
    return Examined(
        tuple(sorted(said, key=lambda one: order.index(one.level))),
        personal,
        telling,
        summaries,
        of_summaries(summaries),
        keys,
        tuple(features),
        {**suspects, **copies},
    )


def with_suspicions(
    found: Examined, label: Column, rows: Mapping[str, Bools], sources: Mapping[str, float] | None = None
) -> Examined:
    """The same with what was found by looking at all rows together. ``rows``: which (n,) are ``planted``, and which
    ``mislabelled``; ``sources``: the chance of as many suspects among the rows of each, times their number."""
    said = list(found.findings)
    for kind, (level, one, many) in _SUSPECTED.items():
        if kind in rows and (chosen := rows[kind]).any():
            told = _rows("poison", level, chosen, one, many)
            labels = ", ".join(sorted({str(value) for value in label[chosen].tolist()})[:5])
            said.append(msgspec.structs.replace(told, said=f"{told.said} (label {labels})"))
    for name, chance in (sources or {}).items():
        if chance <= LEAK_CHANCE:
            text = f"more rows of source {name[:80]} are in question than of others (p = {chance:.1g})"
            said.append(Finding("poison", Level.WARNING, text))
    suspects = {**found.suspects, **{WHY[kind]: chosen for kind, chosen in rows.items() if chosen.any()}}
    order = list(Level)
    return replace(found, findings=tuple(sorted(said, key=lambda one: order.index(one.level))), suspects=suspects)


def default_label(table: Table) -> str:
    """``y`` where a table is ``x`` and ``y``, as arrays and folders of pictures are; else none."""
    return "y" if set(table.columns) == {"x", "y"} else ""


def reasons_of(suspects: Mapping[str, Bools]) -> dict[int, list[str]]:
    """By row, in order, why it is suspected."""
    found: dict[int, list[str]] = {}
    for reason, rows in suspects.items():
        for row in np.flatnonzero(rows).tolist():
            found.setdefault(row, []).append(reason)
    return dict(sorted(found.items()))


def counted(count: int, what: str) -> str:
    """``1 row``, ``1,200 rows``."""
    return f"{count:,} {what}{'s' * (count != 1)}"


# -- each check --


def _schema(
    table: Table, summaries: Mapping[str, Summary], asked: Asked, hidden: frozenset[str]
) -> tuple[list[Finding], dict[str, Bools]]:
    if asked.schema is None:
        return [], {}
    broken = check_summaries(asked.schema, summaries)
    return [_broken(one, Level.ERROR, hidden) for one in broken], offending(asked.schema, table)


def _broken(one: Violation, level: Level, hidden: frozenset[str], where: str = "") -> Finding:
    """As a finding; of columns in ``hidden`` it tells no values."""
    said = "holds what was never seen before" if one.kind == "category" and one.column in hidden else one.said
    return Finding("schema", level, f"{where}column {one.column} {said}{_in_rows(one.rows)}", one.column, one.rows)


def _in_rows(count: int) -> str:
    return f" ({counted(count, 'row')})" if count else ""


def _personal(table: Table, personal: Sequence[Personal], asked: Asked) -> list[Finding]:
    pinned = {one.name: one.personal for one in asked.schema.columns if one.personal} if asked.schema else {}
    said = []
    for one in personal:
        declared = one.column in asked.declared or pinned.get(one.column) == one.kind
        most = f"{one.share:.0%}" if one.share >= 0.01 else f"{one.share:.2g} of 1"
        sure = {"certain": "holds", "likely": "seems to hold", "possible": "may hold"}[one.confidence]
        text = f"column {one.column} {sure} personal data: {one.kind}, {most} of its values, of the form {one.example}"
        end = ", as declared" if declared else ""
        grave = Level.WARNING if one.confidence == "possible" else Level.ERROR
        said.append(Finding("personal", Level.NOTE if declared else grave, text + end, one.column))
    for name in table.columns:
        if category := sensitive(name):
            text = f"column {name} speaks of {category} by its name, a special category of personal data (GDPR, article 9)"
            said.append(Finding("personal", Level.NOTE, text, name))
    return said


def _duplicates(
    table: Table, features: Sequence[str], label: Column | None, seed: int
) -> tuple[list[Finding], dict[str, Bools]]:
    if not features:
        return [], {}
    keys = duplicates.row_keys(table, features)
    whole = keys if label is None else duplicates.row_keys(table, [*features, _name_of(table, label)])
    copy = duplicates.copies(whole) != np.arange(len(table))
    said, suspects = [], {}
    if copy.any():
        level = Level.WARNING if copy.mean() >= MANY else Level.NOTE
        said.append(_rows("duplicates", level, copy, "is a copy of an earlier row", "are copies of earlier rows"))
        if level is Level.WARNING:
            suspects["a copy of an earlier row"] = copy
    if len(table) <= _MOST_NEAR and (near := _near(table, features, seed)).any():
        level = Level.WARNING if near.mean() >= 0.05 else Level.NOTE
        said.append(_rows("duplicates", level, near, "nearly equals an earlier row", "nearly equal earlier rows"))
    if label is not None and (torn := duplicates.contradictory(keys, label)).any():
        level = Level.WARNING if torn.mean() >= MANY else Level.NOTE
        text = "has the features of another and a different label", "have the features of others and different labels"
        said.append(_rows("labels", level, torn, *text))
    return said, suspects


def _near(table: Table, features: Sequence[str], seed: int) -> Bools:
    """Rows (n,) that nearly equal an earlier one; none if there are hardly more than when each column is shuffled by itself."""
    pairs = duplicates.near_duplicates(table, features, seed=seed)
    draw = np.random.Generator(np.random.PCG64(seed))
    shuffled = {
        name: draw.permutation(column) if column.ndim == 1 and column.dtype.kind in "iuf" else column
        for name, column in table.columns.items()
    }
    numbers = any(shuffled[name] is not table.columns[name] for name in features)
    chance = len(duplicates.near_duplicates(Table(shuffled), features, seed=seed)) if len(pairs) and numbers else 0
    return np.isin(np.arange(len(table)), pairs[:, 1]) & (len(pairs) > _BEYOND_CHANCE * (chance + 1))


def _name_of(table: Table, label: Column) -> str:
    return next(name for name, column in table.columns.items() if column is label)


def _rows(check: str, level: Level, chosen: Bools, one: str, many: str) -> Finding:
    count = int(chosen.sum())
    said = f"{counted(count, 'row')} ({_share(count, len(chosen))}) {one if count == 1 else many}"
    return Finding(check, level, said, rows=count)


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if count >= 0.001 * of else f"{count / of:.2%}" if count >= 0.0001 * of else "under 0.01%"


def _leakage(table: Table, against: Table, features: Sequence[str], asked: Asked) -> list[Finding]:
    shared = [name for name in features if name in against.columns]
    if not shared:
        raise Invalid("the test set has none of the columns of the data set: are these the right files?")
    for name in shared:
        mine, theirs = table.columns[name], against.columns[name]
        if (mine.dtype.kind == "O", mine.shape[1:]) != (theirs.dtype.kind == "O", theirs.shape[1:]):
            raise Invalid(f"column {name[:80]!r} is of another type in the test set, so that rows cannot be compared")
    found = duplicates.leak(table, against, shared, seed=asked.seed)
    count, exact = int((found.exact | found.near).sum()), int(found.exact.sum())
    leaks = found.p < LEAK_CHANCE
    if not exact and not leaks:
        return []
    of = f"{counted(count, 'row')} of the test set ({_share(count, len(against))})"
    be = "is a row" if count == 1 else "are rows"
    text = f"{of} {be} of the data set, too, exactly ({exact:,}) or nearly ({count - exact:,})"
    fair = f"by chance it would be {found.expected:.2%}, p = {found.p:.2g}" if leaks else "no more than chance deals out"
    return [Finding("leakage", Level.ERROR if leaks else Level.NOTE, f"{text}; {fair}", rows=count)]


def _differing(summaries: Mapping[str, Summary], against: Table, hidden: frozenset[str]) -> list[Finding]:
    """Where the test set does not look as the data set does."""
    there = hidden | {one.column for one in find_personal(against)}
    found = check_summaries(of_summaries(summaries), summarise(against))
    return [_broken(one, Level.WARNING, there, "in the test set ") for one in found]


def _columns(table: Table, summaries: Mapping[str, Summary], keys: Iterable[str], features: Sequence[str]) -> Iterable[Finding]:
    for name in keys:
        text = f"column {name} has a value of its own in every row: it names rows and describes nothing, so do not train on it"
        yield Finding("columns", Level.WARNING, text, name)
    for name, found in summaries.items():
        if found.kind is Kind.EMPTY:
            yield Finding("columns", Level.WARNING, f"column {name} has no values at all", name)
        elif not found.missing and (_constant(found)):
            yield Finding("columns", Level.NOTE, f"column {name} has the same value in every row", name)
        for value, count in (found.values or {}).items() if found.kind is Kind.TEXT else ():
            if value.strip().lower() in _UNKNOWN and count < found.filled:
                text = f"column {name} holds {value!r} in {counted(count, 'row')}, which may stand for a missing value"
                yield Finding("columns", Level.NOTE, text, name, count)
        if found.infinite:
            text = f"column {name} is infinite in {counted(found.infinite, 'row')}"
            yield Finding("columns", Level.WARNING, text, name, found.infinite)
    for one, other in duplicates.same_columns(table, features):
        yield Finding(
            "columns",
            Level.NOTE,
            f"columns {one} and {other} say the same: each value of one goes with one of the other",
            other,
        )


def _constant(found: Summary) -> bool:
    if found.kind in {Kind.INTEGER, Kind.NUMBER}:
        return found.low == found.high
    return found.values is not None and len([one for one in found.values.values() if one]) == 1


def _telling(telling: Iterable[duplicates.Telling], label: str) -> Iterable[Finding]:
    for one in telling:
        if one.score >= _NEARLY_TELLS:
            level = Level.ERROR if one.score >= _TELLS else Level.WARNING
            text = f"column {one.column} alone tells the label {label} ({one.score:.0%} of what there is to tell)"
            yield Finding("leakage", level, f"{text}: is it known before the label is?", one.column)


def _label(summaries: Mapping[str, Summary], label: str) -> Iterable[Finding]:
    if not label:
        yield Finding("labels", Level.NOTE, "no label was named, so nothing was checked that needs one (--label COLUMN)")
        return
    found = summaries[label]
    if found.missing:
        text = f"the label {label} is missing in {counted(found.missing, 'row')}"
        yield Finding("labels", Level.WARNING, text, label, found.missing)
    counts = {value: count for value, count in (found.values or {}).items() if count}
    if len(counts) > 1 and (least := min(counts.values())) < 10 and len(counts) <= 50:
        few = next(value for value, count in counts.items() if count == least)
        yield Finding("labels", Level.NOTE, f"class {few} of label {label} has {counted(least, 'row')} only", label, least)


def range_of(found: Summary) -> str:
    """What a column holds, in a few words."""
    if found.kind in {Kind.INTEGER, Kind.NUMBER} and found.low <= found.high:
        return f"{number(found.low)} to {number(found.high)}"
    if found.kind is Kind.TENSOR:
        return f"{found.dtype} of shape {'x'.join(map(str, found.shape))}"
    if found.values is None:
        return "many values"
    most = sorted(found.values, key=lambda one: -found.values[one])[:3]  # type: ignore[index]  # it is not None
    return f"{len(found.values)} values: {', '.join(one[:20] for one in most)}{', …' * (len(found.values) > 3)}"
