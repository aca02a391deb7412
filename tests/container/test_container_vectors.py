"""The checked-in vectors, which every later version must go on reading, and refusing."""

import base64
import json
from pathlib import Path

import pytest

from modelkeep.container import BytesReader, Passphrase, XWingOpener, check_body, open_sealed, unpack_bytes
from modelkeep.crypto.wrap import unwrap_key
from modelkeep.errors import NotTrusted

FOLDER = Path(__file__).parents[1] / "vectors" / "container"


def vectors(name: str, *, valid: bool):
    rows = [row for row in json.loads((FOLDER / f"{name}.json").read_text()) if row["valid"] is valid]
    return pytest.mark.parametrize("v", rows, ids=[row["comment"] for row in rows])


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


@vectors("bodies", valid=True)
def test_valid_bodies(v):
    assert read(v) == raw(v, "source")
    check_body(BytesReader(raw(v, "file")), v["sealed_digest"])


@vectors("bodies", valid=False)
def test_invalid_bodies(v):
    refused(v, lambda: read(v))


@vectors("files", valid=True)
def test_valid_files(v):
    for opener in (Passphrase(v["passphrase"].encode()), XWingOpener(v["identity"])):
        assert unpack_bytes(raw(v, "file"), [opener], purpose=v["purpose"]) == raw(v, "source")


@vectors("files", valid=False)
def test_invalid_files(v):
    openers = [Passphrase(v["passphrase"].encode()), *([XWingOpener(v["identity"])] if "identity" in v else [])]
    refused(v, lambda: unpack_bytes(raw(v, "file"), openers, purpose=v["purpose"]))


@vectors("wrapped-keys", valid=True)
def test_valid_wrapped_keys(v):
    assert unwrap_key(raw(v, "kek"), raw(v, "file"), v["context"].encode()) == raw(v, "key")


@vectors("wrapped-keys", valid=False)
def test_invalid_wrapped_keys(v):
    refused(v, lambda: unwrap_key(raw(v, "kek"), raw(v, "file"), v["context"].encode()))
