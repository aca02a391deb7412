"""Every byte of a sealed body, and the keys that protect it. docs/formats/container.md is the specification.

``body = header(48) ‖ stream 1 ‖ … ‖ stream n ‖ index ‖ footer(24)``. All integers are unsigned and big-endian. Streams and
index are Cobblestone-256 messages (C2SP chunked-encryption), whose length follows from the plaintext's: no position is stored.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import msgspec
from blake3 import blake3
from msgspec.structs import force_setattr

from modelkeep.container.bundle import parse_files
from modelkeep.core.hidden import never_pickled
from modelkeep.core.values import Digest, digest_bytes
from modelkeep.crypto.kdf import hkdf
from modelkeep.crypto.merkle import leaf_hash, root_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.safetensors import parse_head

MAGIC = b"\x89KEEP\r\n\x1a"
END_MAGIC = b"KEEPEND\n"
VERSION = 1
SUITE = 2
"""What is written: Cobblestone-256 streams, HKDF-SHA-512 keys, SHA-256 tree, and the stream digests of ``SUITES``."""
HEADER_SIZE = 48
FOOTER_SIZE = 24
STREAM_LIMIT = 64 << 20
PIECE_LIMIT = 1 << 20
"""Of kind PIECES: what is read of it at a time, and in any order."""
MAX_INDEX = 1 << 29
MIN_BODY = HEADER_SIZE + FOOTER_SIZE
DIGEST_SIZE = 32

_CHUNK = 16384
_FIXED = 56
_TAG = 16
_LABEL = b"modelkeep/keep/1/"
_BEGIN = struct.Struct(">QI").pack
_EXTENT = struct.Struct(">QQ").pack


class Hash(Protocol):
    """A running hash, as ``hashlib`` has them."""

    def update(self, data: memoryview, /) -> object: ...
    def digest(self) -> bytes: ...


class Suite(NamedTuple):
    """What a cipher suite decides: the hash of a stream's plaintext (32 bytes), and what that is called."""

    digest: str
    hash: Callable[[], Hash]


SUITES = {1: Suite("SHA-256", hashlib.sha256), 2: Suite("BLAKE3 digest", blake3)}
"""The suites that are read; 1 is no longer written."""


class Header(NamedTuple):
    """A header that holds: its SHA-256, which every key and context is bound to, and its cipher suite."""

    hash: bytes
    suite: int


class Kind(IntEnum):
    """How the source is cut into streams."""

    BYTES = 1
    """Shards of 64 MiB; no head."""
    SAFETENSORS = 2
    """The head is the file's own header; one stream a tensor, split above 64 MiB."""
    FILES = 3
    """The head lists several files; one stream a file, split above 64 MiB."""
    PIECES = 4
    """Pieces of 1 MiB, to be read in any order; no head."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One stream: ``id`` from 1 (its leaf's number), the tensor or file it belongs to, and the source bytes it holds.

    ``name``, ``dtype`` and ``shape`` describe the whole tensor (shards have none of them, files only a name); ``offset`` and
    ``length`` are this stream's plaintext within the source; ``digest`` is of that plaintext, in the hash of the body's suite.
    """

    id: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    digest: bytes

    def encode(self) -> bytes:
        """The canonical bytes: what the index holds and what the Merkle leaf hashes."""
        name = self.name.encode()
        described = _described(self.dtype, self.shape)
        return _BEGIN(self.id, len(name)) + name + described + _EXTENT(self.offset, self.length) + self.digest


@dataclass(frozen=True)
class Index:
    """The decrypted index. ``head``: the source's bytes before the first stream, verbatim."""

    kind: Kind
    model_digest: Digest
    source_size: int
    head: bytes
    entries: tuple[Entry, ...]

    def preamble(self) -> bytes:
        """Everything before the entries: what Merkle leaf 0 hashes."""
        fixed = struct.pack(">B32sQQ", self.kind, digest_bytes(self.model_digest), self.source_size, len(self.head))
        return fixed + self.head

    def encode(self) -> bytes:
        """The index plaintext: preamble, number of entries, entries."""
        return b"".join((self.preamble(), struct.pack(">Q", len(self.entries)), *(entry.encode() for entry in self.entries)))

    def root(self) -> bytes:
        """The 32-byte Merkle root (RFC 6962) over the preamble and every entry: what a sealing statement signs."""
        return root_of([leaf_hash(self.preamble()), *(leaf_hash(entry.encode()) for entry in self.entries)])


@never_pickled
@dataclass(frozen=True)
class BodyKeys:
    """The keys of one body, all derived from its data key and the hash of its header."""

    dek: bytes = field(repr=False)
    header_hash: bytes

    def stream(self, number: int) -> tuple[bytes, bytes]:
        """Key and Cobblestone context of stream ``number``."""
        info = _LABEL + b"stream" + struct.pack(">Q", number)
        return hkdf(self.dek, salt=self.header_hash, info=info), info + self.header_hash

    def index(self) -> tuple[bytes, bytes]:
        """Key and Cobblestone context of the index."""
        info = _LABEL + b"index"
        return hkdf(self.dek, salt=self.header_hash, info=info), info + self.header_hash

    def recipients_mac(self) -> bytes:
        """The HMAC-SHA-512 key of the recipient block."""
        return hkdf(self.dek, salt=self.header_hash, info=_LABEL + b"recipients", size=64)


