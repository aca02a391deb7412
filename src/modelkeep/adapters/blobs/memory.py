"""``Blobs`` in memory: for tests and short-lived keeps."""

import hashlib
from collections.abc import Iterable, Iterator

from modelkeep.core.values import Digest
from modelkeep.errors import Missing, NotTrusted


class MemoryBlobs:
    """A dictionary. ``stored`` is open to tests that damage what is in it."""

    read_ahead = 0

    def __init__(self) -> None:
        self.stored: dict[Digest, bytes] = {}

    def put(self, chunks: Iterable[bytes | bytearray | memoryview]) -> Digest:
        body = b"".join(bytes(chunk) for chunk in chunks)
        digest = Digest("sha256:" + hashlib.sha256(body).hexdigest())
        self.stored[digest] = body
        return digest

    def size(self, digest: Digest) -> int:
        return len(self._body(digest))

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        part = self._body(digest)[offset : offset + length]
        if offset < 0 or length < 0 or len(part) != length:
            raise NotTrusted(f"blob {digest} ends before {offset} + {length}: it is truncated")
        return part

    def read_into(self, digest: Digest, offset: int, into: memoryview) -> None:
        into[:] = self.read(digest, offset, into.nbytes)

    def delete(self, digest: Digest) -> None:
        self.stored.pop(digest, None)

    def all(self) -> Iterator[Digest]:
        yield from list(self.stored)

    def _body(self, digest: Digest) -> bytes:
        try:
            return self.stored[digest]
        except KeyError as cause:
            raise Missing(f"there is no blob {digest}") from cause
