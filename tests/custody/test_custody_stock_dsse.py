"""Other people's tools read our statements: securesystemslib checks the envelope, dilithium-py the post-quantum signature."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from dilithium_py.ml_dsa import ML_DSA_65
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from modelkeep.core.values import Resource, digest_of
from modelkeep.crypto.dsse import pae
from modelkeep.crypto.signatures import PairSignature, StatementSigner
from modelkeep.errors import NotTrusted
from modelkeep.ledger.predicates import Act
from modelkeep.ledger.statements import PAYLOAD_TYPE, make_statement, open_statement, sign_statement

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "dsse" / "mldsa65.json").read_text("utf-8"))
SIGNER = StatementSigner.from_seeds("keep/statement-signing/1", bytes(32), bytes(range(32)))
STATEMENT = make_statement(Act(actor="ann", at=1, verb="test", about="it"), Resource("keep", digest_of(b"keep")))
ENTRY = sign_statement(STATEMENT, SIGNER)


def stock_key(keyid=None):
    """The Ed25519 half as securesystemslib wants it; its keyid is what our envelope calls the key."""
    public = Ed25519PublicKey.from_public_bytes(SIGNER.public.ed25519)
    return SSlibKey.from_crypto(public, keyid=keyid or SIGNER.public.key_ids[0])


def stock(entry):
    return Envelope.from_dict(json.loads(entry))


def test_a_stock_verifier_checks_our_envelope_over_the_standard_encoding():
    envelope = stock(ENTRY)
    assert envelope.pae() == pae(PAYLOAD_TYPE, envelope.payload)
    assert list(envelope.verify([stock_key()], threshold=1)) == [SIGNER.public.key_ids[0]]
    assert json.loads(envelope.payload)["_type"] == "https://in-toto.io/Statement/v1"


def test_a_stock_verifier_refuses_what_was_changed():
    data = json.loads(ENTRY)
    data["payload"] = base64.b64encode(base64.b64decode(data["payload"]).replace(b'"test"', b'"tess"')).decode()
    with pytest.raises(VerificationError):
        stock(json.dumps(data)).verify([stock_key()], threshold=1)


def test_we_accept_what_a_stock_tool_wrote_again():
    """It keeps payload, type and signatures; the order of fields and of signatures is its own."""
    data = stock(ENTRY).to_dict()
    data["signatures"] = data["signatures"][::-1]
    statement, identity = open_statement(json.dumps(data, indent=2).encode(), SIGNER.public)
    assert (statement, identity) == (STATEMENT, SIGNER.public)


@pytest.mark.parametrize("kept", [(0,), (1,)], ids=["without ML-DSA-65", "without Ed25519"])
def test_a_stripped_envelope_fails_in_ours_whatever_a_stock_verifier_says(kept):
    data = json.loads(ENTRY)
    data["signatures"] = [data["signatures"][index] for index in kept]
    if kept == (0,):
        stock(json.dumps(data)).verify([stock_key()], threshold=1)  # it asks for one key and finds it
    with pytest.raises(NotTrusted):
        open_statement(json.dumps(data).encode(), SIGNER.public)


@pytest.mark.parametrize("which", [0, 1], ids=["Ed25519", "ML-DSA-65"])
@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: bytes(len(raw)), lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])]
)
def test_both_signatures_must_hold_not_merely_be_there(which, change):
    data = json.loads(ENTRY)
    signature = data["signatures"][which]
    signature["sig"] = base64.b64encode(change(base64.b64decode(signature["sig"]))).decode()
    with pytest.raises(NotTrusted):
        open_statement(json.dumps(data).encode(), SIGNER.public)


def test_one_signature_twice_is_not_two():
    data = json.loads(ENTRY)
    data["signatures"][1] = data["signatures"][0]
    with pytest.raises(NotTrusted):
        open_statement(json.dumps(data).encode(), SIGNER.public)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['payload']) // 2} bytes")
def test_an_independent_ml_dsa_65_derives_the_same_key_and_its_signatures_hold(vector):
    seed, public, payload, signature = (bytes.fromhex(vector[name]) for name in ("seed", "public", "payload", "signature"))
    signer = StatementSigner.from_seeds("independent", bytes(32), seed)
    assert signer.public.mldsa65 == public
    message = pae(PAYLOAD_TYPE, payload)
    ours = signer.sign(message)
    signer.public.check(message, PairSignature(ours.ed25519, signature))
    with pytest.raises(NotTrusted, match="ML-DSA-65"):
        signer.public.check(message + b"!", PairSignature(signer.sign(message + b"!").ed25519, signature))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{len(vector['payload']) // 2} bytes")
def test_an_independent_ml_dsa_65_verifies_ours(vector):
    payload, message = bytes.fromhex(vector["payload"]), pae(PAYLOAD_TYPE, bytes.fromhex(vector["payload"]))
    key = MLDSA65PrivateKey.from_seed_bytes(bytes.fromhex(vector["seed"]))
    public = key.public_key().public_bytes_raw()
    assert ML_DSA_65.verify(public, message, key.sign(message))
    assert not ML_DSA_65.verify(public, message + b"!", key.sign(message))
    assert payload in message
