"""Proofs that travel: C2SP tlog-proof, checked with the verifier key alone."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.proofs import Proof, check_proof

ORIGIN = "keep.example/releases"

SIGNER = NoteSigner(ORIGIN, b"\x07" * 32)


def view_of(size):
    files = MemoryLogFiles()
    log = ReleasesLog(files, SIGNER, ORIGIN)
    log.create()
    log.append([b"entry %d" % number for number in range(size)])
    view = LogView(files, SIGNER.vkey, ORIGIN)
    view.refresh()
    return view


VIEW = view_of(300)
PROOF = VIEW.inclusion(257).encode()


def test_the_text_is_tlog_proof():
    lines = PROOF.decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra " + base64.b64encode(b"entry 257").decode(), "index 257"]
    blank = lines.index("")
    assert all(len(base64.b64decode(line)) == 32 for line in lines[3:blank])
    assert "\n".join(lines[blank + 1 :]).encode() == VIEW.note


@pytest.mark.parametrize("index", [0, 1, 255, 256, 299])
def test_every_entry_proves(index):
    proof, checkpoint = check_proof(VIEW.inclusion(index).encode(), SIGNER.vkey)
    assert (proof.entry, proof.index, checkpoint.size) == (b"entry %d" % index, index, 300)
    assert Proof.parse(proof.encode()) == proof


def test_a_log_of_one_has_an_empty_path():
    proof, _ = check_proof(view_of(1).inclusion(0).encode(), SIGNER.vkey)
    assert proof.path == ()


@settings(max_examples=200)
@given(st.data())
def test_no_flipped_bit_proves_anything_else(data):
    proof = bytearray(PROOF)
    at = data.draw(st.integers(0, len(proof) * 8 - 1))
    proof[at // 8] ^= 1 << at % 8
    with pytest.raises(NotTrusted):
        check_proof(bytes(proof), SIGNER.vkey)


def test_another_key_another_log_another_entry():
    with pytest.raises(NotTrusted):
        check_proof(PROOF, NoteSigner(ORIGIN, b"\x08" * 32).vkey)
    with pytest.raises(NotTrusted):
        check_proof(PROOF, SIGNER.vkey, "keep.example/audit")
    proof = Proof.parse(PROOF)
    for other in (Proof(257, b"forged", proof.path, proof.checkpoint), Proof(256, proof.entry, proof.path, proof.checkpoint)):
        with pytest.raises(NotTrusted):
            check_proof(other.encode(), SIGNER.vkey)


@pytest.mark.parametrize("cut", [0, 10, 30, 60, 200, -1])
def test_a_truncated_proof_proves_nothing(cut):
    with pytest.raises(NotTrusted):
        check_proof(PROOF[:cut], SIGNER.vkey)


def test_without_the_entry_it_is_refused_by_name():
    lines = PROOF.split(b"\n")
    with pytest.raises(Invalid, match="extra"):
        Proof.parse(b"\n".join([lines[0], *lines[2:]]))
