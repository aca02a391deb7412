"""A folder of pictures as one tar archive, made as it is read: the same pictures give the same bytes.

Like ``tar --sort=name --owner=0 --group=0 --numeric-owner --mode=0644 --mtime=@0 --format=pax``, without folders, and without
the blocks of zeros that fill up the last record.
"""

import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.datafiles import Stamp, stamp
from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.streams import buffered
from modelkeep.container.reader import Reader
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted

_BLOCK = 512


class _Part(NamedTuple):
    """One file: where its header begins in the archive, the header, and what the file was when it was looked at."""

    begin: int
    head: bytes
    path: Path
    was: Stamp


class TarFolder:
    """A ``Reader``. ``names``: files below ``folder``, in the order that they have in the archive.

    Raises Missing (a file went), Unavailable; ``read_into`` Conflict, too (a file changed since).
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._parts, at = list[_Part](), 0
        for name in names:
            found = stamp(folder / name)
            if found is None:
                raise Missing(f"there is no file {folder / name}")
            head = _head(name, found.size)
            self._parts.append(_Part(at, head, folder / name, found))
            at += len(head) + found.size + -found.size % _BLOCK
        self._begins = [part.begin for part in self._parts]
        self.size = at + 2 * _BLOCK

    def read_into(self, offset: int, into: memoryview) -> None:
        if offset < 0 or offset + into.nbytes > self.size:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        into[:] = bytes(into.nbytes)  # what fills up blocks
        end, number = offset + into.nbytes, max(0, bisect_right(self._begins, offset) - 1)
        for part in self._parts[number:]:
            if part.begin >= end:
                break
            _copy(part.head, part.begin, offset, into)
            begin = part.begin + len(part.head)
            first, last = max(offset, begin), min(end, begin + part.was.size)
            if first < last:
                with SourceFile(part.path) as source:
                    if Stamp.of(source.found) != part.was:
                        raise _changed(part.path)
                    source.read_into(first - begin, into[first - offset : last - offset])

    def check_unchanged(self) -> None:
        """Raises Conflict when one of the files was written to, or went, since this was made."""
        for part in self._parts:
            if stamp(part.path) != part.was:
                raise _changed(part.path)


def tar_files(reader: Reader) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar archive, in its order. Raises Invalid (no such archive, or damaged)."""
    try:
        with tarfile.open(fileobj=buffered(reader, 1 << 16), mode="r:") as archive:
            yield from (member for member in archive if member.type in tarfile.REGULAR_TYPES and not member.issparse())
    except (tarfile.TarError, ValueError, OverflowError):  # the latter two from lengths that no file can have
        raise Invalid("the pictures are not in a tar archive, or it is damaged") from None


def _changed(path: Path) -> Conflict:
    return Conflict(f"{path} changed while it was read: run it again when nobody writes to it")


def _head(name: str, size: int) -> bytes:
    found = tarfile.TarInfo(name)
    found.size, found.mode = size, 0o644
    return found.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _copy(data: bytes, begin: int, offset: int, into: memoryview) -> None:
    """What of ``data``, which begins at ``begin``, lies in ``into``, which begins at ``offset``."""
    first, last = max(begin, offset), min(begin + len(data), offset + into.nbytes)
    if first < last:
        into[first - offset : last - offset] = data[first - begin : last - begin]
