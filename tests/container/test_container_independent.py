"""The format as a stranger would write it: from docs/formats/container.md, with cobblestone, hashlib, hmac and struct alone."""

import hashlib
import hmac
import struct

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor


def hkdf(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    prk = hmac.digest(salt, key, "sha512")
    return hmac.digest(prk, info + b"\x01", "sha512")[:size]


def message_length(plain: int) -> int:
    return 24 + 32 + plain + 16 * (plain // 16384 + 1)


def merkle(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1
    while half * 2 < len(leaves):
        half *= 2
    return hashlib.sha256(b"\x01" + merkle(leaves[:half]) + merkle(leaves[half:])).digest()


def decrypt(dek: bytes, header_hash: bytes, info: bytes, message: bytes) -> bytes:
    decryptor = Cobblestone256Decryptor(hkdf(dek, header_hash, info, 32), info + header_hash)
    return decryptor.update(message) + decryptor.finalize()


def open_body(body: bytes, dek: bytes) -> tuple[bytes, bytes, list[tuple]]:
    """(source, root, entries)."""
    assert body[:8] == b"\x89KEEP\r\n\x1a"
    assert body[8:16] == b"\x01\x01" + bytes(6)
    header_hash = hashlib.sha256(body[:48]).digest()
    index_length, body_length, end = struct.unpack(">QQ8s", body[-24:])
    assert (body_length, end) == (len(body), b"KEEPEND\n")
    index = decrypt(dek, header_hash, b"modelkeep/keep/1/index", body[-24 - index_length : -24])
    _kind, digest, source_size, head_length = struct.unpack(">B32sQQ", index[:49])
    at = 49 + head_length
    head, leaves, entries = index[49:at], [index[:at]], []
    (count,) = struct.unpack(">Q", index[at : at + 8])
    at += 8
    source, position = bytearray(head), 48
    for number in range(1, count + 1):
        start = at
        stated, name_length = struct.unpack(">QI", index[at : at + 12])
        name = index[at + 12 : at + 12 + name_length].decode()
        at += 12 + name_length
        dtype = index[at + 1 : at + 1 + index[at]].decode()
        at += 1 + index[at]
        shape = struct.unpack(f">{index[at]}Q", index[at + 1 : at + 1 + 8 * index[at]])
        at += 1 + 8 * index[at]
        offset, length, sha256 = struct.unpack(">QQ32s", index[at : at + 48])
        at += 48
        leaves.append(index[start:at])
        entries.append((name, dtype, shape, offset, length))
        assert (stated, offset) == (number, len(source))
        info = b"modelkeep/keep/1/stream" + struct.pack(">Q", number)
        plain = decrypt(dek, header_hash, info, body[position : position + message_length(length)])
        position += message_length(length)
        assert (len(plain), hashlib.sha256(plain).digest()) == (length, sha256)
        source += plain
    assert at == len(index)
    assert position + index_length + 24 == len(body)
    assert len(source) == source_size
    assert hashlib.sha256(source).digest() == digest
    return bytes(source), merkle(leaves), entries


@pytest.mark.parametrize("size", [0, 1, 16384, 50_000])
def test_a_stranger_opens_plain_shards(sealed, size):
    body, model = sealed(bytes(size))
    source, root, _ = open_body(body, model.dek)
    assert (source, root) == (bytes(size), model.root)


def test_a_stranger_opens_safetensors(sealed, tensors):
    body, model = sealed(tensors)
    source, root, entries = open_body(body, model.dek)
    assert (source, root) == (tensors, model.root)
    assert [entry[:3] for entry in entries] == [
        ("empty", "I64", (0, 4)),
        ("layer.bias", "F16", (60,)),
        ("layer.weight", "F32", (100, 60)),
        ("scalar", "F64", ()),
    ]
