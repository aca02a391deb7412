"""Identities: the standards' known answers, then every way to make do with one signature."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.signatures import PairSignature, PublicIdentity, StatementSigner
from modelkeep.errors import Invalid, NotTrusted

RFC8032 = [  # RFC 8032, section 7.1: secret key, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]
SIGNER = StatementSigner("keep/1", bytes(32), bytes([1]) * 32)
OTHER = StatementSigner("keep/1", bytes([2]) * 32, bytes([3]) * 32)


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC8032)
def test_ed25519_known_answers(secret, public, message, signature):
    signer = StatementSigner("rfc8032", bytes.fromhex(secret), bytes(32))
    assert signer.public.ed25519.hex() == public
    assert signer.sign(bytes.fromhex(message)).ed25519.hex() == signature


def test_ml_dsa_65_known_key():
    """Wycheproof, mldsa_65_sign_seed_test.json, first group: the two ends of the public key of the seed 2a2a...2a."""
    public = StatementSigner("wycheproof", bytes(32), bytes([0x2A]) * 32).public.mldsa65.hex()
    assert len(public) == 2 * 1952
    assert public.startswith("f5408337d0fee65c28851226a5fa81b58464632c78e2a9bef70d330f2e3a5f74d9cf676aedd1067c")
    assert public.endswith(
        "201feca4a81d334c642fc8d38e9a90fa77429665e09e214797dfa455ff47c4f219d3a2cb0176bc2236455123c1c5da714ad29d580fb194f87173a18dc"
    )


@given(st.binary(max_size=300), st.binary(max_size=300))
@settings(max_examples=25)
def test_a_signature_holds_for_its_message_alone(message, other):
    signature = SIGNER.sign(message)
    SIGNER.public.check(message, signature)
    if other != message:
        with pytest.raises(NotTrusted, match="Ed25519"):
            SIGNER.public.check(other, signature)


def test_both_halves_are_needed():
    mine, theirs = SIGNER.sign(b"m"), OTHER.sign(b"m")
    with pytest.raises(NotTrusted, match="ML-DSA-65"):
        SIGNER.public.check(b"m", PairSignature(mine.ed25519, theirs.mldsa65))
    with pytest.raises(NotTrusted, match="Ed25519"):
        SIGNER.public.check(b"m", PairSignature(theirs.ed25519, mine.mldsa65))
    with pytest.raises(NotTrusted):
        SIGNER.public.check(b"m", PairSignature(mine.ed25519, b""))
    with pytest.raises(NotTrusted):
        SIGNER.public.check(b"m", PairSignature(b"", mine.mldsa65))


@given(st.integers(0, 3308), st.integers(0, 7))
@settings(max_examples=25)
def test_no_bit_of_the_second_signature_may_change(position, bit):
    good = SIGNER.sign(b"m")
    bad = bytearray(good.mldsa65)
    bad[position] ^= 1 << bit
    with pytest.raises(NotTrusted):
        SIGNER.public.check(b"m", PairSignature(good.ed25519, bytes(bad)))


def test_no_secret_is_shown_and_sizes_are_checked():
    assert repr(SIGNER) == "StatementSigner('keep/1')"
    with pytest.raises(Invalid):
        StatementSigner("x", bytes(31), bytes(32))
    with pytest.raises(Invalid):
        PublicIdentity("x", bytes(32), bytes(32))
