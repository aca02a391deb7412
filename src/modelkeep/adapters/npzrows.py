"""Rows of the arrays in a ``.npz`` file. Nothing is unpickled: an array of objects is refused.

A stored member is read by ranges, straight into the array; a deflated one is unpacked as it goes.
"""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.streams import buffered
from modelkeep.container.reader import Buffer, Reader, Window, read_bytes
from modelkeep.core.tables import Column, Table
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.npy import MAX_HEADER, read_npy

MAX_ARRAYS = 4096
MAX_TURNED = 16 << 30
"""Bytes of an array whose rows do not lie together, and which is therefore held in memory."""
_LOCAL = 30
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError)
"""What unpacking raises; bz2 has no error of its own."""


@dataclass(frozen=True)
class _Array:
    """One array: where it lies, and what its header says. ``begin``: of its data in the member."""

    member: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    begin: int


class NpzRows:
    """``kinds``: dtype and the shape of one row, by array; ``rows``: 0 when the arrays have different lengths.

    Raises Invalid (not a zip of arrays, an array of objects or without rows, arrays cut off), and what ``reader`` raises.
    """

    def __init__(self, reader: Reader, kinds: Mapping[str, str] | None = None) -> None:
        self._reader = reader
        try:
            self._zip = zipfile.ZipFile(buffered(reader, 1 << 16))
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            raise Invalid("the file is no .npz: it is not an archive of arrays") from None
        members = [member for member in self._zip.infolist() if member.filename.endswith(".npy")]
        if not 1 <= len(members) <= MAX_ARRAYS:
            raise Invalid(f"the file has {len(members)} arrays, and 1 to {MAX_ARRAYS:,} are read")
        self._arrays = {member.filename[:-4]: self._array(member) for member in members}
        self.names = list(self._arrays)
        self.kinds = {name: _kind(array) for name, array in self._arrays.items()}
        lengths = {array.shape[0] for array in self._arrays.values()}
        self.rows = lengths.pop() if len(lengths) == 1 else 0
        if kinds is not None and dict(kinds) != self.kinds:
            raise Invalid("the file does not have the arrays that it had when it was added")

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """``size`` rows at a time. Raises Invalid (arrays of different lengths, or damaged)."""
        chosen = {name: self._arrays[name] for name in columns}
        lengths = sorted({array.shape[0] for array in chosen.values()})
        if len(lengths) != 1:
            raise Invalid(f"the arrays have different lengths ({', '.join(map(str, lengths))}): name columns of one length")
        readers = {name: self._rows(name, array) for name, array in chosen.items()}
        for at in range(0, lengths[0], size):
            count = min(size, lengths[0] - at)
            try:
                yield Table({name: _plain(name, rows.next(count)) for name, rows in readers.items()})
            except _DAMAGED:
                raise Invalid(f"the arrays are damaged or cut off after row {at}") from None

    def unpacked(self, columns: Sequence[str]) -> int:
        """Bytes that ``columns`` have in memory."""
        return sum(self._arrays[name].member.file_size for name in columns)

    def _array(self, member: zipfile.ZipInfo) -> _Array:
        where = f"array {member.filename[:80]!r}"
        try:
            with self._zip.open(member) as source:
                raw = source.read(MAX_HEADER + 12)
            header = read_npy(raw)
            dtype = np.dtype(header.descr if isinstance(header.descr, str) else "V0")
        except (*_DAMAGED, RuntimeError, NotImplementedError, TypeError, ValueError):
            raise Invalid(f"{where} is damaged, encrypted or of no type that is read") from None
        except Invalid as cause:
            raise Invalid(f"{where}: {cause}") from None
        if dtype.kind not in "biufUS":
            raise Invalid(f"{where} holds {header.descr!r}: numbers, truth values and text are read, and nothing is unpickled")
        count = 1
        for length in header.shape:
            count *= length
        if not header.shape or member.file_size != header.begin + count * dtype.itemsize:
            raise Invalid(f"{where} has no rows, or not the bytes that its header promises")
        if not dtype.itemsize or 0 in header.shape[1:]:
            raise Invalid(f"{where} has rows of no bytes: a file of any size could promise any number of them")
        fortran = b"'fortran_order': True" in raw[: header.begin] and len(header.shape) > 1
        return _Array(member, dtype, header.shape, fortran, header.begin)

    def _rows(self, name: str, array: _Array) -> "_Ranged | _Streamed | _Whole":
        if array.fortran:
            if array.member.file_size > MAX_TURNED:
                raise TooLarge(f"array {name[:80]!r} is in Fortran order and above {MAX_TURNED >> 30} GiB: store it in C order")
            return _Whole(self._zip, array)
        if array.member.compress_type == zipfile.ZIP_STORED:
            return _Ranged(array, self._stored(name, array.member))
        return _Streamed(self._zip, array)

    def _stored(self, name: str, member: zipfile.ZipInfo) -> Reader:
        """The bytes of a member that is not compressed, by its local header."""
        head = read_bytes(self._reader, member.header_offset, _LOCAL)
        begin = member.header_offset + _LOCAL + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if head[:4] != b"PK\x03\x04" or member.flag_bits & 1 or begin + member.file_size > self._reader.size:
            raise Invalid(f"array {name[:80]!r} is encrypted, or not where the archive says")
        return Window(self._reader, begin, member.file_size)