def sealed_length(plain: int) -> int:
    """Length of the Cobblestone-256 message of ``plain`` bytes: 24 salt, 32 commitment, and a 16-byte tag a chunk."""
    return _FIXED + plain + _TAG * (plain // _CHUNK + 1)


def encode_header(salt: bytes, suite: int = SUITE) -> bytes:
    """The 48-byte header with 32 bytes of fresh ``salt``."""
    return struct.pack(">8sBB6x32s", MAGIC, VERSION, suite, salt)


def check_header(header: bytes) -> Header:
    """The header's hash (SHA-256) and suite. Raises NotTrusted: not a container, or one of a future version or suite."""
    if header[:8] != MAGIC:
        raise NotTrusted("this is not a modelkeep container: it does not begin with the container's magic bytes")
    version, suite, reserved = header[8], header[9], header[10:16]
    if version != VERSION:
        raise NotTrusted(f"the container has format version {version}, and this modelkeep reads {VERSION}: upgrade modelkeep")
    if suite not in SUITES or any(reserved):
        raise NotTrusted(
            f"the container uses cipher suite {suite}, and this modelkeep knows suites 1 to {SUITE}: upgrade modelkeep"
        )
    return Header(hashlib.sha256(header).digest(), suite)


def encode_footer(index_length: int, body_length: int) -> bytes:
    """The 24-byte footer."""
    return struct.pack(">QQ8s", index_length, body_length, END_MAGIC)


def check_footer(footer: bytes, body_length: int) -> int:
    """The length of the encrypted index. Raises NotTrusted: cut off, appended to, or altered."""
    index_length, stated, magic = struct.unpack(">QQ8s", footer)
    if magic != END_MAGIC:
        raise NotTrusted("the container does not end with its footer: it was cut off, or bytes were added to it")
    if stated != body_length:
        raise NotTrusted(f"the container should have {stated} bytes and has {body_length}: it was cut, spliced or altered")
    if not sealed_length(0) <= index_length <= min(MAX_INDEX, body_length - MIN_BODY):
        raise NotTrusted("the container's footer points outside it: it was altered")
    return int(index_length)


def plan(kind: Kind, head: bytes, source_size: int) -> Iterator[Entry]:
    """The entries that a source *must* have, with empty ``digest``. Raises Invalid (not a head of that kind and size).

    One by one: a forged size may call for more than any memory holds.
    """
    number, limit = 0, PIECE_LIMIT if kind is Kind.PIECES else STREAM_LIMIT
    for name, dtype, shape, start, end in _runs(kind, head, source_size):
        while True:
            size = min(limit, end - start)
            number += 1
            yield Entry(number, name, dtype, shape, start, size, b"")
            start += size  # noqa: PLW2901  # as many bytes each, and the last one fewer
            if start == end:
                break


def _runs(kind: Kind, head: bytes, source_size: int) -> Iterator[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, begin and end of every tensor or file, in the order of their bytes in the source."""
    if kind is Kind.SAFETENSORS:
        base = len(head)
        return ((t.name, t.dtype, t.shape, base + t.begin, base + t.end) for t in parse_head(head, source_size))
    if kind is Kind.FILES:
        files = parse_files(head)
        if files[-1].offset + files[-1].size != source_size:
            raise Invalid(f"the files end at {files[-1].offset + files[-1].size}, and the source at {source_size}")
        return ((file.name, "", (), file.offset, file.offset + file.size) for file in files)
    if head:
        raise Invalid("a container of plain shards has no head")
    return iter([("", "", (), 0, source_size)] if source_size else [])


def parse_index(data: bytes) -> tuple[Index, Callable[[], bytes]]:
    """A decrypted index, and what computes its Merkle root. Raises NotTrusted unless every byte is what head and size call for.

    Head and size determine every entry but its digest, so nothing is parsed that could contradict them.
    """
    try:
        number, digest, source_size, head_length = struct.unpack_from(">B32sQQ", data)
        at = 57 + head_length
        if at > len(data):
            raise NotTrusted("the container's index is cut short: whoever sealed it did not follow the format")
        kind, head, count = Kind(number), data[49 : at - 8], int.from_bytes(data[at - 8 : at])
        entries, ends = [], [at]
        for entry in plan(kind, head, source_size):
            if not data.startswith(encoded := entry.encode(), at):
                raise NotTrusted(
                    "the container's index contradicts the source's header: a tensor or file was renamed, reshaped or moved"
                )
            at += len(encoded) + DIGEST_SIZE
            force_setattr(entry, "digest", data[at - DIGEST_SIZE : at])  # nobody else has seen the entry yet
            entries.append(entry)
            ends.append(at)
    except (struct.error, ValueError, Invalid) as cause:
        raise NotTrusted("the container's index is malformed: whoever sealed it did not follow the format") from cause
    if at != len(data) or count != len(entries):
        raise NotTrusted("the container's index lists other streams than the source's header: one was added or left out")
    return Index(kind, Digest("sha256:" + digest.hex()), source_size, head, tuple(entries)), partial(_root, data, ends)


def _root(data: bytes, ends: Sequence[int]) -> bytes:
    """The Merkle root of an index: preamble and number of entries end at the first of ``ends``, entries at the others."""
    return root_of([leaf_hash(data[: ends[0] - 8]), *(leaf_hash(data[start:end]) for start, end in pairwise(ends))])


def stream_places(entries: Sequence[Entry], index_length: int, body_length: int) -> list[int]:
    """Where each stream begins in the body. Raises NotTrusted unless they fill it exactly from header to index."""
    lengths = [sealed_length(entry.length) for entry in entries]
    *places, end = accumulate(lengths, initial=HEADER_SIZE)
    if end + index_length + FOOTER_SIZE != body_length:
        raise NotTrusted("the container's streams do not fill it exactly: bytes were added to it or removed from it")
    return places


@lru_cache(maxsize=1024)
def _described(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Dtype and shape, canonically; the layers of a model share few of them."""
    raw = dtype.encode()
    return struct.pack(f">B{len(raw)}sB{len(shape)}Q", len(raw), raw, len(shape), *shape)
