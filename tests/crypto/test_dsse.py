"""DSSE: the specification's vector, then stripping, swapping and mending of signatures."""

import base64
import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.dsse import check_envelope, open_envelope, pae, parse_envelope, sign_envelope
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.errors import Invalid, ModelkeepError, NotTrusted

TYPE = "application/vnd.in-toto+json"
SIGNER = StatementSigner("keep/1", bytes(32), bytes([1]) * 32)
OTHER = StatementSigner("keep/2", bytes([2]) * 32, bytes([3]) * 32)
ENTRY = sign_envelope(TYPE, b"payload", SIGNER)


def test_known_answer():
    """DSSE protocol 1.0.2, "Test Vectors"."""
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    given = b"""{"payload": "aGVsbG8gd29ybGQ=", "payloadType": "http://example.com/HelloWorld", "signatures": [{"sig":
        "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="}]}"""
    envelope = parse_envelope(given)
    assert envelope.unverified_payload() == b"hello world"
    with pytest.raises(NotTrusted, match="0 of the 2"):
        check_envelope(envelope, SIGNER.public, "http://example.com/HelloWorld")


def test_lengths_count_bytes_not_characters():
    assert pae("é", "ü".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xbc"


@given(st.binary(max_size=500))
@settings(max_examples=20)
def test_what_was_signed_comes_back(payload):
    assert open_envelope(sign_envelope(TYPE, payload, SIGNER), SIGNER.public, TYPE) == payload


def edited(change):
    found = json.loads(ENTRY)
    change(found)
    return json.dumps(found).encode()


def cut(index):
    return edited(lambda e: e["signatures"].pop(index))


def foreign(data):
    theirs = json.loads(sign_envelope(TYPE, b"payload", OTHER))["signatures"]
    found = json.loads(data)
    found["signatures"] += theirs
    return json.dumps(found).encode()


def rekeyed(index):
    """Their signature under our keyid: the keyid is only a hint."""
    theirs = json.loads(sign_envelope(TYPE, b"payload", OTHER))["signatures"]
    return edited(lambda e: e["signatures"][index].update(sig=theirs[index]["sig"]))


def doubled(index):
    """One signature given under both key ids."""
    return edited(lambda e: e["signatures"][1 - index].update(sig=e["signatures"][index]["sig"]))


ATTACKS = {
    "the Ed25519 signature is stripped": cut(0),
    "the ML-DSA signature is stripped": cut(1),
    "stripped, and another identity's signatures are added": foreign(cut(1)),
    "another's Ed25519 signature under our keyid": rekeyed(0),
    "another's ML-DSA signature under our keyid": rekeyed(1),
    "the Ed25519 signature twice": doubled(0),
    "the ML-DSA signature twice": doubled(1),
    "another payload": edited(lambda e: e.update(payload=base64.b64encode(b"Payload").decode())),
    "another type": edited(lambda e: e.update(payloadType="application/json")),
    "no keyids": edited(lambda e: [s.pop("keyid") for s in e["signatures"]]),
    "a signature that is not base64": edited(lambda e: e["signatures"][0].update(sig="???")),
    "no signatures": edited(lambda e: e.update(signatures=[])),
    "a hundred signatures": edited(lambda e: e.update(signatures=e["signatures"] * 50)),
    "not JSON": ENTRY[:-1],
    "nothing": b"",
    "not an object": b"[]",
    "not UTF-8": b'{"payload": "\xff"}',
    "very deep": b'{"payload":' + b"[" * 20_000,
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_are_refused(data):
    with pytest.raises((NotTrusted, Invalid)):
        open_envelope(data, SIGNER.public, TYPE)


def test_a_cosignature_of_someone_else_does_no_harm():
    assert open_envelope(foreign(ENTRY), SIGNER.public, TYPE) == b"payload"


def test_the_same_statement_for_another_identity_is_refused():
    with pytest.raises(NotTrusted, match="0 of the 2"):
        open_envelope(ENTRY, OTHER.public, TYPE)


@given(st.integers(0, len(ENTRY) - 1), st.integers(0, 7))
@settings(max_examples=150)
def test_a_flipped_bit_never_gives_another_payload(position, bit):
    data = bytearray(ENTRY)
    data[position] ^= 1 << bit
    with contextlib.suppress(ModelkeepError):  # it may hold: a flip in a space, or in the unused bits of base64
        assert open_envelope(bytes(data), SIGNER.public, TYPE) == b"payload"
