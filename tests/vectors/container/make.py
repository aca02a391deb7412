"""Make the container's test vectors: ``python tests/vectors/container/make.py`` rewrites the JSON files beside it.

Cobblestone and the recipients draw their own randomness, so every run makes other bytes; what is checked in is what counts.
The files with ``suite-1`` in their names were made when that suite was written. Nothing makes it now: they stay as they are.
Each vector has ``comment``, ``valid``, ``file`` (base64), the keys to open it, and what comes out or the failure's ``line``.
"""

import base64
import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from modelkeep.container import (
    Binding,
    BytesReader,
    FilesReader,
    Kind,
    Passphrase,
    XWingRecipient,
    encode_recipients,
    pack_bytes,
    seal,
    split_file,
)
from modelkeep.core.values import Digest, digest_of
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.wrap import wrap_key
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.formats import safetensors

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "container"))
from forge import assemble, files_body, flip, fresh_streams, listing, parts, with_entry  # noqa: E402

DEK = bytes(range(32))
CHEAP = Argon2Params(memory_kib=64, passes=1, lanes=1)
TENSORS = safetensors.dump(
    {
        "bias": np.arange(3, dtype=np.float32),
        "empty": np.zeros((0, 2), np.int64),
        "gain": np.ones(3, np.float32),
        "weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    },
    {"made": "for a test"},
)
SOURCES = {
    "an empty source": b"",
    "one byte": b"x",
    "a chunk and a byte": bytes(16385),
    "safetensors with an empty tensor": TENSORS,
    "safetensors without tensors": safetensors.dump({}),
    "what only looks like safetensors": (9).to_bytes(8, "little") + b'{"a":1}  ',
    "what is a list of files in one file": listing([(b"a", 1)]) + b"x",
}
FILES = {"model.onnx": b"the graph", "weights/a.bin": bytes(20_000), "weights/b.bin": b""}


def sealed(source: bytes) -> tuple[bytes, bytes]:
    """A body under ``DEK``, and its root."""
    sealing = seal(BytesReader(source), dek=DEK)
    return b"".join(bytes(chunk) for chunk in sealing.chunks()), sealing.model.root


def vector(comment: str, file: bytes, **more: object) -> dict[str, object]:
    encoded = {key: base64.b64encode(value).decode() if isinstance(value, bytes) else value for key, value in more.items()}
    return {"comment": comment, "valid": "line" not in more, "file": base64.b64encode(file).decode()} | encoded


def valid_bodies() -> Iterator[dict[str, object]]:
    for comment, source in SOURCES.items():
        body, root = sealed(source)
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        yield vector(comment, body, dek=DEK, source=source, root=root, sealed_digest=digest)
    bundle = FilesReader([(name, BytesReader(data)) for name, data in FILES.items()])
    sealing = seal(bundle, dek=DEK)
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    source = bundle.head + b"".join(FILES.values())
    files = {name: base64.b64encode(data).decode() for name, data in FILES.items()}
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    yield vector("three files", body, dek=DEK, source=source, root=sealing.model.root, sealed_digest=digest, files=files)


def damaged_bodies() -> Iterator[dict[str, object]]:
    body, root = sealed(TENSORS)
    other, _ = sealed(TENSORS.replace(b"for a test", b"for a feat"))
    header, streams, _ = parts(body, DEK)
    after = body[48 + sum(map(len, streams)) :]
    swapped = b"".join((header, streams[0], streams[2], streams[1], streams[3], after))
    cases = [
        ("nothing", b"", "empty"),
        ("cut in the header", body[:20], "cut off"),
        ("cut in a stream", body[:100], "does not end with its footer"),
        ("cut by one byte", body[:-1], "does not end with its footer"),
        ("a byte appended", body + b"\0", "does not end with its footer"),
        ("magic altered", flip(body, 1), "not a modelkeep container"),
        ("format version 2", body[:8] + b"\x02" + body[9:], "format version 2"),
        ("cipher suite 3", body[:9] + b"\x03" + body[10:], "cipher suite 3"),
        ("passed off as cipher suite 1", body[:9] + b"\x01" + body[10:], "index does not decrypt"),
        ("a reserved byte set", body[:15] + b"\x01" + body[16:], "upgrade modelkeep"),
        ("header salt flipped", flip(body, 20), "index does not decrypt"),
        ("first stream flipped", flip(body, 60), "was altered"),
        ("index flipped", flip(body, -60), "index does not decrypt"),
        ("footer length flipped", flip(body, -9), "should have"),
        ("index length flipped", flip(body, -17), "NotTrusted"),
        (
            "two streams of equal length swapped",
            swapped,
            "was altered",
        ),
        ("streams of another body with the same key", header + other[48 : -len(after)] + after, "was altered"),
        ("index of another body with the same key", body[: -len(after)] + other[-len(after) :], "index does not decrypt"),
        ("plain safetensors", TENSORS, "plain safetensors file"),
        ("a pickle", b"\x80\x04\x95" + bytes(90), "a pickle"),
        ("text", b"not a container at all, but some text that is long enough to be one", "not a modelkeep container"),
    ]
    for comment, file, line in cases:
        yield vector(comment, file, dek=DEK, root=root, line=line)
    yield vector("another data key", body, dek=bytes(32), root=root, line="not its key")


def forged_bodies() -> Iterator[dict[str, object]]:
    """What a holder of the data key can build."""
    body, root = sealed(TENSORS)
    header, streams, index = parts(body, DEK)
    renamed = "renamed, reshaped or moved"
    cases = [
        ("a tensor renamed in the index", with_entry(index, 1, name="evil"), renamed),
        ("a tensor reshaped in the index", with_entry(index, 3, shape=(3, 2)), renamed),
        ("a tensor's dtype changed in the index", with_entry(index, 1, dtype="I32"), renamed),
        ("a wrong digest in the index", with_entry(index, 1, digest=bytes(32)), "does not have the BLAKE3 digest"),
        (
            "a SHA-256 where the suite has BLAKE3",
            with_entry(index, 1, digest=hashlib.sha256(np.ones(3, np.float32)).digest()),
            "does not have the BLAKE3 digest",
        ),
        ("an entry too many", replace(index, entries=(*index.entries, index.entries[0])).encode(), "other streams"),
        ("an entry too few", replace(index, entries=index.entries[:-1]).encode(), "renamed, reshaped or moved"),
        ("a byte after the index", index.encode() + b"\0", "other streams"),
        ("an unknown kind", b"\x04" + index.encode()[1:], "malformed"),
        ("safetensors passed off as a list of files", replace(index, kind=Kind.FILES).encode(), "malformed"),
    ]
    for comment, plain, line in cases:
        yield vector(comment, assemble(header, streams, plain, DEK), dek=DEK, line=line)
    entries = tuple(msgspec.structs.replace(e, name=e.name.replace("bias", "evil")) for e in index.entries)
    both = replace(index, head=index.head.replace(b'"bias"', b'"evil"'), entries=entries).encode()
    yield vector("a tensor renamed in index and head", assemble(header, streams, both, DEK), dek=DEK, root=root, line="signed")
    plain_body, plain_root = sealed(b"honest weights")
    _, _, honest = parts(plain_body, DEK)
    header, streams = fresh_streams([b"poison weights"], DEK)
    poisoned = assemble(header, streams, honest.encode(), DEK)
    yield vector(
        "other weights under the honest index", poisoned, dek=DEK, root=plain_root, line="does not have the BLAKE3 digest"
    )


def forged_lists() -> Iterator[dict[str, object]]:
    """Lists of files that a holder of the data key can build, to have files written where they do not belong."""
    cases: list[tuple[str, list[bytes]]] = [
        ("an absolute name", [b"/etc/passwd"]),
        ("a name that climbs out", [b"a", b"../b"]),
        ("a name that climbs out further in", [b"a/../../b"]),
        ("a name with a single dot", [b"./a"]),
        ("an empty name", [b""]),
        ("an empty part of a name", [b"a//b"]),
        ("a name that ends as a folder", [b"a/"]),
        ("a name with a backslash", [b"a\\b"]),
        ("a name with a NUL", [b"a\0b"]),
        ("a name with a line feed", [b"a\nb"]),
        ("a name that is not UTF-8", [b"\xff"]),
        ("a name of 1,025 bytes", [b"/".join([b"x" * 204] * 5) + b"y"]),
        ("a part of 256 bytes", [b"x" * 256]),
        ("33 parts", [b"/".join([b"x"] * 33)]),
        ("the same name twice", [b"a", b"b", b"b"]),
        ("the model's name twice", [b"b", b"a", b"b"]),
        ("names out of order", [b"m", b"b", b"a"]),
        ("a name below another file", [b"a", b"a/b"]),
    ]
    for comment, names in cases:
        head = listing([(name, 1) for name in names])
        body, root = files_body(head, [(name.decode("utf-8", "replace"), b"x") for name in names], DEK)
        yield vector(comment, body, dek=DEK, root=root, line="malformed")
    rows = [(b"a", 1), (b"b", 1)]
    heads = [
        ("no file", listing([])),
        ("a list that counts too many", listing(rows, 3)),
        ("a list that counts too few", listing(rows, 1)),
        ("a list that counts millions", listing(rows, 0xFFFFFFFF)),
        ("a list with a byte too many", listing(rows) + b"\0"),
        ("sizes that do not fill the source", listing([(b"a", 1), (b"b", 2)])),
        ("sizes whose sum is beyond 2^64", listing([(b"a", 1), (b"b", 0xFFFFFFFFFFFFFFFF)])),
        ("another list's magic", b"KEEPFLZ\n" + listing(rows)[8:]),
    ]
    for comment, head in heads:
        body, root = files_body(head, [("a", b"x"), ("b", b"y")], DEK)
        yield vector(comment, body, dek=DEK, root=root, line="malformed")
    renamed, _ = files_body(listing(rows), [("a", b"x"), ("c", b"y")], DEK)
    yield vector("a file renamed in the index", renamed, dek=DEK, line="renamed, reshaped or moved")
    _, honest = files_body(listing(rows), [("a", b"x"), ("b", b"y")], DEK)
    both, _ = files_body(listing([(b"a", 1), (b"c", 1)]), [("a", b"x"), ("c", b"y")], DEK)
    yield vector("a file renamed in index and list", both, dek=DEK, root=honest, line="signed")
    swapped, _ = files_body(listing(rows), [("a", b"y"), ("b", b"x")], DEK)
    yield vector("two files swapped", swapped, dek=DEK, root=honest, line="signed")


def standalone_files() -> Iterator[dict[str, object]]:
    identity = generate_identity()
    recipients = [Passphrase(b"correct horse", CHEAP), XWingRecipient(recipient_of(identity))]
    file = pack_bytes(b"a secret", recipients, purpose="keys/test")
    body = split_file(BytesReader(file)).body.size
    keys = {"passphrase": "correct horse", "identity": identity, "purpose": "keys/test"}
    yield vector("passphrase and X-Wing recipient", file, source=b"a secret", **keys)
    swapped = pack_bytes(b"a secret", recipients, purpose="keys/test")
    lying = _block_naming(digest_of(b"another"))
    strong = struct.pack(">IBB", 64, 1, 1), struct.pack(">IBB", 1 << 21, 1, 1)
    cases = [
        ("wrong passphrase", file, keys | {"passphrase": "wrong horse", "identity": generate_identity()}, "does not open"),
        ("another purpose", file, keys | {"purpose": "keys/other"}, "is for 'keys/test'"),
        ("block MAC flipped", flip(file, -21), keys, "was altered"),
        ("recipient block of another file", file[:body] + swapped[body:], keys, "NotTrusted"),
        ("Argon2id memory over the cap", file[:body] + file[body:].replace(*strong, 1), keys, "out of bounds"),
        ("cut by one byte", file[:-1], keys, "does not end with its trailer"),
        ("a byte appended", file + b"\0", keys, "does not end with its trailer"),
        ("body alone", file[:body], keys, "does not end with its trailer"),
        ("block that names another source", lying[0], {"passphrase": lying[1], "purpose": "keys/test"}, "names another source"),
    ]
    for comment, data, with_keys, line in cases:
        yield vector(comment, data, line=line, **with_keys)


def _block_naming(digest: Digest) -> tuple[bytes, str]:
    """A file whose block, made by a holder of its data key, names another source; and its passphrase."""
    sealing = seal(BytesReader(b"a secret"), dek=DEK)
    body = b"".join(bytes(chunk) for chunk in sealing.chunks())
    binding = Binding(sealing.model.header_hash, digest, "keys/test")
    block = encode_recipients([Passphrase(b"correct horse", CHEAP).stanza(DEK, binding.context())], DEK, binding)
    return body + block + struct.pack(">QI8s", len(body), len(block), b"KEEPFIL\n"), "correct horse"


def wrapped_keys() -> Iterator[dict[str, object]]:
    kek, key = bytes(range(32, 64)), bytes(range(64, 96))
    wrapped = wrap_key(kek, key, b"context")
    yield vector("a wrapped key", wrapped, kek=kek, context="context", key=key)
    yield vector("another context", wrapped, kek=kek, context="other", line="another key or for another purpose")
    yield vector("another key", wrapped, kek=bytes(32), context="context", line="another key or for another purpose")
    yield vector("ciphertext flipped", flip(wrapped, 70), kek=kek, context="context", line="altered")
    yield vector("cut", wrapped[:-1], kek=kek, context="context", line="112 bytes")


def main() -> None:
    """Write every file."""
    tables = {
        "bodies": [*valid_bodies(), *damaged_bodies(), *forged_bodies(), *forged_lists()],
        "files": list(standalone_files()),
        "wrapped-keys": list(wrapped_keys()),
    }
    for name, rows in tables.items():
        (HERE / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
