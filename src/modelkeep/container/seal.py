"""Seal a source: one pass, a few megabytes of reused buffers, hashing and encrypting in threads of their own."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from cryptography.cobblestone import Cobblestone256Encryptor

from modelkeep.container.bundle import FilesReader, read_list
from modelkeep.container.layout import (
    HEADER_SIZE,
    SUITE,
    SUITES,
    BodyKeys,
    Entry,
    Index,
    Kind,
    check_header,
    encode_footer,
    encode_header,
    plan,
    sealed_length,
)
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.core.hidden import never_pickled
from modelkeep.core.values import Digest
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Invalid
from modelkeep.formats.safetensors import head_length

PIECE = 1 << 20
_STEP = 1 << 18  # hashed and then encrypted while it is in the core's own cache
_IN_FLIGHT = 4
_SMALL = 64 << 10
_MAX_SLICES = 1024
_OUT_SIZE = PIECE + (PIECE >> 10) + 2 * 16384 + 96 * _MAX_SLICES


@never_pickled
@dataclass(frozen=True)
class SealedModel:
    """What sealing produced. ``size``: bytes of the body; ``root``: 32 bytes, to be signed; ``dek``: the secret data key."""

    model_digest: Digest
    root: bytes
    header_hash: bytes
    size: int
    kind: Kind
    dek: bytes = field(repr=False)


class _Slice(NamedTuple):
    """Part of one stream inside a batch: batch bytes ``[begin, end)``; ``last`` when the stream ends with it."""

    number: int
    begin: int
    end: int
    last: bool


class _Batch(NamedTuple):
    """Contiguous source bytes from ``offset`` and the streams they belong to."""

    offset: int
    length: int
    slices: tuple[_Slice, ...]


class _Working(NamedTuple):
    """A batch under way: what the lanes will have done, and its two buffers."""

    hashed: Future[None]
    sealed: Future[int]
    source: bytearray
    out: bytearray


class Sealing:
    """A sealing under way: consume ``chunks`` to the end, then read ``model``.

    ``source`` is read once, in order. A safetensors file gets one stream a tensor, a ``FilesReader`` one a file, anything else
    shards; all split at 64 MiB. Kind PIECES, which only a caller can choose, is cut every 1 MiB.
    """

    def __init__(self, source: Reader, *, dek: bytes | None = None, kind: Kind | None = None) -> None:
        self._source = source
        self._kind = kind
        self._dek = os.urandom(KEY_SIZE) if dek is None else dek
        if len(self._dek) != KEY_SIZE:
            raise Invalid(f"a data key has {KEY_SIZE} bytes, not {len(self._dek)}")
        self._model: SealedModel | None = None

    @property
    def model(self) -> SealedModel:
        """The outcome. Raises Invalid while ``chunks`` has not been consumed to the end."""
        if self._model is None:
            raise Invalid("the sealing is not finished: consume all its chunks first")
        return self._model

    def chunks(self) -> Iterator[memoryview]:
        """The body, for ``Blobs.put``. A chunk is valid until the next is asked for. Raises NotTrusted (the source shrank)."""
        head, kind, places = plan_source(self._source, self._kind)
        header = encode_header(os.urandom(32))
        keys = BodyKeys(self._dek, check_header(header).hash)
        yield memoryview(header)
        streams = _Streams(keys, places)
        source_hash = hashlib.sha256(head)
        yield from self._seal_streams(streams, source_hash.update, batches(places, len(head)))
        digest = Digest("sha256:" + source_hash.hexdigest())
        index = Index(kind, digest, self._source.size, head, tuple(streams.entries()))
        sealed_index = _seal_message(index.encode(), *keys.index())
        size = HEADER_SIZE + sum(sealed_length(e.length) for e in places) + len(sealed_index) + 24
        yield memoryview(sealed_index)
        yield memoryview(encode_footer(len(sealed_index), size))
        self._model = SealedModel(digest, index.root(), keys.header_hash, size, kind, self._dek)

    def _seal_streams(
        self, streams: "_Streams", hash_source: Callable[[memoryview], None], work: Iterator[_Batch]
    ) -> Iterator[memoryview]:
        """Two lanes of one thread keep their own order over a ring of buffers: the source's hash, and the streams.

        What is small is sealed here: threads and buffers would cost more than the work.
        """
        begun = list(islice(work, 2))
        if len(begun) == 1 and begun[0].length <= _SMALL:
            yield self._seal_here(streams, hash_source, begun[0])
            return
        free: list[tuple[bytearray, bytearray]] = []
        under_way: deque[_Working] = deque()
        with ExitStack() as stack:
            hashing, sealing = (stack.enter_context(ThreadPoolExecutor(1, "modelkeep-seal")) for _ in range(2))
            for batch in chain(begun, work):
                source, out = free.pop() if free else (bytearray(PIECE), bytearray(_OUT_SIZE))
                view = memoryview(source)[: batch.length]
                self._source.read_into(batch.offset, view)
                sealed = sealing.submit(streams.seal, batch, view, out)
                under_way.append(_Working(hashing.submit(hash_source, view), sealed, source, out))
                if len(under_way) == _IN_FLIGHT:
                    yield from _finish(under_way.popleft(), free)
            while under_way:
                yield from _finish(under_way.popleft(), free)

    def _seal_here(self, streams: "_Streams", hash_source: Callable[[memoryview], None], batch: _Batch) -> memoryview:
        view = memoryview(bytearray(batch.length))
        self._source.read_into(batch.offset, view)
        hash_source(view)
        out = bytearray(batch.length + _OUT_SIZE - PIECE)
        return memoryview(out)[: streams.seal(batch, view, out)]


class _Streams:
    """The running hash and encryptor of the stream that is being sealed."""

    def __init__(self, keys: BodyKeys, places: list[Entry]) -> None:
        self._keys = keys
        self._places = places
        self._digests: list[bytes] = []
        self._hash = SUITES[SUITE].hash()
        self._encryptor: Cobblestone256Encryptor | None = None

    def seal(self, batch: _Batch, view: memoryview, into: bytearray) -> int:
        """Hash and encrypt a batch; returns how many bytes of ``into`` it filled."""
        at, out = 0, memoryview(into)
        for part in batch.slices:
            if self._encryptor is None:
                self._encryptor = Cobblestone256Encryptor(*self._keys.stream(part.number))
            for begin in range(part.begin, part.end, _STEP):
                piece = view[begin : min(begin + _STEP, part.end)]
                self._hash.update(piece)
                at += self._encryptor.update_into(piece, out[at:])
            if part.last:
                tail = self._encryptor.finalize()
                out[at : at + len(tail)] = tail
                at += len(tail)
                self._digests.append(self._hash.digest())
                self._encryptor, self._hash = None, SUITES[SUITE].hash()
        return at

    def entries(self) -> Iterator[Entry]:
        for e, digest in zip(self._places, self._digests, strict=True):
            yield Entry(e.id, e.name, e.dtype, e.shape, e.offset, e.length, digest)


def seal(source: Reader, *, dek: bytes | None = None, kind: Kind | None = None) -> Sealing:
    """Begin to seal ``source`` under a fresh data key (or ``dek``, which must never have sealed anything else).

    ``kind``: how to cut it; None finds out. ``chunks`` raises Invalid when the source is not of a ``kind`` that was given.
    """
    return Sealing(source, dek=dek, kind=kind)


def plan_source(source: Reader, kind: Kind | None = None) -> tuple[bytes, Kind, list[Entry]]:
    """Head, kind and stream places of a source. What is not a well-formed safetensors file is cut into shards.

    Only a ``FilesReader``, or a caller who says so, makes kind FILES: a file never becomes several because of what is in it.
    """
    if kind is None and not isinstance(source, FilesReader):
        try:
            return plan_source(source, Kind.SAFETENSORS)
        except Invalid:
            return plan_source(source, Kind.BYTES)
    kind = kind or Kind.FILES
    head = _HEADS[kind](source)
    return head, kind, list(plan(kind, head, source.size))


def _safetensors_head(source: Reader) -> bytes:
    length = head_length(read_bytes(source, 0, min(8, source.size)), source.size)
    if read_bytes(source, 8, min(1, length - 8)) != b"{":
        raise Invalid("not a safetensors header")
    return read_bytes(source, 0, length)


_HEADS: dict[Kind, Callable[[Reader], bytes]] = {
    Kind.BYTES: lambda _: b"",
    Kind.SAFETENSORS: _safetensors_head,
    Kind.FILES: read_list,
    Kind.PIECES: lambda _: b"",
}


def batches(places: list[Entry], offset: int) -> Iterator[_Batch]:
    """Cut the streams, which follow each other from ``offset`` on, into batches of at most 1 MiB and 1,024 slices."""
    slices: list[_Slice] = []
    length = 0
    for entry in places:
        left = entry.length
        while True:
            part = min(left, PIECE - length)
            left -= part
            slices.append(_Slice(entry.id, length, length + part, left == 0))
            length += part
            if length == PIECE or len(slices) == _MAX_SLICES:
                yield _Batch(offset, length, tuple(slices))
                offset, length, slices = offset + length, 0, []
            if left == 0:
                break
    if slices:
        yield _Batch(offset, length, tuple(slices))


def _finish(work: _Working, free: list[tuple[bytearray, bytearray]]) -> Iterator[memoryview]:
    work.hashed.result()
    yield memoryview(work.out)[: work.sealed.result()]
    free.append((work.source, work.out))


def _seal_message(plaintext: bytes, key: bytes, context: bytes) -> bytes:
    encryptor = Cobblestone256Encryptor(key, context)
    out = bytearray(sealed_length(len(plaintext)))
    at = encryptor.update_into(plaintext, out)
    out[at:] = encryptor.finalize()
    return bytes(out)
