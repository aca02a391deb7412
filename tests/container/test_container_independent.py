"""The format as a stranger writes it: docs/formats/container.md, with cobblestone, blake3, hashlib, hmac and struct alone."""

import base64
import hashlib
import hmac
import json
import struct
from pathlib import Path

import blake3
import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from safetensors.numpy import load as reference_load

from modelkeep.container import BytesReader, FilesReader, seal
from modelkeep.container.layout import Kind


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
    assert body[8:9] + body[10:16] == b"\x01" + bytes(6)
    stream_digest = {1: lambda data: hashlib.sha256(data).digest(), 2: lambda data: blake3.blake3(data).digest()}[body[9]]
    header_hash = hashlib.sha256(body[:48]).digest()
    index_length, body_length, end = struct.unpack(">QQ8s", body[-24:])
    assert (body_length, end) == (len(body), b"KEEPEND\n")
    index = decrypt(dek, header_hash, b"modelkeep/keep/1/index", body[-24 - index_length : -24])
    kind, digest, source_size, head_length = struct.unpack(">B32sQQ", index[:49])
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
        offset, length, digested = struct.unpack(">QQ32s", index[at : at + 48])
        at += 48
        leaves.append(index[start:at])
        entries.append((name, dtype, shape, offset, length))
        assert (stated, offset) == (number, len(source))
        info = b"modelkeep/keep/1/stream" + struct.pack(">Q", number)
        plain = decrypt(dek, header_hash, info, body[position : position + message_length(length)])
        position += message_length(length)
        assert (len(plain), stream_digest(plain)) == (length, digested)
        source += plain
    assert at == len(index)
    assert position + index_length + 24 == len(body)
    assert len(source) == source_size
    assert hashlib.sha256(source).digest() == digest
    assert kind in (1, 2, 3, 4)
    if kind == 4:
        assert all(length == 1 << 20 for *_, length in entries[:-1])
        assert not entries or 0 < entries[-1][-1] <= 1 << 20
    return bytes(source), merkle(leaves), entries


def open_list(source: bytes) -> dict[str, bytes]:
    """The files of a source of kind 3."""
    assert source[:8] == b"KEEPFLS\n"
    (count,) = struct.unpack(">I", source[8:12])
    rows, at, files = [], 12, {}
    for _ in range(count):
        (length,) = struct.unpack(">H", source[at : at + 2])
        name = source[at + 2 : at + 2 + length].decode()
        rows.append((name, *struct.unpack(">Q", source[at + 2 + length : at + 10 + length])))
        at += 10 + length
    for name, size in rows:
        files[name] = source[at : at + size]
        at += size
    assert at == len(source)
    return files


@pytest.mark.parametrize("size", [0, 1, 16384, 50_000])
def test_a_stranger_opens_plain_shards(sealed, size):
    body, model = sealed(bytes(size))
    source, root, _ = open_body(body, model.dek)
    assert (source, root) == (bytes(size), model.root)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 5])
def test_a_stranger_opens_pieces(size):
    sealing = seal(BytesReader(bytes(size)), kind=Kind.PIECES)
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    source, root, entries = open_body(body, sealing.model.dek)
    assert (source, root) == (bytes(size), sealing.model.root)
    assert len(entries) == -(-size // (1 << 20))


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


def test_a_stranger_opens_several_files():
    files = {"m.onnx": b"graph", "a": bytes(20_000), "w/1": b""}
    sealing = seal(FilesReader([(name, BytesReader(data)) for name, data in files.items()]))
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    source, root, entries = open_body(body, sealing.model.dek)
    assert root == sealing.model.root
    assert open_list(source) == files
    assert [entry[:3] for entry in entries] == [("m.onnx", "", ()), ("a", "", ()), ("w/1", "", ())]


def test_one_stream_opens_with_cobblestone_alone(sealed, tensors):
    """The second stream of a body: cut out by arithmetic, opened by nothing but HKDF and cryptography.cobblestone."""
    body, model = sealed(tensors)
    info = b"modelkeep/keep/1/stream" + struct.pack(">Q", 2)
    header_hash = hashlib.sha256(body[:48]).digest()
    begin = 48 + message_length(0)
    plain = decrypt(model.dek, header_hash, info, body[begin : begin + message_length(120)])
    assert plain == reference_load(tensors)["layer.bias"].tobytes()


@pytest.mark.parametrize("name", ["bodies", "bodies-suite-1"])
def test_a_stranger_opens_the_vectors_of_both_suites(name):
    rows = json.loads((Path(__file__).parents[1] / "vectors" / "container" / f"{name}.json").read_text())
    for row in rows:
        if row["valid"]:
            source, root, _ = open_body(base64.b64decode(row["file"]), base64.b64decode(row["dek"]))
            assert (source, root) == (base64.b64decode(row["source"]), base64.b64decode(row["root"]))
            files = {name: base64.b64decode(data) for name, data in row.get("files", {}).items()}
            assert not files or open_list(source) == files
