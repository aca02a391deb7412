"""What an attacker would build: bodies made with the data key in hand, and damaged bytes. For tests and the vector script."""

import os
import struct
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from blake3 import blake3
from cryptography.cobblestone import Cobblestone256Encryptor

from modelkeep.container import BytesReader, open_sealed
from modelkeep.container.layout import BodyKeys, Entry, Index, Kind, check_header, encode_footer, encode_header
from modelkeep.core.values import digest_of


def flip(data: bytes, position: int, mask: int = 1) -> bytes:
    """``data`` with some bits of one byte turned over."""
    position %= len(data)
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def encrypt(plain: bytes, key: bytes, context: bytes) -> bytes:
    encryptor = Cobblestone256Encryptor(key, context)
    return encryptor.update(plain) + encryptor.finalize()


def assemble(header: bytes, streams: Sequence[bytes], index: bytes, dek: bytes) -> bytes:
    """A body with an index of the forger's choice, properly encrypted."""
    sealed_index = encrypt(index, *BodyKeys(dek, check_header(header).hash).index())
    size = len(header) + sum(map(len, streams)) + len(sealed_index) + 24
    return header + b"".join(streams) + sealed_index + encode_footer(len(sealed_index), size)


def parts(body: bytes, dek: bytes) -> tuple[bytes, list[bytes], Index]:
    """Header, encrypted streams and index of an honest body."""
    opened = open_sealed(BytesReader(body), dek)
    streams, at = [], 48
    for entry in opened.entries:
        length = entry.length + 56 + 16 * (entry.length // 16384 + 1)
        streams.append(body[at : at + length])
        at += length
    return body[:48], streams, opened._index


def with_entry(index: Index, number: int, **changes: object) -> bytes:
    """The index with one entry changed."""
    entries = list(index.entries)
    entries[number] = msgspec.structs.replace(entries[number], **changes)
    return replace(index, entries=tuple(entries)).encode()


def fresh_streams(plain: Sequence[bytes], dek: bytes) -> tuple[bytes, list[bytes]]:
    """A fresh header and one honest stream for each of ``plain``."""
    header = encode_header(os.urandom(32))
    keys = BodyKeys(dek, check_header(header).hash)
    return header, [encrypt(data, *keys.stream(number)) for number, data in enumerate(plain, 1)]


def listing(rows: Sequence[tuple[bytes, int]], count: int | None = None) -> bytes:
    """The head of kind FILES for raw names and sizes, whatever they are."""
    rows_bytes = b"".join(struct.pack(">H", len(name)) + name + struct.pack(">Q", size) for name, size in rows)
    return b"KEEPFLS\n" + struct.pack(">I", len(rows) if count is None else count) + rows_bytes


def files_body(head: bytes, files: Sequence[tuple[str, bytes]], dek: bytes) -> tuple[bytes, bytes]:
    """A body of kind FILES, and its root, for a head of the forger's choice and files (of at most 64 MiB)."""
    header, streams = fresh_streams([data for _, data in files], dek)
    source, entries = head, []
    for number, (name, data) in enumerate(files, 1):
        entries.append(Entry(number, name, "", (), len(source), len(data), blake3(data).digest()))
        source += data
    index = Index(Kind.FILES, digest_of(source), len(source), head, tuple(entries))
    return assemble(header, streams, index.encode(), dek), index.root()
