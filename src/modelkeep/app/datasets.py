"""A sealed data set, opened: rows in batches, decrypted in memory as they are asked for, and never written anywhere."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from modelkeep.adapters.csvrows import with_header
from modelkeep.adapters.files import NewFile, SourceFile
from modelkeep.adapters.streams import buffered
from modelkeep.adapters.tables import CSV, IMAGES, NPZ, Source, batches_of, kind_of, pictures, table_of
from modelkeep.adapters.tarred import TarFolder
from modelkeep.container.open import SealedFile
from modelkeep.container.ranges import RangeReader
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.core.tables import Table
from modelkeep.custody.datasets import DatasetRecord
from modelkeep.errors import Conflict, Invalid

_PIECE = 1 << 20


@dataclass(frozen=True)
class SealedDataset:
    """One version, opened by somebody who may read it. Reading raises NotTrusted (altered), Unavailable."""

    record: DatasetRecord
    sealed: SealedFile
    log_index: int

    @property
    def ref(self) -> str:
        """``name@version``."""
        return str(self.record.ref)

    @property
    def columns(self) -> dict[str, str]:
        """What each column holds."""
        return dict(self.record.kinds)

    def __len__(self) -> int:
        """Rows, 0 when they are not of one number."""
        return self.record.rows

    def reader(self) -> Reader:
        """The bytes that were added, in any order; pictures as a tar archive.

        It is one for all, and keeps up to 16 MiB, or for npz 3 MiB an array, if that is more, and at most 256 MiB; up to half
        as much is read ahead beside it.
        """
        return self._reader

    @cached_property
    def _reader(self) -> RangeReader:
        return RangeReader(self.sealed, places=len(self.record.kinds) if self.record.kind == NPZ else 1)

    def file(self) -> BinaryIO:
        """The same as a binary file to read and seek in, for whatever reads such: pandas, pyarrow, numpy, zipfile, tarfile."""
        return buffered(self.reader())

    def batches(self, size: int = 1000, *, columns: Sequence[str] | None = None) -> Iterator[Table]:
        """``size`` rows at a time, of ``columns`` or all. Raises Invalid, Missing (no such column)."""
        return batches_of(self._source().rows(), size, columns)

    def table(self, *, columns: Sequence[str] | None = None) -> Table:
        """All rows. Raises Invalid, Missing (no such column), TooLarge."""
        return table_of(self._source().rows(), columns)

    def whole(self) -> Iterator[bytes]:
        """The very bytes in order, piece by piece; each is verified before it is given."""
        reader = self.reader()
        return (read_bytes(reader, at, min(_PIECE, reader.size - at)) for at in range(0, reader.size, _PIECE))

    def write_to(self, path: str | Path) -> int:
        """The very bytes in a new file, whole or not at all: plaintext, mode 0600. How many. Raises Conflict, Unavailable."""
        with NewFile(path) as new:
            self.sealed.write_to(new)
            new.publish()
        return self.sealed.source_size

    def _source(self) -> Source:
        return Source(self.record.kind, self.reader(), self.columns)


@contextlib.contextmanager
def opened_source(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[Source, str, Callable[[], None]]]:
    """A plain data set to be added, what its file is called, and what raises Conflict if it changed since.

    ``columns``: names for the columns of a CSV file whose first line is a row already. Raises Missing, Invalid (nothing that is
    read, or ``columns`` for another kind), Unavailable.
    """
    place = Path(path)
    kind = kind_of(place)
    if columns and kind != CSV:
        raise Invalid(f"--columns names the columns of a CSV file, and {place.name} is {kind}: it has names already")
    if kind == IMAGES:
        names = list(pictures(place))
        folder = TarFolder(place, names)

        def check() -> None:
            folder.check_unchanged()
            if list(pictures(place)) != names:
                raise Conflict(f"pictures came into {place} while it was read: run it again when nobody writes to it")

        yield Source(kind, folder), f"{place.resolve().name}.tar", check
        return
    with SourceFile(place) as file:
        yield Source(kind, with_header(file, columns) if columns else file), place.name, file.check_unchanged


def plain_bytes(path: str | Path, columns: Sequence[str] = ()) -> tuple[str, str, bytes]:
    """The same, whole: kind, file name and bytes, for a server. Raises as ``opened_source``, Conflict."""
    with opened_source(path, columns) as (source, filename, check):
        data = read_bytes(source.reader, 0, source.reader.size)
        check()
        return source.kind, filename, data
