"""Cosignatures: what public witnesses said of public logs, and what an attacker would try."""

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.cosignatures import (
    ED25519,
    KINDS,
    ML_DSA_44,
    CosignatureVerifier,
    Cosigner,
    cosignatures,
    ed25519_message,
    subtree_message,
    with_lines,
)
from modelkeep.crypto.notes import Checkpoint, NoteSigner, SignatureLine, encode_vkey, split_note
from modelkeep.errors import Invalid, NotTrusted

VECTORS = Path(__file__).parents[1] / "vectors" / "cosignatures"
LOG = NoteSigner("keep.example/releases", b"l" * 32)
NOTE = Checkpoint(LOG.name, 7, b"r" * 32).sign(LOG)
TEXT = split_note(NOTE)[0]


def vkeys(name: str) -> list[str]:
    lines = (VECTORS / f"{name}.policy").read_text().splitlines()
    return [line.split()[2] for line in lines if line.startswith("witness ")]


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def cosigner(request):
    return Cosigner("witness.example/w1", b"w" * 32, request.param)


@pytest.mark.parametrize(("name", "times"), [("ed25519", [1779573024] * 4), ("ml-dsa-44", [1785704691] * 2)])
def test_public_witnesses_of_public_logs(name, times):
    verifiers = [CosignatureVerifier.parse(vkey) for vkey in vkeys(name)]
    assert [verifier.vkey for verifier in verifiers] == vkeys(name)
    note = (VECTORS / f"{name}.checkpoint").read_bytes()
    assert list(cosignatures(note, verifiers).values()) == times
    larger = note.replace(b"\n1", b"\n2", 1)
    with pytest.raises(NotTrusted, match="does not hold"):
        cosignatures(larger, verifiers)


def test_the_messages_of_the_specification():
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    assert ed25519_message(text, 1679315147) == b"cosignature/v1\ntime 1679315147\n" + text.encode()
    line = "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="
    assert int.from_bytes(base64.b64decode(line)[4:12], "big") == 1679315147
    found = subtree_message("w", 5, "log", (8, 13), b"r" * 32)
    assert found == b"subtree/v1\n\0\x01w" + bytes(7) + b"\x05\x03log" + bytes(7) + b"\x08" + bytes(7) + b"\x0d" + b"r" * 32
    with pytest.raises(Invalid):
        subtree_message("w", 0, "l" * 256, (0, 1), b"r" * 32)


def test_a_cosignature_holds_and_says_when(cosigner):
    note = with_lines(NOTE, [cosigner.cosign(TEXT, 1_700_000_000)])
    verifier = CosignatureVerifier.parse(cosigner.verifier.vkey)
    assert cosignatures(note, [verifier]) == {verifier: 1_700_000_000}
    assert with_lines(note, [cosigner.cosign(TEXT, 1_800_000_000)]) == note  # one line a key
    assert cosignatures(NOTE, [verifier]) == {}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(KINDS.values())), st.integers(0, 2500), st.integers(1, 255))
def test_no_byte_of_a_cosignature_can_change(kind, at, flip):
    cosigner = Cosigner("witness.example/w1", b"w" * 32, kind)
    data = bytearray(cosigner.cosign(TEXT, 1_700_000_000).data)
    data[4 + at % (len(data) - 4)] ^= flip
    with pytest.raises(NotTrusted):
        cosigner.verifier.check(TEXT, SignatureLine(cosigner.name, bytes(data)))


def test_what_is_signed_is_the_whole_checkpoint(cosigner):
    line = cosigner.cosign(TEXT, 1_700_000_000)
    for other in (TEXT.replace("7", "8"), TEXT.replace("keep", "beep"), Checkpoint(LOG.name, 7, b"q" * 32).text()):
        with pytest.raises(NotTrusted, match="does not hold"):
            cosigner.verifier.check(other, line)
    for short in (b"", line.data[:11], line.data[:-1], line.data + b"\0"):
        with pytest.raises(NotTrusted):
            cosigner.verifier.check(TEXT, SignatureLine(line.name, short))


def test_an_ordinary_signature_of_the_same_key_is_no_cosignature():
    witness = Cosigner("witness.example/w1", b"w" * 32)
    plain = NoteSigner("witness.example/w1", b"w" * 32)
    note = NOTE + plain.sign(TEXT).rpartition(b"\n\n")[2]
    assert cosignatures(note, [witness.verifier]) == {}
    body = split_note(note)[1][-1].data[4:]
    forged = SignatureLine(witness.name, witness.verifier.key_id + (1_700_000_000).to_bytes(8, "big") + body)
    with pytest.raises(NotTrusted):
        witness.verifier.check(TEXT, forged)


def test_one_bad_line_of_a_known_key_spoils_the_note(cosigner):
    good, bad = cosigner.cosign(TEXT, 1_700_000_000), cosigner.cosign(TEXT.replace("7", "9"), 1_700_000_000)
    with pytest.raises(NotTrusted, match="does not hold"):
        cosignatures(NOTE + good.encode() + bad.encode(), [cosigner.verifier])


@pytest.mark.parametrize("at", [0, -1, 1 << 63])
def test_times_that_are_none(cosigner, at):
    with pytest.raises(Invalid, match="clock"):
        cosigner.cosign(TEXT, at)


def test_a_time_that_no_signature_may_have():
    witness = Cosigner("w", b"w" * 32)
    at = 1 << 63
    data = witness.verifier.key_id + at.to_bytes(8, "big") + bytes(64)
    with pytest.raises(NotTrusted):
        witness.verifier.check(TEXT, SignatureLine("w", data))


def test_the_key_as_text(cosigner):
    again = Cosigner.parse(cosigner.secret())
    assert again.verifier == cosigner.verifier
    assert cosigner.secret() not in repr(cosigner)
    kind = {ED25519: "BA", ML_DSA_44: "Bn"}[cosigner.kind]
    assert cosigner.secret().startswith("PRIVATE+KEY+witness.example/w1+")
    assert cosigner.verifier.vkey.split("+", 2)[2].startswith(kind[0])


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "PRIVATE+KEY+",
        "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz",  # a note key, not a witness's
        Cosigner("w", b"w" * 32).secret()[:-4],
        Cosigner("w", b"w" * 32).secret().replace("+w+", "+v+"),
        Cosigner("w", b"w" * 32).secret() + "\n",
    ],
)
def test_keys_that_are_none(secret):
    with pytest.raises(Invalid) as refused:
        Cosigner.parse(secret)
    assert len(secret) < 30 or secret.rpartition("+")[2] not in str(refused.value)


def test_verifier_keys_that_are_none():
    with pytest.raises(Invalid, match="not a witness's"):
        CosignatureVerifier.parse(encode_vkey("w", b"p" * 32))
    good = Cosigner("w", b"w" * 32).verifier.vkey
    for bad in (good.replace("w+", "v+"), good[:-4], good.replace("+", " "), "w+00000000+" + good.split("+", 2)[2]):
        with pytest.raises(Invalid):
            CosignatureVerifier.parse(bad)
