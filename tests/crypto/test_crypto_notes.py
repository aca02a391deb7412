"""Signed notes and checkpoints: the answers of the Go reference implementation, and what an attacker would try."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.merkle import EMPTY_ROOT
from modelkeep.crypto.notes import Checkpoint, NoteSigner, NoteVerifier, encode_vkey, open_checkpoint, open_note
from modelkeep.errors import Invalid, NotTrusted

# golang.org/x/mod/sumdb/note, the reference implementation of the format
SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
# a checkpoint of the Go checksum database
SUMDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
SUMDB_NOTE = (
    "go.sum database tree\n13485\n/ZWur4obeiqK+ASdnPK+/Rmz6LPQMUeSmHh0+UkL54Y=\n\n"
    "\u2014 sum.golang.org Az3grnQReYTvpCrRxT+w50vixbqBlB/aPS8bL8f8KW4HHP+UjLSXOJgCh4f54n8hO6lrESglzyRXMXnhaWzaeY3zqw8=\n"
)


@pytest.fixture
def signer():
    return NoteSigner("PeterNeumann", SEED)


@pytest.fixture
def verifier():
    return NoteVerifier.parse(VKEY)


def test_the_reference_key_and_note(signer, verifier):
    assert signer.vkey == VKEY
    assert signer.sign(TEXT).decode() == TEXT + "\n" + LINE
    assert open_note((TEXT + "\n" + LINE).encode(), verifier) == TEXT


def test_a_real_checkpoint():
    checkpoint = open_checkpoint(SUMDB_NOTE.encode(), SUMDB, "go.sum database tree")
    assert checkpoint.size == 13485
    assert checkpoint.text() == SUMDB_NOTE.partition("\n\n")[0] + "\n"


def test_signatures_of_strangers_are_ignored(signer, verifier):
    stranger = NoteSigner("witness.example/w1", b"w" * 32)
    line = stranger.sign(TEXT).decode().rpartition("\n\n")[2]
    for lines in (line + LINE, LINE + line):
        assert open_note((TEXT + "\n" + lines).encode(), verifier) == TEXT
    with pytest.raises(NotTrusted, match="not signed by PeterNeumann"):
        open_note((TEXT + "\n" + line).encode(), verifier)


def test_the_same_name_with_another_key_is_a_stranger(verifier):
    with pytest.raises(NotTrusted, match="not signed"):
        open_note(NoteSigner("PeterNeumann", b"x" * 32).sign(TEXT), verifier)


def test_a_wrong_signature_beside_a_right_one_is_refused(signer, verifier):
    wrong = NoteSigner("PeterNeumann", SEED).sign("other\n").decode().rpartition("\n\n")[2]
    with pytest.raises(NotTrusted):
        open_note((TEXT + "\n" + LINE + wrong).encode(), verifier)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        TEXT,
        TEXT + LINE,
        TEXT + "\n",
        TEXT + "\n" + LINE[:-1],
        TEXT + "\n" + LINE + "\n",
        TEXT + "\n" + LINE.replace("\u2014", "-"),
        TEXT + "\n" + LINE.replace(" x08", "  x08"),
        TEXT + "\n" + LINE.replace("=", ""),
        TEXT + "\n" + LINE.replace("AM=", "AN="),
        TEXT + "\n" + "\u2014 PeterNeumann x08g\n",
        TEXT + "\n" + LINE + "\u2014 a+b AAAAAAAA\n",
        TEXT.replace("\n", "\r\n") + "\n" + LINE,
        TEXT + "\t\n" + LINE,
        "!" + TEXT + "\n" + LINE,
        TEXT + "\n" + LINE * 101,
    ],
)
def test_malformed_notes(note, verifier):
    with pytest.raises(NotTrusted):
        open_note(note.encode(), verifier)


def test_a_note_that_is_not_text_or_is_huge(verifier):
    for note in (b"\xff\n\n" + LINE.encode(), b"a" * (1 << 20) + b"\n\n" + LINE.encode()):
        with pytest.raises(NotTrusted):
            open_note(note, verifier)


@settings(max_examples=150)
@given(st.data())
def test_every_flipped_bit_is_noticed(data):
    note = bytearray((TEXT + "\n" + LINE).encode())
    at = data.draw(st.integers(0, len(note) * 8 - 1))
    note[at // 8] ^= 1 << at % 8
    with pytest.raises(NotTrusted):
        open_note(bytes(note), NoteVerifier.parse(VKEY))


@pytest.mark.parametrize(
    "vkey",
    ["", "a", "a+b", VKEY[:-4], VKEY.replace("c74f", "c74e"), "Peter" + VKEY, VKEY.replace("ARpc", "BBpc"), "a b" + VKEY[12:]],
)
def test_malformed_verifier_keys(vkey):
    with pytest.raises(Invalid):
        NoteVerifier.parse(vkey)


def test_malformed_signers():
    for name, seed in (("a b", SEED), ("a+b", SEED), ("", SEED), ("a", SEED[:31])):
        with pytest.raises(Invalid):
            NoteSigner(name, seed)
    with pytest.raises(Invalid):
        encode_vkey("a", b"short")


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "cr\r\n"])
def test_text_that_cannot_be_a_note(signer, text):
    with pytest.raises(Invalid):
        signer.sign(text)


def test_the_seed_is_never_shown_and_subkeys_are_apart(signer):
    assert SEED.hex() not in repr(signer)
    assert repr(SEED) not in repr(signer)
    other = NoteSigner("other", SEED)
    assert len({signer.subkey(b"a"), signer.subkey(b"b"), other.subkey(b"a"), SEED}) == 4


def test_checkpoints_round_trip(signer):
    checkpoint = Checkpoint("PeterNeumann", 0, EMPTY_ROOT)
    assert open_checkpoint(checkpoint.sign(signer), VKEY, "PeterNeumann") == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "log\n",
        "log\n1\n",
        "log\n01\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "log\n-1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "log\n1\n" + base64.b64encode(bytes(31)).decode() + "\n",
        "log\n1\n!\n",
        "other\n1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "\n1\n" + base64.b64encode(bytes(32)).decode() + "\n",
        "log\n1\n" + base64.b64encode(bytes(32)).decode() + "\n\nx\n",
    ],
)
def test_signed_notes_that_are_no_checkpoint_of_this_log(signer, text):
    with pytest.raises(NotTrusted):
        open_checkpoint(signer.sign(text), VKEY, "log")


def test_extension_lines_are_allowed(signer):
    text = Checkpoint("log", 1, bytes(32)).text() + "extension\n"
    assert open_checkpoint(signer.sign(text), VKEY, "log").size == 1
