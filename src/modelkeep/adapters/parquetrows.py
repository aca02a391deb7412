"""Rows of a Parquet file, row group by row group (extra ``parquet``, pyarrow)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from modelkeep.adapters.streams import ReaderFile
from modelkeep.container.reader import Reader
from modelkeep.core.tables import Column, Table
from modelkeep.errors import Invalid

_TEXT_ALIKE = ("date", "time", "timestamp", "duration", "uuid")


class ParquetRows:
    """``kinds``: Arrow types, by column. Raises Invalid (no Parquet file, or no pyarrow), and what ``reader`` raises."""

    def __init__(self, reader: Reader, kinds: Mapping[str, str] | None = None) -> None:
        arrow, parquet = _libraries()
        self._arrow = arrow
        try:
            source = arrow.PythonFile(ReaderFile(reader), mode="r")
            schema = parquet.read_schema(source)
            texts = [field.name for field in schema if _is_text(arrow, field.type)]
            source.seek(0)
            self._file = parquet.ParquetFile(source, read_dictionary=texts)
        except (arrow.ArrowException, OSError, UnicodeDecodeError):
            raise Invalid("the file is no Parquet file, or it is damaged") from None
        self.names, self.rows = list(schema.names), int(self._file.metadata.num_rows)
        if not self.names or len(set(self.names)) != len(self.names):
            raise Invalid("a Parquet file must name its columns, each once")
        self.kinds = {field.name: str(field.type)[:200] for field in schema}
        if kinds is not None and dict(kinds) != self.kinds:
            raise Invalid("the file does not have the columns that it had when it was added")

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """``size`` rows at a time. Raises Invalid (a type that is not read, or damaged)."""
        try:
            for batch in self._file.iter_batches(batch_size=size, columns=list(columns), use_threads=False):
                if batch.num_rows:
                    yield Table({name: _plain(self._arrow, name, batch.column(name)) for name in columns})
        except (self._arrow.ArrowException, OSError, LookupError, UnicodeDecodeError) as cause:
            raise Invalid(f"the Parquet file cannot be read: {str(cause)[:200]}") from None

    def unpacked(self, columns: Sequence[str]) -> int:
        """Bytes that ``columns`` have in memory, at least, as far as the file says it of whole rows.

        What it says of one column is not asked: pyarrow ends the process where that is damaged, and cannot be caught.
        """
        metadata = self._file.metadata
        groups = range(metadata.num_row_groups) if set(columns) == set(self.names) else ()
        return int(max(sum(metadata.row_group(each).total_byte_size for each in groups), 8 * self.rows * len(columns)))


def _libraries() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Invalid("Parquet files need pyarrow: 'pip install modelkeep[parquet]'") from None
    return pyarrow, pyarrow.parquet


def _is_text(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _plain(arrow: Any, name: str, found: Any) -> Column:
    """As a column of a table. Raises Invalid (a type that is not read)."""
    kinds, kind = arrow.types, found.type
    if kinds.is_dictionary(kind):
        return _taken(arrow, name, found)
    if kinds.is_boolean(kind) and not found.null_count:
        return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
    if kinds.is_integer(kind) and not found.null_count:
        return np.asarray(found.cast(arrow.int64()).to_numpy(zero_copy_only=False))
    if kinds.is_boolean(kind) or kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind):
        return np.asarray(
            found.cast(arrow.int8() if kinds.is_boolean(kind) else kind).cast(arrow.float64()).to_numpy(zero_copy_only=False)
        )
    if kinds.is_fixed_size_list(kind) and not found.null_count:
        values = found.flatten()
        if not values.null_count and (kinds.is_integer(values.type) or kinds.is_floating(values.type)):
            return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(found), kind.list_size)
    if kinds.is_null(kind):
        return np.full(len(found), np.nan)
    if _is_text(arrow, kind):
        return np.asarray(found.to_numpy(zero_copy_only=False), object)
    if str(kind).startswith(_TEXT_ALIKE):
        return np.asarray(found.cast(arrow.string()).to_numpy(zero_copy_only=False), object)
    raise Invalid(
        f"column {name[:80]!r} is {str(kind)[:80]}: numbers, truth values, text, times and lists of one size are read"
    )


def _taken(arrow: Any, name: str, found: Any) -> Column:
    """A dictionary as its values: equal texts are one object."""
    values = _plain(arrow, name, found.dictionary)
    missing = found.indices.null_count > 0
    places = np.asarray(found.indices.fill_null(0).to_numpy(zero_copy_only=False))
    if not len(values):
        return np.full(len(found), None, object)
    taken: Column = values[places]
    if missing:
        gaps = np.asarray(found.indices.is_null().to_numpy(zero_copy_only=False))
        taken = taken.astype(object if taken.dtype == object else np.float64)
        taken[gaps] = None if taken.dtype == object else np.nan
    return taken
