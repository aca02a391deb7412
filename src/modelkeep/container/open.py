"""Open a sealed body: every stream is finalised, its SHA-256 checked and the index proven before a byte of it is handed out."""

import hashlib
import hmac
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag

from modelkeep.container.check import read_ends
from modelkeep.container.layout import (
    FOOTER_SIZE,
    HEADER_SIZE,
    BodyKeys,
    Entry,
    Index,
    Kind,
    check_extent,
    parse_index,
    sealed_length,
)
from modelkeep.container.reader import Reader
from modelkeep.core.values import Digest
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Missing, NotTrusted

_PIECE = 1 << 18
_GROUP = 4 << 20
_MAX_THREADS = 8


class Tensor(NamedTuple):
    """One tensor: its safetensors dtype, its shape, and its bytes in a buffer of its own (writable)."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class SealedFile:
    """An opened body whose index has been proven; streams are decrypted and checked when they are asked for.

    Thread-safe. Every method that reads raises NotTrusted (altered), Unavailable or Missing (the store).
    """

    def __init__(self, reader: Reader, keys: BodyKeys, index: Index, root: bytes) -> None:
        self._reader = reader
        self._keys = keys
        self._index = index
        self._root = root
        self._scratch = threading.local()
        self._positions: list[int] = []
        at = HEADER_SIZE
        for entry in index.entries:
            self._positions.append(at)
            at += sealed_length(entry.length)

    @property
    def kind(self) -> Kind:
        """How the source was cut."""
        return self._index.kind

    @property
    def model_digest(self) -> Digest:
        """SHA-256 of the source file, as its sealer stated it. The root binds it; ``check_model_digest`` recomputes it."""
        return self._index.model_digest

    @property
    def source_size(self) -> int:
        """Bytes of the source file."""
        return self._index.source_size

    @property
    def header_hash(self) -> bytes:
        """SHA-256 of the body's header: what recipient blocks bind to."""
        return self._keys.header_hash

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The streams."""
        return self._index.entries

    @property
    def head(self) -> bytes:
        """The source's bytes before the first stream: a safetensors file's header, else empty."""
        return self._index.head

    def root(self) -> bytes:
        """The Merkle root over preamble and entries, which a sealing statement signs."""
        return self._root

    def read_source(self, *, threads: int | None = None) -> memoryview:
        """The whole source file, byte for byte, in one fresh writable buffer, decrypted and checked by parallel threads."""
        whole = _buffer(self.source_size)
        whole[: len(self.head)] = self.head
        self._fill(self.entries, whole, 0, threads)
        return whole

    def read_tensor(self, name: str, *, threads: int | None = None) -> Tensor:
        """One tensor of a safetensors source; only its own streams are read. Raises Missing (no tensor of that name)."""
        entries = [entry for entry in self.entries if entry.name == name] if self.kind is Kind.SAFETENSORS else []
        if not entries:
            raise Missing(f"the sealed file has no tensor {name[:80]!r}")
        data = _buffer(sum(entry.length for entry in entries))
        self._fill(entries, data, entries[0].offset, threads)
        return Tensor(entries[0].dtype, entries[0].shape, data)

    def chunks(self, *, threads: int | None = None) -> Iterator[memoryview]:
        """The source in order, one checked stream (at most 64 MiB) after the other, decrypted ahead by parallel threads.

        For copying to a file. What came before a NotTrusted is genuine but incomplete: discard it.
        """
        workers = _threads(threads)
        ahead: deque[Future[memoryview]] = deque()
        yield memoryview(self.head)
        with ThreadPoolExecutor(workers, "modelkeep-open") as pool:
            for entry in self.entries:
                ahead.append(pool.submit(self._stream, entry))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def check_model_digest(self) -> None:
        """Decrypt everything and check that the source has the digest that its sealer stated."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        if "sha256:" + digest.hexdigest() != self.model_digest:
            raise NotTrusted(f"the sealed file does not hold {self.model_digest}: whoever sealed it stated a wrong digest")

    def _stream(self, entry: Entry) -> memoryview:
        data = _buffer(entry.length)
        self._decrypt(entry, data)
        return data

    def _fill(self, entries: Sequence[Entry], into: memoryview, base: int, threads: int | None) -> None:
        """Decrypt ``entries`` to their places in ``into``, which begins at source offset ``base``."""
        workers = min(_threads(threads), len(entries))
        if workers <= 1:
            self._fill_group(entries, into, base)
            return
        with ThreadPoolExecutor(workers, "modelkeep-open") as pool:
            work = [pool.submit(self._fill_group, group, into, base) for group in _groups(entries)]
            try:
                for future in work:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fill_group(self, entries: Iterable[Entry], into: memoryview, base: int) -> None:
        for entry in entries:
            start = entry.offset - base
            self._decrypt(entry, into[start : start + entry.length])

    def _decrypt(self, entry: Entry, into: memoryview) -> None:
        """Decrypt one stream to ``into``, piece by piece, hashing each piece while it is in the cache."""
        decryptor = Cobblestone256Decryptor(*self._keys.stream(entry.id))
        digest = hashlib.sha256()
        scratch = self._piece_buffer()
        at, position, left = 0, self._positions[entry.id - 1], sealed_length(entry.length)
        try:
            while left:
                piece = scratch[: min(left, _PIECE)]
                self._reader.read_into(position, piece)
                done = decryptor.update_into(piece, into[at:])
                digest.update(into[at : at + done])
                at, position, left = at + done, position + len(piece), left - len(piece)
            tail = decryptor.finalize()
        except InvalidTag as cause:
            raise NotTrusted(f"{_what(entry)} of the sealed file was altered: it does not decrypt") from cause
        into[at:] = tail
        digest.update(tail)
        if not hmac.compare_digest(digest.digest(), entry.sha256):
            raise NotTrusted(f"{_what(entry)} of the sealed file does not have the SHA-256 that its index states")

    def _piece_buffer(self) -> memoryview:
        """This thread's ciphertext buffer."""
        if not hasattr(self._scratch, "view"):
            self._scratch.view = memoryview(bytearray(_PIECE))
        view: memoryview = self._scratch.view
        return view


