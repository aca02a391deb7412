"""Rows of a comma-separated file. Source: RFC 4180, with a header line, in UTF-8; ``;``, tab and ``|`` separate fields too.

What a column holds is found by reading all of it once: whole numbers, numbers, truth values, or text. Digits that begin with a
needless zero are text, because they are codes (of places, of products) and not amounts.
"""

import codecs
import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from modelkeep.adapters.streams import buffered
from modelkeep.container.reader import Reader, Window, read_bytes
from modelkeep.core.tables import Column, Table, joined
from modelkeep.errors import Invalid

MISSING = frozenset({"", "NA", "NaN", "nan"})
MAX_COLUMNS = 16_384
_SEPARATORS = ",;\t|"
_WHOLE = re.compile(rb"[+-]?1{1,19}")
_NUMBER = re.compile(rb"[+-]?(?:1+(?:\.1*)?|\.1+)(?:[eE][+-]?1+)?|[+-]?[iI]nf")
_SHAPE = bytes.maketrans(b"0123456789", b"1" * 10)
"""Values look alike when every digit is a 1: a column has few shapes, and only those are looked at."""
_CODE = re.compile(r"\0[+-]?0[0-9]")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_LOOK = 256
_FEW = 3
_NO_NAMES = "the file does not begin with a line of column names in UTF-8"
_NAME_THEM = "put a line of names above the rows (so does 'modelkeep data add --columns NAME,NAME,…'), or rename what is a name"
_INT64 = range(-(1 << 63), 1 << 63)
_LONG = len(str(1 << 63))


class CsvRows:
    """``kinds``: int64, float64, bool or text, by column; found by a first reading unless given, and so is how many ``rows``.

    Raises Invalid (no header, or one that looks like a row of data; other than UTF-8, rows of other lengths), and what
    ``reader`` raises.
    """

    def __init__(self, reader: Reader, kinds: Mapping[str, str] | None = None) -> None:
        self._reader, self.rows = reader, 0
        self.separator, self.names = _header(reader)
        if kinds is None:
            _check_names(self.names)
            self.kinds = self._found()
        elif list(kinds) == self.names:
            self.kinds = dict(kinds)
        else:
            raise Invalid("the file does not have the columns that it had when it was added")

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """``size`` rows at a time, of ``columns``. Raises Invalid (a value is not of the column's kind)."""
        lines, at = self._lines(), 0
        while parts := list(self._parts(lines, size, columns, at)):
            batch = joined(parts)
            at += len(batch)
            yield batch

    def _parts(self, lines: Iterator[list[str]], size: int, columns: Sequence[str], at: int) -> Iterator[Table]:
        """The next ``size`` rows, in tables of few: so many fit a core's own cache, which makes this three times as fast."""
        chosen = [(name, self.names.index(name), _MAKERS[self.kinds[name]]) for name in columns]
        end = at + size
        while at < end and (fields := self._fields(lines, min(_LOOK, end - at), at)):
            made: dict[str, Column] = {}
            for name, place, make in chosen:
                try:
                    made[name] = make(fields[place])
                except (ValueError, KeyError, OverflowError):
                    raise Invalid(
                        f"column {name[:80]!r} has a value that is not {self.kinds[name]} in rows {at + 1} on"
                    ) from None
            at += len(fields[0])
            yield Table(made)

    def _lines(self) -> Iterator[list[str]]:
        text = io.TextIOWrapper(buffered(self._reader), encoding="utf-8-sig", newline="")
        lines = csv.reader(text, delimiter=self.separator, skipinitialspace=True, strict=True)
        next(lines)
        return (line for line in lines if line)

    def _fields(self, lines: Iterator[list[str]], size: int, at: int) -> list[tuple[str, ...]]:
        """The next rows, turned: one tuple a column; empty at the end."""
        try:
            rows = list(islice(lines, size))
        except UnicodeDecodeError:
            raise Invalid(f"the file is not UTF-8 after row {at}: convert it first") from None
        except csv.Error as cause:
            raise Invalid(f"the file cannot be read as rows of values after row {at}: {cause}") from None
        width = len(self.names)
        if any(len(row) != width for row in rows):
            number = next(number for number, row in enumerate(rows) if len(row) != width)
            raise Invalid(f"row {at + number + 1} has {len(rows[number])} values, and the header names {width} columns")
        return list(zip(*rows, strict=True))

    def _found(self) -> dict[str, str]:
        asked = [_Asked() for _ in self.names]
        lines, at = self._lines(), 0
        while fields := self._fields(lines, _LOOK, at):
            at = self.rows = at + len(fields[0])
            for one, values in zip(asked, fields, strict=True):
                one.see(values)
        return {name: one.kind() for name, one in zip(self.names, asked, strict=True)}


@dataclass(frozen=True)
class Headed:
    """``rest`` with a line ``head`` put before it, as a ``Reader``."""

    head: bytes
    rest: Reader

    @property
    def size(self) -> int:
        return len(self.head) + self.rest.size

    def read_into(self, offset: int, into: memoryview) -> None:
        """As of every reader."""
        head = self.head[offset : offset + into.nbytes] if offset >= 0 else b""
        into[: len(head)] = head
        if len(head) < into.nbytes:
            self.rest.read_into(offset + len(head) - len(self.head), into[len(head) :])


