"""A ``Reader`` as a binary file, for libraries that read files: nothing of it is written anywhere."""

import io
import threading
from typing import Any

import numpy as np

from modelkeep.container.reader import Reader

_LARGE = 1 << 20


class ReaderFile(io.RawIOBase):
    """Reads ``reader`` from its first byte on; seekable. What ``reader`` raises comes through as it is."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._at = reader, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(view.nbytes, self._reader.size - self._at))
        if size:
            self._reader.read_into(self._at, view[:size])
            self._at += size
        return size

    def read_buffer(self, size: int, /) -> memoryview:
        """The next ``size`` bytes, or as many as there are: what pyarrow asks for instead of ``read``, and does not copy."""
        found = _next_of(self._reader, self._at, size)
        self._at += found.nbytes
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.size}[whence]
        if begin + offset < 0:
            raise ValueError("there is nothing before the first byte")
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at


class _Buffered(io.BufferedReader):
    """Asked for more than there is, it takes no memory for it: formats name lengths, and damaged ones name any."""

    def __init__(self, reader: Reader, ahead: int) -> None:
        super().__init__(ReaderFile(reader), ahead)
        self._reader, self._turn = reader, threading.Lock()

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < _LARGE else min(size, max(0, self._reader.size - self.tell())))

    def read_buffer(self, size: int, /) -> memoryview:
        """As ``ReaderFile.read_buffer``; of threads that read one file, each gets bytes of its own, as from ``read``."""
        with self._turn:
            found = _next_of(self._reader, self.tell(), size)
            self.seek(found.nbytes, io.SEEK_CUR)
        return found


def buffered(reader: Reader, ahead: int = 1 << 20) -> io.BufferedReader:
    """The same with ``ahead`` bytes read at once."""
    return _Buffered(reader, ahead)


def _next_of(reader: Reader, at: int, size: int) -> memoryview:
    found = np.empty(max(0, min(size, reader.size - at)), np.uint8).data
    if found.nbytes:
        reader.read_into(at, found)
    return found