def open_sealed(reader: Reader, dek: bytes, *, root: bytes | None = None) -> SealedFile:
    """Open a sealed body with its data key and prove its index.

    ``root``: the signed Merkle root; give it whenever there is one: without it any holder of the data key can be the sealer.
    Raises NotTrusted: plaintext, foreign, future, cut, altered, another key, or not the signed model.
    """
    header_hash, index_length = read_ends(reader)
    if len(dek) != KEY_SIZE:
        raise NotTrusted(f"a data key has {KEY_SIZE} bytes, not {len(dek)}")
    keys = BodyKeys(dek, header_hash)
    sealed_index = bytearray(index_length)
    reader.read_into(reader.size - FOOTER_SIZE - index_length, memoryview(sealed_index))
    decryptor = Cobblestone256Decryptor(*keys.index())
    try:
        index, found = parse_index(decryptor.update(sealed_index) + decryptor.finalize())
    except InvalidTag as cause:
        raise NotTrusted("the sealed file's index does not decrypt: it was altered, or this is not its key") from cause
    check_extent(index.entries, index_length, reader.size)
    if root is not None and not hmac.compare_digest(found, root):
        raise NotTrusted("the sealed file is not the one that was signed: its Merkle root is another")
    return SealedFile(reader, keys, index, found)


def _groups(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Bundle small streams so that a task has some 4 MiB to do; big ones come first, so that threads end together."""
    group: list[Entry] = []
    held = 0
    for entry in sorted(entries, key=lambda e: -e.length):
        group.append(entry)
        held += entry.length + 1024
        if held >= _GROUP:
            yield group
            group, held = [], 0
    if group:
        yield group


def _threads(asked: int | None) -> int:
    return max(1, asked or min(_MAX_THREADS, len(os.sched_getaffinity(0))))


def _buffer(size: int) -> memoryview:
    """Fresh memory that is not cleared first; numpy asks the kernel for huge pages, which halves the cost of first touch."""
    return np.empty(size, dtype=np.uint8).data


def _what(entry: Entry) -> str:
    return f"tensor {entry.name[:80]!r}" if entry.dtype else f"shard {entry.id}"
