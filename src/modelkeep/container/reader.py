"""Where bytes come from: a size and ranged reads. Files, blobs and buffers all look like this."""

from dataclasses import dataclass
from typing import Protocol

from modelkeep.core.ports import Blobs
from modelkeep.core.values import Digest
from modelkeep.errors import NotTrusted

Buffer = bytes | bytearray | memoryview


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
    """A ``Reader`` over one stored blob."""

    def __init__(self, blobs: Blobs, digest: Digest) -> None:
        self._blobs = blobs
        self._digest = digest
        self._size = blobs.size(digest)

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, into: memoryview) -> None:
        self._blobs.read_into(self._digest, offset, into)


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
