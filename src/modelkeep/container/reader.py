"""Where bytes come from: a size and ranged reads. Files, blobs and buffers all look like this."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from modelkeep.core.ports import Blobs
from modelkeep.core.values import Digest
from modelkeep.errors import NotTrusted

Buffer = bytes | bytearray | memoryview
KEPT = 8
"""Blocks that a reader of a slow store keeps: as many threads may read in places of their own."""


class Reader(Protocol):
    """Immutable bytes of a known size, readable from several threads at once."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``. Raises NotTrusted (shorter than asked for), Unavailable, Missing."""
        ...


class BytesReader:
    """A ``Reader`` over bytes in memory (never copied)."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")

    @property
    def size(self) -> int:
        return self._view.nbytes

    def read_into(self, offset: int, into: memoryview) -> None:
        part = self._view[offset : offset + into.nbytes]
        if offset < 0 or part.nbytes != into.nbytes:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        into[:] = part


class BlobReader:
    """A ``Reader`` over one stored blob.

    From a store that takes long to answer (its ``read_ahead`` is not 0) blocks of that size are read, and the last ``KEPT`` of
    them are kept for this reader alone: another one, made later, sees what the store holds then.
    """

    def __init__(self, blobs: Blobs, digest: Digest) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = blobs.size(digest)
        self._ahead = blobs.read_ahead
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, into: memoryview) -> None:
        if into.nbytes >= self._ahead or offset < 0 or offset + into.nbytes > self._size:
            self._blobs.read_into(self._digest, offset, into)
            return
        at = 0
        while at < into.nbytes:
            number, begin = divmod(offset + at, self._ahead)
            part = self._block(number)[begin : begin + into.nbytes - at]
            into[at : at + part.nbytes] = part
            at += part.nbytes

    def _block(self, number: int) -> memoryview:
        with self._lock:
            block = self._blocks.setdefault(number, _Block())
            self._blocks.move_to_end(number)
            while len(self._blocks) > KEPT:
                self._blocks.popitem(last=False)
        with block.reading:  # whoever else wants it waits, instead of asking for it too
            if not block.data:
                start = number * self._ahead
                data = memoryview(bytearray(min(self._ahead, self._size - start)))
                self._blobs.read_into(self._digest, start, data)
                block.data = data.toreadonly()
            return block.data


class _Block:
    """A part of a blob, once it was read."""

    def __init__(self) -> None:
        self.reading = threading.Lock()
        self.data = memoryview(b"")


@dataclass(frozen=True)
class Window:
    """The ``size`` bytes of ``reader`` from ``start``, as a ``Reader`` of their own."""

    reader: Reader
    start: int
    size: int

    def read_into(self, offset: int, into: memoryview) -> None:
        if offset < 0 or offset + into.nbytes > self.size:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        self.reader.read_into(self.start + offset, into)


def read_bytes(reader: Reader, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes from ``offset``. Raises NotTrusted (shorter than asked for)."""
    if offset < 0 or length < 0 or offset + length > reader.size:
        raise NotTrusted(f"{reader.size} bytes end before {offset} + {length}: the data is truncated")
    buffer = bytearray(length)
    reader.read_into(offset, memoryview(buffer))
    return bytes(buffer)