class _Ranged:
    def __init__(self, array: _Array, reader: Reader) -> None:
        self._array, self._reader, self._at = array, reader, array.begin

    def next(self, count: int) -> NDArray[Any]:
        found = np.empty((count, *self._array.shape[1:]), self._array.dtype)
        if found.nbytes:
            self._reader.read_into(self._at, _bytes_of(found))
        self._at += found.nbytes
        return found


class _Streamed:
    def __init__(self, archive: zipfile.ZipFile, array: _Array) -> None:
        self._array, self._source = array, io.BufferedReader(cast(zipfile.ZipExtFile, archive.open(array.member)), 1 << 20)
        self._source.read(array.begin)

    def next(self, count: int) -> NDArray[Any]:
        found = np.empty((count, *self._array.shape[1:]), self._array.dtype)
        if found.nbytes and self._source.readinto(_bytes_of(found)) != found.nbytes:
            raise EOFError
        return found


class _Whole:
    """An array in Fortran order, whose rows do not lie together: it is held in memory."""

    def __init__(self, archive: zipfile.ZipFile, array: _Array) -> None:
        with archive.open(array.member) as source:
            self._array, self._at = np.load(io.BytesIO(source.read()), allow_pickle=False), 0

    def next(self, count: int) -> NDArray[Any]:
        self._at += count
        return np.asarray(self._array[self._at - count : self._at])


def _bytes_of(found: NDArray[Any]) -> memoryview:
    """The bytes of an array that is not empty, to be filled."""
    return memoryview(cast(Buffer, found.reshape(-1).view(np.uint8)))


def _kind(array: _Array) -> str:
    row = "x".join(map(str, array.shape[1:]))
    return f"{array.dtype.str}[{row}]" if row else str(array.dtype.str)


def _plain(name: str, found: NDArray[Any]) -> Column:
    """As a column of a table: numbers of one axis as int64, float64 or bool; text as objects; tensors as they are."""
    if found.dtype.kind in "US":
        try:
            text = found.astype(str).astype(object)
        except UnicodeDecodeError:
            raise Invalid(f"array {name[:80]!r} has text that is not ASCII in bytes: store it as Unicode") from None
        return text
    if found.ndim > 1 or found.dtype.kind == "b":
        return found
    if found.dtype.kind == "f":
        return found.astype(np.float64, copy=False)
    if found.dtype.itemsize == 8 and found.dtype.kind == "u" and found.size and int(found.max()) >= 1 << 63:
        raise Invalid(f"array {name[:80]!r} has whole numbers of 2^63 and more: store them as float64 or text")
    return found.astype(np.int64, copy=False)
