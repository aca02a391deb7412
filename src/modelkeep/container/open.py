"""Open a sealed body: every stream is finalised, its digest checked and the index proven before a byte of it is handed out."""

import hashlib
import hmac
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.exceptions import InvalidTag

from modelkeep.container.bundle import FilePart, parse_files
from modelkeep.container.check import read_ends
from modelkeep.container.layout import (
    FOOTER_SIZE,
    SUITES,
    BodyKeys,
    Entry,
    Index,
    Kind,
    parse_index,
    sealed_length,
    stream_places,
)
from modelkeep.container.reader import Reader
from modelkeep.core.values import Digest
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Invalid, Missing, NotTrusted

_PIECE = 65 * 16400  # whole Cobblestone chunks, all of a stream of 1 MiB: to ask a store often costs more than caches save
_PREFIX = 56
_GROUP = 4 << 20
_MAX_THREADS = 8
_CIPHERTEXT = threading.local()


Root = Callable[[], bytes]


class Tensor(NamedTuple):
    """One tensor: its safetensors dtype, its shape, and its bytes in a buffer of its own (writable)."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


class Writer(Protocol):
    """Where ``SealedFile.write_to`` puts the source; called from several threads at once."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``; it is valid only during the call. Raises Unavailable."""
        ...


class SealedFile:
    """An opened body whose index has been proven; streams are decrypted and checked when they are asked for.

    Thread-safe. Every method that reads raises NotTrusted (altered), Unavailable or Missing (the store).
    """

    def __init__(self, reader: Reader, keys: BodyKeys, suite: int, index: Index, *, places: Sequence[int], root: Root) -> None:
        self._reader = reader
        self._keys = keys
        self._suite = suite
        self._index = index
        self._places = places
        self._root = root

    @property
    def suite(self) -> int:
        """The cipher suite that the body was sealed with."""
        return self._suite

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
        """The source's bytes before the first stream: a safetensors file's header, the list of several files, else empty."""
        return self._index.head

    def root(self) -> bytes:
        """The Merkle root over preamble and entries, which a sealing statement signs."""
        return self._root()

    def read_source(self, *, threads: int | None = None) -> memoryview:
        """The whole source file, byte for byte, in one fresh writable buffer, decrypted and checked by parallel threads."""
        whole = _buffer(self.source_size)
        whole[: len(self.head)] = self.head
        self._fill(self.entries, whole, 0, threads)
        return whole

    def read_tensor(self, name: str, *, threads: int | None = None) -> Tensor:
        """One tensor of a safetensors source; only its own streams are read. Raises Missing (no tensor of that name)."""
        entries = self._named.get(name) if self.kind is Kind.SAFETENSORS else None
        if entries is None:
            raise Missing(f"the sealed file has no tensor {name[:80]!r}")
        data = _buffer(sum(entry.length for entry in entries))
        self._fill(entries, data, entries[0].offset, threads)
        return Tensor(entries[0].dtype, entries[0].shape, data)

    def files(self) -> tuple[FilePart, ...]:
        """The files of a source that has several, the model first; empty for a source that is one file."""
        return tuple(self._parts.values())

    def read_file(self, name: str, *, threads: int | None = None) -> memoryview:
        """One file of a source that has several; only its own streams are read. Raises Missing (no file of that name)."""
        part, entries = self._file(name)
        data = _buffer(part.size)
        self._fill(entries, data, part.offset, threads)
        return data

    def write_to(self, writer: Writer, *, threads: int | None = None) -> None:
        """Write the whole source from parallel threads, each piece where it belongs.

        A piece is written as soon as it is decrypted, before its stream's digest is checked: nothing that was written counts
        before this returns. Write to an unnamed or temporary file, and name it afterwards.
        """
        writer.write_at(0, memoryview(self.head))
        self._each(self.entries, lambda entry: self._copy(entry, writer, 0), threads)

    def write_file(self, name: str, writer: Writer, *, threads: int | None = None) -> None:
        """``write_to`` for one file of a source that has several; offsets are the file's own. Raises Missing."""
        part, entries = self._file(name)
        self._each(entries, lambda entry: self._copy(entry, writer, part.offset), threads)

    def read_streams(self, entries: Sequence[Entry], into: memoryview, *, threads: int | None = None) -> None:
        """Fill ``into`` with the plaintext of ``entries``, which follow each other and fill it, checked to the end of each."""
        self._fill(entries, into, entries[0].offset, threads)

    def as_source(self) -> Reader:
        """The source as a ``Reader`` that can be read once, in order: to seal it anew with ``seal(…, kind=sealed.kind)``.

        Its last bytes are handed out when all streams have been checked: reading an altered source ends in NotTrusted.
        """
        return _InOrder(self.head, self.source_size, self._plaintext())

    def chunks(self, *, threads: int | None = None) -> Iterator[memoryview]:
        """The source in order, one checked stream (at most 64 MiB) after the other, decrypted ahead by parallel threads.

        For copying to a pipe. What came before a NotTrusted is genuine but incomplete: discard it.
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

    def _file(self, name: str) -> tuple[FilePart, list[Entry]]:
        part = self._parts.get(name)
        if part is None:
            raise Missing(f"the sealed file has no file {name[:80]!r} in it")
        return part, self._named[name]

    @cached_property
    def _named(self) -> dict[str, list[Entry]]:
        """The streams of each tensor or file. Found once: to look through all of them for each one takes hours for many."""
        return {name: list(streams) for name, streams in groupby(self.entries, key=attrgetter("name"))}

    @cached_property
    def _parts(self) -> dict[str, FilePart]:
        return {part.name: part for part in parse_files(self.head)} if self.kind is Kind.FILES else {}

    def _stream(self, entry: Entry) -> memoryview:
        data = _buffer(entry.length)
        self._decrypt(entry, data)
        return data

    def _fill(self, entries: Sequence[Entry], into: memoryview, base: int, threads: int | None) -> None:
        """Decrypt ``entries`` to their places in ``into``, which begins at source offset ``base``."""

        def one(entry: Entry) -> None:
            start = entry.offset - base
            self._decrypt(entry, into[start : start + entry.length])

        self._each(entries, one, threads)

    def _each(self, entries: Sequence[Entry], work: Callable[[Entry], None], threads: int | None) -> None:
        """Do ``work`` on every entry, in parallel where that pays; the first failure ends it."""

        def several(group: Sequence[Entry]) -> None:
            for entry in group:
                work(entry)

        workers = min(_threads(threads), len(entries))
        if workers <= 1:
            several(entries)
            return
        with ThreadPoolExecutor(workers, "modelkeep-open") as pool:
            under_way = [pool.submit(several, group) for group in _groups(entries)]
            try:
                for future in under_way:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _decrypt(self, entry: Entry, into: memoryview) -> None:
        for _ in self._pieces(entry, lambda at: into[at:]):
            pass

    def _copy(self, entry: Entry, writer: Writer, base: int) -> None:
        offset = entry.offset - base
        plain = _buffer(min(_PIECE + _PREFIX, sealed_length(entry.length)))
        for piece in self._pieces(entry, lambda _: plain):
            writer.write_at(offset, piece)
            offset += len(piece)

    def _plaintext(self) -> Iterator[memoryview]:
        """All streams in order, piece by piece; a piece is valid until the next one is asked for."""
        plain = _buffer(_PIECE + _PREFIX)
        for entry in self.entries:
            yield from self._pieces(entry, lambda _: plain)

    def _pieces(self, entry: Entry, place: Callable[[int], memoryview]) -> Iterator[memoryview]:
        """Decrypt one stream piece by piece, hashing each while it is in the cache; whoever takes them all has it checked.

        ``place``: where the plaintext from a position on goes, with room for a piece or for all that is left.
        """
        decryptor = Cobblestone256Decryptor(*self._keys.stream(entry.id))
        suite = SUITES[self._suite]
        digest = suite.hash()
        at, position, left, size = 0, self._places[entry.id - 1], sealed_length(entry.length), _PIECE + _PREFIX
        try:
            while left:
                sealed = _scratch(entry)[: min(left, size)]
                self._reader.read_into(position, sealed)
                room = place(at)
                plain = room[: decryptor.update_into(sealed, room)]
                digest.update(plain)
                yield plain
                at, position, left, size = at + len(plain), position + len(sealed), left - len(sealed), _PIECE
            tail = decryptor.finalize()
        except InvalidTag as cause:
            raise NotTrusted(f"{_what(entry)} of the sealed file was altered: it does not decrypt") from cause
        plain = place(at)[: len(tail)]
        plain[:] = tail
        digest.update(plain)
        if not hmac.compare_digest(digest.digest(), entry.digest):
            raise NotTrusted(f"{_what(entry)} of the sealed file does not have the {suite.digest} that its index states")
        yield plain


class _InOrder:
    """Pieces as a ``Reader`` of ``size`` bytes: the head at will, and what follows it once, in order."""

    def __init__(self, head: bytes, size: int, pieces: Iterator[memoryview]) -> None:
        self._head = head
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._at = len(head)
        self.size = size

    def read_into(self, offset: int, into: memoryview) -> None:
        if offset < len(self._head):
            part = self._head[offset : offset + into.nbytes]
            into[: len(part)] = part
            into, offset = into[len(part) :], offset + len(part)
        if into.nbytes and offset != self._at:
            raise Invalid(f"this source is read in order: at {self._at} now, and not at {offset}")
        while into.nbytes:
            while not self._piece.nbytes:
                self._piece = self._next()
            size = min(into.nbytes, self._piece.nbytes)
            into[:size] = self._piece[:size]
            into, self._piece, self._at = into[size:], self._piece[size:], self._at + size
        if self._at == self.size and not self._piece.nbytes:
            for _ in self._pieces:  # a stream is checked after its last piece, and that may be empty
                pass

    def _next(self) -> memoryview:
        try:
            return next(self._pieces)
        except StopIteration:
            raise NotTrusted(f"{self.size} bytes end before {self._at} + 1: the data is truncated") from None


def open_sealed(reader: Reader, dek: bytes, *, root: bytes | None = None) -> SealedFile:
    """Open a sealed body with its data key and prove its index.

    ``root``: the signed Merkle root; give it whenever there is one: without it any holder of the data key can be the sealer.
    Raises NotTrusted: plaintext, foreign, future, cut, altered, another key, or not the signed model.
    """
    header, index_length = read_ends(reader)
    if len(dek) != KEY_SIZE:
        raise NotTrusted(f"a data key has {KEY_SIZE} bytes, not {len(dek)}")
    sealed_index = bytearray(index_length)
    reader.read_into(reader.size - FOOTER_SIZE - index_length, memoryview(sealed_index))
    keys = BodyKeys(dek, header.hash)
    decryptor = Cobblestone256Decryptor(*keys.index())
    try:
        index, found = parse_index(decryptor.update(sealed_index) + decryptor.finalize())
    except InvalidTag as cause:
        raise NotTrusted("the sealed file's index does not decrypt: it was altered, or this is not its key") from cause
    places = stream_places(index.entries, index_length, reader.size)
    if root is not None and not hmac.compare_digest(found(), root):
        raise NotTrusted("the sealed file is not the one that was signed: its Merkle root is another")
    return SealedFile(reader, keys, header.suite, index, places=places, root=found)


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


def _scratch(entry: Entry) -> memoryview:
    """This thread's buffer for ciphertext. Fresh memory is dear, so it is kept, no larger than was ever needed."""
    size = min(_PIECE + _PREFIX, sealed_length(entry.length))
    held: memoryview | None = getattr(_CIPHERTEXT, "buffer", None)
    if held is None or held.nbytes < size:
        held = _CIPHERTEXT.buffer = _buffer(size)
    return held


def _what(entry: Entry) -> str:
    if entry.name or entry.dtype:
        return f"{'tensor' if entry.dtype else 'file'} {entry.name[:80]!r}"
    return f"shard {entry.id}"
