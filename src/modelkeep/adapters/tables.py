"""Data sets as tables: CSV, ``.npz``, Parquet, and folders of pictures, from plain files or from any ``Reader``.

A file is read in batches and never held as a whole, unless the whole table is asked for.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from modelkeep.adapters.csvrows import CsvRows
from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.imagerows import ImageRows
from modelkeep.adapters.npzrows import NpzRows
from modelkeep.adapters.parquetrows import ParquetRows
from modelkeep.adapters.tarred import tar_files
from modelkeep.adapters.watching import walk
from modelkeep.container.reader import Reader, Window, read_bytes
from modelkeep.core.tables import Table, joined
from modelkeep.errors import Invalid, Missing, TooLarge

CSV, NPZ, PARQUET, IMAGES = "csv", "npz", "parquet", "images"
KINDS = (CSV, NPZ, PARQUET, IMAGES)
MAX_BYTES = 16 << 30
MAX_PICTURES = 4_000_000
MAX_PICTURE = 64 << 20
_ENDINGS = {".csv": CSV, ".tsv": CSV, ".npz": NPZ, ".parquet": PARQUET, ".pq": PARQUET}
_BATCH = 65_536


class Rows(Protocol):
    """An opened data set: ``names`` of its columns, ``kinds``, what each of them holds; ``rows``: how many, 0 = not known."""

    @property
    def names(self) -> list[str]: ...

    @property
    def kinds(self) -> dict[str, str]: ...

    @property
    def rows(self) -> int: ...

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Table]: ...


@dataclass(frozen=True)
class Source:
    """A data set of ``kind``, whose bytes ``reader`` has (pictures: as one tar archive)."""

    kind: str
    reader: Reader
    kinds: Mapping[str, str] | None = None

    def rows(self) -> Rows:
        """Opened for reading. Raises Invalid (one sentence: what is wrong with it), and what the reader raises."""
        if self.kind == CSV:
            return CsvRows(self.reader, self.kinds)
        if self.kind == NPZ:
            return NpzRows(self.reader, self.kinds)
        if self.kind == PARQUET:
            return ParquetRows(self.reader, self.kinds)
        if self.kind == IMAGES:
            return ImageRows(_archived(self.reader), self.kinds)
        raise Invalid(f"{self.kind[:40]!r} is no kind of data set: there are {', '.join(KINDS)}")


def read_table(path: str | Path, *, columns: Sequence[str] | None = None) -> Table:
    """All rows of a CSV, ``.npz`` or Parquet file, or of a folder of pictures; of ``columns`` only, if they are named.

    Raises Missing (no such file or column), Invalid (not what its name says, or damaged), TooLarge (above 16 GiB in memory).
    """
    path = Path(path)
    if path.is_dir():
        return table_of(ImageRows(pictures(path)), columns)
    with SourceFile(path) as source:
        return table_of(Source(kind_of(path), source).rows(), columns)


def read_batches(path: str | Path, size: int, *, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """The same, ``size`` rows at a time. Raises as ``read_table``."""
    path = Path(path)
    if path.is_dir():
        yield from batches_of(ImageRows(pictures(path)), size, columns)
        return
    with SourceFile(path) as source:
        yield from batches_of(Source(kind_of(path), source).rows(), size, columns)


def kind_of(path: Path) -> str:
    """What a file or folder is, by its name. Raises Missing (there is none), Invalid (of no kind that is read)."""
    if not path.exists():
        raise Missing(f"there is no file or folder {path}")
    return IMAGES if path.is_dir() else kind_of_name(str(path))


def kind_of_name(name: str) -> str:
    """What a file is, by the ending of its name. Raises Invalid (of no kind that is read)."""
    try:
        return _ENDINGS[Path(name).suffix.lower()]
    except KeyError:
        raise Invalid(f"{name[:200]} is no data set that is read: use {', '.join(_ENDINGS)}, or a folder of pictures") from None


def table_of(rows: Rows, columns: Sequence[str] | None = None) -> Table:
    """All of ``rows``. Raises as ``read_table``."""
    chosen, parts, size = _chosen(rows, columns), [], 0
    unpacked = getattr(rows, "unpacked", None)
    if unpacked is not None and unpacked(chosen) > MAX_BYTES:
        raise TooLarge(f"the table would take more than {MAX_BYTES >> 30} GiB of memory: read it in batches, or fewer columns")
    for part in rows.batches(_BATCH, chosen):
        parts.append(part)
        size += sum(column.nbytes for column in part.columns.values())
        if size > MAX_BYTES:
            raise TooLarge(f"the table takes more than {MAX_BYTES >> 30} GiB of memory: read it in batches, or fewer columns")
    if not parts:
        raise Invalid("the data set has no rows")
    return joined(parts)


def batches_of(rows: Rows, size: int, columns: Sequence[str] | None = None) -> Iterator[Table]:
    """``size`` rows at a time, the last batch may have fewer. Raises Invalid (``size`` is not positive), as ``read_table``."""
    if size < 1:
        raise Invalid(f"a batch has at least one row, not {size}")
    return rows.batches(size, _chosen(rows, columns))


def pictures(folder: Path) -> dict[str, Callable[[], bytes]]:
    """Every file below ``folder``, in the order of their names.

    Raises Invalid (too many, or a link leads out: what else is on the machine is no part of it), Unavailable.
    """
    top, found, looked = os.path.realpath(folder), list[str](), set[Path]()
    for path, _, second in walk([folder]):
        looked.update({path, path.parent} if second else {path.parent})
        found.append(str(path.relative_to(folder)))
    for path in looked:
        _check_within(path, top)
    return {name: partial(_picture, folder / name) for name in sorted(found)}


def _check_within(path: Path, top: str) -> None:
    if os.path.commonpath([os.path.realpath(path), top]) != top:
        raise Invalid(f"{path} is a link that leads out of the folder: copy what belongs to the data set into it")


def _picture(path: Path) -> bytes:
    with SourceFile(path) as source:
        return _bounded(source, 0, source.size, str(path))


def _archived(reader: Reader) -> dict[str, Callable[[], bytes]]:
    """The files of a tar archive, in its order."""
    found: dict[str, Callable[[], bytes]] = {}
    for member in tar_files(reader):
        if len(found) >= MAX_PICTURES:
            raise TooLarge(f"the archive has more than {MAX_PICTURES:,} pictures")
        if member.name in found:
            raise Invalid(f"the archive has two pictures {member.name[:80]!r}: row numbers would not say which")
        found[member.name] = partial(_bounded, reader, member.offset_data, member.size, member.name)
    return found


def _bounded(reader: Reader, offset: int, size: int, name: str) -> bytes:
    if size > MAX_PICTURE:
        raise TooLarge(f"{name[:80]!r} has more than {MAX_PICTURE >> 20} MiB")
    return read_bytes(Window(reader, offset, size), 0, size)


def _chosen(rows: Rows, columns: Sequence[str] | None) -> Sequence[str]:
    if columns is None:
        return rows.names
    if unknown := [name for name in columns if name not in rows.names]:
        raise Missing(f"there is no column {unknown[0][:80]!r}: there are {', '.join(rows.names)[:400]}")
    if not columns:
        raise Invalid("name at least one column")
    return list(columns)