def with_header(reader: Reader, columns: Sequence[str]) -> Reader:
    """A file without a header line, with one that names ``columns``.

    Raises Invalid (not UTF-8, or names that would be read as others), and what ``reader`` raises.
    """
    marked = len(codecs.BOM_UTF8) if read_bytes(reader, 0, min(3, reader.size)) == codecs.BOM_UTF8 else 0
    line = io.StringIO()
    csv.writer(line, delimiter=_first_line(reader)[1], lineterminator="\n").writerow(columns)
    headed = Headed(line.getvalue().encode(errors="replace"), Window(reader, marked, reader.size - marked))
    if _header(headed)[1] != list(columns):
        raise Invalid(
            "these names of columns would be read as others: leave out separators (, ; | tab), ends of lines and blanks"
        )
    return headed


class _Asked:
    """What the values of one column can be, so far."""

    def __init__(self) -> None:
        self.whole = self.number = self.truth = True
        self.gaps = self.any = False

    def see(self, values: Sequence[str]) -> None:
        if not (self.number or self.truth):
            return
        there = values
        if not MISSING.isdisjoint(values):
            self.gaps, there = True, [value for value in values if value not in MISSING]
        if not there:
            return
        self.any, text = True, "\0".join(("", *there))
        if self.number:
            self._see_numbers(there, text)
        self.truth = self.truth and all(map(_TRUTH.__contains__, there))

    def _see_numbers(self, values: Sequence[str], text: str) -> None:
        """``text``: the values, a zero character before each."""
        if not text.isascii() or text.count("\0") > len(values) or _CODE.search(text):
            self.whole = self.number = False
            return
        shapes = set(text.encode().translate(_SHAPE)[1:].split(b"\0"))
        if self.whole:
            self.whole = all(map(_WHOLE.fullmatch, shapes)) and all(
                int(value) in _INT64 for value in values if len(value) >= _LONG
            )
        if not self.whole:
            self.number = all(map(_NUMBER.fullmatch, shapes))

    def kind(self) -> str:
        if not self.any:
            return "float64" if self.gaps else "text"
        if self.truth:
            return "float64" if self.gaps else "bool"
        if self.whole:
            return "float64" if self.gaps else "int64"
        return "float64" if self.number else "text"


def _header(reader: Reader) -> tuple[str, list[str]]:
    """The separator that the first line has most of, and the names that it gives."""
    text, separator = _first_line(reader)
    try:
        names = next(csv.reader(text, delimiter=separator, skipinitialspace=True, strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        raise Invalid(_NO_NAMES) from None
    if not 1 <= len(names) <= MAX_COLUMNS or not all(name.strip() for name in names):
        raise Invalid(f"the first line must name 1 to {MAX_COLUMNS:,} columns, all different and none empty")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"the first line names two columns {twice[:80]!r}: {_NAME_THEM}")
    return separator, names


def _first_line(reader: Reader) -> tuple[io.TextIOWrapper, str]:
    """The text from its beginning, and the separator that its first line has most of."""
    text = io.TextIOWrapper(buffered(reader, 1 << 16), encoding="utf-8-sig", newline="")
    try:
        first = text.readline(1 << 20)
    except UnicodeDecodeError:
        raise Invalid(_NO_NAMES) from None
    text.seek(0)
    return text, max(_SEPARATORS, key=first.count)


def _is_number(value: str) -> bool:
    plain = value.isascii() and not _CODE.search(f"\0{value}")
    return plain and _NUMBER.fullmatch(value.encode().translate(_SHAPE)) is not None


def _check_names(names: Sequence[str]) -> None:
    """Raises Invalid if the first line looks like a row of data, whose values would become names and whose row would be lost.

    Numbers are names where they count or climb in equal steps, as numbered pixels, years and wavelengths do.
    """
    numbers = [name.strip() for name in names if _is_number(name.strip())]
    if not numbers:
        return
    values = [float(number) for number in numbers]
    steps = [after - before for before, after in pairwise(values)]
    counted = values in ([*range(len(names))], [*range(1, len(names) + 1)])
    climbing = len(values) >= _FEW and steps[0] > 0 and all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    if not (counted or climbing):
        raise Invalid(f"the first line must name the columns, and {numbers[0][:80]!r} in it is a number: {_NAME_THEM}")


def _float(value: str) -> float:
    if value in MISSING:
        return np.nan
    return float(_TRUTH.get(value, value))


def _floats(values: Sequence[str]) -> Column:
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except ValueError:
        return np.fromiter(map(_float, values), np.float64, len(values))


def _texts(values: Sequence[str]) -> Column:
    found = np.empty(len(values), object)
    found[:] = [None if value in MISSING else value for value in values]
    return found


_MAKERS: dict[str, Callable[[Sequence[str]], Column]] = {
    "int64": lambda values: np.fromiter(map(int, values), np.int64, len(values)),
    "float64": _floats,
    "bool": lambda values: np.fromiter((_TRUTH[value] for value in values), np.bool_, len(values)),
    "text": _texts,
}
