"""Every byte of a sealed body, and the keys that protect it. docs/formats/container.md is the specification.

``body = header(48) ‖ stream 1 ‖ … ‖ stream n ‖ index ‖ footer(24)``. All integers are unsigned and big-endian. Streams and
index are Cobblestone-256 messages (C2SP chunked-encryption), whose length follows from the plaintext's: no position is stored.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from modelkeep.core.values import Digest, digest_bytes
from modelkeep.crypto.kdf import hkdf
from modelkeep.crypto.merkle import leaf_hash, root_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.safetensors import parse_head

MAGIC = b"\x89KEEP\r\n\x1a"
END_MAGIC = b"KEEPEND\n"
VERSION = 1
SUITE = 1
"""Cobblestone-256 streams, HKDF-SHA-512 keys, SHA-256 digests and tree."""
HEADER_SIZE = 48
FOOTER_SIZE = 24
STREAM_LIMIT = 64 << 20
MAX_INDEX = 1 << 29
MIN_BODY = HEADER_SIZE + FOOTER_SIZE

_CHUNK = 16384
_FIXED = 56
_TAG = 16
_LABEL = b"modelkeep/keep/1/"


class Kind(IntEnum):
    """How the source is cut into streams."""

    BYTES = 1
    """Shards of 64 MiB; no head."""
    SAFETENSORS = 2
    """The head is the file's own header; one stream a tensor, split above 64 MiB."""


class Entry(msgspec.Struct, frozen=True):
    """One stream: ``id`` from 1 (its leaf's number), the tensor it belongs to, and the source bytes it holds.

    ``name``, ``dtype`` and ``shape`` describe the whole tensor (empty for shards); ``offset`` and ``length`` are this stream's
    plaintext within the source file; ``sha256`` is of that plaintext.
    """

    id: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: bytes

    def encode(self) -> bytes:
        """The canonical bytes: what the index holds and what the Merkle leaf hashes."""
        name, dtype = self.name.encode(), self.dtype.encode()
        return b"".join(
            (
                struct.pack(">QI", self.id, len(name)),
                name,
                struct.pack(">B", len(dtype)),
                dtype,
                struct.pack(f">B{len(self.shape)}Q", len(self.shape), *self.shape),
                struct.pack(">QQ", self.offset, self.length),
                self.sha256,
            )
        )


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


def encode_header(salt: bytes) -> bytes:
    """The 48-byte header with 32 bytes of fresh ``salt``."""
    return struct.pack(">8sBB6x32s", MAGIC, VERSION, SUITE, salt)


def check_header(header: bytes) -> bytes:
    """The header hash (SHA-256). Raises NotTrusted: not a container, or one of a future version or suite."""
    if header[:8] != MAGIC:
        raise NotTrusted("this is not a modelkeep container: it does not begin with the container's magic bytes")
    version, suite, reserved = header[8], header[9], header[10:16]
    if version != VERSION:
        raise NotTrusted(f"the container has format version {version}, and this modelkeep reads {VERSION}: upgrade modelkeep")
    if suite != SUITE or any(reserved):
        raise NotTrusted(f"the container uses cipher suite {suite}, and this modelkeep knows suite {SUITE}: upgrade modelkeep")
    return hashlib.sha256(header).digest()


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


def split(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the streams that ``length`` bytes at ``offset`` are cut into: 64 MiB each, the last one shorter."""
    end = offset + length
    while True:
        size = min(STREAM_LIMIT, end - offset)
        yield offset, size
        offset += size
        if offset >= end:
            return


def plan(kind: Kind, head: bytes, source_size: int) -> Iterator[Entry]:
    """The entries that a source *must* have, with empty ``sha256``. Raises Invalid (not a safetensors header of that size)."""
    number = 0
    for name, dtype, shape, begin, length in _tensors(kind, head, source_size):
        for offset, size in split(begin, length):
            number += 1
            yield Entry(number, name, dtype, shape, offset, size, b"")


def _tensors(kind: Kind, head: bytes, source_size: int) -> Iterable[tuple[str, str, tuple[int, ...], int, int]]:
    if kind is Kind.SAFETENSORS:
        for t in parse_head(head, source_size):
            yield t.name, t.dtype, t.shape, len(head) + t.begin, t.end - t.begin
    elif head:
        raise Invalid("a container of plain shards has no head")
    elif source_size:
        yield "", "", (), 0, source_size


def parse_index(data: bytes) -> tuple[Index, bytes]:
    """A decrypted index and its Merkle root. Raises NotTrusted unless every byte is what head and size call for.

    Head and size determine every entry but its SHA-256, so nothing is parsed that could contradict them.
    """
    try:
        kind, digest, source_size, head_length = struct.unpack_from(">B32sQQ", data)
        at = 57 + head_length
        if at > len(data):
            raise NotTrusted("the container's index is cut short: whoever sealed it did not follow the format")
        head, count = data[49 : at - 8], int.from_bytes(data[at - 8 : at])
        entries, leaves = [], [leaf_hash(data[: at - 8])]
        for place in plan(Kind(kind), head, source_size):
            start, at = at, at + len(prefix := place.encode()) + 32
            if data[start : at - 32] != prefix or at > len(data):
                raise NotTrusted(
                    "the container's index contradicts the source's header: a tensor was renamed, reshaped or moved"
                )
            leaves.append(leaf_hash(data[start:at]))
            entries.append(
                Entry(place.id, place.name, place.dtype, place.shape, place.offset, place.length, data[at - 32 : at])
            )
    except (struct.error, ValueError, Invalid) as cause:
        raise NotTrusted("the container's index is malformed: whoever sealed it did not follow the format") from cause
    if at != len(data) or count != len(entries):
        raise NotTrusted("the container's index lists other streams than the source's header: one was added or left out")
    return Index(Kind(kind), Digest("sha256:" + digest.hex()), source_size, head, tuple(entries)), root_of(leaves)


def check_extent(entries: Sequence[Entry], index_length: int, body_length: int) -> None:
    """Check that the streams fill exactly the bytes between header and index. Raises NotTrusted."""
    streams = sum(sealed_length(entry.length) for entry in entries)
    if HEADER_SIZE + streams + index_length + FOOTER_SIZE != body_length:
        raise NotTrusted("the container's streams do not fill it exactly: bytes were added to it or removed from it")
