"""The checked-in vectors, which every later version must go on reading, and refusing."""

import base64
import json
from pathlib import Path

import pytest

from modelkeep.container import BytesReader, Passphrase, XWingOpener, check_body, open_sealed, unpack_bytes
from modelkeep.crypto.wrap import unwrap_key
from modelkeep.errors import NotTrusted

FOLDER = Path(__file__).parents[1] / "vectors" / "container"


def vectors(*names: str, valid: bool):
    rows = [(name, row) for name in names for row in json.loads((FOLDER / f"{name}.json").read_text())]
    kept = [(name, row) for name, row in rows if row["valid"] is valid]
    return pytest.mark.parametrize("v", [row for _, row in kept], ids=[f"{name}: {row['comment']}" for name, row in kept])


def raw(v: dict, key: str) -> bytes:
    return base64.b64decode(v[key])


def refused(v: dict, call) -> None:
    with pytest.raises(NotTrusted, match=None if v["line"] == "NotTrusted" else v["line"]) as caught:
        call()
    assert "\n" not in str(caught.value)


def read(v: dict) -> bytes:
    return bytes(
        open_sealed(BytesReader(raw(v, "file")), raw(v, "dek"), root=raw(v, "root") if "root" in v else None).read_source()
    )


@vectors("bodies", "bodies-suite-1", valid=True)
def test_valid_bodies(v):
    assert read(v) == raw(v, "source")
    opened = open_sealed(BytesReader(raw(v, "file")), raw(v, "dek"))
    files = {name: base64.b64decode(data) for name, data in v.get("files", {}).items()}
    assert {file.name: opened.read_file(file.name) for file in opened.files()} == files
    check_body(BytesReader(raw(v, "file")), v["sealed_digest"])


@vectors("bodies", "bodies-suite-1", valid=False)
def test_invalid_bodies(v):
    refused(v, lambda: read(v))


@vectors("files", "files-suite-1", valid=True)
def test_valid_files(v):
    for opener in (Passphrase(v["passphrase"].encode()), XWingOpener(v["identity"])):
        assert unpack_bytes(raw(v, "file"), [opener], purpose=v["purpose"]) == raw(v, "source")


@vectors("files", "files-suite-1", valid=False)
def test_invalid_files(v):
    openers = [Passphrase(v["passphrase"].encode()), *([XWingOpener(v["identity"])] if "identity" in v else [])]
    refused(v, lambda: unpack_bytes(raw(v, "file"), openers, purpose=v["purpose"]))


@vectors("wrapped-keys", valid=True)
def test_valid_wrapped_keys(v):
    assert unwrap_key(raw(v, "kek"), raw(v, "file"), v["context"].encode()) == raw(v, "key")


@vectors("wrapped-keys", valid=False)
def test_invalid_wrapped_keys(v):
    refused(v, lambda: unwrap_key(raw(v, "kek"), raw(v, "file"), v["context"].encode()))
